"""Mask files of every kind, as structures on the grid of their image."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from fedfms.access import unreadable
from fedfms.data.description.label_values import LabelValue, LabelValues
from fedfms.data.description.site import MaskSource, NiftiAffine
from fedfms.data.dicom.rtstruct import SOP_CLASS, StructureSet
from fedfms.data.dicom.seg import SOP_CLASSES, Segmentation
from fedfms.data.dicom.series import read_whole
from fedfms.data.readers import itk, nifti, raster
from fedfms.data.readers.formats import SUFFIXES, Format, format_of, has_dicom_mark
from fedfms.data.volume.checks import whole_numbers
from fedfms.data.volume.geometry import Array, SourceSeries, Volume, locate_in_grid, reorder_onto
from fedfms.data.volume.remedies import GeneralRemedy
from fedfms.errors import (
    GEOMETRY_MISMATCH,
    IMAGE_MISSING,
    IMAGE_UNREADABLE,
    LABEL_UNKNOWN,
    SEGMENT_MISSING,
    SITE_INVALID,
    FedfmsError,
    Problem,
    fail,
    first_of,
)

_CHOOSE_SERIES = GeneralRemedy(
    "The mask was drawn on another series: choose that one under images.series or images.pattern in site.yaml, or"
    " put the mask with the images that it belongs to."
)
_SAME_EXTENT = GeneralRemedy(
    "Image and mask share their voxels, but one extends beyond the other: export the complete image series, or"
    " cut the mask to the image."
)
# Label values within such a range are marked in a table instead of sorted, this many voxels at a time.
_TABLE_RANGE = 1 << 17
_PART = 1 << 20


class RegionFile(Protocol):
    """A DICOM object with named regions: ``Segmentation`` or ``StructureSet``. ``str()`` lists the regions.

    Attributes:
        kind: What a region is called: ``segment`` or ``ROI``.
        series: SeriesInstanceUIDs of the series that the object refers to.
    """

    kind: str
    series: frozenset[str]

    @property
    def all(self) -> frozenset[int]:
        """Numbers of all regions that have voxels or contours."""

    @property
    def names(self) -> tuple[str | int, ...]:
        """What to write under ``labels`` for each region."""

    def find(self, value: LabelValue) -> frozenset[int]:
        """Numbers of the regions that a value under ``labels`` means."""

    def voxels(self, numbers: Collection[int], image: Volume, image_from: object) -> Array:
        """The union of regions, uint8 0/1 in the shape (i, j, k) of the image."""


def mask_kind(path: Path) -> Format:
    """Format of a mask file: by its suffix, DICOM by the mark in the file.

    Raises:
        FedfmsError: FMS-D003 when it is missing, FMS-D004 when its format is unknown.
    """
    if kind := format_of(path):
        return kind
    try:
        if has_dicom_mark(path):
            return "dicom"
    except FileNotFoundError:
        raise fail(IMAGE_MISSING, path, "no such file") from None
    except OSError as error:
        raise unreadable(IMAGE_UNREADABLE, path, error) from error
    known = ", ".join(suffix for suffixes in SUFFIXES.values() for suffix in suffixes)
    raise fail(IMAGE_UNREADABLE, path, f"unknown kind of mask file; known are {known} and DICOM")


def read_label_map(path: Path, affine: NiftiAffine | None = None, *, fractional: bool = False) -> Volume:
    """Read a NIfTI, NRRD or MetaImage label map.

    Args:
        path: The file.
        affine: As for ``nifti.read_volume``.
        fractional: Accept numbers that are not whole, such as probabilities.

    Returns:
        Voxels (i, j, k) with their grid in RAS; integers, or float32 with ``fractional``.

    Raises:
        FedfmsError: as ``nifti.read_volume`` and ``itk.read_volume``; also FMS-D006 when values are not whole
            numbers.
    """
    volume = itk.read_volume(path) if mask_kind(path) == "itk" else nifti.read_volume(path, affine)
    voxels = volume.voxels
    if voxels.dtype.kind == "b":
        voxels = voxels.astype(np.uint8)
    elif voxels.dtype.kind == "f" and not fractional:
        voxels = whole_numbers(path, voxels)
    return Volume(voxels, volume.grid)


def volume_masks(
    path: Path, source: MaskSource, structures: Collection[str], image: Volume, where: object
) -> dict[str, Array]:
    """Read the masks of a volume from one file.

    Nothing is resampled: voxels of the mask must coincide with voxels of the image, in any axis order.

    Args:
        path: NIfTI, NRRD, MetaImage, DICOM SEG or RTSTRUCT; for an image of one slice also a raster file with its
            stored rows and columns.
        source: What the content of the file means.
        structures: The structures of ``source.labels`` to read.
        image: The image; its voxel values are not used.
        where: File or series of the image, for messages.

    Returns:
        Structure -> uint8 0/1 in the shape (i, j, k) of the image, for the structures that are annotated.

    Raises:
        FedfmsError: FMS-D003 (missing file), FMS-D004 (unreadable), FMS-D005 (not on the grid of the image), FMS-D006
            (values that are not under ``labels``), FMS-D014 (two frames at one position), FMS-D016 (a required
            segment or ROI is missing), and FMS-D002 when ``labels`` does not suit this kind of file.
    """
    kind = mask_kind(path)
    if kind == "dicom":
        return _region_masks(path, source, structures, image, where)
    if kind == "raster":
        columns, rows, slices = image.grid.shape
        if slices != 1 or not image.sources:
            raise fail(
                GEOMETRY_MISMATCH,
                path,
                "a raster mask has no position in a volume",
                GeneralRemedy("Save one label map per volume as NIfTI or NRRD."),
            )
        # A single DICOM image: row and column of a raster mask are those of the stored pixels.
        labels = _raster_labels(path, source, (rows, columns), where).T[:, :, None]
    else:
        mask = read_label_map(path, source.affine, fractional=source.above is not None)
        found = reorder_onto(mask, image.grid)
        if found is None:
            remedy = None if locate_in_grid(mask.grid, image.grid) is None else _SAME_EXTENT
            raise fail(GEOMETRY_MISMATCH, path, f"mask: {mask.grid}; image {where}: {image.grid}", remedy)
        labels = found
    return _labelled(path, labels, source, structures)


def raster_masks(
    path: Path, source: MaskSource, structures: Collection[str], size: tuple[int, int], where: object
) -> dict[str, Array]:
    """Read the masks of an image that has no position in the patient, from one raster file.

    Args:
        path: The file.
        source: What the content of the file means.
        structures: The structures of ``source.labels`` to read.
        size: (rows, columns) of the image.
        where: File of the image, for messages.

    Returns:
        Structure -> uint8 0/1 (rows, columns), for the structures that are annotated.

    Raises:
        FedfmsError: as ``volume_masks``.
    """
    if mask_kind(path) != "raster":
        raise fail(
            GEOMETRY_MISMATCH,
            path,
            "a mask with a position in a patient cannot be placed on an image without one",
            GeneralRemedy("Save it as PNG."),
        )
    return _labelled(path, _raster_labels(path, source, size, where), source, structures)


def annotated(source: MaskSource, path: Path | None) -> frozenset[str]:
    """Structures that a mask file annotates, from its header alone; none without a file.

    Raises:
        FedfmsError: FMS-D004 when a header is unreadable.
    """
    if path is None:
        return frozenset()
    kind = mask_kind(path)
    if source.required or kind not in ("dicom", "itk"):
        return frozenset(source.labels)
    if kind == "itk":
        named = itk.segments(path)
        return frozenset(name for name, values in source.labels.items() if _is_there(values, named))
    regions = _regions(path, pixels=False)
    return frozenset(name for name, values in source.labels.items() if _numbers(regions, values))


@dataclass(frozen=True)
class RegionFacts:
    """What the header of a DICOM SEG or RTSTRUCT says, apart from the masks.

    Attributes:
        lists: Structure with several values under ``labels`` -> for each value the numbers of the regions it means.
        series: SeriesInstanceUIDs of the series that the file refers to; empty when it names none.
        inner_contours: Number of contours of these structures that are read as holes because they are within another.
    """

    lists: dict[str, tuple[frozenset[int], ...]]
    series: frozenset[str]
    inner_contours: int = 0


def region_facts(source: MaskSource, path: Path | None) -> RegionFacts | None:
    """Read the facts of a SEG or RTSTRUCT; None for other kinds of mask and without a file.

    Raises:
        FedfmsError: FMS-D004 when a header is unreadable.
    """
    if path is None or mask_kind(path) != "dicom":
        return None
    regions = _regions(path, pixels=False)
    lists = {name: values for name, values in source.labels.items() if values != "nonzero" and len(values) > 1}
    found = {name: tuple(_numbers(regions, (value,)) for value in values) for name, values in lists.items()}
    used = frozenset[int]().union(*(_numbers(regions, values) for values in source.labels.values()))
    inner = regions.inner_contours(used) if isinstance(regions, StructureSet) else 0
    return RegionFacts(found, regions.series, inner)


def names_another(series_uids: frozenset[str], image: SourceSeries) -> bool:
    """Whether a mask names the series it was drawn on, and the image's series is not among them."""
    return bool(series_uids) and image.uid not in series_uids


def region_names(path: Path) -> tuple[str | int, ...]:
    """What to write under ``labels`` for the segments or ROIs of a DICOM SEG, an RTSTRUCT or a NRRD segmentation.

    Raises:
        FedfmsError: FMS-D003 or FMS-D004.
    """
    return tuple(itk.segments(path)) if mask_kind(path) == "itk" else _regions(path, pixels=False).names


def present_values(labels: Array) -> list[int]:
    """The distinct values in a label map of integers, sorted."""
    lowest, highest = int(labels.min()), int(labels.max())
    if highest - lowest >= _TABLE_RANGE:
        return [int(value) for value in np.unique(labels)]
    seen = np.zeros(highest - lowest + 1, dtype=np.bool_)
    flat = labels.ravel(order="K")
    # In parts: NumPy converts each label to an index of eight bytes.
    for start in range(0, flat.size, _PART):
        seen[flat[start : start + _PART].astype(np.intp) - lowest] = True
    return [lowest + int(position) for position in np.flatnonzero(seen)]


def _any_of(labels: Array, numbers: Sequence[int]) -> Array:
    result: Array = labels == numbers[0]
    for number in numbers[1:]:
        result |= labels == number
    return result


def _raster_labels(path: Path, source: MaskSource, size: tuple[int, int], where: object) -> Array:
    all_count = source.above is None and "nonzero" in source.labels.values()
    labels = raster.read_mask(path, fractional=source.above is not None, all_count=all_count)
    if labels.shape != size:
        raise fail(
            GEOMETRY_MISMATCH,
            path,
            f"the mask has {labels.shape[0]} rows x {labels.shape[1]} columns, its image {where} {size[0]} x {size[1]}",
        )
    return labels


def _labelled(path: Path, labels: Array, source: MaskSource, structures: Collection[str]) -> dict[str, Array]:
    if source.above is not None:
        labels = labels > source.above
    named = itk.segments(path) if mask_kind(path) == "itk" else {}
    numbers = {name: _values(values, named) for name, values in source.labels.items()}
    absent = [name for name, values in source.labels.items() if not _is_there(values, named)]
    problems = [
        Problem(
            SITE_INVALID,
            f"{path}: labels.{name}",
            "names and codes are for DICOM SEG, RTSTRUCT and NRRD files with named segments; this file holds numbers",
            GeneralRemedy("Write the numbers that mean this structure, or nonzero."),
        )
        for name in absent
        if not named
    ]
    problems += [
        Problem(
            SEGMENT_MISSING,
            str(path),
            f"no segment fits {name} ({_shown(source.labels[name])}); the file has: {', '.join(named)}",
        )
        for name in absent
        if named and source.required and name in structures
    ]
    known = {0, *source.ignore_values}.union(*numbers.values())
    if any(isinstance(value, str) for values in source.labels.values() if values != "nonzero" for value in values):
        known = known.union(*named.values())  # who goes by names need not list those that no job trains
    unknown = [value for value in present_values(labels) if value not in known]
    if unknown and "nonzero" not in source.labels.values():
        listed = ", ".join(map(str, sorted(known)))
        problems.append(Problem(LABEL_UNKNOWN, str(path), f"values {first_of(unknown, 10)}; site.yaml names {listed}"))
    if problems:
        raise FedfmsError(problems)
    return {
        name: (labels != 0 if values == "nonzero" else _any_of(labels, numbers[name])).view(np.uint8)
        for name, values in source.labels.items()
        if name in structures and name not in absent
    }


def _values(values: LabelValues, named: Mapping[str, frozenset[int]]) -> list[int]:
    """The numbers in a label map that mean a structure; none for ``nonzero``."""
    found = [value for value in values if isinstance(value, int)]
    return found + [number for value in values if isinstance(value, str) for number in sorted(named.get(value, ()))]


def _is_there(values: LabelValues, named: Mapping[str, frozenset[int]]) -> bool:
    return values == "nonzero" or any(isinstance(value, int) or value in named for value in values)


def _region_masks(
    path: Path, source: MaskSource, structures: Collection[str], image: Volume, where: object
) -> dict[str, Array]:
    regions = _regions(path, pixels=True)
    masks: dict[str, Array] = {}
    problems: list[Problem] = []
    for name, values in source.labels.items():
        if name not in structures:
            continue
        try:
            numbers = _numbers(regions, values)
            if numbers:
                masks[name] = regions.voxels(numbers, image, where)
            elif source.required:
                problems.append(
                    Problem(
                        SEGMENT_MISSING,
                        str(path),
                        f"no {regions.kind} fits {name} ({_shown(values)}); the file has: {regions}",
                    )
                )
        except FedfmsError as error:
            problems += error.problems
    if problems:
        # A problem of the whole file is found once for each structure.
        raise FedfmsError(dict.fromkeys(_explained(problem, regions, image) for problem in problems))
    return masks


def _explained(problem: Problem, regions: RegionFile, image: Volume) -> Problem:
    """Say of a mask that does not fit when it was drawn on another series: exporting it again would not help."""
    if problem.kind is not GEOMETRY_MISMATCH or image.series is None or not names_another(regions.series, image.series):
        return problem
    drawn = ", ".join(sorted(regions.series))
    detail = f"{problem.detail}; it was drawn on series {drawn}, the image is series {image.series.uid}"
    return replace(problem, detail=detail, remedy=_CHOOSE_SERIES)


def _regions(path: Path, *, pixels: bool) -> RegionFile:
    elements = read_whole(path, pixels=pixels)
    sop_class, name = elements.uid("SOPClassUID")
    if sop_class in SOP_CLASSES:
        return Segmentation(elements)
    if sop_class == SOP_CLASS:
        return StructureSet(elements)
    raise fail(
        IMAGE_UNREADABLE,
        path,
        f"a DICOM object of class {name or 'unknown'}; masks are in DICOM SEG and RTSTRUCT",
        GeneralRemedy("Make the mask's pattern in site.yaml fit only these."),
    )


def _numbers(regions: RegionFile, values: LabelValues) -> frozenset[int]:
    if values == "nonzero":
        return regions.all
    return frozenset[int]().union(*(regions.find(value) for value in values))


def _shown(values: LabelValues) -> str:
    return "anything" if values == "nonzero" else ", ".join(map(str, values))
