"""Boxes and points: what fits an image, and where they land in the model's input."""

from __future__ import annotations

import pytest
import torch

from fedfms.data.slices.preparation import geometry_of
from fedfms.errors import FedfmsError
from fedfms.prediction.prompts import Prompts


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        (Prompts(box=(0, 0, 101, 10), slice=0), ["(101, 10) is outside", "100 columns and 80 rows"]),
        (Prompts(box=(10, 5, 10, 60), slice=0), ["x0 < x1"]),
        (Prompts(box=(10, 60, 20, 5), slice=0), ["y0 < y1"]),
        (Prompts(points=((3, -1, 1),), slice=0), ["(3, -1) is outside"]),
        (Prompts(points=((3, 1, 1),), slice=5), ["slice 5", "0 to 4"]),
        (Prompts(points=((3, 1, 1),)), ["--slice", "0 to 4"]),
        (Prompts(box=(0, 0, 200, 10), points=((300, 1, 1),), slice=9), ["(200, 10)", "(300, 1)", "slice 9"]),
    ],
)
def test_prompts_that_do_not_fit(prompts: Prompts, words: list[str]) -> None:
    with pytest.raises(FedfmsError) as caught:
        prompts.check("ct", (5, 80, 100))
    assert caught.value.ids == ("FMS-P003",)
    assert all(word in str(caught.value) for word in words)


def test_prompts_that_fit() -> None:
    Prompts(box=(0, 0, 100, 80), points=((100, 80, 0),), slice=4).check("ct", (5, 80, 100))
    Prompts(box=(0, 0, 100, 80)).check("photograph", (1, 80, 100))


def test_prompts_are_scaled_as_the_image() -> None:
    geometry = geometry_of((80, 160), 64)
    found = Prompts(box=(10, 20, 150, 80), points=((160, 0, 1), (5, 5, 0))).tensors(geometry)
    torch.testing.assert_close(found["boxes"], torch.tensor([[4.0, 8, 60, 32]]))
    places, labels = found["points"]
    torch.testing.assert_close(places, torch.tensor([[[64.0, 0], [2, 2]]]))
    assert labels.tolist() == [[1, 0]]


def test_without_a_prompt_no_argument_is_passed() -> None:
    assert not Prompts() and Prompts().tensors(geometry_of((8, 8), 64)) == {}
