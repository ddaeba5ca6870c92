"""A state that does not match the schema exactly is refused, on receipt and in the model."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fedfms.errors import FedfmsError
from fedfms.sam.model import build_model, initial_state, schema_of
from tests.sam.models import config

NAME = "decoder.iou_token.weight"


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return initial_state(config(), seed=0)


@pytest.mark.parametrize(
    ("change", "detail"),
    [
        ({NAME: torch.zeros(1, 16, dtype=torch.float64)}, r"expected float32 \(1, 16\), found float64 \(1, 16\)"),
        ({NAME: torch.zeros(16, 1)}, r"expected float32 \(1, 16\), found float32 \(16, 1\)"),
        ({NAME: [0.0] * 16}, "a list, not a tensor"),
        ({NAME: None}, "missing"),
        ({"prompt_encoder.no_mask_embed.weight": torch.zeros(1, 16)}, "not in the schema"),
    ],
)
def test_every_difference_is_refused(state: dict[str, Tensor], change: dict[str, object], detail: str) -> None:
    schema_of(config()).check(state)
    with pytest.raises(FedfmsError, match=f"FMS-X001 {next(iter(change))}: {detail}") as caught:
        schema_of(config()).check({**state, **change})
    assert len(caught.value.problems) == 1


def test_a_model_takes_no_part_of_a_state(state: dict[str, Tensor]) -> None:
    model = build_model(config(), seed=0)
    changed = {name: tensor + 1 for name, tensor in state.items() if name != NAME}
    with pytest.raises(FedfmsError, match="FMS-X001"):
        model.load_exchanged(changed)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.exchanged().items())
