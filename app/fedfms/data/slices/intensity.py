"""The job's channel and intensity rules: from the stored values of a case to three channels in 0..255."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fedfms.data.volume.geometry import Array
from fedfms.data.volume.remedies import GeneralRemedy
from fedfms.errors import JOB_NOT_FOR_SITE, fail
from fedfms.preprocessing import Channels, Intensity, PercentileIntensity, WindowIntensity

_COUNTED_RANGE = 1 << 17
_TYPE_RANGES = {"uint8": (0.0, 255.0), "uint16": (0.0, 65535.0)}


def intensity_bounds(values: Array, intensity: Intensity, where: str) -> tuple[float, float]:
    """The stored values that are mapped to 0 and 255.

    Args:
        values: All slices and channels of one case; percentiles are taken over all of them.
        intensity: The job's rule.
        where: File or case, for the error.

    Raises:
        FedfmsError: FMS-J003 when the rule ``range`` meets values that are not unsigned 8- or 16-bit.
    """
    if isinstance(intensity, PercentileIntensity):
        low, high = _percentiles(values, intensity.low, intensity.high)
        return low, high
    if isinstance(intensity, WindowIntensity):
        return intensity.center - intensity.width / 2, intensity.center + intensity.width / 2
    if values.dtype.name not in _TYPE_RANGES:
        raise fail(
            JOB_NOT_FOR_SITE,
            where,
            f"the job's intensity rule 'range' needs unsigned 8- or 16-bit values, found {values.dtype.name}",
            GeneralRemedy("Ask the study lead for the rule percentile (MR) or window (CT)."),
        )
    return _TYPE_RANGES[values.dtype.name]


def _percentiles(values: Array, *percents: float) -> list[float]:
    """As ``np.percentile``.

    Integers, as in CT and most MR images, are counted instead of sorted: several times faster, and without a copy of
    the volume.
    """
    lowest, highest = float(values.min()), float(values.max())
    if highest - lowest < _COUNTED_RANGE:
        counts = np.zeros(int(highest - lowest) + 1, dtype=np.int64)
        for part in values:
            steps = part.astype(np.float64) - lowest
            whole = steps.astype(np.intp)
            if not np.array_equal(whole, steps):
                break
            counts += np.bincount(whole.ravel(), minlength=len(counts))
        else:
            return [lowest + _counted_percentile(counts, percent) for percent in percents]
    return [float(value) for value in np.percentile(values, percents)]


def _counted_percentile(counts: Array, percent: float) -> float:
    """Percentile of the numbers 0, 1, 2 ... given how often each occurs; linear between neighbouring ranks."""
    cumulative = counts.cumsum()
    rank = percent / 100 * (cumulative[-1] - 1)
    below, above = np.searchsorted(cumulative, (np.floor(rank), np.ceil(rank)), side="right")
    return float(below + (above - below) * (rank - np.floor(rank)))


def slice_values(values: Array, index: int, channels: Channels, where: str) -> Array:
    """The stored values of one slice of the model's input.

    Args:
        values: (slices, rows, columns), or (slices, rows, columns, 3) for colour.
        index: The slice.
        channels: The job's rule. With ``neighbours``, the slice itself replaces a neighbour that does not exist, at
            both ends of a volume and in single images.
        where: File or case, for the error.

    Returns:
        (rows, columns) or (rows, columns, 3).

    Raises:
        FedfmsError: FMS-J003 for ``neighbours`` with a colour image, whose channels are its colours.
    """
    if channels == "same":
        result: Array = values[index]
        return result
    if values.ndim == 4:
        raise fail(
            JOB_NOT_FOR_SITE,
            where,
            "the job's 'channels: neighbours' needs grey images, found colour",
            GeneralRemedy("Ask the study lead for 'channels: same'."),
        )
    return np.stack([values[min(max(index + step, 0), len(values) - 1)] for step in (-1, 0, 1)], axis=-1)


def to_model_range(values: Array, bounds: tuple[float, float]) -> npt.NDArray[np.float32]:
    """Clip to the bounds and scale to 0..255.

    Args:
        values: (rows, columns) or (rows, columns, 3).
        bounds: Result of ``intensity_bounds`` for the whole case.

    Returns:
        float32 (3, rows, columns); grey values are repeated in all three channels. All 0 when both bounds are the
        same.
    """
    low, high = bounds
    if high > low:
        scaled = np.clip((values.astype(np.float32) - np.float32(low)) * np.float32(255.0 / (high - low)), 0, 255)
    else:
        scaled = np.zeros(values.shape, dtype=np.float32)
    channels = scaled.transpose(2, 0, 1) if scaled.ndim == 3 else np.broadcast_to(scaled, (3, *scaled.shape))
    return np.ascontiguousarray(channels, dtype=np.float32)
