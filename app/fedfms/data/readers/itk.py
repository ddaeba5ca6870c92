"""Volumes in ITK's own formats: NRRD (``.nrrd``, ``.nhdr``) and MetaImage (``.mha``, ``.mhd``).

ITK gives positions in LPS, as DICOM does, also for NRRD files that are stored in RAS.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedfms.access import is_file, require_readable, unreadable
from fedfms.data.volume.checks import checked_grid, checked_voxels
from fedfms.data.volume.geometry import LPS_TO_RAS, Grid, Matrix, Volume
from fedfms.data.volume.remedies import GeneralRemedy
from fedfms.errors import GEOMETRY_MISMATCH, IMAGE_MISSING, IMAGE_UNREADABLE, FedfmsError, fail

SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd")

_READ_FAULTS = (RuntimeError, OSError, ValueError, OverflowError, MemoryError)
_HEADER_BYTES = 1 << 16
#: Segmentations name each segment with some ten fields, so headers of many structures are long.
_MOST_HEADER = 1 << 24
#: Deflate compresses data to 1/1032 at most. A header that names more voxels is wrong, and ITK would allocate them all.
_LARGEST_RATIO = 1100
_SEGMENT_NAME = re.compile(r"Segment(\d+)_Name")
# MetaIO has several names for the same field.
_DIRECTION_KEYS = {"TransformMatrix", "Orientation", "Rotation"}
_POSITION_KEYS = {"Offset", "Position", "Origin"}
# NRRD has further spaces, such as scanner-xyz, that are not the patient's.
_NRRD_SPACES = {
    *("left-posterior-superior", "right-anterior-superior", "left-anterior-superior"),
    *("lps", "ras", "las"),
}
_MILLIMETRES = {"mm", "millimeter", "millimetre", "millimeters", "millimetres", "", "?"}


def read_grid(path: Path) -> Grid:
    """Read the grid from the header, without voxels.

    Returns:
        Shape (i, j, k) and affine to millimetres in RAS.

    Raises:
        FedfmsError: FMS-D003 when the file, or the data file that it names, is missing; FMS-D004 when it is
            unreadable or not one 3-D volume of numbers; FMS-D005 when it has no position or direction in the patient.
    """
    return _opened(path)[1]


def read_volume(path: Path) -> Volume:
    """Read a volume.

    Returns:
        Voxels (i, j, k) with their grid in RAS; integers keep their type, other numbers become float32.

    Raises:
        FedfmsError: as ``read_grid``; also FMS-D004 when the file is truncated or holds values that are not finite.
    """
    import SimpleITK

    reader, grid = _opened(path)
    try:
        voxels = SimpleITK.GetArrayFromImage(reader.Execute()).transpose(2, 1, 0)
    except _READ_FAULTS as error:
        raise _unreadable(path, error) from error
    return Volume(checked_voxels(path, voxels), grid)


def files_of(path: Path) -> list[Path]:
    """The file, and the file with its voxels when that is separate (``.nhdr``, ``.mhd``)."""
    try:
        header, _ = _header(path)
    except FedfmsError:
        return [path]
    name = _data_file(header)
    return [path] if name is None else [path, path.parent / name]


def segments(path: Path) -> dict[str, frozenset[int]]:
    """Values of the named segments of a NRRD segmentation, as 3D Slicer writes it; empty for other files.

    Its header has ``SegmentN_Name`` and ``SegmentN_LabelValue`` for each segment N from 0.

    Raises:
        FedfmsError: FMS-D003 when the file is missing, FMS-D004 when it cannot be read, a segment has no value, or two
            of different names have the same.
    """
    if not _is_nrrd(path):
        return {}
    fields, _ = _header(path)
    found: dict[str, set[int]] = {}
    owners: dict[tuple[str, int], str] = {}
    for key, name in fields.items():
        if (segment := _SEGMENT_NAME.fullmatch(key)) is None or not name:
            continue
        value = fields.get(f"Segment{segment[1]}_LabelValue", "")
        if not value.isdecimal():
            raise fail(IMAGE_UNREADABLE, path, f"{key} has no Segment{segment[1]}_LabelValue that is a number")
        # Layers are volumes of their own, in which the same number may mean another segment.
        place = fields.get(f"Segment{segment[1]}_Layer", "0"), int(value)
        if owners.setdefault(place, name) != name:
            detail = f"segments '{owners[place]}' and '{name}' have the same LabelValue {value}: which one is drawn?"
            raise fail(IMAGE_UNREADABLE, path, detail, GeneralRemedy("Save the segmentation again in 3D Slicer."))
        found.setdefault(name, set()).add(int(value))
    return {name: frozenset(values) for name, values in found.items()}


def _opened(path: Path) -> tuple[Any, Grid]:
    """SimpleITK's reader, ready to read the voxels, and the grid."""
    import SimpleITK

    header, length = _header(path)
    name = _data_file(header)
    data = path if name is None else path.parent / name
    if not is_file(data):
        raise fail(IMAGE_MISSING, path, f"the file with its voxels is missing or not one file: {name}")
    require_readable(data)
    if header.get("encoding", "").lower() in ("bz2", "bzip2"):
        remedy = GeneralRemedy("Save it uncompressed, or compressed with gzip.")
        raise fail(IMAGE_UNREADABLE, path, "the encoding bzip2 is not read", remedy)
    _require_plain_units(path, header)
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetImageIO("NrrdImageIO" if _is_nrrd(path) else "MetaImageIO")
    try:
        SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
        reader.ReadImageInformation()
        size = reader.GetSize()
        if len(size) != 3 or 0 in size or reader.GetNumberOfComponents() != 1:
            raise fail(
                IMAGE_UNREADABLE,
                path,
                f"expected one 3-D volume, found size {size} with {reader.GetNumberOfComponents()} numbers per voxel",
                GeneralRemedy("Save each volume, or each layer of overlapping segments, as its own file."),
            )
        pixel = SimpleITK.Image([1, 1, 1], reader.GetPixelID())
        expected = math.prod(size) * pixel.GetSizeOfPixelComponent()
        directions = np.array(reader.GetDirection()).reshape(3, 3) * np.array(reader.GetSpacing())
        origin = np.array(reader.GetOrigin())
    except _READ_FAULTS as error:
        raise _unreadable(path, error) from error
    if expected > _LARGEST_RATIO * data.stat().st_size:
        raise fail(IMAGE_UNREADABLE, path, f"truncated: {expected} bytes of voxels cannot be in it")
    if not _is_nrrd(path) and header.get("CompressedData", "").lower().startswith("t"):
        # MetaIO does not notice when compressed data end early, and leaves the other voxels uninitialised.
        found = _inflated(data, length if data == path else 0, expected)
        if found != expected:
            raise fail(IMAGE_UNREADABLE, path, f"truncated: {found} of {expected} bytes of voxels")
    if not _has_position(path, header):
        raise fail(
            GEOMETRY_MISMATCH,
            path,
            "the file has no position and direction in the patient",
            GeneralRemedy("Convert it again from its source with a tool that writes position and direction."),
        )
    affine: Matrix = np.eye(4)
    affine[:3, :3], affine[:3, 3] = directions, origin
    shape = (int(size[0]), int(size[1]), int(size[2]))
    return reader, checked_grid(path, shape, LPS_TO_RAS @ affine)


def _require_plain_units(path: Path, header: Mapping[str, str]) -> None:
    """Refuse lengths that are not in mm, and values that the header rescales: ITK takes no notice of either."""
    found = re.findall(r'"([^"]*)"', header.get("space units", "")) or [header.get("DistanceUnits", "mm")]
    if others := sorted({unit for unit in found if unit.strip().lower() not in _MILLIMETRES}):
        remedy = GeneralRemedy("Save it with lengths in mm.")
        raise fail(IMAGE_UNREADABLE, path, f"its lengths are in {', '.join(others)}, and only mm are read", remedy)
    for key, neutral in (("ElementToIntensityFunctionSlope", "1"), ("ElementToIntensityFunctionOffset", "0")):
        value = header.get(key, neutral)
        if not re.fullmatch(rf"[+-]?{neutral}(\.0*)?", value):
            remedy = GeneralRemedy("Save it with the values that are meant.")
            raise fail(IMAGE_UNREADABLE, path, f"{key} is {value}, which is not applied", remedy)


def _is_nrrd(path: Path) -> bool:
    return path.suffix.lower() in (".nrrd", ".nhdr")


def _header(path: Path) -> tuple[dict[str, str], int]:
    """Fields of the text at the beginning of the file, and its length in bytes."""
    if not is_file(path):
        raise fail(IMAGE_MISSING, path, "no such file")
    fields: dict[str, str] = {}
    length = 0
    try:
        with path.open("rb") as file:
            for line in iter(lambda: file.readline(_MOST_HEADER + 1), b""):
                length += len(line)
                if length > _MOST_HEADER:
                    raise fail(IMAGE_UNREADABLE, path, f"its header does not end within {_MOST_HEADER >> 20} MiB")
                text = line.decode("utf-8", "replace").strip()
                if _is_nrrd(path) and not text:
                    break
                key, _, value = text.partition(":" if _is_nrrd(path) else "=")
                # A key of a NRRD header is followed by ":=" (section 4 of its definition), a field by ":".
                fields[key.strip()] = value.removeprefix("=").strip() if _is_nrrd(path) else value.strip()
                if "ElementDataFile" in fields:
                    break
    except OSError as error:
        raise _unreadable(path, error) from error
    return fields, length


def _has_position(path: Path, header: Mapping[str, str]) -> bool:
    if _is_nrrd(path):
        return header.get("space", "").lower() in _NRRD_SPACES and "space origin" in header
    return bool(_DIRECTION_KEYS & header.keys() and _POSITION_KEYS & header.keys())


def _data_file(header: Mapping[str, str]) -> str | None:
    """Name of the file with the voxels; None when they follow the header."""
    name = header.get("ElementDataFile") or header.get("data file") or header.get("datafile") or "LOCAL"
    return None if name.upper() == "LOCAL" else name


def _inflated(path: Path, start: int, limit: int) -> int:
    """Bytes of zlib data after decompression; stops a little beyond ``limit``."""
    inflater = zlib.decompressobj()
    count = 0
    try:
        with path.open("rb") as file:
            file.seek(start)
            while count <= limit and not inflater.eof and (chunk := file.read(_HEADER_BYTES)):
                count += len(inflater.decompress(chunk))
    except (OSError, zlib.error) as error:
        raise _unreadable(path, error) from error
    return count


def _unreadable(path: Path, error: Exception) -> FedfmsError:
    if isinstance(error, RuntimeError):  # SimpleITK's: the lines before the last one name places in ITK's own code
        error = RuntimeError(str(error).strip().rpartition("\n")[2].strip())
    return unreadable(IMAGE_UNREADABLE, path, error)
