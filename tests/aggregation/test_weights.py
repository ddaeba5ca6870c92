"""The cap on one site's weight: exact, and never above the share."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedfms.aggregation.weights import capped, weight
from fedfms.job.aggregation import Aggregation
from fedfms.sam.scope import TensorSpec

shares = st.fractions(min_value=Fraction(1, 100), max_value=1, max_denominator=100)
numbers = st.dictionaries(st.text(min_size=1, max_size=3), st.integers(1, 10_000_000), min_size=1, max_size=12)


def test_shared_tensors_count_the_most_frequent_structure_and_others_their_own() -> None:
    cases = {"organ": 4, "lesion": 9}
    assert weight(TensorSpec("decoder.weight", (1,)), cases) == 9
    assert weight(TensorSpec("decoder.structures.organ.token", (1,)), cases) == 4


@pytest.mark.parametrize(
    ("weights", "share", "expected"),
    [
        ([30, 40, 30], 0.4, [30, 40, 30]),
        ([100, 10, 10, 10], 1.0, [100, 10, 10, 10]),
        ([100, 10, 10, 10], 0.5, [30, 10, 10, 10]),
        ([100, 10, 10, 10], 0.4, [2, 1, 1, 1]),
        ([100, 90, 10, 20], 0.4, [60, 60, 10, 20]),
        ([100, 50, 1], 0.5, [51, 50, 1]),
        ([7, 5], 0.5, [1, 1]),
        ([7, 5], 0.3, [1, 1]),
        ([7], 0.3, [1]),
    ],
)
def test_the_largest_are_lowered(weights: list[int], share: float, expected: list[float]) -> None:
    fraction = Aggregation(max_share=share).largest_share
    found = capped({str(i): value for i, value in enumerate(weights)}, fraction)
    assert [Fraction(value, found["0"]) for value in found.values()] == [
        Fraction(value) / Fraction(expected[0]) for value in expected
    ]


@given(numbers, shares)
def test_no_site_has_more_than_its_share_and_the_order_stays(weights: dict[str, int], share: Fraction) -> None:
    found = capped(weights, share)
    assert list(found) == list(weights) and min(found.values()) >= 1
    whole = sum(found.values())
    if len(weights) * share < 1:
        assert set(found.values()) == {1}
        return
    cap = share * whole
    assert max(found.values()) <= cap
    # Those below the cap keep their ratios, and nobody is lowered without need.
    free = [site for site in weights if found[site] < cap]
    assert all(found[a] * weights[b] == found[b] * weights[a] for a in free for b in free)
    if len(weights) * share > 1 and free:
        scale = Fraction(found[free[0]], weights[free[0]])
        assert all(found[site] == min(weights[site] * scale, cap) for site in weights)
    # What `require_in_range` relies on.
    assert all(found[site] <= weights[site] * share.denominator for site in weights)


@given(numbers)
def test_without_a_cap_the_weights_are_the_cases(weights: dict[str, int]) -> None:
    assert capped(weights, Fraction(1)) == weights
