"""What every reader of volumes checks: the affine has a volume, and all voxels are finite."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fedfms.data.volume.geometry import Array, Grid, Matrix
from fedfms.data.volume.remedies import GeneralRemedy
from fedfms.errors import GEOMETRY_MISMATCH, IMAGE_UNREADABLE, LABEL_UNKNOWN, fail

#: Smallest volume of a voxel in mm^3; below it two axes are parallel or a side is 0.
_LEAST_VOLUME = 1e-9


def checked_grid(path: Path, shape: tuple[int, int, int], affine: Matrix) -> Grid:
    """The grid of a file.

    Args:
        path: The file, for the error.
        shape: Voxels along i, j, k.
        affine: (4, 4), from voxel indices to millimetres in RAS.

    Raises:
        FedfmsError: FMS-D005 when the affine holds numbers that are not finite, or voxels have no volume.
    """
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < _LEAST_VOLUME:
        raise fail(
            GEOMETRY_MISMATCH,
            path,
            "the file's affine has no volume",
            GeneralRemedy("Convert it again from its source."),
        )
    return Grid(shape, affine)


def checked_voxels(path: Path, voxels: Array) -> Array:
    """Voxels (i, j, k) of a file: integers as they are, other numbers as float32.

    Args:
        path: The file, for the error.
        voxels: As the library read them.

    Raises:
        FedfmsError: FMS-D004 when a value is not finite, also as float32.
    """
    if voxels.dtype.kind != "f":
        return voxels
    with np.errstate(over="ignore"):  # refused below
        voxels = voxels.astype(np.float32)
    if not np.isfinite(voxels).all():
        raise fail(IMAGE_UNREADABLE, path, "the volume holds values that are not finite")
    return voxels


def whole_numbers(path: Path, values: Array) -> Array:
    """Labels that are stored as floating-point numbers, as int32.

    Raises:
        FedfmsError: FMS-D006 when they are not whole.
    """
    whole = np.rint(values)
    if not np.array_equal(whole, values):
        raise fail(
            LABEL_UNKNOWN,
            path,
            "the mask holds numbers that are not whole, so they are not labels",
            GeneralRemedy("Save labels. Of probabilities, 'above: 0.5' under this mask makes a mask."),
        )
    whole_labels: Array = whole.astype(np.int32)
    return whole_labels
