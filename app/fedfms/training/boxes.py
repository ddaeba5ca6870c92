"""Box prompts for some of the training images.

A model that is trained without prompts only unlearns to follow them (docs/decisions/0003). So a share of the images is
shown with a box around one of its structures. The others get the whole input as their box, which is what the model gets
when nobody prompts it (``Segmenter.from_prefix``).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import masks_to_boxes

from fedfms.sam.segmenter import whole_input_box

SHARE = 0.25
# Each side of the box moves by up to this part of the box's extent, outwards or inwards: people do not draw exactly.
_SHIFT = 0.1
_DRAWS = 6


def draw_boxes(masks: Tensor, annotated: Tensor, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Draw the prompts of a batch.

    Every image uses the same number of random numbers, so splitting a batch into micro-batches changes nothing.

    Args:
        masks: ``(batch, structures, rows, columns)`` in 0/1.
        annotated: ``(batch, structures)`` bool.
        generator: The round's, for this purpose alone.

    Returns:
        Boxes ``(batch, 4)``, corners x0, y0, x1, y1 in input pixels; and ``(batch, structures)`` bool, the structures
        of each image that the loss counts: the annotated ones, or the boxed structure alone.
    """
    size = masks.shape[-1]
    boxes = whole_input_box(size).repeat(len(masks), 1)
    asked = annotated.clone()
    visible = (annotated & masks.flatten(2).any(dim=2)).cpu()
    for index in range(len(masks)):
        chance, choice, *shifts = generator.random(_DRAWS)
        shown = torch.nonzero(visible[index]).flatten()
        if chance >= SHARE or len(shown) == 0:
            continue
        structure = int(shown[int(choice * len(shown))])
        boxes[index] = _shifted(masks_to_boxes(masks[index, structure : structure + 1])[0].cpu(), shifts, size)
        asked[index] = False
        asked[index, structure] = True
    return boxes.to(masks.device), asked


def _shifted(box: Tensor, shifts: list[float], size: int) -> Tensor:
    extent = (box[2:] - box[:2]).clamp_min(1).repeat(2)
    moved = box + (2 * torch.tensor(shifts, dtype=torch.float32) - 1) * _SHIFT * extent
    return moved.clamp(0, size - 1)
