"""Frames in the order of their positions, as one regular grid."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence
from itertools import pairwise

import numpy as np

from fedfms.data.description.series import SeriesChoice
from fedfms.data.dicom.frames import Frame
from fedfms.data.dicom.variants import DURATIONS, FIXED, FREE
from fedfms.data.volume.geometry import LPS_TO_RAS, Grid, Matrix
from fedfms.data.volume.remedies import GeneralRemedy
from fedfms.errors import CASE_AMBIGUOUS, IMAGE_UNREADABLE, SERIES_IRREGULAR, FedfmsError, fail, first_of

#: A slice may be this fraction of the slice distance away from its position under even spacing.
SPACING_TOLERANCE = 0.05
_SHOWN = 10
_ANY = "*"
_ABSENT = "-"
#: Of fewer slices nothing can be said.
_FEWEST = 3
#: Measured durations that differ by less than this fraction are those of one gated acquisition, not of two phases.
_JITTER = 0.05
#: Of so many slices each second, third or fourth may be what is left.
_STEPS = (2, 3, 4)


def stack_frames(
    where: object, frames: Sequence[Frame], choice: SeriesChoice | None = None
) -> tuple[list[Frame], Grid]:
    """Order frames along the normal of their planes, never by number or file name.

    The normal is the cross product of the directions of a row and of a column (PS3.3 C.7.6.2.1.1).

    Args:
        where: Folder or file, for messages.
        frames: All frames of a series.
        choice: Its ``dimensions`` and ``skips_slices`` say which frames are one volume.

    Returns:
        The frames from the lowest to the highest position along the normal, and their grid: shape (column, row,
        slice) and affine to millimetres in RAS.

    Raises:
        FedfmsError: FMS-D014 when the frames are several stacks, acquisitions, echoes or points in time, also where
            those of one lie between those of another; FMS-D015 when slices are missing, also evenly, repeated, of
            different size or unevenly spaced; FMS-D004 for a single slice without thickness.
    """
    dimensions = choice.dimensions if choice else {}
    chosen = [
        frame for frame in frames if all(_fits(frame.dimensions.get(name), value) for name, value in dimensions.items())
    ]
    joined = {name for name, value in dimensions.items() if value == _ANY}
    if not chosen:
        raise fail(
            CASE_AMBIGUOUS,
            where,
            f"no frame fits images.series.dimensions: {_listed(frames, set()) or 'no dimension'}",
            GeneralRemedy(
                "Write names and values that 'fedfms data check --show-ids' lists under images.series.dimensions in"
                " site.yaml."
            ),
        )
    several = _listed(chosen, joined)
    try:
        ordered, grid = _stacked(where, chosen)
    except FedfmsError as error:
        if not several:
            raise
        raise _not_one(where, f"the images are not one volume ({error.problems[0].detail})", several) from error
    # Of two volumes, one would have twice the distance: of one that was taken in two passes, only times differ.
    whole = abs(_skipped_distance(ordered, grid) - 1) < SPACING_TOLERANCE
    dividing = [name for name in _dividing(ordered, joined) if not (whole and name in FREE)]
    if mixed := [name for name in dividing if _alternate(ordered, name)]:
        raise _not_one(where, f"slices with other {' and '.join(mixed)} lie between each other", several)
    if not whole and not (choice and choice.skips_slices):
        _refuse_gaps(where, ordered, grid, is_whole_series=len(chosen) == len(frames))
    return ordered, grid


def _skipped_distance(ordered: Sequence[Frame], grid: Grid) -> float:
    """Distance of the slices in units of SpacingBetweenSlices; 0 where that is not known."""
    gap = min(frame.gap for frame in ordered)
    return grid.spacing[2] / gap if gap > 0 else 0.0


def _fits(found: str | None, value: str | int | float) -> bool:
    if value == _ANY or (found or _ABSENT) == str(value):
        return True
    try:
        return found is not None and float(found) == float(value)
    except ValueError:
        return False


def _not_one(where: object, detail: str, several: str) -> FedfmsError:
    return fail(
        CASE_AMBIGUOUS,
        where,
        f"{detail}; they differ in {several}",
        GeneralRemedy(
            "Choose one value of each element in which the images differ ('fedfms data check --show-ids' lists them)"
            " under images.series.dimensions in site.yaml, such as 'AcquisitionNumber: 1'; '*' joins the images of all"
            " values to one volume."
        ),
    )


def _dividing(frames: Sequence[Frame], joined: Collection[str]) -> dict[str, Counter[str]]:
    """Dimensions whose values divide the frames into several groups, with the number of frames in each.

    Those that may change from slice to slice count only when their groups are about equal in size, as those of phases.
    """
    places = len({tuple(np.round(frame.position, 2)) for frame in frames})
    fewest = _FEWEST if places == len(frames) else 1
    most = len(frames) if places == 1 else len(frames) - 1
    names = sorted({name for frame in frames for name in frame.dimensions} - set(joined))
    counts = {name: Counter(frame.dimensions.get(name, _ABSENT) for frame in frames) for name in names}
    return {
        name: found
        for name, found in counts.items()
        if 1 < len(found) <= most and (name not in FREE or _are_phases(name, found, fewest))
    }


def _are_phases(name: str, counts: Counter[str], fewest: int = _FEWEST) -> bool:
    """Whether the values of a dimension divide slices as phases do: groups of about one size, durations far apart."""
    if max(counts.values()) - min(counts.values()) > 1 or min(counts.values()) < fewest:
        return False
    if name not in DURATIONS:
        return True
    try:
        numbers = [0.0 if value == _ABSENT else float(value) for value in counts]
    except ValueError:  # several values in one image, where the standard has one: nothing is measured by them
        return True
    return max(numbers) - min(numbers) > _JITTER * max(numbers)


def _listed(frames: Sequence[Frame], joined: Collection[str]) -> str:
    result = []
    for name, counts in _dividing(frames, joined).items():
        values = sorted(counts, key=lambda text: (len(text), text))
        result.append(f"{name}: {first_of([f'{value} ({counts[value]} frames)' for value in values], _SHOWN)}")
    return "; ".join(result)


def _alternate(ordered: Sequence[Frame], name: str) -> bool:
    """Whether a value occurs again behind slices that have another one."""
    values = [frame.dimensions.get(name, _ABSENT) for frame in ordered]
    counts = Counter(values)
    if name not in FIXED and not _are_phases(name, counts):
        return False
    return 1 + sum(one != other for one, other in pairwise(values)) > len(counts)


def _refuse_gaps(where: object, ordered: Sequence[Frame], grid: Grid, *, is_whole_series: bool) -> None:
    """Refuse even spacing that comes from slices that are missing evenly.

    Numbers say nothing about a volume that was chosen among several of a series: they count through all of them.
    """
    count = len(ordered)
    if count < _FEWEST:
        return
    numbers = sorted(frame.number for frame in ordered if frame.number is not None and is_whole_series)
    skipped = math.gcd(*(after - before for before, after in pairwise(numbers)))
    ratio = _skipped_distance(ordered, grid)
    acquired = _acquired(ordered) if is_whole_series else 0
    if len(numbers) == count and skipped > 1:
        name = "InstanceNumber" if ordered[0].source.frame is None else "InStackPositionNumber"
        detail = f"{name} counts in steps of {skipped} ({first_of(numbers, 4)})"
    elif any(count in (acquired // step, -(-acquired // step)) for step in _STEPS):
        detail = (
            f"ImagesInAcquisition is {acquired}, and there are {count} slices; or the acquisition was reconstructed"
            " more than once"
        )
    elif ratio > 1.5 and abs(ratio - round(ratio)) < SPACING_TOLERANCE:
        detail = f"the slices are {grid.spacing[2]:.3g} mm apart, SpacingBetweenSlices is {ordered[0].gap:.3g} mm"
    else:
        return
    raise fail(
        SERIES_IRREGULAR,
        where,
        f"slices seem to be missing evenly: {detail}",
        GeneralRemedy(
            "Export the complete series; if it is complete, write 'skips_slices: true' under images.series in"
            " site.yaml."
        ),
    )


def _acquired(frames: Sequence[Frame]) -> int:
    """How many images the acquisitions of the frames gave in all; 0 where it is not known."""
    numbers = {frame.dimensions.get("AcquisitionNumber"): frame.acquired for frame in frames}
    return sum(numbers.values()) if all(numbers.values()) else 0


def _stacked(where: object, frames: Sequence[Frame]) -> tuple[list[Frame], Grid]:
    first = frames[0]
    odd = [
        _name(frame)
        for frame in frames
        if frame.size != first.size
        or not np.allclose(frame.orientation, first.orientation, atol=1e-3)
        or not np.allclose(frame.spacing, first.spacing, rtol=1e-3)
    ]
    if odd:
        raise fail(
            SERIES_IRREGULAR,
            where,
            f"size, orientation or pixel spacing differ from {_name(first)} in {len(odd)} of {len(frames)} images:"
            f" {first_of(odd, _SHOWN)}",
            GeneralRemedy(
                "Choose a series of parallel slices under images.series in site.yaml, or export each direction as a"
                " series of its own; this one may be a localiser."
            ),
        )
    along_row, along_column = np.array(first.orientation).reshape(2, 3)
    normal = np.cross(along_row, along_column)
    positions = np.array([frame.position for frame in frames], dtype=np.float64)
    order = np.argsort(positions @ normal, kind="stable")
    ordered = [frames[index] for index in order]
    positions = positions[order]
    affine: Matrix = np.eye(4)
    # PS3.3 equation C.7.6.2.1-1: PixelSpacing is (distance of rows, distance of columns).
    affine[:3, 0] = along_row * first.spacing[1]
    affine[:3, 1] = along_column * first.spacing[0]
    affine[:3, 2] = _step(where, positions, normal, ordered)
    affine[:3, 3] = positions[0]
    rows, columns = first.size
    return ordered, Grid((columns, rows, len(ordered)), LPS_TO_RAS @ affine)


def _step(where: object, positions: Matrix, normal: Matrix, frames: list[Frame]) -> Matrix:
    """Vector in mm from one slice to the next; a sheared stack (tilted gantry) keeps its shear."""
    count = len(positions)
    if count == 1:
        if frames[0].thickness <= 0:
            raise fail(IMAGE_UNREADABLE, where, "a single slice without SliceThickness")
        result: Matrix = normal * frames[0].thickness
        return result
    gaps = np.diff(positions @ normal)
    # Repeated slices do not count for the typical distance.
    apart = gaps[gaps > 1e-3]
    typical = float(np.median(apart)) if len(apart) else 0.0
    same = np.flatnonzero(gaps <= max(0.01 * typical, 1e-3))
    repeated = [f"{_name(frames[index])} and {_name(frames[index + 1])}" for index in same]
    if len(apart) and len(frames) % (len(apart) + 1) == 0 and len(same) == count - len(apart) - 1 and len(same) > 1:
        raise fail(
            SERIES_IRREGULAR,
            where,
            f"{count // (len(apart) + 1)} images at each of {len(apart) + 1} positions, such as {repeated[0]}",
            GeneralRemedy(
                "Nothing that is read of the headers tells them apart: export each acquisition, phase, echo or b-value"
                " as a series of its own."
            ),
        )
    if repeated:
        raise fail(SERIES_IRREGULAR, where, f"two slices at the same position: {first_of(repeated, _SHOWN, '; ')}")
    even = positions[0] + np.arange(count)[:, None] * (positions[-1] - positions[0]) / (count - 1)
    if np.linalg.norm(positions - even, axis=1).max() > SPACING_TOLERANCE * typical or (
        np.abs(gaps - typical).max() > 2 * SPACING_TOLERANCE * typical
    ):
        wide = [
            f"{gap:.3g} mm before {_name(frames[index + 1])}"
            for index, gap in enumerate(gaps)
            if abs(gap - typical) > SPACING_TOLERANCE * typical
        ]
        detail = first_of(wide, _SHOWN, "; ") or "the slices are shifted against each other"
        raise fail(SERIES_IRREGULAR, where, f"uneven slice distance (typically {typical:.3g} mm): {detail}")
    vector: Matrix = (positions[-1] - positions[0]) / (count - 1)
    return vector


def _name(frame: Frame) -> str:
    path, index = frame.source.path, frame.source.frame
    return path.name if index is None else f"{path.name} frame {index + 1}"
