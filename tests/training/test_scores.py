"""Scores against closed forms and against SimpleITK."""

from __future__ import annotations

import warnings
from dataclasses import asdict

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from fedfms.training.scores import Scores, score
from tests.training.itk_scores import itk_scores


def values(scores: Scores) -> dict[str, float]:
    found = asdict(scores)
    assert found.pop("outcome") == "found"
    return found


def box(shape: tuple[int, ...], *ranges: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(shape, dtype=np.uint8)
    mask[tuple(slice(*ends) for ends in ranges)] = 1
    return mask


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_parallel_plates_are_their_distance_apart(axis: int) -> None:
    """All of a plate one voxel thick is surface, so every distance is the same; the overlap is none."""
    spacing = (3.0, 0.5, 0.8)
    sides: list[tuple[int, int]] = [(1, 8)] * 3
    plates = [box((10, 10, 10), *sides[:axis], (at, at + 1), *sides[axis + 1 :]) for at in (2, 6)]
    distance = 4 * spacing[axis]
    expected = {"dice": 0, "iou": 0, "hd95_mm": distance, "assd_mm": distance}
    assert values(score(*plates, spacing)) == pytest.approx(expected)


def test_shifted_boxes_overlap_by_the_rest() -> None:
    reference, predicted = box((12, 20), (2, 10), (3, 13)), box((12, 20), (2, 10), (6, 16))
    found = score(predicted, reference, (1.0, 1.0))
    assert found.dice == pytest.approx(7 / 10)
    assert found.iou == pytest.approx(7 / 13)


def test_concentric_discs() -> None:
    """Radius 30 in 40 mm of 0.5 mm pixels: areas give the overlap, the difference of the radii the distances."""
    row, column = np.mgrid[:200, :200]
    radius = 0.5 * np.hypot(row - 100, column - 100)
    small, large = radius < 30, radius < 40
    found = score(large, small, (0.5, 0.5))
    assert found.dice == pytest.approx(2 * 30**2 / (30**2 + 40**2), rel=0.01)
    assert found.iou == pytest.approx(30**2 / 40**2, rel=0.01)
    assert found.hd95_mm == pytest.approx(10, abs=0.5)
    assert found.assd_mm == pytest.approx(10, abs=0.5)


@pytest.mark.parametrize("spacing", [(0.7, 1.3), (3.0, 0.7, 1.3)])
@pytest.mark.parametrize("seed", range(4))
def test_random_shapes_agree_with_simpleitk(spacing: tuple[float, ...], seed: int) -> None:
    generator = np.random.default_rng(seed)
    field = gaussian_filter(generator.normal(size=(2, 14, 40, 36)[: 1 + len(spacing)]), (0, *[2] * len(spacing)))
    field[1] = 0.6 * field[0] + 0.4 * field[1]
    predicted, reference = (item > np.quantile(item, 0.8) for item in field)
    expected = itk_scores(predicted, reference, spacing)
    assert expected["hd95_mm"] > expected["assd_mm"] > 0.3, "otherwise little is shown"
    assert values(score(predicted, reference, spacing)) == pytest.approx(expected, rel=1e-5)


def test_hd95_leaves_out_a_twentieth() -> None:
    """A line of 100 voxels with 4 far away ones: they are within the 5 % that the percentile leaves out."""
    line = box((1, 200), (0, 1), (0, 100))
    with_few, with_more = line.copy(), line.copy()
    with_few[0, 196:] = 1
    with_more[0, 190:] = 1
    assert score(with_few, line, (1.0, 1.0)).hd95_mm == 0
    assert score(with_more, line, (1.0, 1.0)).hd95_mm > 90


def test_what_is_outside_both_changes_nothing() -> None:
    generator = np.random.default_rng(0)
    masks = [generator.random((6, 9, 8)) > 0.6 for _ in range(2)]
    padded = [np.pad(mask, ((3, 1), (0, 7), (2, 2))) for mask in masks]
    assert score(*masks, (3.0, 1.0, 1.0)) == score(*padded, (3.0, 1.0, 1.0))


def test_a_mask_may_hold_any_value_and_type() -> None:
    """uint8 in 0/255 and bool alike, and views with negative steps, as the readers give."""
    reference, predicted = box((12, 20), (2, 10), (3, 13)), box((12, 20), (2, 10), (6, 16))
    plain = score(predicted, reference, (1.0, 2.0))
    assert score(predicted.astype(bool), reference * np.uint8(255), (1.0, 2.0)) == plain
    assert score(predicted[::-1, ::-1], reference[::-1, ::-1], (1.0, 2.0)) == plain


def test_an_empty_reference_is_not_estimable() -> None:
    empty, full = np.zeros((2, 4, 4), np.uint8), np.ones((2, 4, 4), np.uint8)
    assert score(full, empty, (1.0, 1.0, 1.0)) == Scores("false_alarm", None, None, None, None)
    assert score(empty, empty, (1.0, 1.0, 1.0)) == Scores("absent", None, None, None, None)


def test_an_empty_prediction_has_no_overlap_and_no_distance() -> None:
    empty, full = np.zeros((2, 4, 4), np.uint8), np.ones((2, 4, 4), np.uint8)
    assert score(empty, full, (1.0, 1.0, 1.0)) == Scores("missed", 0.0, 0.0, None, None)


def test_without_spacing_there_are_overlaps_only() -> None:
    mask = box((12, 20), (2, 10), (3, 13))
    assert score(mask, mask, None) == Scores("found", 1.0, 1.0, None, None)


def test_no_warning_reaches_the_console() -> None:
    mask = box((12, 20), (2, 10), (3, 13))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        score(mask, mask, (1.0, 1.0))
        score(np.zeros_like(mask), mask, (1.0, 1.0))
