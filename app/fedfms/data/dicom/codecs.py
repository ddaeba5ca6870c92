"""Decoders for compressed DICOM pixels, as plug-ins of pydicom (its module ``pydicom.pixels.decoders``).

pydicom decodes RLE itself, JPEG baseline with Pillow and JPEG-LS with pyjpegls. Added here: JPEG 2000 and
High-Throughput JPEG 2000 with openjpeg (Pillow's JPEG 2000 loses bits of deep colour), and lossless and 12-bit JPEG
with the GDCM in SimpleITK (the other decoder for these, pylibjpeg-libjpeg, is GPL).
"""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

_JPEG_2000 = tuple(f"1.2.840.10008.1.2.4.{number}" for number in (90, 91, 201, 202, 203))
_JPEG_GDCM = tuple(f"1.2.840.10008.1.2.4.{number}" for number in (51, 57, 70))

#: A JPEG 2000 stream may be wrapped in a JP2 file, whose boxes come first, although PS3.5 A.4.4 forbids it.
_JP2_BOXES = 1024

#: pydicom asks for this when a plug-in is not available.
DECODER_DEPENDENCIES = {
    **dict.fromkeys(_JPEG_2000, ("pylibjpeg-openjpeg>=2.0",)),
    **dict.fromkeys(_JPEG_GDCM, ("SimpleITK>=2.3",)),
}


def is_available(uid: str) -> bool:
    """Whether the plug-ins decode a transfer syntax; pydicom calls this."""
    return uid in DECODER_DEPENDENCIES


@cache
def decoder(uid: str) -> tuple[Any, str]:
    """pydicom's decoder of a transfer syntax, and the name of the plug-in to use (empty: pydicom's choice).

    Raises:
        NotImplementedError: when no installed library decodes it.
    """
    from pydicom.pixels import get_decoder

    found = get_decoder(uid)
    label = ""
    if uid in DECODER_DEPENDENCIES:
        label = "fedfms"
        found.add_plugin(label, (__name__, "decode_jpeg_2000" if uid in _JPEG_2000 else "decode_jpeg_gdcm"))
    if not found.is_available:
        raise NotImplementedError("no installed library decodes it")
    return found, label


def decode_jpeg_2000(source: bytes, runner: Any) -> bytes:
    """Decode one frame of JPEG 2000 or High-Throughput JPEG 2000; called by pydicom.

    Args:
        source: The code stream.
        runner: pydicom's ``DecodeRunner``; gets the type of the decoded pixels.

    Returns:
        Pixels in the layout that ``runner`` then describes.
    """
    import openjpeg

    pixels: bytes = openjpeg.decode_pixel_data(source, version=2)
    if runner.photometric_interpretation in ("YBR_ICT", "YBR_RCT"):
        runner.set_option("photometric_interpretation", "RGB")  # the codec undoes its colour transform
    # The container of the decoded samples follows the precision in the code stream.
    precision = int(runner.get_option("j2k_precision", runner.bits_stored))
    runner.set_option("bits_allocated", 8 if precision <= 8 else 16 if precision <= 16 else 32)
    return pixels


def decode_jpeg_gdcm(source: bytes, runner: Any) -> bytes:
    """Decode one frame of lossless or 12-bit JPEG with GDCM, through a temporary file without any identifier.

    Args:
        source: The code stream.
        runner: pydicom's ``DecodeRunner``.

    Returns:
        Pixels (row, column, sample) of ``runner.pixel_dtype``.
    """
    import pydicom
    import SimpleITK

    header = pydicom.Dataset()
    header.file_meta = pydicom.dataset.FileMetaDataset()
    header.file_meta.TransferSyntaxUID = runner.transfer_syntax
    header.SOPClassUID = pydicom.uid.SecondaryCaptureImageStorage
    header.SOPInstanceUID = "1.2.3"
    header.SamplesPerPixel = runner.samples_per_pixel
    # Named so that GDCM converts no colours: pydicom does.
    header.PhotometricInterpretation = "RGB" if runner.samples_per_pixel == 3 else "MONOCHROME2"
    if runner.samples_per_pixel == 3:
        header.PlanarConfiguration = 0
        runner.set_option("planar_configuration", 0)
    header.Rows, header.Columns = runner.rows, runner.columns
    header.BitsAllocated, header.BitsStored = runner.bits_allocated, runner.bits_stored
    header.HighBit = runner.bits_stored - 1
    header.PixelRepresentation = runner.pixel_representation
    header.PixelData = pydicom.encaps.encapsulate([source])
    header["PixelData"].is_undefined_length = True
    with tempfile.TemporaryDirectory(prefix="fedfms-") as folder:
        path = Path(folder) / "frame.dcm"
        header.save_as(path, enforce_file_format=True)
        image = SimpleITK.ReadImage(str(path), imageIO="GDCMImageIO")
    values = SimpleITK.GetArrayFromImage(image)
    if values.dtype != runner.pixel_dtype:
        raise ValueError(f"decoded as {values.dtype}, expected {runner.pixel_dtype}")
    result: bytes = values.tobytes()
    return result


def stream_size(source: bytes) -> tuple[int, int, int] | None:
    """(rows, columns, samples) in the header of a JPEG, JPEG-LS or JPEG 2000 code stream; None for other data.

    Decoders allocate memory for this size whatever the DICOM header says.
    """
    start = source.find(b"\xff\x4f\xff\x51", 0, _JP2_BOXES)  # SOC and SIZ (ISO 15444-1 A.5.1)
    if start >= 0:
        right, bottom, left, top = (_number(source, start + at, 4) for at in (8, 12, 16, 20))
        return bottom - top, right - left, _number(source, start + 40, 2)
    if source[:2] != b"\xff\xd8":
        return None
    position = 2
    while position + 10 <= len(source) and source[position] == 0xFF:
        marker = source[position + 1]
        # Start of frame (ISO 10918-1 table B.1; ISO 14495-1 C.1.1 for JPEG-LS).
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            return _number(source, position + 5, 2), _number(source, position + 7, 2), source[position + 9]
        # Fill bytes (B.1.1.2) may precede a marker.
        position += 1 if marker == 0xFF else 2 + _number(source, position + 2, 2)
    return None


def _number(source: bytes, position: int, length: int) -> int:
    return int.from_bytes(source[position : position + length], "big")
