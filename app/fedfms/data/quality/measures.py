"""What is measured on each case while it is in memory."""

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

#: A mask that covers this part of a slice covers it wholly.
FULL = 0.99


@dataclass(frozen=True)
class CaseMeasures:
    """Attributes beside ``facts``:

    sha256: Of shape and values.
    full: Structure -> slices that its mask covers.
    side: Structure -> its centre between -0.5 at the patient's right and 0.5 at the left of the image; volumes only.
    mirrored: Structures whose masks fit the image better when mirrored.
    lists: Structure with several names under ``labels`` -> numbers of the segments or ROIs of a SEG or RTSTRUCT that
        each name means.
    other_series: SeriesInstanceUIDs of those that a SEG or RTSTRUCT says it was drawn on, if the image's is none.
    burned_in: Images of the series whose header says that text may be in the pixels.
    """

    facts: CaseFacts
    sha256: str = field(repr=False)
    full: dict[str, int]
    side: dict[str, float]
    mirrored: frozenset[str]
    lists: dict[str, tuple[frozenset[int], ...]]
    other_series: frozenset[str] = field(repr=False)
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
    """Read and measure all cases, one at a time; problems stand for a bad one.

    Args:
        cases: Of one task.
        plane: How volumes are cut.
        structures: Those to look at.
        on_case: Told after each case.
    """
    return each_case(cases, lambda files: measure(files, read_case(files, plane, structures), plane), on_case)


def measure(files: CaseFiles, pixels: CasePixels, plane: Plane) -> CaseMeasures:
    """Measure a case.

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
        burned_in=_burned_in(files),
    )


def _digest(values: Array) -> str:
    digest = hashlib.sha256(f"{values.shape}\n".encode())
    for plane in values:
        # In one type: a series that was also converted to NIfTI has the same values in another.
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
