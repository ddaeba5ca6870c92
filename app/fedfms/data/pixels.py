"""One case in memory: its slices and label maps on one grid, checked against each other."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedfms.data import dicom, nifti, raster
from fedfms.data.discovery import CaseFiles
from fedfms.data.geometry import Array, Grid, Picture, Plane, Volume, onto_grid, slice_plan
from fedfms.data.site import MaskSource
from fedfms.errors import GEOMETRY_MISMATCH, IMAGE_UNREADABLE, LABEL_UNKNOWN, FedfmsError, Problem, fail


@dataclass(frozen=True)
class CasePixels:
    """Slices of one case.

    Attributes:
        values: (slices, rows, columns), or (slices, rows, columns, 3) for colour; type as stored.
        labels: One (slices, rows, columns) label map per mask source; None where the case has none or it was
            not asked for.
        spacing: Distance of rows and of columns in mm; None for raster images and DICOM pictures.
    """

    values: Array
    labels: tuple[Array | None, ...]
    spacing: tuple[float, float] | None

    @property
    def nbytes(self) -> int:
        """Memory of the arrays."""
        return self.values.nbytes + sum(labels.nbytes for labels in self.labels if labels is not None)


def case_slices(files: CaseFiles, plane: Plane) -> int:
    """Number of slices, from the headers alone.

    Raises:
        FedfmsError: as the readers.
    """
    grid = _grid(files)
    return 1 if grid is None else slice_plan(grid, plane).shape[0]


def read_case(files: CaseFiles, plane: Plane, sources: Collection[int]) -> CasePixels:
    """Read the image and the masks with the given positions in ``dataset.masks``.

    Raises:
        FedfmsError: everything that is wrong with the case's files: FMS-D003, FMS-D004, FMS-D005, FMS-D006,
            FMS-D014, FMS-D015.
    """
    problems: list[Problem] = []
    labels: list[Array | None] = []
    image = _image(files)
    if isinstance(image, Volume):
        plan = slice_plan(image.grid, plane)
        volume, values, spacing, cut = image, plan.cut(image.voxels), plan.spacing, plan.cut
    else:
        volume, values, spacing, cut = None, image[None], None, None
    for position, (source, path) in enumerate(zip(files.dataset.masks, files.masks, strict=True)):
        if path is None or position not in sources:
            labels.append(None)
            continue
        try:
            if volume is None or cut is None:
                found = _raster_labels(path, (values.shape[1], values.shape[2]), files.image)
            else:
                found = cut(_volume_labels(path, volume, files))
            problems += _unknown_values(found, source, path)
            labels.append(found)
        except FedfmsError as error:
            problems += error.problems
    if problems:
        raise FedfmsError(problems)
    return CasePixels(values, tuple(labels), spacing)


def structure_mask(labels: Array, source: MaskSource, structure: str) -> Array:
    """Voxels that belong to a structure, as uint8 0/1 of the same shape."""
    values = source.labels[structure]
    mask: Array = (labels != 0 if values == "nonzero" else np.isin(labels, values)).astype(np.uint8)
    return mask


def present_values(labels: Array) -> list[int]:
    """The different values in a label map, sorted."""
    if labels.dtype in (np.dtype(np.uint8), np.dtype(np.uint16)):
        return [int(value) for value in np.flatnonzero(np.bincount(labels.ravel()))]
    return [int(value) for value in np.unique(labels)]


def is_nifti(path: Path) -> bool:
    """Whether the file's name says NIfTI."""
    return path.name.lower().endswith(nifti.SUFFIXES)


def _grid(files: CaseFiles) -> Grid | None:
    """None for an image that has no place in the patient."""
    if files.dataset.format == "raster":
        return None
    if files.dataset.format == "dicom":
        images = files.dataset.images
        return dicom.read_grid(files.image, images.files or "*", images.series)
    return nifti.read_grid(files.image)


def _image(files: CaseFiles) -> Volume | Array:
    """A volume, or the pixels of an image that has no place in the patient."""
    if files.dataset.format == "raster":
        return raster.read_image(files.image)
    if files.dataset.format == "dicom":
        images = files.dataset.images
        image = dicom.read_image(files.image, images.files or "*", images.series)
        return image.values if isinstance(image, Picture) else image
    return nifti.read_volume(files.image)


def _raster_labels(path: Path, size: tuple[int, int], image: Path) -> Array:
    if is_nifti(path):
        raise fail(
            GEOMETRY_MISMATCH,
            path,
            "a NIfTI mask cannot be placed on an image without position",
            "Save it as PNG.",
        )
    if path.suffix.lower() not in raster.SUFFIXES:
        raise fail(IMAGE_UNREADABLE, path, f"unknown kind of mask file; known are {', '.join(raster.SUFFIXES)}")
    labels = raster.read_mask(path)
    if labels.shape != size:
        raise fail(
            GEOMETRY_MISMATCH,
            path,
            f"the mask has {labels.shape[0]} rows x {labels.shape[1]} columns, its image {image} {size[0]} x {size[1]}",
        )
    return labels[None]


def _volume_labels(path: Path, image: Volume, files: CaseFiles) -> Array:
    if is_nifti(path):
        mask = nifti.read_labels(path)
        labels = onto_grid(mask, image.grid)
        if labels is None:
            raise fail(GEOMETRY_MISMATCH, path, f"mask: {mask.grid}; image {files.image}: {image.grid}")
        return labels
    columns, rows, slices = image.grid.shape
    if files.dataset.format != "dicom" or slices != 1 or path.suffix.lower() not in raster.SUFFIXES:
        raise fail(
            GEOMETRY_MISMATCH,
            path,
            "a mask of a volume must be NIfTI: other files do not say where their slices lie",
            "Save one NIfTI label map per volume.",
        )
    # A single DICOM image: row and column of a raster mask are those of the stored pixels.
    labels = _raster_labels(path, (rows, columns), files.image)
    return np.ascontiguousarray(labels.transpose(2, 1, 0))


def _unknown_values(labels: Array, source: MaskSource, path: Path) -> list[Problem]:
    known = {0, *source.ignore_values}
    for values in source.labels.values():
        if values == "nonzero":
            return []
        known.update(values)
    unknown = [value for value in present_values(labels) if value not in known]
    if not unknown:
        return []
    shown = ", ".join(map(str, unknown[:10])) + (f" and {len(unknown) - 10} more" if len(unknown) > 10 else "")
    return [Problem(LABEL_UNKNOWN, str(path), f"values {shown}; site.yaml names {', '.join(map(str, sorted(known)))}")]
