"""Frames in the order of their positions, as one regular grid."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from fedfms.data.dicom.frames import Frame
from fedfms.data.volume.geometry import LPS_TO_RAS, Grid, Matrix
from fedfms.data.volume.remedies import GeneralRemedy
from fedfms.errors import CASE_AMBIGUOUS, IMAGE_UNREADABLE, SERIES_IRREGULAR, FedfmsError, fail, first_of

#: A slice may be this fraction of the slice distance away from its position under even spacing.
SPACING_TOLERANCE = 0.05
_SHOWN = 10


def stack_frames(
    where: object, frames: Sequence[Frame], dimensions: Mapping[str, str | int] | None = None
) -> tuple[list[Frame], Grid]:
    """Order frames along the normal of their planes, never by number or file name.

    The normal is the cross product of the directions of a row and of a column (PS3.3 C.7.6.2.1.1).

    Args:
        where: Folder or file, for messages.
        frames: All frames of a series.
        dimensions: Use only frames with these dimension indexes.

    Returns:
        The frames from the lowest to the highest position along the normal, and their grid: shape (column, row,
        slice) and affine to millimetres in RAS.

    Raises:
        FedfmsError: FMS-D014 when the frames are several stacks, echoes or points in time; FMS-D015 when slices
            are missing, repeated, of different size or unevenly spaced; FMS-D004 for a single slice without
            thickness.
    """
    chosen = [
        frame
        for frame in frames
        if all(frame.dimensions.get(name) == str(value) for name, value in (dimensions or {}).items())
    ]
    if not chosen:
        raise fail(
            CASE_AMBIGUOUS, where, f"no frame fits images.series.dimensions: {_listed(frames) or 'no dimension'}"
        )
    try:
        return _stacked(where, chosen)
    except FedfmsError as error:
        several = _listed(chosen)
        if not several:
            raise
        raise fail(
            CASE_AMBIGUOUS,
            where,
            f"the frames are not one stack ({error.problems[0].detail}); they differ in {several}",
            GeneralRemedy("Choose one index for each of these under images.series.dimensions in site.yaml."),
        ) from error


def _listed(frames: Sequence[Frame]) -> str:
    """Dimensions whose indexes divide the frames, with the number of frames of each index."""
    result = []
    for name in sorted({name for frame in frames for name in frame.dimensions}):
        counts = Counter(frame.dimensions.get(name, "-") for frame in frames)
        if 1 < len(counts) < len(frames):
            indexes = sorted(counts, key=lambda text: (len(text), text))
            result.append(f"{name}: {first_of([f'{index} ({counts[index]} frames)' for index in indexes], _SHOWN)}")
    return "; ".join(result)


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
            f"size, orientation or pixel spacing differ from {_name(first)} in: {first_of(odd, _SHOWN)}",
            GeneralRemedy(
                "Choose a series of parallel slices under images.series in site.yaml; this one may be a localiser."
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
