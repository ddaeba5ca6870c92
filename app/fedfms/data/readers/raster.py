"""PNG, TIFF and JPEG images and masks, 8 and 16 bit, without loss of bits.

Pillow decodes; what it would read wrongly without a word is refused or read in another way (``_decoded``).
"""

from __future__ import annotations

import math
import re
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from fedfms.access import is_file, unreadable
from fedfms.data.volume.checks import whole_numbers
from fedfms.data.volume.geometry import Array
from fedfms.data.volume.remedies import GeneralRemedy
from fedfms.errors import IMAGE_MISSING, IMAGE_UNREADABLE, LABEL_UNKNOWN, FedfmsError, fail

SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".jpeg")

#: Colours (red, green, blue) of a palette by index.
Colours = dict[int, tuple[int, int, int]]

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
# Tags of TIFF 6.0 and its supplements.
_BITS_PER_SAMPLE, _PHOTOMETRIC, _DESCRIPTION, _SAMPLES, _EXTRA_SAMPLES, _SAMPLE_FORMAT = 258, 262, 270, 277, 338, 339
_WHITE_IS_ZERO, _UNSIGNED, _SIGNED, _ALPHA = 0, 1, 2, (1, 2)
#: Raw modes of Pillow with 2 and 4 bits: what it multiplies values by to fill 8 bits.
_LEVELS = {"L;2": 85, "L;4": 17}
#: The only trace that two kinds of stacks leave: SGI's number of slices in a page, and ImageJ's number of images.
_IMAGE_DEPTH = 32997
_IMAGEJ_IMAGES = re.compile(r"\AImageJ=.*^images=(\d+)", re.MULTILINE | re.DOTALL)
#: ImageJ's function from stored to shown values (0 a straight line, 20 none) and its coefficients.
_IMAGEJ_CALIBRATION = re.compile(r"^(cf|c[0-4])=(\S+)", re.MULTILINE)
_IMAGEJ_LINE, _IMAGEJ_NONE = 0.0, 20.0
_MODES = ("1", "L", "LA", "P", "I;16", "I;16B", "I;16L", "I", "F", "RGB", "RGBA")


def read_image(path: Path) -> Array:
    """Read an image.

    Returns:
        (rows, columns) for grey, (rows, columns, 3) for RGB; uint8 or uint16 as stored (signed, of 32 bits, or
        float32 for TIFF files with such values). A palette becomes RGB, one bit becomes 0 and 255, and WhiteIsZero is
        inverted.

    Raises:
        FedfmsError: FMS-D003 when it is missing; FMS-D004 when it is truncated or unreadable, or has several pages or
            slices, transparent parts, values that are not finite, an EXIF rotation, a colour space other than grey and
            RGB, or WhiteIsZero with values that are not unsigned integers.
    """
    decoded = _decode(path)
    values = _opaque(path, decoded.values if decoded.palette is None else decoded.palette[decoded.values])
    return values.astype(np.uint8) * np.uint8(255) if values.dtype.kind == "b" else values


def read_mask(path: Path, *, fractional: bool = False, all_count: bool = False) -> Array:
    """Read a mask: grey values, as stored also with 1, 2 or 4 bits, RGB with three equal channels, or palette indices.

    A palette of greys is read as these greys, which all viewers show; programs order such palettes as they like.

    Args:
        path: The file.
        fractional: Accept numbers that are not whole, such as probabilities.
        all_count: Every value but 0 is inside. That cannot be said of a JPEG file, which has others around each shape.

    Returns:
        (rows, columns); integers, or float32 for a file of numbers that are not whole.

    Raises:
        FedfmsError: as ``read_image``; also FMS-D004 when it is in colour, and FMS-D006 when it holds numbers that are
            not whole, or with ``all_count`` when it is a JPEG file of more than two values.
    """
    decoded = _decode(path)
    values = decoded.values
    if decoded.palette is not None:
        colours = _opaque(path, decoded.palette[values])
        values = colours if _is_grey(colours) else values
    values = _opaque(path, values)
    if values.ndim == 3:
        if not _is_grey(values):
            raise fail(
                IMAGE_UNREADABLE,
                path,
                "the mask is a colour image",
                GeneralRemedy("Save one value per structure, in grey."),
            )
        values = values[..., 0]
    if all_count and decoded.is_lossy and ((values > 0) & (values < values.max())).any():
        half = int(values.max()) // 2
        raise fail(
            LABEL_UNKNOWN,
            path,
            f"a JPEG file: {np.count_nonzero(values)} pixels are not 0, and {np.count_nonzero(values > half)} are above"
            f" {half}, because JPEG changes the values around a shape",
            GeneralRemedy(
                "Write 'above' under this mask, with half of the largest value, such as 'above: 127', or save the masks"
                " as PNG from their source."
            ),
        )
    if values.dtype.kind == "b":
        return values.astype(np.uint8)
    values = values if decoded.step == 1 else values // np.uint8(decoded.step)
    return values if values.dtype.kind != "f" or fractional else whole_numbers(path, values)


def palette_colours(path: Path) -> Colours | None:
    """The colours of the palette indices in a mask; None for a mask without palette, or with one of greys.

    Two files with other colours for the same index do not mean the same by it.

    Raises:
        FedfmsError: as ``read_mask``.
    """
    if is_file(path) and _mode(path) != "P":
        return None  # by the header: most masks have no palette, and need not be decoded for this
    decoded = _decode(path)
    if decoded.palette is None or _is_grey(_opaque(path, decoded.palette[decoded.values])):
        return None
    return {int(index): tuple(map(int, decoded.palette[index, :3])) for index in np.unique(decoded.values)}  # type: ignore[misc]


@dataclass(frozen=True)
class _Decoded:
    """Stored values.

    Attributes:
        values: (rows, columns), or with a last axis of 2 to 4 channels.
        palette: RGBA (256, 4) of palette indices.
        step: Of files with 2 or 4 bits, Pillow multiplies the values by this to fill 8 bits.
        is_lossy: Whether the file was compressed as JPEG.
    """

    values: Array
    palette: Array | None = None
    step: int = 1
    is_lossy: bool = False


def _decode(path: Path) -> _Decoded:
    if not is_file(path):
        raise fail(IMAGE_MISSING, path, "no such file")
    try:
        with Image.open(path) as image:
            return _decoded(path, image)
    except UnidentifiedImageError:
        return _grey_tiff(path)
    except _READ_FAULTS as error:
        raise _unreadable(path, error) from error


def _grey_tiff(path: Path) -> _Decoded:
    """A grey TIFF of a type that Pillow does not know, such as float64."""
    import tifffile

    remedy = GeneralRemedy("Export it again, as PNG or TIFF in grey or RGB with 8 or 16 bits.")
    kind = "neither PNG nor TIFF nor JPEG, or its beginning is damaged"
    try:
        with tifffile.TiffFile(path) as file:
            page = file.pages.first
            kind = (
                f"{len(file.pages)} page(s) of {page.samplesperpixel} channel(s) of type {page.dtype},"
                f" {page.photometric.name}: this kind of TIFF is not read"
            )
            grey = page.photometric in (tifffile.PHOTOMETRIC.MINISBLACK, tifffile.PHOTOMETRIC.MINISWHITE)
            upright = _EXIF_ORIENTATION not in page.tags or page.tags[_EXIF_ORIENTATION].value == 1
            single = len(file.pages) == 1 and page.ndim == 2 and page.samplesperpixel == 1
            if not (grey and upright and single and np.dtype(page.dtype).kind in "uif"):
                raise fail(IMAGE_UNREADABLE, path, kind, remedy)
            values: Array = page.asarray()
    except (*_READ_FAULTS, tifffile.TiffFileError, LookupError, AttributeError, NotImplementedError) as error:
        raise fail(IMAGE_UNREADABLE, path, kind, remedy) from error
    if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE:
        values = _inverted(path, values, int(page.bitspersample))
    return _Decoded(values.astype(np.float32) if values.dtype.kind == "f" else values)


def _inverted(path: Path, values: Array, bits: int) -> Array:
    """Values of which 0 is white (TIFF 6.0, WhiteIsZero), with black as 0."""
    if values.dtype.kind != "u":
        raise fail(
            IMAGE_UNREADABLE,
            path,
            f"WhiteIsZero with values of type {values.dtype}: nobody knows what black is",
            GeneralRemedy("Save it with BlackIsZero."),
        )
    inverted: Array = values.dtype.type((1 << bits) - 1) - values
    return inverted


def _calibrated(path: Path, values: Array, description: str) -> Array:
    """The values that ImageJ shows: it stores signed 16 bit as unsigned, and says so in the description alone."""
    found = _IMAGEJ_CALIBRATION.findall(description) if description.startswith("ImageJ=") else []
    try:
        terms = {name: float(number) for name, number in found}
    except ValueError:
        terms = {"cf": math.nan}
    line = (terms.get("c0", 0.0), terms.get("c1", 1.0))
    is_line = terms.get("cf", _IMAGEJ_LINE) == _IMAGEJ_LINE and not {"c2", "c3", "c4"} & set(terms)
    if terms.get("cf") == _IMAGEJ_NONE or (is_line and line == (0.0, 1.0)):
        return values
    if is_line and line == (-32768.0, 1.0) and values.dtype.kind in "ui" and values.dtype.itemsize == 2:
        return values if values.dtype.kind == "i" else (values.astype(np.int32) - 32768).astype(np.int16)
    raise fail(
        IMAGE_UNREADABLE,
        path,
        f"ImageJ shows other values than are stored, by the calibration {' '.join('='.join(term) for term in found)}",
        GeneralRemedy(
            "If the stored values count, remove the calibration (Analyze > Calibrate > None) and save it again; if the"
            " shown ones count, convert it to 32 bit in ImageJ and save that."
        ),
    )


def _mode(path: Path) -> str:
    try:
        with Image.open(path) as image:
            mode: str = image.mode
            return mode
    except _READ_FAULTS as error:
        raise _unreadable(path, error) from error


def _decoded(path: Path, image: Image.Image) -> _Decoded:
    raw_mode = _raw_mode(image)  # first: reading EXIF data decodes a PNG, and its raw mode is then lost
    if (reason := _refusal(image)) is not None:
        raise fail(IMAGE_UNREADABLE, path, *reason)
    inverted = _tag(image, _PHOTOMETRIC) == _WHITE_IS_ZERO
    if image.mode in ("RGB", "RGBA", "LA") and ("16" in raw_mode or _tag(image, _BITS_PER_SAMPLE, 8) > 8):
        return _Decoded(_16_bit(path))
    image.load()
    values: Array = np.asarray(image)
    if image.mode == "P":
        return _Decoded(values, _palette(image))
    if image.mode == "I" and raw_mode.startswith("I;16"):
        # Pillow widens signed and, in older versions, unsigned values to 32 bit.
        values = values.astype(np.int16 if _tag(image, _SAMPLE_FORMAT) == _SIGNED else np.uint16)
    sample = _tag(image, _SAMPLE_FORMAT, _UNSIGNED)
    if image.mode == "L" and sample == _SIGNED:
        values = values.view(np.int8)  # Pillow reads the bits as unsigned
    elif image.mode == "I" and sample == _UNSIGNED and _tag(image, _BITS_PER_SAMPLE) == 32:
        values = values.view(np.uint32)  # and these as signed
    if inverted and image.mode not in ("1", "L"):  # these two Pillow inverts itself
        values = _inverted(path, values, 8 * values.dtype.itemsize)
    values = _calibrated(path, values, str(_tag(image, _DESCRIPTION, "")))
    step = _LEVELS.get(raw_mode[:3], 1) if image.mode == "L" else 1
    _refuse_transparent(path, values, image, step)
    is_lossy = image.format in ("JPEG", "MPO") or image.info.get("compression") == "jpeg"
    return _Decoded(values.astype(values.dtype.newbyteorder("="), copy=False), step=step, is_lossy=is_lossy)


def _refusal(image: Image.Image) -> tuple[str, GeneralRemedy] | None:
    """Why a file is not one picture of one meaning, and what to do."""
    described = _IMAGEJ_IMAGES.search(str(_tag(image, _DESCRIPTION, "")))
    pages = max(getattr(image, "n_frames", 1), int(described[1]) if described else 1, _tag(image, _IMAGE_DEPTH, 1))
    if pages != 1 and image.format == "MPO":
        return "a photograph with further pictures in it (MPO)", GeneralRemedy("Save the photograph again as PNG.")
    if pages != 1:
        return f"the file has {pages} pages or slices", GeneralRemedy("Save each as a file of its own.")
    if image.getexif().get(_EXIF_ORIENTATION, 1) != 1:
        # Nobody knows whether the mask was drawn before or after the rotation.
        return (
            "the file must be rotated for viewing (EXIF orientation)",
            GeneralRemedy("Save it upright, without this tag."),
        )
    if image.mode not in _MODES:
        return f"colour space {image.mode} is not supported", GeneralRemedy("Save it as RGB or grey.")
    channels = _tag(image, _SAMPLES, len(image.getbands()))
    undeclared = image.mode in ("LA", "RGBA") and _tag(image, _EXTRA_SAMPLES, _ALPHA[0]) not in _ALPHA
    if channels != len(image.getbands()) or undeclared:  # Pillow drops what it has no meaning for
        return (
            f"{channels} channels, of which the last is not declared as transparency",
            GeneralRemedy("Save it as RGB or grey, or each channel as a file of its own."),
        )
    return None


def _refuse_transparent(path: Path, values: Array, image: Image.Image, step: int) -> None:
    """Refuse a PNG in which a colour that occurs is declared transparent (chunk tRNS)."""
    key = image.info.get("transparency")
    if image.format != "PNG" or key is None or image.mode not in ("1", "L", "I;16", "I", "RGB"):
        return
    transparent = (
        (values == key).all(axis=-1)
        if image.mode == "RGB"
        else values == (bool(key) if image.mode == "1" else key * step)
    )
    if transparent.any():
        raise _transparent(path)


def _tag(image: Image.Image, number: int, default: int | str | None = None) -> Any:
    """A tag of a TIFF file, of several values the largest; ``default`` where it is absent, and for other files."""
    tags = getattr(image, "tag_v2", None)
    value = default if tags is None else tags.get(number, default)
    return max(value) if isinstance(value, tuple) and value else value


def _palette(image: Image.Image) -> Array:
    """RGBA (256, 4) by index."""
    every = Image.frombytes("P", (256, 1), bytes(range(256)))
    every.putpalette(image.getpalette() or [])
    every.info = image.info  # with the transparency of indices
    colours: Array = np.asarray(every.convert("RGBA"))[0]
    return colours


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
        import SimpleITK

        reader = SimpleITK.ImageFileReader()
        reader.SetImageIO("PNGImageIO")
        reader.SetFileName(str(path))
        try:
            decoded: Array = SimpleITK.GetArrayFromImage(reader.Execute())
        except RuntimeError as error:
            raise _unreadable(path, error) from error
        return decoded
    import tifffile

    try:
        values: Array = tifffile.imread(path)
    except (*_READ_FAULTS, tifffile.TiffFileError, IndexError, KeyError) as error:
        raise _unreadable(path, error) from error
    if values.ndim == 3 and values.shape[0] in (2, 3, 4) and values.shape[2] not in (2, 3, 4):
        values = np.moveaxis(values, 0, 2)  # planar storage
    return values


def _opaque(path: Path, values: Array) -> Array:
    """The values without a channel of transparency, which must be opaque everywhere."""
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise fail(IMAGE_UNREADABLE, path, "the image holds values that are not finite")
    if values.ndim == 2 or values.shape[2] == 3:
        return values
    if values[..., -1].min() != np.iinfo(values.dtype).max:
        raise _transparent(path)
    return values[..., 0] if values.shape[2] == 2 else values[..., :3]


def _transparent(path: Path) -> FedfmsError:
    remedy = GeneralRemedy("Save it without transparency.")
    return fail(IMAGE_UNREADABLE, path, "a part of the image is transparent", remedy)


def _is_grey(colours: Array) -> bool:
    return bool((colours == colours[..., :1]).all())


def _unreadable(path: Path, error: Exception) -> FedfmsError:
    return unreadable(IMAGE_UNREADABLE, path, error)
