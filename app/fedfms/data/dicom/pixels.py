"""Pixels of DICOM frames after decompression and modality rescale."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from fedfms.data.dicom.codecs import decoder, stream_size
from fedfms.data.dicom.frames import Frame
from fedfms.data.dicom.series import as_unreadable, read_whole
from fedfms.data.volume.geometry import Array
from fedfms.data.volume.remedies import GeneralRemedy
from fedfms.errors import IMAGE_UNREADABLE, fail


def frame_values(path: Path, frames: Sequence[Frame]) -> Iterator[tuple[Frame, Array]]:
    """Grey values (row, column), float32, of some frames of one file, in the order of the file.

    Stored values go through the modality transform (PS3.3 C.11.1); windows are not applied. MONOCHROME1 (PS3.3
    C.7.6.3.1.2) is inverted so that larger always means brighter.

    Raises:
        FedfmsError: FMS-D004.
    """
    header = read_whole(path)
    by_index = {frame.source.frame or 0: frame for frame in frames}
    for index, stored, colours in stored_frames(path, header, sorted(by_index)):
        with _faults(path, header):
            if not colours.startswith("MONOCHROME"):
                raise fail(IMAGE_UNREADABLE, path, f"a volume in the colour model {colours}; volumes must be grey")
            frame = by_index[index]
            values = _rescaled(path, header, _upright(header, stored), frame.rescale)
        yield frame, values


def picture_values(path: Path) -> Array:
    """Pixels of a picture: (rows, columns), or (rows, columns, 3) RGB; uint8 or uint16 as stored.

    Grey pictures with a modality transform, or with signed pixels, are float32 after it.

    Raises:
        FedfmsError: FMS-D004.
    """
    import pydicom

    header = read_whole(path)
    _, stored, colours = next(stored_frames(path, header, [0]))
    with _faults(path, header):
        if colours == "RGB":
            return stored
        if colours == "PALETTE COLOR":
            painted: Array = pydicom.pixels.apply_color_lut(stored, header)
            return painted[..., :3]
        if not colours.startswith("MONOCHROME"):
            raise fail(
                IMAGE_UNREADABLE, path, f"the colour model {colours} is not read", GeneralRemedy("Export it in RGB.")
            )
        values = _upright(header, stored)
        linear = (float(header.get("RescaleSlope", 1)), float(header.get("RescaleIntercept", 0)))
        if linear == (1.0, 0.0) and not header.get("ModalityLUTSequence") and values.dtype.kind == "u":
            return values
        return _rescaled(path, header, values, None)


def stored_frames(path: Path, header: Any, indexes: list[int]) -> Iterator[tuple[int, Array, str]]:
    """Index, stored values and the colour model they are in, of some frames in ascending order."""
    with _faults(path, header):
        if int(header.HighBit) != int(header.BitsStored) - 1:
            raise fail(IMAGE_UNREADABLE, path, "pixels are not aligned to the lowest bit (HighBit)")
        syntax = header.file_meta.TransferSyntaxUID
        found, label = decoder(syntax)
        if syntax.is_encapsulated:
            _check_streams(path, header)
        # Compressed frames are found one after the other: asking for single ones would search from the start.
        frames = found.iter_array(header, indices=None if syntax.is_encapsulated else indexes, decoding_plugin=label)
    for index in range(indexes[-1] + 1) if syntax.is_encapsulated else indexes:
        with _faults(path, header):
            decoded = next(frames, None)
            if decoded is None:
                raise fail(IMAGE_UNREADABLE, path, f"there are no pixels for frame {index + 1}")
            stored, properties = decoded
        if index in indexes:
            yield index, stored, str(properties["photometric_interpretation"])


def _check_streams(path: Path, header: Any) -> None:
    import pydicom

    expected = (int(header.Rows), int(header.Columns), int(header.get("SamplesPerPixel", 1) or 1))
    frames = pydicom.encaps.generate_frames(
        header.PixelData, number_of_frames=int(header.get("NumberOfFrames", 1) or 1)
    )
    for index, source in enumerate(frames):
        size = stream_size(source)
        if size not in (None, expected):
            raise fail(
                IMAGE_UNREADABLE,
                path,
                f"compressed frame {index + 1} has (rows, columns, samples) {size}, the header {expected}",
            )


def _upright(header: Any, stored: Array) -> Array:
    """Stored values with MONOCHROME1 turned over, of the same type."""
    if header.PhotometricInterpretation != "MONOCHROME1":
        return stored
    bits = int(header.BitsStored)
    ends = -1 if stored.dtype.kind == "i" else (1 << bits) - 1
    turned: Array = (ends - stored.astype(np.int64)).astype(stored.dtype)
    return turned


def _rescaled(path: Path, header: Any, stored: Array, linear: tuple[float, float] | None) -> Array:
    import pydicom

    slope = float(header.get("RescaleSlope", 1)) if linear is None else linear[0]
    if slope == 0:
        raise fail(IMAGE_UNREADABLE, path, "RescaleSlope is 0")
    with np.errstate(over="ignore", invalid="ignore"):  # refused below
        rescaled = pydicom.pixels.apply_modality_lut(stored, header) if linear is None else stored * slope + linear[1]
        values: Array = np.asarray(rescaled, dtype=np.float32)
    if not np.isfinite(values).all():
        raise fail(IMAGE_UNREADABLE, path, "the rescaled image holds values that are not finite")
    return values


def _faults(path: Path, header: Any) -> AbstractContextManager[None]:
    syntax = header.file_meta.get("TransferSyntaxUID")
    if syntax is None or not syntax.is_transfer_syntax or not syntax.is_compressed:
        return as_unreadable(path)
    remedy = GeneralRemedy("Export the series uncompressed (Explicit VR Little Endian).")
    return as_unreadable(path, f" (transfer syntax {syntax.name})", remedy)
