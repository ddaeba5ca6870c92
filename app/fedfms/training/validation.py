"""Validation of a model on a site's slices, at the model's input size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fedfms.data.slices.dataset import SliceReference
from fedfms.sam.segmenter import Segmenter
from fedfms.training.feed import SliceFeed, chunked
from fedfms.training.hardware import Hardware
from fedfms.training.metrics import StructureMetrics


@torch.no_grad()
def validate(
    model: Segmenter,
    feed: SliceFeed,
    slices: list[SliceReference],
    hardware: Hardware,
    batch_size: int,
    on_step: Callable[[int, int], None],
) -> dict[str, dict[str, Any]]:
    """Dice and IoU per structure over the unchanged slices (variant 0), padding left out.

    Returns:
        As ``StructureMetrics.report``.
    """
    model.eval()
    metrics = StructureMetrics(model.config.structures)
    done = 0
    unchanged = [(reference, 0) for reference in slices]
    for batch in feed.batches(chunked(unchanged, hardware.max_batch or batch_size)):
        with hardware.autocast():
            logits = model.from_prefix(batch.activation).float()
        for index, (height, width) in enumerate(batch.scaled):
            inside = (slice(index, index + 1), slice(None), slice(height), slice(width))
            metrics.add(logits[inside], batch.masks[inside], batch.annotated[index : index + 1])
        done += len(batch.scaled)
        on_step(done, len(slices))
    return metrics.report()
