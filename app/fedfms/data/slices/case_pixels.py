"""One case in memory: its slices, and its masks on the same grid."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from fedfms.data.dicom.image import read_dicom_grid, read_dicom_image
from fedfms.data.readers import itk, nifti, raster
from fedfms.data.readers.masks import annotated, raster_masks, volume_masks
from fedfms.data.slices.discovery import CaseFiles
from fedfms.data.volume.geometry import Array, Grid, Picture, Plane, SourceSeries, Volume, slice_plan
from fedfms.errors import FedfmsError, Problem


@dataclass(frozen=True)
class CasePixels:
    """Slices of one case.

    Attributes:
        values: (slices, rows, columns), or (slices, rows, columns, 3) for colour; float32 for DICOM volumes, else the
            type that the reader gives.
        masks: Structure -> uint8 0/1 (slices, rows, columns), for the requested structures that are annotated in this
            case. They may overlap.
        spacing: Distance of rows and of columns in mm; None for raster images and DICOM pictures.
        slice_distance: Distance of slices in mm; None where there is no spacing.
        series: The DICOM series of a volume; must not be sent.
    """

    values: Array
    masks: dict[str, Array]
    spacing: tuple[float, float] | None
    slice_distance: float | None
    series: SourceSeries | None = field(default=None, repr=False)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return self.values.nbytes + sum(mask.nbytes for mask in self.masks.values())


def case_slices(files: CaseFiles, plane: Plane) -> int:
    """Number of slices of a case in a plane, from the headers alone.

    Raises:
        FedfmsError: what the reader of the image raises.
    """
    grid = _grid(files)
    return 1 if grid is None else slice_plan(grid, plane).shape[0]


def annotated_structures(files: CaseFiles) -> frozenset[str]:
    """Structures that the case's masks annotate, from the headers alone.

    Raises:
        FedfmsError: FMS-D004 when a header is unreadable.
    """
    sources = zip(files.dataset.masks, files.masks, strict=True)
    return frozenset[str]().union(*(annotated(source, path) for source, path in sources))


def read_case(files: CaseFiles, plane: Plane, structures: Collection[str]) -> CasePixels:
    """Read the image of a case and the masks of the given structures.

    Args:
        files: The case.
        plane: The plane in which volumes are cut into slices.
        structures: Names of the structures to read; files that have none of them are not opened.

    Raises:
        FedfmsError: everything that is wrong with the files of the case: FMS-D002 (``labels`` that do not suit the
            kind of mask file), FMS-D003, FMS-D004, FMS-D005, FMS-D006, FMS-D014, FMS-D015, FMS-D016.
    """
    problems: list[Problem] = []
    masks: dict[str, Array] = {}
    image = _image(files)
    series = image.series if isinstance(image, Volume) else None
    where = str(files.image) if series is None else f"{files.image}, {series}"
    if isinstance(image, Volume):
        plan = slice_plan(image.grid, plane)
        values, spacing, distance = plan.cut(image.voxels), plan.spacing, plan.slice_distance
    else:
        values, spacing, distance = image[None], None, None
    for source, path in zip(files.dataset.masks, files.masks, strict=True):
        wanted = [name for name in source.labels if name in structures]
        if path is None or not wanted:
            continue
        try:
            if isinstance(image, Volume):
                found = volume_masks(path, source, wanted, image, where)
                masks.update({name: plan.cut(mask) for name, mask in found.items()})
            else:
                found = raster_masks(path, source, wanted, (image.shape[0], image.shape[1]), where)
                masks.update({name: mask[None] for name, mask in found.items()})
        except FedfmsError as error:
            problems += error.problems
    if problems:
        raise FedfmsError(problems)
    return CasePixels(values, masks, spacing, distance, series)


def _grid(files: CaseFiles) -> Grid | None:
    """None for an image that has no position in the patient."""
    if files.dataset.format == "raster":
        return None
    if files.dataset.format == "dicom":
        images = files.dataset.images
        return read_dicom_grid(files.image, images.files or "*", images.series)
    if files.dataset.format == "itk":
        return itk.read_grid(files.image)
    return nifti.read_grid(files.image, files.dataset.images.affine)


def _image(files: CaseFiles) -> Volume | Array:
    """A volume, or the pixels of an image that has no position in the patient."""
    if files.dataset.format == "raster":
        return raster.read_image(files.image)
    if files.dataset.format == "dicom":
        images = files.dataset.images
        image = read_dicom_image(files.image, images.files or "*", images.series)
        return image.values if isinstance(image, Picture) else image
    if files.dataset.format == "itk":
        return itk.read_volume(files.image)
    return nifti.read_volume(files.image, files.dataset.images.affine)
