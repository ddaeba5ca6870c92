"""The measures that the quality checks need of each case, taken while the case is in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np

from fedfms.data.description.site import SplitName
from fedfms.data.dicom.image import count_burned_in
from fedfms.data.quality.mirror import fits_better_mirrored
from fedfms.data.readers.masks import names_another, region_facts
from fedfms.data.slices.case_pixels import CasePixels, read_case
from fedfms.data.slices.discovery import CaseFiles
from fedfms.data.slices.facts import CaseFacts, facts_of
from fedfms.data.slices.verification import OnCase, each_case
from fedfms.data.volume.geometry import Array, Plane
from fedfms.errors import Problem

#: A mask that covers this fraction of a slice counts as covering it.
FULL = 0.99


@dataclass(frozen=True)
class CaseMeasures:
    """Measures of one case.

    Attributes:
        facts: The facts that every reading of a case finds.
        sha256: Digest of shape and values of the image.
        full: Structure -> number of slices that its mask covers.
        side: Structure -> its centre along the columns, from -0.5 at the patient's right to 0.5 at the left; volumes
            only.
        mirrored: Structures whose masks fit the image better when mirrored.
        lists: Structure with several names under ``labels`` -> for each name the numbers of the segments or ROIs that
            it means.
        other_series: SeriesInstanceUIDs that a SEG or RTSTRUCT refers to, when the image's is not among them.
        inner_contours: Number of RTSTRUCT contours that are read as holes because they are within another.
        burned_in: Number of files of the series whose header says that text may be in the pixels.
    """

    facts: CaseFacts
    sha256: str = field(repr=False)
    full: dict[str, int]
    side: dict[str, float]
    mirrored: frozenset[str]
    lists: dict[str, tuple[frozenset[int], ...]]
    other_series: frozenset[str] = field(repr=False)
    inner_contours: int
    burned_in: int


@dataclass(frozen=True)
class Surveyed:
    """A case that was read, with its split and measures."""

    files: CaseFiles = field(repr=False)
    split: SplitName
    measures: CaseMeasures


def survey(
    cases: Sequence[CaseFiles], plane: Plane, structures: Collection[str], on_case: OnCase | None = None
) -> list[CaseMeasures | tuple[Problem, ...]]:
    """Read and measure all cases, one at a time.

    Args:
        cases: The cases of one task.
        plane: The plane in which volumes are cut into slices.
        structures: The structures whose masks are read.
        on_case: Called after each case.

    Returns:
        The measures of each case, or its problems when it is bad.
    """
    return each_case(cases, lambda files: measure(files, read_case(files, plane, structures), plane), on_case)


def measure(files: CaseFiles, pixels: CasePixels, plane: Plane) -> CaseMeasures:
    """Measure a case.

    Args:
        files: The case.
        pixels: Its slices and masks.
        plane: The plane in which it was cut into slices.

    Raises:
        FedfmsError: FMS-D004 when a header is unreadable.
    """
    names = pixels.masks
    # In axial and coronal slices the columns run from the patient's right to the left.
    lateral = pixels.spacing is not None and plane in ("axial", "coronal")
    read = [
        item
        for source, path in zip(files.dataset.masks, files.masks, strict=True)
        if not names.keys().isdisjoint(source.labels) and (item := region_facts(source, path)) is not None
    ]
    return CaseMeasures(
        facts=facts_of(pixels),
        sha256=_digest(pixels.values),
        full={name: int((mask.mean(axis=(1, 2)) >= FULL).sum()) for name, mask in names.items()},
        side={name: _side(mask) for name, mask in names.items() if lateral and mask.any()},
        mirrored=frozenset(name for name, mask in names.items() if fits_better_mirrored(pixels.values, mask)),
        lists={name: numbers for item in read for name, numbers in item.lists.items()},
        other_series=frozenset[str]().union(
            *(item.series for item in read if pixels.series and names_another(item.series, pixels.series))
        ),
        inner_contours=sum(item.inner_contours for item in read),
        burned_in=_burned_in(files),
    )


def _digest(values: Array) -> str:
    digest = hashlib.sha256(f"{values.shape}\n".encode())
    for plane in values:
        # All in one type: a series that was also converted to NIfTI has the same values in another type.
        digest.update(np.ascontiguousarray(plane, dtype=np.float32).data)
    return digest.hexdigest()


def _side(mask: Array) -> float:
    columns = mask.sum(axis=(0, 1), dtype=np.float64)
    centre = float((columns * (np.arange(len(columns)) + 0.5)).sum() / columns.sum())
    return centre / len(columns) - 0.5


def _burned_in(files: CaseFiles) -> int:
    if files.dataset.format != "dicom":
        return 0
    images = files.dataset.images
    return count_burned_in(files.image, images.files or "*", images.series)
