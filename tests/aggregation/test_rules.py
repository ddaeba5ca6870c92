"""The rules against NumPy and SciPy, which know nothing of weights: a weight of three is the same value three times."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.stats import trim_mean

from fedfms.aggregation import rules
from fedfms.aggregation.weights import weight
from fedfms.exchange.messages import Update
from fedfms.exchange.state import l2_norm
from fedfms.job.aggregation import Aggregation
from fedfms.sam.scope import Schema, TensorSpec
from tests.aggregation.builders import (
    LESION,
    ORGAN,
    RULES,
    SCHEMA,
    SHARED,
    bits,
    combined,
    flat,
    make_update,
    name_of,
    random_tensors,
    some_updates,
)

MEDIAN = Aggregation(rule="coordinate_median")
TRIMMED = Aggregation(rule="trimmed_mean", trim=0.25)
GEOMETRIC = Aggregation(rule="geometric_median")
LARGE = (1.1e10, 1e-3, -1.1e10, 2e-3)
ROBUST = [MEDIAN, TRIMMED, GEOMETRIC]

every_rule = pytest.mark.parametrize("options", RULES, ids=name_of)
robust_rules = pytest.mark.parametrize("options", ROBUST, ids=name_of)

# Few different values and small weights, so that equal values and exact halves come often.
columns = st.lists(
    st.tuples(st.sampled_from([-2.5, -1.0, -0.0, 0.0, 0.125, 1.0, 3.0]), st.integers(1, 6)), min_size=1, max_size=7
)


def repeated(entries: list[tuple[float, int]], times: int = 1) -> npt.NDArray[np.float64]:
    return np.sort(np.repeat([value for value, _ in entries], [times * count for _, count in entries]))


def as_columns(entries: list[tuple[float, int]]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor([[value] for value, _ in entries]), torch.tensor([count for _, count in entries])


@settings(deadline=None)
@given(columns)
def test_the_median_is_that_of_repeated_values(entries: list[tuple[float, int]]) -> None:
    assert float(rules.weighted_median(*as_columns(entries))[0]) == np.median(repeated(entries))


@settings(deadline=None)
@given(columns, st.integers(1, 49))
def test_the_trimmed_mean_is_that_of_repeated_values(entries: list[tuple[float, int]], hundredths: int) -> None:
    share = Fraction(hundredths, 100)
    values = repeated(entries, share.denominator)
    cut = share * len(values)
    assert cut.denominator == 1, "repeated so often that whole values are cut"
    want = values[int(cut) : len(values) - int(cut)].mean()
    assert float(rules.trimming(share)(*as_columns(entries))[0]) == pytest.approx(want, rel=1e-6, abs=1e-7)
    if hundredths == 25:
        assert trim_mean(values, 0.25) == pytest.approx(want)


@robust_rules
@pytest.mark.parametrize("block", [1, 11, 1 << 20])
def test_whole_updates_agree_with_numpy(
    tmp_path: Path, options: Aggregation, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every tensor with its own weights, also piece by piece."""
    monkeypatch.setattr(rules, "BLOCK", block)
    updates = some_updates(6)
    found = combined(tmp_path, updates, options)
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == {
        spec.name: spec.shape for spec in SCHEMA.tensors
    }
    assert all(tensor.dtype == torch.float32 for tensor in found.values())
    for names in (SHARED, (ORGAN,), (LESION,)):
        spec = next(item for item in SCHEMA.tensors if item.name == names[0])
        weights = np.array([weight(spec, item.cases) for item in updates])
        values = np.stack([flat(item.tensors, names) for item in updates])
        if options.rule == "geometric_median":
            want = geometric_median(values, weights)
        else:
            copies = np.sort(np.repeat(values, 4 * weights, axis=0), axis=0)
            cut = 0 if options.rule == "coordinate_median" else len(copies) // 4
            want = copies[cut : len(copies) - cut].mean(0) if cut else np.median(copies, axis=0)
        np.testing.assert_allclose(flat(found, names), want, atol=2e-6)


def geometric_median(values: npt.NDArray[np.float64], weights: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """By SciPy's general minimization of the sum of distances."""
    scaled = 100 * values

    def total(point: npt.NDArray[np.float64]) -> float:
        return float((weights * np.linalg.norm(scaled - point, axis=1)).sum())

    start = np.average(scaled, axis=0, weights=weights)
    return minimize(total, start, method="BFGS", options={"gtol": 1e-7}).x / 100  # type: ignore[no-any-return]


@every_rule
def test_every_order_of_arrival_gives_the_same_bits(tmp_path: Path, options: Aggregation) -> None:
    updates = some_updates(5)
    assert len({bits(combined(tmp_path, order, options)) for order in itertools.permutations(updates)}) == 1


@robust_rules
def test_the_order_does_not_matter_where_sums_of_doubles_depend_on_it(tmp_path: Path, options: Aggregation) -> None:
    """Large values that cancel, in updates that are equally far from each other and so count alike."""
    rows = [[large, *(1e11 if other == site else 0.0 for other in range(4))] for site, large in enumerate(LARGE)]
    schema = Schema((TensorSpec("decoder.weight", (5,)),))
    updates = [make_update(str(site), {"decoder.weight": torch.tensor(row)}) for site, row in enumerate(rows)]
    orders = list(itertools.permutations(updates))
    assert len({sum(item.tensors["decoder.weight"].double()[0] / 4 for item in order) for order in orders}) > 1
    assert len({bits(combined(tmp_path, order, options, schema)) for order in orders}) == 1


@every_rule
def test_the_size_of_the_pieces_does_not_matter(
    tmp_path: Path, options: Aggregation, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = combined(tmp_path, some_updates(5), options)
    monkeypatch.setattr(rules, "BLOCK", 3)
    pieces = combined(tmp_path, some_updates(5), options)
    for name, tensor in whole.items():
        torch.testing.assert_close(pieces[name], tensor, rtol=1e-6, atol=0)
    assert options.rule == "geometric_median" or bits(whole) == bits(pieces)


@every_rule
def test_a_site_without_cases_of_a_structure_has_no_part_in_it(tmp_path: Path, options: Aggregation) -> None:
    updates = some_updates(5)
    changed = [
        make_update(item.site, {**item.tensors, LESION: 50 + item.tensors[LESION]}, item.cases)
        if item.cases["lesion"] == 0
        else item
        for item in updates
    ]
    assert any(item.cases["lesion"] == 0 for item in updates)
    assert bits(combined(tmp_path, changed, options)) == bits(combined(tmp_path, updates, options))


@every_rule
def test_a_structure_that_nobody_has_stays_as_it_is(tmp_path: Path, options: Aggregation) -> None:
    updates = [make_update(item.site, item.tensors, {"organ": 2, "lesion": 0}) for item in some_updates(3)]
    found = combined(tmp_path, updates, options)
    assert torch.equal(found[LESION], torch.zeros(2, 3)) and bool(found[ORGAN].any())


@every_rule
def test_one_site_alone_is_its_update(tmp_path: Path, options: Aggregation) -> None:
    (update,) = some_updates(1)
    found = combined(tmp_path, [update], options)
    for name, tensor in update.tensors.items():
        # The mean is rounded to 2**-32.
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0 if options.rule != "mean" else 2.0**-32)


@every_rule
@pytest.mark.parametrize("moved", [0.0, 1e-12, 1e3])
def test_sites_that_learned_nothing_are_no_obstacle(tmp_path: Path, options: Aggregation, moved: float) -> None:
    tensors = [{spec.name: torch.full(spec.shape, value) for spec in SCHEMA.tensors} for value in (0.0, 0.0, moved)]
    found = combined(tmp_path, [make_update(f"site-{i}", item) for i, item in enumerate(tensors)], options)
    for tensor in found.values():
        assert float(tensor.abs().max()) <= (moved * 0.4 if options.rule in ("mean", "trimmed_mean") else moved * 1e-5)


def test_of_two_sites_medians_are_the_larger_one_and_the_middle_of_equal_ones(tmp_path: Path) -> None:
    first, second = random_tensors(1), random_tensors(2)
    for options in (MEDIAN, GEOMETRIC):
        cases = ({"organ": 3, "lesion": 3}, {"organ": 2, "lesion": 2})
        found = combined(tmp_path, [make_update("a", first, cases[0]), make_update("b", second, cases[1])], options)
        for name, tensor in first.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-6)
        found = combined(tmp_path, [make_update("a", first), make_update("b", second)], options)
        for name in first:
            torch.testing.assert_close(found[name], (first[name] + second[name]) / 2)


def honest_and_one(bad: float) -> list[Update]:
    """Three sites that have learned much the same, and a fourth that sends something times ``bad``."""
    common = random_tensors(99)
    sent = [{name: common[name] + noise for name, noise in random_tensors(seed, 1e-3).items()} for seed in range(4)]
    sent[3] = {name: bad * tensor for name, tensor in sent[3].items()}
    return [make_update(f"site-{number}", tensors) for number, tensors in enumerate(sent)]


@robust_rules
@pytest.mark.parametrize("bad", [-1.0, -10.0, 1000.0, -1e5])
def test_one_bad_site_of_four_cannot_move_the_result_out_of_the_honest_ones(
    tmp_path: Path, options: Aggregation, bad: float
) -> None:
    updates = honest_and_one(bad)
    found = combined(tmp_path, updates, options)
    names = [spec.name for spec in SCHEMA.tensors]
    honest = np.stack([flat(item.tensors, names) for item in updates[:3]])
    result = flat(found, names)
    if options.rule == "geometric_median":
        spread = np.linalg.norm(honest - honest.mean(0), axis=1).max()
        assert np.linalg.norm(result - honest.mean(0)) < 2 * spread
    else:
        assert (result >= honest.min(0) - 1e-9).all() and (result <= honest.max(0) + 1e-9).all()
    mean = flat(combined(tmp_path, updates), names)
    assert np.linalg.norm(mean - honest.mean(0)) > 0.4 * np.linalg.norm(honest.mean(0)), "the mean does move"


def test_a_cap_limits_what_a_large_site_can_do(tmp_path: Path) -> None:
    ones = {spec.name: torch.ones(spec.shape) for spec in SCHEMA.tensors}
    zeros = {name: torch.zeros_like(tensor) for name, tensor in ones.items()}
    updates = [
        make_update("large", ones, {"organ": 900, "lesion": 1}),
        *(make_update(f"small-{i}", zeros, {"organ": 50, "lesion": 1}) for i in range(2)),
    ]
    found = combined(tmp_path, updates, Aggregation(max_share=0.4))
    for name, share in ((ORGAN, 0.4), ("decoder.weight", 0.4), (LESION, 1 / 3)):
        torch.testing.assert_close(found[name], torch.full_like(found[name], share))
    # A site with more than half of the weight is the median, unless it is capped.
    assert bool(combined(tmp_path, updates, MEDIAN)[ORGAN].all())
    assert not bool(combined(tmp_path, updates, Aggregation(rule="coordinate_median", max_share=0.4))[ORGAN].any())


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from([*RULES, Aggregation(rule="trimmed_mean", trim=0.34), Aggregation(rule="trimmed_mean", trim=0.49)]),
    st.lists(st.tuples(st.lists(st.floats(-1, 1, width=32), min_size=3, max_size=3), st.integers(1, 9)), min_size=1),
)
def test_no_rule_moves_further_than_the_sites_allow(
    tmp_path: Path, options: Aggregation, entries: list[tuple[list[float], int]]
) -> None:
    """`require_bounded_change` refuses a state that has moved further than this bound."""
    schema = Schema((TensorSpec("decoder.weight", (3,)),))
    updates = [
        make_update(f"{number:03}", {"decoder.weight": torch.tensor(values)}, {"organ": cases})
        for number, (values, cases) in enumerate(entries)
    ]
    largest = max(l2_norm(item.tensors) for item in updates)
    assert l2_norm(combined(tmp_path, updates, options, schema)) <= options.largest_step * largest * 1.001 + 1e-6


@pytest.mark.parametrize("options", [MEDIAN, Aggregation(rule="trimmed_mean", trim=0.34)], ids=name_of)
def test_a_rule_of_elements_can_move_further_than_every_update(tmp_path: Path, options: Aggregation) -> None:
    """Three sites, each large in two of three elements: the median is large in all three."""
    schema = Schema((TensorSpec("decoder.weight", (3,)),))
    rows = [[1.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0, 1.0, 1.0]]
    updates = [make_update(str(i), {"decoder.weight": torch.tensor(row)}) for i, row in enumerate(rows)]
    moved = l2_norm(combined(tmp_path, updates, options, schema))
    assert moved == pytest.approx(math.sqrt(3))
    assert math.sqrt(2) < moved < options.largest_step * math.sqrt(2)
