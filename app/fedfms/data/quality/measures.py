"""What is measured on each case while it is in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np

from fedfms.data import dicom
from fedfms.data.discovery import CaseFiles
from fedfms.data.facts import CaseFacts, facts_of
from fedfms.data.geometry import Array, Plane
from fedfms.data.masks import partly_annotated
from fedfms.data.pixels import CasePixels, read_case
from fedfms.data.quality.mirror import fits_better_mirrored
from fedfms.data.site import SplitName
from fedfms.data.verification import OnCase
from fedfms.errors import FedfmsError, Problem

#: A mask that covers this part of a slice covers it wholly.
FULL = 0.99


@dataclass(frozen=True)
class CaseMeasures:
    """Attributes beside ``facts``:

    sha256: Of shape and values.
    full: Structure -> slices that its mask covers.
    side: Structure -> its centre between -0.5 at the patient's right and 0.5 at the left of the image; volumes only.
    mirrored: Structures whose masks fit the image better when mirrored.
    partly: Structures of which a SEG or RTSTRUCT has some segments or ROIs only.
    burned_in: Images of the series whose header says that text may be in the pixels.
    """

    facts: CaseFacts
    sha256: str = field(repr=False)
    full: dict[str, int]
    side: dict[str, float]
    mirrored: frozenset[str]
    partly: frozenset[str]
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
    result: list[CaseMeasures | tuple[Problem, ...]] = []
    for position, files in enumerate(cases):
        try:
            result.append(measure(files, read_case(files, plane, structures), plane))
        except FedfmsError as error:
            result.append(error.problems)
        if on_case is not None:
            on_case(position + 1, len(cases))
    return result


def measure(files: CaseFiles, pixels: CasePixels, plane: Plane) -> CaseMeasures:
    """Measure a case.

    Raises:
        FedfmsError: FMS-D004 when a header is unreadable.
    """
    names = pixels.masks
    # In axial and coronal slices the columns run from the patient's right to the left.
    lateral = pixels.spacing is not None and plane in ("axial", "coronal")
    pairs = zip(files.dataset.masks, files.masks, strict=True)
    return CaseMeasures(
        facts=facts_of(pixels),
        sha256=_digest(pixels.values),
        full={name: int((mask.mean(axis=(1, 2)) >= FULL).sum()) for name, mask in names.items()},
        side={name: _side(mask) for name, mask in names.items() if lateral and mask.any()},
        mirrored=frozenset(name for name, mask in names.items() if fits_better_mirrored(pixels.values, mask)),
        partly=frozenset[str]().union(*(partly_annotated(source, path) for source, path in pairs)),
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
    return dicom.burned_in(files.image, images.files or "*", images.series)
