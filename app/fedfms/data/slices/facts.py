"""Facts that are measured on every case that is read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedfms.data.slices.case_pixels import CasePixels
from fedfms.data.volume.geometry import Array

#: About so many values of an image are used to estimate its percentiles.
_VALUES = 500_000


@dataclass(frozen=True)
class Intensity:
    """Distribution of an image's values.

    Attributes:
        low, median, high: 1st, 50th and 99th percentile.
        mean: Mean.
        constant: Whether all values are the same.
    """

    low: float
    median: float
    high: float
    mean: float
    constant: bool


@dataclass(frozen=True)
class CaseFacts:
    """Facts about one case.

    Attributes:
        slices: Number of slices.
        size: (rows, columns) of a slice.
        sides: Distance of rows, columns and slices in mm; None for images without spacing.
        intensity: Distribution of all values.
        filled: Structure -> number of slices in which its mask is not empty; annotated structures only.
        share: Structure -> fraction of all pixels that is in its mask; annotated structures only.
        empty: Indices of the slices in which every annotated mask is empty; none in a case without masks.
    """

    slices: int
    size: tuple[int, int]
    sides: tuple[float, float, float] | None
    intensity: Intensity
    filled: dict[str, int]
    share: dict[str, float]
    empty: tuple[int, ...]


def facts_of(pixels: CasePixels) -> CaseFacts:
    """Measure a case that was read."""
    present = {name: mask.any(axis=(1, 2)) for name, mask in pixels.masks.items()}
    shape = pixels.values.shape
    return CaseFacts(
        slices=shape[0],
        size=(shape[1], shape[2]),
        sides=None if pixels.spacing is None else (*pixels.spacing, pixels.slice_distance or 0.0),
        intensity=intensity(pixels.values),
        filled={name: int(found.sum()) for name, found in present.items()},
        share={name: float(mask.mean()) for name, mask in pixels.masks.items()},
        empty=tuple(np.flatnonzero(~np.any(list(present.values()), axis=0)).tolist()) if present else (),
    )


def intensity(values: Array) -> Intensity:
    """Distribution of values (slices, rows, columns) or (slices, rows, columns, 3); colours are taken together."""
    # Whole pixels are sampled: single values in steps of a multiple of three would all be of one colour.
    pixels = values.reshape(-1, values.shape[3] if values.ndim == 4 else 1)
    sample = pixels[:: max(1, values.size // _VALUES)]
    low, median, high = (float(value) for value in np.percentile(sample, (1, 50, 99)))
    return Intensity(low, median, high, float(sample.mean(dtype=np.float64)), bool(values.min() == values.max()))
