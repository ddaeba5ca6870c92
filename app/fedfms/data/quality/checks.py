"""The quality checks of one dataset: each gets all its cases and returns nothing when all is well."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import permutations

import numpy as np

from fedfms.data.description.site import DatasetDescription, EachImage
from fedfms.data.quality.finding import Finding, warning
from fedfms.data.quality.measures import Surveyed
from fedfms.errors import (
    BURNED_IN,
    EMPTY_MASK,
    FLIP_SUSPECTED,
    FULL_MASK,
    INNER_CONTOURS,
    INTENSITY_OUTLIER,
    NOT_ANNOTATED,
    OTHER_SERIES,
    PARTLY_ANNOTATED,
    PATIENTS_NOT_TOLD,
    RARE_STRUCTURE,
    SPACING_OUTLIER,
)

#: Fewest cases from which a usual spacing and intensity are estimated.
FEWEST_TO_COMPARE = 5
#: A side of a voxel that differs from the usual one by this factor or more is an outlier: when every second slice is
#: missing, the slice distance is exactly twice the usual one.
SPACING_FACTOR = 2.0
_ROUNDING = 0.01
#: An image whose percentiles differ from the median by more robust standard deviations than this is an outlier.
INTENSITY_DEVIATIONS = 8.0
#: A structure in a smaller fraction of the annotated slices, or of their pixels, is rare.
RARE_SLICES, RARE_PIXELS = 0.05, 0.0002
#: A structure has a side when this fraction of the cases has its centre there, by more than this fraction of the width
#: from the middle.
SIDE_CASES, SIDE_OFFSET = 0.85, 0.05
#: Fewest cases from which a side is estimated.
FEWEST_FOR_SIDE = 8
# Values of sound images differ a little: the spread is taken as at least this fraction of the usual contrast.
_LEAST_SPREAD = 0.1

Check = Callable[[DatasetDescription, Sequence[Surveyed]], Iterable[Finding]]


def check_dataset(dataset: DatasetDescription, cases: Sequence[Surveyed]) -> list[Finding]:
    """All findings about the cases of a dataset that could be read.

    Args:
        dataset: The description of the dataset.
        cases: Its cases that could be read.
    """
    return [finding for check in CHECKS for finding in check(dataset, cases)]


def _about(dataset: DatasetDescription) -> str:
    return f"dataset {dataset.name}"


def _names(cases: Iterable[Surveyed]) -> list[str]:
    return [str(case.files.image) for case in cases]


def empty_masks(dataset: DatasetDescription, cases: Sequence[Surveyed]) -> Iterable[Finding]:
    """FMS-Q001: empty masks, per structure."""
    for name in dataset.structures:
        annotated = [case for case in cases if name in case.measures.facts.filled]
        empty = [case for case in annotated if not case.measures.facts.filled[name]]
        if empty:
            many = "every mask" if len(empty) == len(annotated) else f"{len(empty)} of {len(annotated)} masks"
            yield warning(EMPTY_MASK, _about(dataset), len(empty), f"{name}: {many} without a pixel", _names(empty))


def full_masks(dataset: DatasetDescription, cases: Sequence[Surveyed]) -> Iterable[Finding]:
    """FMS-Q002: masks that cover a whole slice, per structure."""
    for name in dataset.structures:
        full = [case for case in cases if case.measures.full.get(name)]
        if full:
            slices = sum(case.measures.full[name] for case in full)
            yield warning(FULL_MASK, _about(dataset), len(full), f"{name}: {slices} slices", _names(full))


def flips(dataset: DatasetDescription, cases: Sequence[Surveyed]) -> Iterable[Finding]:
    """FMS-Q003: masks that fit the image better when mirrored, and cases whose structure is on the other side."""
    for name in dataset.structures:
        mirrored = [case for case in cases if name in case.measures.mirrored]
        if mirrored:
            detail = f"{name}: read from right to left, the mask fits the image's edges better"
            yield warning(FLIP_SUSPECTED, _about(dataset), len(mirrored), detail, _names(mirrored))
        placed = [case for case in cases if name in case.measures.side]
        sides = np.array([case.measures.side[name] for case in placed])
        for sign, word in ((1, "right"), (-1, "left")):
            here = sign * sides > SIDE_OFFSET
            there = np.flatnonzero(sign * sides < -SIDE_OFFSET)
            if len(placed) >= FEWEST_FOR_SIDE and here.mean() >= SIDE_CASES and len(there):
                detail = f"{name}: at the image's {word} side, in {int(here.sum())} other cases at the opposite one"
                named = _names(placed[index] for index in there)
                yield warning(FLIP_SUSPECTED, _about(dataset), len(there), detail, named)


def spacing_outliers(dataset: DatasetDescription, cases: Sequence[Surveyed]) -> Iterable[Finding]:
    """FMS-Q004: cases whose spacing is far from that of the others."""
    placed = [case for case in cases if case.measures.facts.sides is not None]
    if len(placed) < FEWEST_TO_COMPARE:
        return
    sides = np.array([case.measures.facts.sides for case in placed])
    usual = np.median(sides, axis=0)
    far = np.flatnonzero((np.maximum(sides / usual, usual / sides) >= SPACING_FACTOR - _ROUNDING).any(axis=1))
    if len(far):
        shown = " x ".join(f"{value:.3g}" for value in usual)
        detail = f"a distance of rows, columns or slices differs {SPACING_FACTOR:g} times or more; usual: {shown} mm"
        yield warning(SPACING_OUTLIER, _about(dataset), len(far), detail, _names(placed[index] for index in far))


def intensity_outliers(dataset: DatasetDescription, cases: Sequence[Surveyed]) -> Iterable[Finding]:
    """FMS-Q005: constant images, and images with unusual percentiles."""
    constant = [case for case in cases if case.measures.facts.intensity.constant]
    if constant:
        detail = "all values are the same"
        yield warning(INTENSITY_OUTLIER, _about(dataset), len(constant), detail, _names(constant))
    rest = [case for case in cases if not case.measures.facts.intensity.constant]
    if len(rest) < FEWEST_TO_COMPARE:
        return
    found = [case.measures.facts.intensity for case in rest]
    values = np.array([(item.low, item.median, item.high) for item in found])
    contrast = float(np.median(values[:, 2] - values[:, 0]))
    middle = np.median(values, axis=0)
    spread = np.maximum(1.4826 * np.median(np.abs(values - middle), axis=0), _LEAST_SPREAD * contrast)
    far = np.flatnonzero((np.abs(values - middle) > INTENSITY_DEVIATIONS * np.maximum(spread, 1e-9)).any(axis=1))
    if len(far):
        detail = "percentiles 1, 50 and 99 are usually " + ", ".join(f"{value:.4g}" for value in middle)
        yield warning(INTENSITY_OUTLIER, _about(dataset), len(far), detail, _names(rest[index] for index in far))


def burned_in(dataset: DatasetDescription, cases: Sequence[Surveyed]) -> Iterable[Finding]:
    """FMS-Q008: DICOM images that may show identifying text."""
    marked = [case for case in cases if case.measures.burned_in]
    if marked:
        detail = "BurnedInAnnotation (0028,0301) is YES"
        yield warning(BURNED_IN, _about(dataset), len(marked), detail, _names(marked))


def class_balance(dataset: DatasetDescription, cases: Sequence[Surveyed]) -> Iterable[Finding]:
    """FMS-Q009: rare structures; a structure without any pixel is FMS-Q001 instead."""
    for name in dataset.structures:
        annotated = [case for case in cases if name in case.measures.facts.filled]
        slices = sum(case.measures.facts.slices for case in annotated)
        filled = sum(case.measures.facts.filled[name] for case in annotated)
        if not filled:
            continue
        pixels = float(np.mean([case.measures.facts.share[name] for case in annotated]))
        if filled < RARE_SLICES * slices or pixels < RARE_PIXELS:
            detail = f"{name}: in {filled} of {slices} slices, {pixels:.2g} of the pixels"
            yield warning(RARE_STRUCTURE, _about(dataset), len(annotated), detail)


def patients(dataset: DatasetDescription, cases: Sequence[Surveyed]) -> Iterable[Finding]:
    """FMS-Q010: each image counts as a patient."""
    if isinstance(dataset.patient, EachImage) and cases:
        detail = "a patient with several images may be in training and in validation at once"
        yield warning(PATIENTS_NOT_TOLD, _about(dataset), len(cases), detail)


def not_annotated(dataset: DatasetDescription, cases: Sequence[Surveyed]) -> Iterable[Finding]:
    """FMS-Q011: cases without a mask for a structure."""
    if not dataset.masks:
        detail = "no masks at all; the dataset cannot train or be evaluated"
        yield warning(NOT_ANNOTATED, _about(dataset), len(cases), detail)
    for name in dataset.structures:
        without = [case for case in cases if name not in case.measures.facts.filled]
        if without:
            detail = f"{name}: {len(without)} of {len(cases)} cases"
            yield warning(NOT_ANNOTATED, _about(dataset), len(without), detail, _names(without))


def partly(dataset: DatasetDescription, cases: Sequence[Surveyed]) -> Iterable[Finding]:
    """FMS-Q012: a case has one name of a structure's list, but lacks another that is in the same file elsewhere.

    Names that are never in the same file are taken for different words for the same thing, of which one is enough.
    """
    for name in dataset.structures:
        listing = [case for case in cases if case.measures.lists.get(name)]
        together = {pair for case in listing for pair in _together(case.measures.lists[name])}
        lacking = [
            case
            for case in listing
            if any(_has(case, name, first) and not _has(case, name, other) for first, other in together)
        ]
        if lacking:
            detail = f"{name}: {len(lacking)} of {len(cases)} cases"
            yield warning(PARTLY_ANNOTATED, _about(dataset), len(lacking), detail, _names(lacking))


def _has(case: Surveyed, name: str, position: int) -> bool:
    return bool(case.measures.lists[name][position])


def _together(numbers: Sequence[frozenset[int]]) -> Iterable[tuple[int, int]]:
    """Pairs of positions, in both orders, of names that mean different regions of one file."""
    for first, other in permutations(range(len(numbers)), 2):
        if numbers[first] - numbers[other] and numbers[other] - numbers[first]:
            yield first, other


def other_series(dataset: DatasetDescription, cases: Sequence[Surveyed]) -> Iterable[Finding]:
    """FMS-Q013: masks that were drawn on another series than the image."""
    found = [case for case in cases if case.measures.other_series]
    if found:
        named = [
            f"{case.files.image}: the mask was drawn on series {', '.join(sorted(case.measures.other_series))}"
            for case in found
        ]
        yield warning(OTHER_SERIES, _about(dataset), len(found), f"{len(found)} of {len(cases)} cases", named)


def holes(dataset: DatasetDescription, cases: Sequence[Surveyed]) -> Iterable[Finding]:
    """FMS-Q014: contours that are read as holes, which DICOM does not define for CLOSED_PLANAR."""
    found = [case for case in cases if case.measures.inner_contours]
    if found:
        named = [f"{case.files.image}: {case.measures.inner_contours} contours are within another" for case in found]
        total = sum(case.measures.inner_contours for case in found)
        detail = f"{total} contours in {len(found)} of {len(cases)} cases"
        yield warning(INNER_CONTOURS, _about(dataset), len(found), detail, named)


CHECKS: tuple[Check, ...] = (
    empty_masks,
    full_masks,
    flips,
    spacing_outliers,
    intensity_outliers,
    burned_in,
    class_balance,
    patients,
    not_annotated,
    partly,
    other_series,
    holes,
)
