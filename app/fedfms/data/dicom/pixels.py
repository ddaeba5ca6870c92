"""Pixels of DICOM frames after decompression and modality rescale."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from fedfms.data.dicom.codecs import decoder, stream_size
from fedfms.data.dicom.elements import UNCOMPRESSED, Elements, as_unreadable
from fedfms.data.dicom.frames import Frame
from fedfms.data.dicom.modality import fill_padding, rescale_of, values_of
from fedfms.data.dicom.series import read_whole
from fedfms.data.volume.geometry import Array
from fedfms.data.volume.remedies import GeneralRemedy
from fedfms.errors import IMAGE_UNREADABLE, fail


def frame_values(path: Path, frames: Sequence[Frame]) -> Iterator[tuple[Frame, Array]]:
    """Grey values of some frames of one file.

    Stored values go through the modality transform (PS3.3 C.11.1); windows are not applied. MONOCHROME1 (PS3.3
    C.7.6.3.1.2) is inverted so that larger means brighter, unless values are measurements.

    Args:
        path: The file.
        frames: Frames of this file.

    Yields:
        Each frame with its values (row, column), float32, in the order of the file; NaN where there is padding.

    Raises:
        FedfmsError: FMS-D004.
    """
    header = read_whole(path)
    by_index = {frame.source.frame or 0: frame for frame in frames}
    for index, stored, colours in stored_frames(header, sorted(by_index)):
        if not colours.startswith("MONOCHROME"):
            raise fail(IMAGE_UNREADABLE, path, f"a volume in the colour model {colours}; volumes must be grey")
        frame = by_index[index]
        yield frame, values_of(header, stored, frame.rescale)


def picture_values(path: Path) -> Array:
    """Pixels of a picture: (rows, columns), or (rows, columns, 3) RGB; uint8 or uint16 as stored.

    Grey pictures with a modality transform, or with signed pixels, are float32 after it.

    Raises:
        FedfmsError: FMS-D004.
    """
    import pydicom

    header = read_whole(path)
    _, stored, colours = next(stored_frames(header, [0]))
    if colours == "RGB":
        return stored
    if colours == "PALETTE COLOR":
        with _decoding(header):
            painted: Array = pydicom.pixels.apply_color_lut(stored, header.dataset)
        return painted[..., :3]
    if not colours.startswith("MONOCHROME"):
        raise fail(
            IMAGE_UNREADABLE, path, f"the colour model {colours} is not read", GeneralRemedy("Export it in RGB.")
        )
    rescale = rescale_of(header)
    values = fill_padding(values_of(header, stored, rescale))
    # Whole numbers as they are stored.
    as_stored = rescale is not None and (rescale.slope, rescale.intercept) == (1.0, 0.0) and stored.dtype.kind == "u"
    return values.astype(stored.dtype) if as_stored else values


def stored_frames(header: Elements, indexes: Sequence[int]) -> Iterator[tuple[int, Array, str]]:
    """Stored values of some frames of a file.

    Args:
        header: All elements of the file.
        indexes: Frames from 0, in ascending order; at least one.

    Yields:
        Index, stored values (row, column) or (row, column, sample), and the colour model (PhotometricInterpretation)
        that they are in after decoding.

    Raises:
        FedfmsError: FMS-D004.
    """
    if header.whole("HighBit") != header.whole("BitsStored") - 1:
        raise fail(IMAGE_UNREADABLE, header.path, "pixels are not aligned to the lowest bit (HighBit)")
    syntax = header.transfer_syntax
    try:
        found, plug_in = decoder(syntax.uid)
    except NotImplementedError as error:
        detail = f"{syntax.name} ({syntax.uid}) is a transfer syntax that is not read"
        raise fail(IMAGE_UNREADABLE, header.path, detail, UNCOMPRESSED) from error
    if syntax.encapsulated:
        _check_streams(header)
    # Compressed frames are found one after the other: asking for single ones would search from the start.
    asked = None if syntax.encapsulated else indexes
    decoding = found.iter_array(header.dataset, indices=asked, decoding_plugin=plug_in)
    wanted = set(indexes)
    for index in range(indexes[-1] + 1) if syntax.encapsulated else indexes:
        with _decoding(header):
            decoded = next(decoding, None)
        if decoded is None:
            raise fail(IMAGE_UNREADABLE, header.path, f"there are no pixels for frame {index + 1}")
        stored, properties = decoded
        if index in wanted:
            yield index, stored, str(properties["photometric_interpretation"])


def _check_streams(header: Elements) -> None:
    """Refuse compressed frames whose own header names another size: decoders allocate memory for that."""
    expected = (header.whole("Rows"), header.whole("Columns"), header.whole("SamplesPerPixel", 1) or 1)
    for index, source in enumerate(_streams(header)):
        size = stream_size(source)
        if size not in (None, expected):
            raise fail(
                IMAGE_UNREADABLE,
                header.path,
                f"compressed frame {index + 1} has (rows, columns, samples) {size}, the header {expected}",
            )


def _streams(header: Elements) -> Iterator[bytes]:
    """The compressed bytes of each frame."""
    import pydicom

    count = header.whole("NumberOfFrames", 1) or 1
    streams = pydicom.encaps.generate_frames(header.data("PixelData"), number_of_frames=count)
    while True:
        with _decoding(header):
            source = next(streams, None)
        if source is None:
            return
        yield source


def _decoding(header: Elements) -> AbstractContextManager[None]:
    """``as_unreadable`` for calls that decode pixels; the error of a compressed file names the compression."""
    syntax = header.transfer_syntax
    if not syntax.compressed:
        return as_unreadable(header.path)
    return as_unreadable(header.path, f" (transfer syntax {syntax.name})", UNCOMPRESSED)
