"""Plain single-frame DICOM series as volumes.

Read: any modality whose images carry the Image Plane module (PS3.3 C.7.6.2), one grey sample per pixel, up to
16 bit, signed or unsigned, uncompressed or in a transfer syntax that pydicom decodes with the installed
libraries. Stored values go through the modality rescale (PS3.3 C.11.1); windows are not applied. MONOCHROME1
(PS3.3 C.7.6.3.1.2) is inverted so that larger always means brighter.
"""

from __future__ import annotations

import struct
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from fedfms.data.geometry import LPS_TO_RAS, Array, Grid, Matrix, Volume
from fedfms.errors import (
    CASE_AMBIGUOUS,
    IMAGE_MISSING,
    IMAGE_UNREADABLE,
    SERIES_IRREGULAR,
    FedfmsError,
    Problem,
    fail,
)

_READ_FAULTS = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    NotImplementedError,
    RuntimeError,
    OverflowError,
    struct.error,
)
_PLANE_TAGS = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns")
_HEADER_TAGS = [
    *_PLANE_TAGS,
    "SOPClassUID",
    "SeriesInstanceUID",
    "Modality",
    "PatientID",
    "NumberOfFrames",
    "SamplesPerPixel",
    "SliceThickness",
    "SpacingBetweenSlices",
]
#: A slice may lie this part of the slice distance away from where even spacing puts it.
SPACING_TOLERANCE = 0.05


def read_grid(folder: Path, files: str = "*") -> Grid:
    """Read only the headers of a series; ``read_series`` says what the folder must hold."""
    _, grid = _ordered(folder, files, pixels=False)
    return grid


def read_series(folder: Path, files: str = "*") -> Volume:
    """Read the one series in a folder.

    Slices are ordered by their position along the normal (ImagePositionPatient, PS3.3 C.7.6.2.1.1), never by
    number or file name.

    Args:
        folder: Every file in it that fits ``files`` and whose name does not begin with a dot belongs to the
            series.
        files: Pattern of file names.

    Returns:
        float32 voxels (column, row, slice) and their grid in RAS.

    Raises:
        FedfmsError: FMS-D003 when the folder is missing or empty; FMS-D004 for each file that is not
            readable, not DICOM, or of a kind not listed above; FMS-D014 when the folder holds several
            series; FMS-D015 when slices are missing, repeated or unevenly spaced.
    """
    headers, grid = _ordered(folder, files, pixels=True)
    columns, rows, count = grid.shape
    voxels = np.empty((count, rows, columns), dtype=np.float32)
    problems: list[Problem] = []
    for index, (path, header) in enumerate(headers):
        try:
            voxels[index] = _values(path, header)
        except FedfmsError as error:
            problems += error.problems
    if problems:
        raise FedfmsError(problems)
    return Volume(voxels.transpose(2, 1, 0), grid)


def patient_id(folder: Path, files: str = "*") -> str:
    """PatientID (0010,0020) of a series. It must not be printed or sent.

    Raises:
        FedfmsError: FMS-D003 or FMS-D004 when there is no readable file, or the tag is empty.
    """
    path = _paths(folder, files)[0]
    with _quiet():
        value = str(_header(path, pixels=False).get("PatientID", "") or "").strip()
    if not value:
        raise fail(IMAGE_UNREADABLE, path, "PatientID is empty", "Use another patient rule in site.yaml.")
    return value


@contextmanager
def _quiet() -> Iterator[None]:
    """pydicom's warnings on odd values quote them, and they may be identifiers."""
    import pydicom

    with warnings.catch_warnings(), pydicom.config.disable_value_validation():
        warnings.simplefilter("ignore")
        yield


def _paths(folder: Path, files: str) -> list[Path]:
    if not folder.is_dir():
        raise fail(IMAGE_MISSING, folder, "no such folder")
    paths = sorted(path for path in folder.glob(files) if path.is_file() and not path.name.startswith("."))
    if not paths:
        raise fail(IMAGE_MISSING, folder, f"the folder holds no file that fits '{files}'")
    return paths


def _header(path: Path, *, pixels: bool) -> Any:
    import pydicom

    try:
        if pixels:
            return pydicom.dcmread(path)
        return pydicom.dcmread(path, stop_before_pixels=True, specific_tags=_HEADER_TAGS)
    except pydicom.errors.InvalidDicomError as error:
        raise fail(
            IMAGE_UNREADABLE,
            path,
            "not a DICOM file (no DICM prefix)",
            "Take it out of the folder, or name the right files under images.files in site.yaml.",
        ) from error
    except _READ_FAULTS as error:
        raise _unreadable(path, error) from error


def _ordered(folder: Path, files: str, *, pixels: bool) -> tuple[list[tuple[Path, Any]], Grid]:
    """Headers in order of position, and the grid; all bad files in one error."""
    headers: list[tuple[Path, Any]] = []
    problems: list[Problem] = []
    with _quiet():
        for path in _paths(folder, files):
            try:
                header = _header(path, pixels=pixels)
                problems += _kind_problems(path, header)
                headers.append((path, header))
            except FedfmsError as error:
                problems += error.problems
            except _READ_FAULTS as error:  # a value that is not what its tag allows
                problems += _unreadable(path, error).problems
        series = Counter(str(header.get("SeriesInstanceUID", "")) for _, header in headers)
        if len(series) > 1:
            problems.append(_several_series(folder, headers))
        if problems:
            raise FedfmsError(problems)
        try:
            return _sorted_with_grid(folder, headers)
        except FedfmsError:
            raise
        except _READ_FAULTS as error:
            raise _unreadable(folder, error) from error


def _kind_problems(path: Path, header: Any) -> list[Problem]:
    def problem(detail: str, remedy: str | None = None) -> list[Problem]:
        return [Problem(IMAGE_UNREADABLE, str(path), detail, remedy)]

    missing = [tag for tag in _PLANE_TAGS if header.get(tag) in (None, "")]
    if int(header.get("NumberOfFrames", 1) or 1) > 1:
        return problem("a multi-frame object; this version reads single-frame series only")
    if missing:
        return problem(
            f"a {header.SOPClassUID.name} without {', '.join(missing)}"
            if "SOPClassUID" in header
            else f"no {', '.join(missing)}"
        )
    if int(header.get("SamplesPerPixel", 1) or 1) != 1:
        return problem("a colour image; this version reads grey DICOM images only", "Export it as PNG.")
    return []


def _several_series(folder: Path, headers: list[tuple[Path, Any]]) -> Problem:
    first: dict[str, tuple[str, str]] = {}
    counts: Counter[str] = Counter()
    for path, header in headers:
        uid = str(header.get("SeriesInstanceUID", ""))
        first.setdefault(uid, (str(header.get("Modality", "?")), path.name))
        counts[uid] += 1
    candidates = "; ".join(f"{counts[uid]} x {modality} from {name}" for uid, (modality, name) in first.items())
    return Problem(CASE_AMBIGUOUS, str(folder), f"{len(first)} series in one folder: {candidates}")


def _sorted_with_grid(folder: Path, headers: list[tuple[Path, Any]]) -> tuple[list[tuple[Path, Any]], Grid]:
    first = headers[0][1]
    orientation = np.array(first.ImageOrientationPatient, dtype=np.float64)
    spacing = np.array(first.PixelSpacing, dtype=np.float64)
    size = (int(first.Rows), int(first.Columns))
    odd = [
        path.name
        for path, header in headers
        if (int(header.Rows), int(header.Columns)) != size
        or not np.allclose(np.array(header.ImageOrientationPatient, dtype=np.float64), orientation, atol=1e-3)
        or not np.allclose(np.array(header.PixelSpacing, dtype=np.float64), spacing, rtol=1e-3)
    ]
    if odd:
        raise fail(
            SERIES_IRREGULAR,
            folder,
            f"size, orientation or pixel spacing differ from {headers[0][0].name} in: {', '.join(odd)}",
            "Keep one stack of parallel slices per folder.",
        )
    along_row, along_column = orientation[:3], orientation[3:]
    normal = np.cross(along_row, along_column)
    if spacing.min() <= 0 or np.linalg.norm(normal) < 0.9:
        raise fail(IMAGE_UNREADABLE, folder, "ImageOrientationPatient or PixelSpacing is not possible")
    positions = np.array([header.ImagePositionPatient for _, header in headers], dtype=np.float64)
    order = np.argsort(positions @ normal, kind="stable")
    positions = positions[order]
    step = _step(folder, positions, normal, first, [headers[index][0].name for index in order])
    affine: Matrix = np.eye(4)
    # PS3.3 equation C.7.6.2.1-1: PixelSpacing is (distance of rows, distance of columns).
    affine[:3, 0] = along_row * spacing[1]
    affine[:3, 1] = along_column * spacing[0]
    affine[:3, 2] = step
    affine[:3, 3] = positions[0]
    grid = Grid((size[1], size[0], len(headers)), LPS_TO_RAS @ affine)
    return [headers[index] for index in order], grid


def _step(folder: Path, positions: Matrix, normal: Matrix, first: Any, names: list[str]) -> Matrix:
    """Vector from one slice to the next; a sheared stack (tilted gantry) keeps its shear."""
    count = len(positions)
    if count == 1:
        distance = float(first.get("SpacingBetweenSlices") or first.get("SliceThickness") or 0.0)
        if distance <= 0:
            raise fail(IMAGE_UNREADABLE, folder, "a single slice without SliceThickness")
        result: Matrix = normal * distance
        return result
    gaps = np.diff(positions @ normal)
    typical = float(np.median(gaps))
    repeated = [names[index + 1] for index in np.flatnonzero(gaps < 0.01 * max(typical, 1e-3))]
    if repeated:
        raise fail(SERIES_IRREGULAR, folder, f"two slices at the same position: {', '.join(repeated)}")
    even = positions[0] + np.arange(count)[:, None] * (positions[-1] - positions[0]) / (count - 1)
    if np.linalg.norm(positions - even, axis=1).max() > SPACING_TOLERANCE * typical or (
        np.abs(gaps - typical).max() > 2 * SPACING_TOLERANCE * typical
    ):
        wide = [
            f"{gap:.3g} mm before {names[index + 1]}"
            for index, gap in enumerate(gaps)
            if abs(gap - typical) > SPACING_TOLERANCE * typical
        ]
        detail = "; ".join(wide) or "the slices are shifted against each other"
        raise fail(SERIES_IRREGULAR, folder, f"uneven slice distance (typically {typical:.3g} mm): {detail}")
    vector: Matrix = (positions[-1] - positions[0]) / (count - 1)
    return vector


def _values(path: Path, header: Any) -> Array:
    """Pixels (row, column) after rescale, float32."""
    import pydicom

    with _quiet():
        try:
            stored: Array = header.pixel_array
            bits, allocated = int(header.BitsStored), int(header.BitsAllocated)
            if int(header.HighBit) != bits - 1:
                raise fail(IMAGE_UNREADABLE, path, "pixels are not aligned to the lowest bit (HighBit)")
            if bits < allocated:
                # Unused high bits may hold overlays; shifting up and down clears them and extends the sign.
                stored = (stored << (allocated - bits)) >> (allocated - bits)
            if header.PhotometricInterpretation == "MONOCHROME1":
                lowest, highest = (
                    (-(1 << (bits - 1)), (1 << (bits - 1)) - 1)
                    if stored.dtype.kind == "i"
                    else (
                        0,
                        (1 << bits) - 1,
                    )
                )
                stored = lowest + highest - stored.astype(np.int64)
            elif header.PhotometricInterpretation != "MONOCHROME2":
                raise fail(
                    IMAGE_UNREADABLE,
                    path,
                    f"colour model {header.PhotometricInterpretation} is not supported",
                )
            values: Array = np.asarray(pydicom.pixels.apply_modality_lut(stored, header), dtype=np.float32)
        except FedfmsError:
            raise
        except _READ_FAULTS as error:
            syntax = header.file_meta.get("TransferSyntaxUID")
            compressed = syntax is not None and syntax.is_compressed
            raise fail(
                IMAGE_UNREADABLE,
                path,
                f"{type(error).__name__}: {error}"
                + (f" (transfer syntax {header.file_meta.TransferSyntaxUID.name})" if compressed else ""),
                "Export the series uncompressed (Explicit VR Little Endian)." if compressed else None,
            ) from error
    if not np.isfinite(values).all():
        raise fail(IMAGE_UNREADABLE, path, "the rescaled image holds values that are not finite")
    return values


def _unreadable(path: Path, error: Exception) -> FedfmsError:
    return fail(IMAGE_UNREADABLE, path, f"{type(error).__name__}: {error}")
