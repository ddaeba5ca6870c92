"""A case in memory: its slices as the model cuts them, and how they map back to the stored order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fedfms.data.dicom.image import read_dicom_image
from fedfms.data.readers import itk, nifti, raster
from fedfms.data.volume.geometry import Array, Picture, Plane, Volume, slice_plan
from fedfms.prediction.inputs import InputCase


@dataclass(frozen=True)
class CaseImage:
    """Pixels of a case.

    Attributes:
        values: (slices, rows, columns), or (slices, rows, columns, 3) for colour; type as stored.
        shape: Of a mask in the file's own order: (i, j, k) for a volume, (rows, columns) for a picture.
        cut: Gives a view of a mask of ``shape`` as (slices, rows, columns); writing into the view fills the mask.
        origin: What the reader returned for DICOM or a volume; None for a raster image.
    """

    values: Array
    shape: tuple[int, ...]
    cut: Callable[[Array], Array]
    origin: Volume | Picture | None

    @property
    def slices_shape(self) -> tuple[int, int, int]:
        """(slices, rows, columns)."""
        slices, rows, columns = self.values.shape[:3]
        return slices, rows, columns


def load_image(case: InputCase, plane: Plane) -> CaseImage:
    """Read a case and cut it into the slices that the model was trained on.

    Raises:
        FedfmsError: faults that the readers find: FMS-D003, FMS-D004, FMS-D005, FMS-D014, FMS-D015.
    """
    if case.kind == "raster":
        return _picture(raster.read_image(case.path), None)
    origin = _origin(case)
    if isinstance(origin, Picture):
        return _picture(origin.values, origin)
    plan = slice_plan(origin.grid, plane)
    return CaseImage(plan.cut(origin.voxels), origin.grid.shape, plan.cut, origin)


def _origin(case: InputCase) -> Volume | Picture:
    if case.kind == "nifti":
        return nifti.read_volume(case.path, case.affine)
    if case.kind == "itk":
        return itk.read_volume(case.path)
    return read_dicom_image(case.files, choice=case.choice)


def _picture(values: Array, origin: Picture | None) -> CaseImage:
    return CaseImage(values[None], values.shape[:2], lambda mask: mask[None], origin)
