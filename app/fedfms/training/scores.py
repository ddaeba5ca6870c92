"""How well a mask fits its reference: Dice, intersection over union and the distances of the surfaces."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from monai.metrics import compute_average_surface_distance, compute_dice, compute_hausdorff_distance, compute_iou

Mask = npt.NDArray[np.uint8] | npt.NDArray[np.bool_]

METRICS = ("dice", "iou", "hd95_mm", "assd_mm")


@dataclass(frozen=True)
class Scores:
    """One structure in one case or slice; None where a value is not estimable.

    Attributes:
        outcome: ``found``: neither mask is empty. ``missed``: the prediction is empty, the reference is not; Dice
            and IoU are 0, the distances are infinite and not estimable. ``absent``: both are empty. ``false_alarm``:
            only the reference is empty. Without a reference nothing is estimable.
        dice: Overlap, twice the intersection over the sum of both.
        iou: Intersection over union.
        hd95_mm: The 95th percentile of the distances from one surface to the other, in mm; the larger of both
            directions.
        assd_mm: Mean distance between the surfaces in mm, both directions together.
    """

    outcome: Literal["found", "missed", "absent", "false_alarm"]
    dice: float | None = None
    iou: float | None = None
    hd95_mm: float | None = None
    assd_mm: float | None = None


def score(predicted: Mask, reference: Mask, spacing: tuple[float, ...] | None) -> Scores:
    """Compare a predicted mask with its reference.

    The surface of a mask is its voxels with a neighbour outside, by face, the image's border included; each counts
    once (MONAI's ``get_mask_edges``).

    Args:
        predicted: Any number of axes; not 0 inside the structure.
        reference: Of the same shape.
        spacing: Distance between neighbouring voxels along each axis in mm; None when it is unknown, and then there are
            no distances.
    """
    if not reference.any():
        return Scores("false_alarm" if predicted.any() else "absent")
    if not predicted.any():
        return Scores("missed", dice=0.0, iou=0.0)
    # Voxels outside both masks change no value, and MONAI computes in floats.
    box = _bounding_box((predicted != 0) | (reference != 0))
    pair = [
        torch.from_numpy(np.ascontiguousarray(mask[box] != 0))[None, None].float() for mask in (predicted, reference)
    ]
    hd95 = assd = None
    if spacing is not None:
        with warnings.catch_warnings():
            # MONAI warns of an argument of its own that it is about to remove.
            warnings.filterwarnings("ignore", message=".*always_return_as_numpy", category=FutureWarning)
            hd95 = compute_hausdorff_distance(*pair, include_background=True, percentile=95, spacing=spacing)
            assd = compute_average_surface_distance(*pair, include_background=True, symmetric=True, spacing=spacing)
    return Scores(
        "found",
        dice=float(compute_dice(*pair, include_background=True)),
        iou=float(compute_iou(*pair, include_background=True)),
        hd95_mm=None if hd95 is None else float(hd95),
        assd_mm=None if assd is None else float(assd),
    )


def _bounding_box(mask: npt.NDArray[np.bool_]) -> tuple[slice, ...]:
    sides = []
    for axis in range(mask.ndim):
        others = tuple(other for other in range(mask.ndim) if other != axis)
        filled = np.flatnonzero(mask.any(axis=others))
        sides.append(slice(int(filled[0]), int(filled[-1]) + 1))
    return tuple(sides)
