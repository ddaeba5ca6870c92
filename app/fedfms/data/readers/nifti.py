"""NIfTI volumes and label maps."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from fedfms.data.volume.checks import checked_grid, checked_voxels
from fedfms.data.volume.geometry import Grid, Volume
from fedfms.data.volume.remedies import GeneralRemedy
from fedfms.errors import GEOMETRY_MISMATCH, IMAGE_MISSING, IMAGE_UNREADABLE, FedfmsError, fail, reason_of

SUFFIXES = (".nii", ".nii.gz")

_READ_FAULTS = (OSError, EOFError, ValueError, zlib.error, gzip.BadGzipFile, struct.error, OverflowError)
_MILLIMETRES = {"mm": 1.0, "unknown": 1.0, "meter": 1000.0, "micron": 0.001}


def is_nifti(path: Path) -> bool:
    """Whether the file's name says NIfTI."""
    return path.name.lower().endswith(SUFFIXES)


def read_grid(path: Path) -> Grid:
    """Read the grid from the header, without voxels.

    Returns:
        Shape (i, j, k) and affine to millimetres in RAS. The affine is the sform or else the qform; other units of
        length are converted.

    Raises:
        FedfmsError: FMS-D003 when the file is missing, FMS-D004 when it is unreadable or not one 3-D volume,
            FMS-D005 when it has no position in the patient (sform and qform codes 0) or its affine has no volume.
    """
    return _grid(path, _opened(path))


def read_volume(path: Path) -> Volume:
    """Read a volume with its scale factors applied.

    Returns:
        Voxels (i, j, k) with their grid in RAS; float32, but integers without scale factors keep their type.

    Raises:
        FedfmsError: as ``read_grid``; also FMS-D004 when the file is truncated or holds values that are not
            finite.
    """
    image = _opened(path)
    grid = _grid(path, image)
    try:
        voxels = np.asanyarray(image.dataobj).reshape(grid.shape)
    except _READ_FAULTS as error:
        raise _unreadable(path, error) from error
    if voxels.dtype.kind not in "iufb":
        raise fail(IMAGE_UNREADABLE, path, f"voxels of type {voxels.dtype} are not supported")
    voxels = checked_voxels(path, voxels)
    return Volume(voxels.astype(voxels.dtype.newbyteorder("="), copy=False), grid)


def _opened(path: Path) -> Any:
    import nibabel
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError

    if not path.is_file():
        raise fail(IMAGE_MISSING, path, "no such file")
    try:
        return nibabel.load(path)
    except (*_READ_FAULTS, ImageFileError, HeaderDataError) as error:
        raise _unreadable(path, error) from error


def _grid(path: Path, image: Any) -> Grid:
    shape = tuple(int(size) for size in image.shape)
    if len(shape) > 3 and all(size == 1 for size in shape[3:]):
        shape = shape[:3]
    if len(shape) != 3 or 0 in shape:
        raise fail(
            IMAGE_UNREADABLE,
            path,
            f"expected one 3-D volume, found shape {shape}",
            GeneralRemedy("Save each volume as its own file."),
        )
    header = image.header
    if "sform_code" in header and int(header["sform_code"]) == 0 and int(header["qform_code"]) == 0:
        raise fail(
            GEOMETRY_MISMATCH,
            path,
            "the file has no position and direction in the patient (sform and qform codes are 0)",
            GeneralRemedy("Convert it again from DICOM with a tool that writes the orientation."),
        )
    unit = header.get_xyzt_units()[0] if hasattr(header, "get_xyzt_units") else "mm"
    affine = np.array(image.affine, dtype=np.float64)
    affine[:3] *= _MILLIMETRES.get(unit, 1.0)
    return checked_grid(path, (shape[0], shape[1], shape[2]), affine)


def _unreadable(path: Path, error: Exception) -> FedfmsError:
    return fail(IMAGE_UNREADABLE, path, reason_of(error))
