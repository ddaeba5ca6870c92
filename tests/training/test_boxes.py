from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import masks_to_boxes

from fedfms.sam.model import build_model
from fedfms.training.boxes import SHARE, draw_boxes
from tests.sam.models import config

SIZE = 64
WHOLE = [0.0, 0.0, SIZE - 1, SIZE - 1]


def pair_of_structures(count: int) -> tuple[Tensor, Tensor]:
    """An organ of 20 x 10 pixels with a lesion of 4 x 2 in it, both annotated."""
    masks = torch.zeros(count, 2, SIZE, SIZE)
    masks[:, 0, 10:20, 30:50] = 1
    masks[:, 1, 12:14, 33:37] = 1
    return masks, torch.ones(count, 2, dtype=torch.bool)


def test_a_share_of_the_images_shows_one_structure_and_asks_for_it_alone() -> None:
    masks, annotated = pair_of_structures(400)
    boxes, asked = draw_boxes(masks, annotated, np.random.default_rng(0))
    whole = (boxes == torch.tensor(WHOLE)).all(dim=1)
    assert asked[whole].all()
    assert 0.8 * SHARE < 1 - whole.float().mean() < 1.2 * SHARE
    for index in torch.nonzero(~whole).flatten().tolist():
        (structure,) = torch.nonzero(asked[index]).flatten().tolist()
        exact = masks_to_boxes(masks[index, structure : structure + 1])[0]
        assert (boxes[index] - exact).abs().max() <= 0.1 * (exact[2:] - exact[:2]).max()
    assert 0.3 < asked[~whole][:, 0].float().mean() < 0.7


def test_what_is_empty_or_not_annotated_is_never_boxed() -> None:
    masks, annotated = pair_of_structures(100)
    annotated[:, 0] = False
    masks[50:, 1] = 0
    boxes, asked = draw_boxes(masks, annotated, np.random.default_rng(0))
    whole = (boxes == torch.tensor(WHOLE)).all(dim=1)
    assert whole[50:].all() and not whole[:50].all()
    assert torch.equal(asked, annotated), "only the lesion is annotated, boxed or not"


def test_parts_of_a_batch_draw_what_the_batch_draws() -> None:
    masks, annotated = pair_of_structures(12)
    boxes, asked = draw_boxes(masks, annotated, np.random.default_rng(3))
    generator = np.random.default_rng(3)
    parts = [draw_boxes(masks[i : i + 5], annotated[i : i + 5], generator) for i in range(0, 12, 5)]
    assert torch.equal(torch.cat([part[0] for part in parts]), boxes)
    assert torch.equal(torch.cat([part[1] for part in parts]), asked)


@torch.no_grad()
def test_without_a_prompt_the_whole_input_is_the_box() -> None:
    """So an image that was not given a box in training is one that nobody prompted."""
    model = build_model(config(), seed=0)
    images = torch.randn(2, 3, SIZE, SIZE)
    boxes, _ = draw_boxes(torch.zeros(2, 2, SIZE, SIZE), torch.ones(2, 2, dtype=torch.bool), np.random.default_rng(0))
    assert torch.equal(model(images), model(images, boxes=boxes))
