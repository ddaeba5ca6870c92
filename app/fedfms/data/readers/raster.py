"""PNG, TIFF and JPEG images and masks, 8 and 16 bit, without loss of bits."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from fedfms.data.volume.geometry import Array
from fedfms.data.volume.remedies import GeneralRemedy
from fedfms.errors import IMAGE_MISSING, IMAGE_UNREADABLE, FedfmsError, fail, reason_of

SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".jpeg")

_READ_FAULTS = (
    OSError,
    UnidentifiedImageError,
    Image.DecompressionBombError,
    SyntaxError,  # what Pillow raises for a damaged PNG chunk
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
)
_EXIF_ORIENTATION = 0x0112
_TIFF_BITS_PER_SAMPLE = 258
_MODES = ("1", "L", "LA", "P", "I;16", "I;16B", "I;16L", "I", "F", "RGB", "RGBA")


def read_image(path: Path) -> Array:
    """Read an image.

    Returns:
        (rows, columns) for grey, (rows, columns, 3) for RGB; uint8 or uint16 as stored (int32 or float32 for TIFF
        files with such values). A palette becomes RGB, one bit becomes 0 and 255.

    Raises:
        FedfmsError: FMS-D003 when it is missing; FMS-D004 when it is truncated or unreadable, or has several pages,
            transparent parts, values that are not finite, an EXIF rotation, or a colour space other than grey and RGB.
    """
    values = _pixels(path, palette_as_colour=True)
    if values.dtype.kind == "b":
        values = values.astype(np.uint8) * np.uint8(255)
    if values.ndim == 3 and values.shape[2] in (2, 4):
        if values[..., -1].min() != np.iinfo(values.dtype).max:
            raise fail(
                IMAGE_UNREADABLE,
                path,
                "a part of the image is transparent",
                GeneralRemedy("Save it without alpha channel."),
            )
        values = values[..., 0] if values.shape[2] == 2 else values[..., :3]
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise fail(IMAGE_UNREADABLE, path, "the image holds values that are not finite")
    return values


def read_mask(path: Path) -> Array:
    """Read a mask: grey values, palette indices, 0 and 1 for one-bit files, or RGB with three equal channels.

    Returns:
        (rows, columns), integers.

    Raises:
        FedfmsError: FMS-D003 when it is missing; FMS-D004 when it is truncated, unreadable, or in colour.
    """
    values = _pixels(path, palette_as_colour=False)
    if values.ndim == 3:
        colours = values[..., : 1 if values.shape[2] == 2 else 3]
        if not (colours == colours[..., :1]).all():
            raise fail(
                IMAGE_UNREADABLE,
                path,
                "the mask is a colour image",
                GeneralRemedy("Save one value per structure, in grey."),
            )
        values = colours[..., 0]
    if values.dtype.kind == "b":
        return values.astype(np.uint8)
    if values.dtype.kind == "f":
        raise fail(IMAGE_UNREADABLE, path, "the mask holds fractional numbers, not labels")
    return values


def _pixels(path: Path, *, palette_as_colour: bool) -> Array:
    if not path.is_file():
        raise fail(IMAGE_MISSING, path, "no such file")
    try:
        with Image.open(path) as image:
            return _decoded(path, image, palette_as_colour)
    except _READ_FAULTS as error:
        raise _unreadable(path, error) from error


def _decoded(path: Path, image: Image.Image, palette_as_colour: bool) -> Array:
    raw_mode = _raw_mode(image)  # first: reading EXIF data decodes a PNG, and its raw mode is then lost
    pages = getattr(image, "n_frames", 1)
    if pages != 1:
        raise fail(
            IMAGE_UNREADABLE, path, f"the file has {pages} pages", GeneralRemedy("Save each page as a file of its own.")
        )
    if image.getexif().get(_EXIF_ORIENTATION, 1) != 1:
        # Nobody knows whether the mask was drawn before or after the rotation.
        raise fail(
            IMAGE_UNREADABLE,
            path,
            "the file must be rotated for viewing (EXIF orientation)",
            GeneralRemedy("Save it upright, without this tag."),
        )
    if image.mode in ("RGB", "RGBA", "LA") and ("16" in raw_mode or _tiff_bits(image) > 8):
        return _16_bit(path)
    if image.mode not in _MODES:
        raise fail(
            IMAGE_UNREADABLE,
            path,
            f"colour space {image.mode} is not supported",
            GeneralRemedy("Save it as RGB or grey."),
        )
    image.load()
    if image.mode == "P" and palette_as_colour:
        image = image.convert("RGBA")
    values: Array = np.asarray(image)
    if image.mode == "I" and raw_mode.startswith("I;16"):
        return values.astype(np.uint16)  # older Pillow widens 16-bit grey PNG to 32 bit
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def _tiff_bits(image: Image.Image) -> int:
    """BitsPerSample of a TIFF; Pillow's raw mode does not show it when each colour is stored as a plane."""
    tags = getattr(image, "tag_v2", None)
    return max(tags.get(_TIFF_BITS_PER_SAMPLE, (8,))) if tags is not None else 8


def _raw_mode(image: Image.Image) -> str:
    """How pixels are stored in the file, such as ``RGB;16B``; read before Pillow decodes."""
    tiles = getattr(image, "tile", None)
    if not tiles:
        return ""
    arguments = tiles[0][3]
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return first if isinstance(first, str) else ""


def _16_bit(path: Path) -> Array:
    # Pillow reduces 16-bit colour, and 16-bit grey with alpha, to 8 bit.
    if path.suffix.lower() == ".png":
        from torchvision.io import ImageReadMode, decode_image

        try:
            planes = decode_image(str(path), mode=ImageReadMode.UNCHANGED)
        except RuntimeError as error:
            raise _unreadable(path, error) from error
        decoded: Array = planes.permute(1, 2, 0).numpy()
        return decoded
    import tifffile

    try:
        values: Array = tifffile.imread(path)
    except (*_READ_FAULTS, tifffile.TiffFileError, IndexError, KeyError) as error:
        raise _unreadable(path, error) from error
    if values.ndim == 3 and values.shape[0] in (3, 4) and values.shape[2] not in (3, 4):
        values = np.moveaxis(values, 0, 2)  # planar storage
    return values


def _unreadable(path: Path, error: Exception) -> FedfmsError:
    return fail(IMAGE_UNREADABLE, path, reason_of(error))
