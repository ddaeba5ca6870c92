"""Positions of voxels in the patient, and how a volume is cut into slices.

DICOM gives positions in LPS (x to the patient's left, y to posterior, z to superior; PS3.3 C.7.6.2.1.1), NIfTI in RAS
(x to the right, y to anterior, z to superior). Every affine in this package is a (4, 4) matrix that maps voxel indices
(i, j, k) to millimetres in RAS; ``LPS_TO_RAS`` converts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Plane = Literal["axial", "coronal", "sagittal", "thickest"]
Matrix = npt.NDArray[np.float64]
Array = npt.NDArray[Any]

LPS_TO_RAS: Matrix = np.diag([-1.0, -1.0, 1.0, 1.0])

#: Voxel sides within this factor of each other count as equally thick.
_EQUALLY_THICK = 1.01

#: Voxel centres coincide when they differ by at most this fraction of a voxel along each axis of the grid. Twice
#: ``dicom.stack.SPACING_TOLERANCE``, because a mask keeps the true position of a slice that is slightly displaced.
GRID_TOLERANCE = 0.1

# Order and direction of the axes (slice, row, column) of each plane, as viewers show them: the patient's
# right at the left of axial and coronal slices, anterior at the top of axial ones and at the left of sagittal
# ones, superior at the top of coronal and sagittal ones.
_PLANE_AXES: dict[str, tuple[str, str, str]] = {
    "axial": ("S", "P", "L"),
    "coronal": ("P", "I", "L"),
    "sagittal": ("L", "I", "P"),
}
# The plane across each axis of RAS, in the order in which equally thick ones are taken.
_PLANE_ACROSS: dict[int, Plane] = {2: "axial", 1: "coronal", 0: "sagittal"}


@dataclass(frozen=True)
class Grid:
    """A regular grid of voxels in the patient.

    Attributes:
        shape: Number of voxels along i, j, k.
        affine: (4, 4), from voxel indices (i, j, k) to millimetres in RAS.
    """

    shape: tuple[int, int, int]
    affine: Matrix

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distances between neighbouring voxels along i, j, k in mm."""
        lengths = np.linalg.norm(self.affine[:3, :3], axis=0)
        return (float(lengths[0]), float(lengths[1]), float(lengths[2]))

    @property
    def corners(self) -> Matrix:
        """Centres (8, 3) of the voxels at the corners, in mm RAS."""
        ends = [(0, size - 1) for size in self.shape]
        corners: Matrix = np.array(list(product(*ends))) @ self.affine[:3, :3].T + self.affine[:3, 3]
        return corners

    def __str__(self) -> str:
        origin = ", ".join(f"{value:.2f}" for value in self.affine[:3, 3])
        sides = " x ".join(f"{value:.4g}" for value in self.spacing)
        axes = "; ".join(
            " ".join(f"{value:.3f}" for value in column / max(float(np.linalg.norm(column)), 1e-12))
            for column in self.affine[:3, :3].T
        )
        return (
            f"{' x '.join(map(str, self.shape))} voxels of {sides} mm, first voxel at ({origin}) mm RAS,"
            f" axis directions [{axes}]"
        )


@dataclass(frozen=True)
class SourceFrame:
    """The DICOM image of one slice. It names a patient's file and must not be printed or sent.

    Attributes:
        path: The file.
        frame: Index from 0 within a multi-frame file (DICOM counts frames from 1); None for a file of one frame.
        sop_instance_uid: SOPInstanceUID (0008,0018) of the file.
    """

    path: Path = field(repr=False)
    frame: int | None
    sop_instance_uid: str = field(repr=False)


@dataclass(frozen=True)
class SourceSeries:
    """The DICOM series that a volume was read from. It must not be sent.

    Attributes:
        uid: SeriesInstanceUID (0020,000E).
        shown: Modality, description and number of the series, for messages.
    """

    uid: str
    shown: str

    def __str__(self) -> str:
        return self.shown


@dataclass(frozen=True)
class Volume:
    """A volume of voxels with its grid.

    Attributes:
        voxels: Values (i, j, k); for a DICOM series (column, row, slice).
        grid: Their positions in the patient.
        frame_of_reference: FrameOfReferenceUID (0020,0052) of a DICOM series; None for other files. Positions of two
            objects can be compared only when it is the same.
        sources: For a DICOM series, the image of each index k in this order; empty for other files.
        series: The DICOM series; None for other files.
    """

    voxels: Array
    grid: Grid
    frame_of_reference: str | None = field(default=None, repr=False)
    sources: tuple[SourceFrame, ...] = field(default=(), repr=False)
    series: SourceSeries | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Picture:
    """A DICOM image without a position in the patient: a photograph, a secondary capture, a projection.

    Attributes:
        values: Pixels (rows, columns), or (rows, columns, 3) RGB for colour.
        source: The file.
    """

    values: Array
    source: SourceFrame = field(repr=False)


@dataclass(frozen=True)
class SlicePlan:
    """How to cut a volume into slices of an anatomical plane, without resampling.

    Oblique volumes are cut along the stored axis that is closest to the normal of the plane.

    Attributes:
        axes: Stored axis (0 to 2 for i, j, k) of the slice, row and column direction.
        flips: Whether each of these axes is read backwards.
        shape: (slices, rows, columns).
        spacing: Distance of rows and of columns in mm.
        slice_distance: Distance of slices in mm.
    """

    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
    shape: tuple[int, int, int]
    spacing: tuple[float, float]
    slice_distance: float

    def cut(self, voxels: Array) -> Array:
        """Voxels (i, j, k) as (slices, rows, columns); a view, not a copy."""
        view = voxels.transpose(self.axes)
        steps = tuple(slice(None, None, -1 if flip else 1) for flip in self.flips)
        result: Array = view[steps]
        return result


def slice_plan(grid: Grid, plane: Plane) -> SlicePlan:
    """Find the stored axes that are closest to the slice, row and column direction of a plane.

    Args:
        grid: The grid of the volume.
        plane: ``thickest`` means the plane across the stored axis with the largest voxel side, in which a volume of
            thick slices was acquired. An axis of a single voxel counts as thickest; of equally thick axes the axial
            plane comes first, then the coronal one.
    """
    import nibabel

    stored = nibabel.orientations.io_orientation(grid.affine)
    # Each row of an orientation names an axis of RAS and a sign, one row per array axis.
    by_world_axis = {int(row[0]): (axis, float(row[1])) for axis, row in enumerate(stored)}
    if plane == "thickest":
        plane = _thickest(grid, {world: axis for world, (axis, _) in by_world_axis.items()})
    wanted = nibabel.orientations.axcodes2ornt(_PLANE_AXES[plane])
    picked = [by_world_axis[int(row[0])] for row in wanted]
    axes = tuple(axis for axis, _ in picked)
    flips = tuple(sign != float(row[1]) for (_, sign), row in zip(picked, wanted, strict=True))
    spacing = grid.spacing
    return SlicePlan(
        axes=(axes[0], axes[1], axes[2]),
        flips=(flips[0], flips[1], flips[2]),
        shape=(grid.shape[axes[0]], grid.shape[axes[1]], grid.shape[axes[2]]),
        spacing=(spacing[axes[1]], spacing[axes[2]]),
        slice_distance=spacing[axes[0]],
    )


def _thickest(grid: Grid, axis_of: dict[int, int]) -> Plane:
    sides = {world: np.inf if grid.shape[axis] == 1 else grid.spacing[axis] for world, axis in axis_of.items()}
    limit = max(sides.values()) / _EQUALLY_THICK
    return next(plane for world, plane in _PLANE_ACROSS.items() if sides[world] >= limit)


@dataclass(frozen=True)
class Placement:
    """The position of a block of voxels in a grid whose voxel centres coincide with those of the block.

    Attributes:
        axes: For each axis of the grid, the axis of the block that is parallel to it.
        flips: Whether that axis has the opposite direction.
        start: Lowest index of the block along each axis of the grid; it may be outside of the grid.
        shape: Number of voxels of the block along each axis of the grid.
    """

    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
    start: tuple[int, int, int]
    shape: tuple[int, int, int]

    def reorder(self, voxels: Array) -> Array:
        """The block's voxels in the axis order and directions of the grid; a view, not a copy."""
        result: Array = voxels.transpose(self.axes)[tuple(slice(None, None, -1 if flip else 1) for flip in self.flips)]
        return result


def locate_in_grid(block: Grid, target: Grid) -> Placement | None:
    """Find a block of voxels in a grid.

    Args:
        block: Grid of the block. Its axes may be permuted and flipped; an axis of one voxel may have any direction
            and length.
        target: The grid.

    Returns:
        The position; None when voxel centres do not coincide to ``GRID_TOLERANCE``. Parts of the block may be outside
        of the grid.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        mapping = np.linalg.inv(target.affine) @ block.affine
    steps = np.rint(mapping[:3, :3])
    for axis in np.flatnonzero(np.array(block.shape) == 1):
        steps[:, axis] = 0
    if np.abs(steps).max(initial=0) > 1 or (np.abs(steps).sum(axis=0) > 1).any():
        return None
    for axis in np.flatnonzero(~steps.any(axis=0)):
        free = np.flatnonzero(~steps.any(axis=1))
        if block.shape[axis] > 1 or not len(free):
            return None
        steps[free[0], axis] = 1
    if (np.abs(steps).sum(axis=1) != 1).any():
        return None
    first = np.rint(mapping[:3, 3])
    corners = np.array(np.meshgrid(*[(0, size - 1) for size in block.shape])).reshape(3, -1)
    with np.errstate(over="ignore", invalid="ignore"):  # positions of damaged files may be beyond all numbers
        exact = mapping[:3, :3] @ corners + mapping[:3, 3:]
        apart = np.abs(exact - (steps @ corners + first[:, None])).max()
    if not apart <= GRID_TOLERANCE:
        return None
    axes = np.abs(steps).argmax(axis=1)
    backwards = steps.sum(axis=1) < 0
    shape = np.array(block.shape)[axes]
    start = first + np.where(backwards, 1 - shape, 0)
    flips = (bool(backwards[0]), bool(backwards[1]), bool(backwards[2]))
    return Placement(_triple(axes), flips, _triple(start), _triple(shape))


def reorder_onto(volume: Volume, target: Grid) -> Array | None:
    """Reorder the voxels of a volume to the index order of a grid that covers the same voxels.

    Axis permutations and flips are undone; nothing is interpolated.

    Returns:
        Voxels in the shape of ``target``; None when the two sets of voxel centres are not the same.
    """
    found = locate_in_grid(volume.grid, target)
    if found is None or found.start != (0, 0, 0) or found.shape != target.shape:
        return None
    return found.reorder(volume.voxels)


def _triple(values: Array) -> tuple[int, int, int]:
    return (int(values[0]), int(values[1]), int(values[2]))
