"""NIfTI volumes and label maps."""

from __future__ import annotations

import gzip
import io
import logging
import math
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedfms.access import is_file, unreadable
from fedfms.data.description.site import NiftiAffine
from fedfms.data.volume.checks import checked_grid, checked_voxels
from fedfms.data.volume.geometry import Array, Grid, Matrix, Volume
from fedfms.data.volume.remedies import GeneralRemedy
from fedfms.errors import (
    CASE_AMBIGUOUS,
    GEOMETRY_MISMATCH,
    IMAGE_MISSING,
    IMAGE_UNREADABLE,
    FedfmsError,
    fail,
)

SUFFIXES = (".nii", ".nii.gz")

_READ_FAULTS = (OSError, EOFError, ValueError, zlib.error, gzip.BadGzipFile, struct.error, OverflowError)
#: ``xyzt_units & 7`` of the header (nifti1.h): unknown, meter, mm, micron. Unknown is what many tools write for mm.
_MILLIMETRES = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
#: sform and qform are the same when no corner of the volume is further apart than this fraction of a voxel's side.
_AFFINE_TOLERANCE = 0.1
_CHUNK = 1 << 20
#: Size of the header of NIfTI-1 and of NIfTI-2, and the mark in it of a file that holds header and voxels.
_HEADERS = {348: (344, b"n+1\0"), 540: (4, b"n+2\0")}
_CODES = range(6)
_ONE_NUMBER = GeneralRemedy("Save it with one number per voxel.")
#: Voxels with a longer side, in mm, are not of a patient: the unit of length is wrong.
_LONGEST_SIDE = 100.0
#: pixdim and the sides of the voxels by the sform are the same when they differ by less than this fraction.
_SIDE_TOLERANCE = 0.01


def is_nifti(path: Path) -> bool:
    """Whether the file's name says NIfTI."""
    return path.name.lower().endswith(SUFFIXES)


def read_grid(path: Path, affine: NiftiAffine | None = None) -> Grid:
    """Read the grid from the header, without voxels.

    Args:
        path: The file.
        affine: Which of the header's two affines counts where they disagree; None: that is an error.

    Returns:
        Shape (i, j, k) and affine to millimetres in RAS; other units of length are converted.

    Raises:
        FedfmsError: FMS-D003 when the file is missing, FMS-D004 when it is unreadable, not one 3-D volume, or its
            header is not possible; FMS-D005 when it has no position in the patient (sform and qform codes 0) or its
            affine has no volume; FMS-D014 when sform and qform disagree and ``affine`` does not say which counts.
    """
    return _grid(path, _opened(path), affine)


def read_volume(path: Path, affine: NiftiAffine | None = None) -> Volume:
    """Read a volume with its scale factors applied.

    Args:
        path: The file.
        affine: As for ``read_grid``.

    Returns:
        Voxels (i, j, k) with their grid in RAS; float32, but integers without scale factors keep their type.

    Raises:
        FedfmsError: as ``read_grid``; also FMS-D004 when the file is truncated or damaged (the checksum of a compressed
            one is checked) or holds values that are not finite.
    """
    opened = _opened(path)
    grid = _grid(path, opened, affine)
    try:
        voxels = _voxels(path, opened.image).reshape(grid.shape)
    except _READ_FAULTS as error:
        raise _unreadable(path, error) from error
    if voxels.dtype.kind not in "iufb":
        raise fail(IMAGE_UNREADABLE, path, f"voxels of type {voxels.dtype} are not supported", _ONE_NUMBER)
    voxels = checked_voxels(path, voxels)
    return Volume(voxels.astype(voxels.dtype.newbyteorder("="), copy=False), grid)


def _voxels(path: Path, image: Any) -> Array:
    if not path.name.lower().endswith(".gz"):
        plain: Array = np.asanyarray(image.dataobj)
        return plain
    with gzip.open(path) as file:
        voxels: Array = np.asanyarray(type(image).from_stream(file).dataobj)
        while file.read(_CHUNK):
            pass  # to the end, where the checksum is: nibabel stops at the last voxel
    return voxels


@dataclass(frozen=True)
class _Opened:
    """nibabel's image, and the header as it is stored: the image's own has no scale factors and mended values."""

    image: Any
    stored: Any


def _opened(path: Path) -> _Opened:
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError

    if not is_file(path):
        raise fail(IMAGE_MISSING, path, "no such file")
    try:
        with gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb") as file:
            head = file.read(max(_HEADERS))
    except _READ_FAULTS as error:
        raise _unreadable(path, error) from error
    kind, order = _kind(path, head)
    stored = kind.header_class.from_fileobj(io.BytesIO(head), endianness=order, check=False)
    _check_header(path, stored)
    try:
        with _without_nibabels_lines():
            return _Opened(kind.from_filename(path), stored)
    except (*_READ_FAULTS, ImageFileError, HeaderDataError) as error:
        raise _unreadable(path, error) from error


@contextmanager
def _without_nibabels_lines() -> Iterator[None]:
    """nibabel logs what it mends in a header; what matters of it is an error of this module."""
    log = logging.getLogger("nibabel.global")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


def _kind(path: Path, head: bytes) -> tuple[Any, str]:
    """nibabel's class for a file by its first bytes, and their order.

    By what the file says: nibabel goes by its name too, and takes some for surfaces or for pairs of files.
    """
    import nibabel

    for (size, (start, mark)), kind in zip(_HEADERS.items(), (nibabel.Nifti1Image, nibabel.Nifti2Image), strict=True):
        for order, number in (("<", "<i"), (">", ">i")):
            if len(head) >= size and struct.unpack_from(number, head)[0] == size:
                found = head[start : start + len(mark)]
                if found == mark:
                    return kind, order
                detail = (
                    f"the header is that of {'a pair of files' if found[:2] == b'ni' else 'another format'} ({found!r})"
                )
                raise fail(IMAGE_UNREADABLE, path, detail, GeneralRemedy("Save it as one NIfTI file."))
    packed = head[:2] == b"\x1f\x8b"
    detail = "the file is compressed, but its name does not end in .gz" if packed else "not a NIfTI file, or damaged"
    raise fail(IMAGE_UNREADABLE, path, detail)


def _check_header(path: Path, header: Any) -> None:
    """Refuse fields that have no meaning; readers differ in what they make of them."""
    slope, intercept, offset = (float(header[name]) for name in ("scl_slope", "scl_inter", "vox_offset"))
    wrong = []
    dimensions = [int(size) for size in header["dim"]]
    if not 1 <= dimensions[0] <= 7 or min(dimensions[1 : dimensions[0] + 1]) < 1:
        wrong.append(f"dim {dimensions}")
    for name in ("sform_code", "qform_code"):
        if int(header[name]) not in _CODES:
            wrong.append(f"{name} {int(header[name])}")
    if int(header["qform_code"]) > 0 and float(header["pixdim"][0]) not in (-1, 0, 1):
        wrong.append(f"pixdim[0] {float(header['pixdim'][0]):g}")
    wrong += _wrong_type(header)
    if not math.isfinite(slope) or (slope != 0 and not math.isfinite(intercept)):
        wrong.append(f"scl_slope {slope:g} and scl_inter {intercept:g}")
    if not math.isfinite(offset) or offset != int(offset) or offset < header.single_vox_offset:
        wrong.append(f"vox_offset {offset:g}")
    if (unit := int(header["xyzt_units"]) & 7) not in _MILLIMETRES:
        wrong.append(f"unit of length {unit}")
    if wrong:
        raise fail(
            IMAGE_UNREADABLE,
            path,
            f"the header has values that are not possible: {', '.join(wrong)}",
            GeneralRemedy("Convert it again from its source."),
        )


def _wrong_type(header: Any) -> list[str]:
    from nibabel.spatialimages import HeaderDataError

    try:
        bits = 8 * header.get_data_dtype().itemsize
    except HeaderDataError:
        return [f"datatype {int(header['datatype'])}"]
    stored = int(header["bitpix"])  # some programs leave it empty
    return [f"bitpix {stored} with datatype {int(header['datatype'])}"] if stored not in (0, bits) else []


def _grid(path: Path, opened: _Opened, chosen: NiftiAffine | None) -> Grid:
    shape = tuple(int(size) for size in opened.image.shape)
    if len(shape) > 3 and all(size == 1 for size in shape[3:]):
        shape = shape[:3]
    if len(shape) != 3 or 0 in shape:
        raise fail(
            IMAGE_UNREADABLE,
            path,
            f"expected one 3-D volume, found shape {shape}",
            GeneralRemedy("Save each volume as its own file."),
        )
    size = (shape[0], shape[1], shape[2])
    unit = _MILLIMETRES[int(opened.stored["xyzt_units"]) & 7]
    grid = checked_grid(path, size, np.diag([unit] * 3 + [1.0]) @ _affine(path, opened, size, chosen))
    if unit > 1 and max(grid.spacing) > _LONGEST_SIDE:
        raise fail(
            IMAGE_UNREADABLE,
            path,
            f"the header says meters: voxels would be {' x '.join(f'{side:g}' for side in grid.spacing)} mm",
            GeneralRemedy("Convert it again from its source, or set the unit of length in its header to millimetres."),
        )
    return grid


def _affine(path: Path, opened: _Opened, shape: tuple[int, int, int], chosen: NiftiAffine | None) -> Matrix:
    """The affine in the unit of the file, from voxel indices to RAS."""
    from nibabel.spatialimages import HeaderDataError

    header = opened.image.header
    try:
        both: dict[NiftiAffine, Matrix | None] = {
            "sform": header.get_sform(coded=True)[0],
            "qform": header.get_qform(coded=True)[0],
        }
    except (ValueError, HeaderDataError) as error:  # a quaternion that is not possible
        raise _unreadable(path, error) from error
    there = {name: matrix for name, matrix in both.items() if matrix is not None}
    if not there:
        raise fail(
            GEOMETRY_MISMATCH,
            path,
            "the file has no position and direction in the patient (sform and qform codes are 0)",
            GeneralRemedy("Convert it again from DICOM with a tool that writes the orientation."),
        )
    if list(there) == ["sform"] and chosen is None:
        _check_sides(path, opened.stored, there["sform"], shape)
    if len(there) == 1 or (chosen is None and _same(there["sform"], there["qform"], shape)):
        return next(iter(there.values()))
    if chosen is None:
        readings = "; ".join(f"{name}: {Grid(shape, matrix)}" for name, matrix in there.items())
        raise fail(
            CASE_AMBIGUOUS,
            path,
            f"the header has two positions in the patient that disagree: {readings}",
            GeneralRemedy(
                "Find out which one the masks were drawn on, and write 'affine: sform' or 'affine: qform' under images,"
                " and under masks if theirs disagree too; or convert the files again so that both agree."
            ),
        )
    return there[chosen]


def _check_sides(path: Path, stored: Any, sform: Matrix, shape: tuple[int, int, int]) -> None:
    """Refuse sides of voxels that the sform and pixdim give in two ways: ITK goes by pixdim, nibabel by the sform."""
    sides, pixdim = np.array(Grid(shape, sform).spacing), np.array(stored["pixdim"][1:4], dtype=np.float64)
    if np.isfinite(sides).all() and not (np.abs(pixdim - sides) <= _SIDE_TOLERANCE * sides).all():
        one, other = (" x ".join(f"{side:.4g}" for side in found) for found in (sides, pixdim))
        raise fail(
            CASE_AMBIGUOUS,
            path,
            f"the header gives the voxels two sizes: {one} mm by the sform, {other} mm by pixdim",
            GeneralRemedy(
                "If the sform is right, write 'affine: sform' under images, and under masks if theirs differ too; or"
                " convert the files again."
            ),
        )


def _same(one: Matrix, other: Matrix, shape: tuple[int, int, int]) -> bool:
    first, second = Grid(shape, one), Grid(shape, other)
    apart = np.linalg.norm(first.corners - second.corners, axis=1)
    return bool(apart.max() <= _AFFINE_TOLERANCE * min(first.spacing))


def _unreadable(path: Path, error: Exception) -> FedfmsError:
    return unreadable(IMAGE_UNREADABLE, path, error)
