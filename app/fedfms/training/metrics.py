"""Dice and intersection over union per structure; an empty reference is not estimable, never perfect."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


class StructureMetrics:
    """Collects each slice's values at probability 0.5 and reports their means.

    Args:
        structures: Names, in the order of the channels.
    """

    def __init__(self, structures: tuple[str, ...]) -> None:
        self._values: dict[str, dict[str, list[float]]] = {name: {"dice": [], "iou": []} for name in structures}

    def add(self, logits: Tensor, masks: Tensor, annotated: Tensor) -> None:
        """Add one or more slices of one size.

        Args:
            logits: ``(batch, structures, rows, columns)``.
            masks: Of the same shape, in 0/1.
            annotated: ``(batch, structures)`` bool; pairs that are not annotated are left out.
        """
        # MONAI takes seconds to import, and not every task of a site validates.
        from monai.metrics import compute_dice, compute_iou

        predicted, reference = (logits > 0).float(), masks.float()
        dice = compute_dice(predicted, reference, include_background=True, ignore_empty=True)
        iou = compute_iou(predicted, reference, include_background=True, ignore_empty=True)
        for name, values in (("dice", dice), ("iou", iou)):
            values = torch.where(annotated, values.to(annotated.device), math.nan)
            for channel, collected in enumerate(self._values.values()):
                collected[name] += [value for value in values[:, channel].tolist() if not math.isnan(value)]

    def values(self) -> dict[str, dict[str, list[float]]]:
        """The single values: structure to ``dice`` and ``iou``."""
        return self._values

    def report(self) -> dict[str, dict[str, Any]]:
        """``{structure: {"dice": mean, "iou": mean, "n": slices with a non-empty reference}}``; None if n = 0."""
        return {
            name: {
                "dice": _mean(values["dice"]),
                "iou": _mean(values["iou"]),
                "n": len(values["dice"]),
            }
            for name, values in self._values.items()
        }


def _mean(values: list[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None
