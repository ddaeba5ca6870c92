"""From slices to answers: batches, windows, and agreement with what evaluation computes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fedfms.data.description.site import load_site
from fedfms.data.slices.opening import DataRequest, open_dataset
from fedfms.data.slices.preparation import prepare
from fedfms.errors import FedfmsError
from fedfms.prediction.predictor import Predictor, Window
from fedfms.prediction.prompts import NO_PROMPTS, Prompts
from fedfms.sam.model import build_model
from tests.generators import preprocessing, write_raster_site
from tests.prediction.model import Bright, header, predictor
from tests.sam.models import config


def answers(made: Predictor, values: np.ndarray, indices: Sequence[int], prompts: Prompts = NO_PROMPTS) -> Tensor:
    found = list(made.slices(values, indices, prompts, "here"))
    assert [index for index, _ in found] == list(indices)
    return torch.stack([logits for _, logits in found])


def photograph(size: tuple[int, int], seed: int = 0) -> np.ndarray:
    """Bright and dark blocks of 8 pixels, (1, H, W)."""
    rng = np.random.default_rng(seed)
    blocks = rng.choice(np.array([10, 160, 240], dtype=np.uint8), (size[0] // 8 + 1, size[1] // 8 + 1))
    return blocks.repeat(8, axis=0).repeat(8, axis=1)[None, : size[0], : size[1]]


def test_answers_are_at_native_resolution_and_the_same_in_any_batch() -> None:
    values = np.concatenate([photograph((40, 64), seed) for seed in range(5)])
    for batch, calls in ((1, [1] * 5), (2, [2, 2, 1]), (8, [5])):
        model = Bright()
        found = answers(predictor(model=model, batch=batch), values, range(5))
        assert model.batches == calls
        assert found.shape == (5, 2, 40, 64)
        assert ((found[:, 0] > 0).numpy() == (values > 130)).all()
        assert ((found[:, 1] > 0).numpy() == (values > 200)).all()


def test_only_the_slices_asked_for_are_computed() -> None:
    model = Bright()
    values = np.concatenate([photograph((40, 64), seed) for seed in range(5)])
    found = answers(predictor(model=model), values, [3])
    assert model.batches == [1]
    assert ((found[0, 0] > 0).numpy() == (values[3] > 130)).all()


@torch.no_grad()
def test_answers_are_those_of_an_image_that_came_through_a_site(tmp_path: Path) -> None:
    """The same picture as training and evaluation see it, and on its own."""
    model = build_model(config(), seed=3)
    site = load_site(write_raster_site(tmp_path, size=(100, 80)))
    rules = header().preprocessing
    request = DataRequest("organ-lesion", ("organ", "lesion"), missing_structure="error", preprocessing=rules)
    dataset = open_dataset(site, request)
    for reference in dataset.slices("validation"):
        sample = dataset.load(reference)
        image, _, geometry = prepare(sample, rules, "sam", variant=0, seed=0)
        expected = geometry.restore(model(image[None])[0])
        pixels = sample.image.transpose(1, 2, 0).astype(np.uint8)
        torch.testing.assert_close(answers(predictor(model=model), pixels[None], [0])[0], expected)


@pytest.mark.parametrize(
    ("window", "size", "batches"),
    [
        ("off", (200, 150), [1]),
        ("auto", (64, 50), [1]),
        ("auto", (200, 150), [4, 4, 4]),
        ("auto", (30, 100), [2]),
        (128, (200, 150), [4]),
        (300, (200, 150), [1]),
    ],
)
def test_windows(window: Window, size: tuple[int, int], batches: list[int]) -> None:
    model = Bright()
    values = photograph(size)
    found = answers(predictor(model=model, window=window), values, [0])
    assert model.batches == batches
    assert found.shape == (1, 2, *size)
    wrong = ((found[0, 0] > 0).numpy() != (values[0] > 130)).mean()
    # Windows of the model's own size lose nothing; scaling 200 pixels to 64 blurs the edges.
    assert wrong == 0 if window == "auto" else wrong < 0.15


def test_a_window_without_contrast_stays_dark() -> None:
    """With LiteMedSAM's normalisation by minimum and maximum, taken over the whole image."""

    class Lightness:
        def __call__(self, images: Tensor) -> Tensor:
            return images[:, :2] - 0.5

    values = np.full((1, 100, 300), 20, dtype=np.uint8)
    values[0, :, :64] = 240
    values[0, ::2, 200:] = 22
    made = predictor(model=Lightness(), window="auto")
    made = replace(made, header=header(backbone="vit_t", input_size=256))
    found = answers(replace(made, window=64), values, [0])
    assert (found[0, 0, :, :64] > 0).all() and not (found[0, 0, :, 200:] > 0).any()


def test_prompts_reach_the_model_in_its_own_pixels() -> None:
    model = Bright()
    values = np.full((3, 128, 128), 160, dtype=np.uint8)
    prompts = Prompts(box=(20, 40, 60, 100), points=((30, 50, 1),), slice=2)
    found = answers(predictor(model=model), values, [2], prompts)
    torch.testing.assert_close(model.prompts[0]["boxes"], torch.tensor([[10.0, 20, 30, 50]]))
    torch.testing.assert_close(model.prompts[0]["points"][0], torch.tensor([[[15.0, 25]]]))
    rows, columns = np.nonzero((found[0, 0] > 0).numpy())
    corners = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    assert np.abs(corners - [20, 40, 60, 100]).max() <= 1


@torch.no_grad()
def test_a_box_and_a_point_change_the_answer_of_a_real_model() -> None:
    made = predictor(model=build_model(config(), seed=3))
    values = photograph((64, 64))
    plain = answers(made, values, [0])
    boxed = answers(made, values, [0], Prompts(box=(5, 5, 30, 30)))
    pointed = answers(made, values, [0], Prompts(points=((5, 5, 1),)))
    assert min((plain - boxed).abs().max(), (plain - pointed).abs().max(), (boxed - pointed).abs().max()) > 1e-4


def test_a_rule_that_does_not_fit_the_values_is_told() -> None:
    made = predictor()
    made = replace(made, header=made.header.model_copy(update={"preprocessing": preprocessing({"rule": "range"})}))
    with pytest.raises(FedfmsError, match="FMS-J003"):
        answers(made, np.zeros((1, 64, 64), dtype=np.float32), [0])
