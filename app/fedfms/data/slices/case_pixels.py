"""One case in memory: its slices and its masks on one grid, checked against each other."""

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
        values: (slices, rows, columns), or (slices, rows, columns, 3) for colour; type as stored.
        masks: Structure -> uint8 0/1 (slices, rows, columns), for the structures that are annotated in this case
            and were asked for. They may overlap.
        spacing: Distance of rows and of columns in mm; None for raster images and DICOM pictures.
        slice_distance: Distance of slices in mm; None where there is no spacing.
        series: The DICOM series of a volume; local only.
    """

    values: Array
    masks: dict[str, Array]
    spacing: tuple[float, float] | None
    slice_distance: float | None
    series: SourceSeries | None = field(default=None, repr=False)

    @property
    def nbytes(self) -> int:
        """Memory of the arrays."""
        return self.values.nbytes + sum(mask.nbytes for mask in self.masks.values())


def case_slices(files: CaseFiles, plane: Plane) -> int:
    """Number of slices, from the headers alone.

    Raises:
        FedfmsError: as the readers.
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
    """Read the image and the masks of the given structures.

    Raises:
        FedfmsError: everything that is wrong with the case's files: FMS-D002 (``labels`` that do not suit the kind
            of mask file), FMS-D003, FMS-D004, FMS-D005, FMS-D006, FMS-D014, FMS-D015, FMS-D016.
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
    """None for an image that has no place in the patient."""
    if files.dataset.format == "raster":
        return None
    if files.dataset.format == "dicom":
        images = files.dataset.images
        return read_dicom_grid(files.image, images.files or "*", images.series)
    return itk.read_grid(files.image) if files.dataset.format == "itk" else nifti.read_grid(files.image)


def _image(files: CaseFiles) -> Volume | Array:
    """A volume, or the pixels of an image that has no place in the patient."""
    if files.dataset.format == "raster":
        return raster.read_image(files.image)
    if files.dataset.format == "dicom":
        images = files.dataset.images
        image = read_dicom_image(files.image, images.files or "*", images.series)
        return image.values if isinstance(image, Picture) else image
    return itk.read_volume(files.image) if files.dataset.format == "itk" else nifti.read_volume(files.image)
