"""Whether a mask fits its image better when it is mirrored."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from fedfms.data.volume.geometry import Array

#: Slices examined per case: those with the largest masks.
_SLICES = 8
#: Larger slices are examined in steps of several pixels.
_SIDE = 600
#: The mirrored mask must be on edges and have a contrast that are this many times stronger. On the brain, fundus and
#: nuclei images on which this was tested, no correct mask and at least three of four mirrored ones exceed both.
_EDGES, _CONTRAST = 1.2, 1.5
#: Masks that overlap more than this with their mirror image (Dice) are not judged.
_SYMMETRIC = 0.25
_LEAST_PIXELS = 30
#: Width in pixels of the surroundings that a mask's inside is compared with.
_RING = 6


def fits_better_mirrored(values: Array, mask: Array) -> bool:
    """Compare edges and contrast of the image at the mask with those at the mirrored mask.

    Args:
        values: (slices, rows, columns) or (slices, rows, columns, 3).
        mask: (slices, rows, columns), 0/1.

    Returns:
        Whether the mask, mirrored from left to right, follows edges and differs from its surroundings clearly better.
        False when the mask is empty, small, or nearly the same when mirrored.
    """
    step = max(1, max(mask.shape[1:]) // _SIDE)
    areas = mask[:, ::step, ::step].sum(axis=(1, 2))
    chosen = [int(index) for index in np.argsort(areas)[::-1][:_SLICES] if areas[index] >= _LEAST_PIXELS]
    overlap = 0
    scores = []
    for index in chosen:
        stored = mask[index, ::step, ::step].astype(bool)
        mirrored = stored[:, ::-1]
        overlap += int((stored & mirrored).sum())
        image = values[index, ::step, ::step].astype(np.float32)
        channels = [channel / (float(channel.std()) + 1e-6) for channel in np.moveaxis(np.atleast_3d(image), 2, 0)]
        # Smoothed: outlines drawn by hand are seldom exact to a pixel.
        edges = np.max([ndimage.gaussian_gradient_magnitude(channel, sigma=1.5) for channel in channels], axis=0)
        scores.append([(_at_outline(edges, item), _contrast(channels, item)) for item in (stored, mirrored)])
    if not chosen or overlap > _SYMMETRIC * sum(int(areas[index]) for index in chosen):
        return False
    own, other = np.mean(scores, axis=0)
    return bool(other[0] > _EDGES * own[0] and other[1] > _CONTRAST * own[1])


def _at_outline(edges: Array, mask: Array) -> float:
    return float(edges[mask & ~ndimage.binary_erosion(mask)].mean())


def _contrast(channels: list[Array], mask: Array) -> float:
    """Largest difference of means between mask and surroundings, in standard deviations within them."""
    ring = ndimage.binary_dilation(mask, iterations=_RING) & ~ndimage.binary_dilation(mask)
    if not ring.any():
        return 0.0
    return max(
        abs(float(channel[mask].mean() - channel[ring].mean()))
        / (float(np.sqrt((channel[mask].var() + channel[ring].var()) / 2)) + 0.1)
        for channel in channels
    )
