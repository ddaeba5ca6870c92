"""What is measured on every case that is read, whoever reads it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedfms.data.slices.case_pixels import CasePixels
from fedfms.data.volume.geometry import Array

#: Values of an image that its intensity is estimated from.
_VALUES = 500_000


@dataclass(frozen=True)
class Intensity:
    """Of an image's values: 1st, 50th and 99th percentile, mean, and whether all are the same."""

    low: float
    median: float
    high: float
    mean: float
    constant: bool


@dataclass(frozen=True)
class CaseFacts:
    """What reading a case found.

    Attributes:
        slices: Number of slices.
        size: (rows, columns) of a slice.
        sides: Distance of rows, columns and slices in mm; None for images without spacing.
        intensity: Of all values.
        filled: Structure -> number of slices in which its mask is not empty; annotated structures only.
        share: Structure -> part of all pixels; annotated structures only.
        empty: Indices of the slices in which every annotated mask is empty; none in a case without annotation.
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
    """Of (slices, rows, columns), or the same with three colours, which count alike."""
    # Whole pixels: single values in steps of a multiple of three would be those of one colour.
    pixels = values.reshape(-1, values.shape[3] if values.ndim == 4 else 1)
    sample = pixels[:: max(1, values.size // _VALUES)]
    low, median, high = (float(value) for value in np.percentile(sample, (1, 50, 99)))
    return Intensity(low, median, high, float(sample.mean(dtype=np.float64)), bool(values.min() == values.max()))
