"""The check of norms: a thousandfold update is found, honest sites of very different size are not."""

from __future__ import annotations

import pytest

from fedfms.aggregation.norm_check import too_large
from fedfms.job.aggregation import Aggregation

DEFAULT = Aggregation().norm_factor


def norms(*values: float) -> dict[str, float]:
    return {f"site-{number}": value for number, value in enumerate(values)}


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ((0.9, 1.0, 1.1, 1000.0), ("site-3",)),
        ((1000.0, 1.0, 1.1), ("site-0",)),
        ((1e6, 1.0, 1000.0, 1.2, 0.8), ("site-0", "site-2")),
        ((0.3, 1.0, 2.0, 6.0), ()),
        ((1.0, 1.0, 10.0), ()),
        ((1.0, 1.0, 10.1), ("site-2",)),
        # A small update does no harm.
        ((1.0, 1.0, 1e-9), ()),
    ],
)
def test_what_is_far_above_the_median_is_found(values: tuple[float, ...], found: tuple[str, ...]) -> None:
    assert too_large(norms(*values), DEFAULT)[0] == found


def test_the_median_is_told() -> None:
    assert too_large(norms(1.0, 2.0, 4.0, 8.0), DEFAULT) == ((), 3.0)


@pytest.mark.parametrize(
    ("values", "factor"),
    [((1.0, 1000.0), DEFAULT), ((1.0, 1.0, 1000.0), None), ((0.0, 0.0, 1.0), DEFAULT), ((), DEFAULT)],
)
def test_without_something_to_compare_with_nothing_is_left_out(values: tuple[float, ...], factor: float | None) -> None:
    assert too_large(norms(*values), factor) == ((), None)
