"""The weighted mean: right, the same bits in every order and as in version 0.1, never wrapping."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedfms.aggregation import rules, weighted_sum
from fedfms.aggregation.weighted_sum import require_in_range
from fedfms.errors import FedfmsError
from fedfms.exchange.messages import Update
from fedfms.job.aggregation import Aggregation
from fedfms.sam.scope import Schema, TensorSpec
from tests.aggregation import builders
from tests.aggregation.builders import HEX, bits, combined, random_tensors, some_updates

SCHEMA = Schema((TensorSpec("shared", (3,)), TensorSpec("decoder.structures.organ.token", (2,))))


def update(site: str, values: float | list[float], cases: dict[str, int]) -> Update:
    numbers = torch.tensor([values] * 3 if isinstance(values, float) else values, dtype=torch.float32)
    tensors = {"shared": numbers, "decoder.structures.organ.token": numbers[:2].clone()}
    return Update(HEX, HEX, HEX, 0, site, cases, tensors)


def mean(folder: Path, updates: list[Update]) -> dict[str, Tensor]:
    for number, item in enumerate(updates):
        require_in_range(SCHEMA, item, others=number)
    return combined(folder, updates, schema=SCHEMA)


def sum_of_version_0_1(schema: Schema, updates: list[Update]) -> dict[str, Tensor]:
    """The running sum over whole updates as version 0.1 computed it, in the order of arrival."""
    sums = {spec.name: torch.zeros(spec.shape, dtype=torch.int64) for spec in schema.tensors}
    weights = {spec.name: 0 for spec in schema.tensors}
    for item in updates:
        for spec in schema.tensors:
            share = item.cases[spec.structure] if spec.structure is not None else max(item.cases.values())
            scaled = (item.tensors[spec.name].to(torch.float64) * 2.0**32).round_().to(torch.int64)
            sums[spec.name].add_(scaled.mul_(share))
            weights[spec.name] += share
    return {
        name: (total.to(torch.float64) / (2.0**32 * max(1, weights[name]))).to(torch.float32)
        for name, total in sums.items()
    }


def test_each_tensor_is_weighed_by_its_own_cases(tmp_path: Path) -> None:
    result = mean(tmp_path, [update("a", 1.0, {"organ": 1, "lesion": 9}), update("b", 4.0, {"organ": 2, "lesion": 0})])
    # Shared: 9 and 2 cases. The organ's own tensor: 1 and 2.
    assert torch.allclose(result["shared"], torch.full((3,), (9 * 1 + 2 * 4) / 11))
    assert torch.allclose(result["decoder.structures.organ.token"], torch.full((2,), (1 * 1 + 2 * 4) / 3))


def test_a_site_without_the_structure_does_not_move_its_tensors(tmp_path: Path) -> None:
    both = [update("a", 1.0, {"organ": 3, "lesion": 3}), update("b", 9.0, {"organ": 0, "lesion": 5})]
    assert torch.equal(mean(tmp_path, both)["decoder.structures.organ.token"], torch.ones(2))
    assert torch.equal(mean(tmp_path, both[1:])["decoder.structures.organ.token"], torch.zeros(2))


@pytest.mark.parametrize("block", [1, 7, 1 << 20])
def test_the_mean_has_the_bits_of_version_0_1(tmp_path: Path, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "BLOCK", block)
    for seed in range(10):
        updates = [
            builders.make_update(f"s{i}", random_tensors(100 * seed + i, 10.0 ** (i - 4)), {"organ": i, "lesion": 3})
            for i in range(5)
        ]
        want = sum_of_version_0_1(builders.SCHEMA, updates[::-1])
        assert bits(combined(tmp_path, updates)) == bits(want)


def test_floating_point_sums_would_depend_on_the_order() -> None:
    """Shows that the tests of bits have something to find."""
    first, second, third = (random_tensors(seed, scale=1.0)["decoder.weight"] for seed in range(3))
    assert not torch.equal((first + second) + third, first + (second + third))


def test_the_mean_agrees_with_double_precision(tmp_path: Path) -> None:
    updates = some_updates(4)
    found = combined(tmp_path, updates)
    for spec in builders.SCHEMA.tensors:
        weights = [item.cases[spec.structure] if spec.structure else max(item.cases.values()) for item in updates]
        exact = sum(w * item.tensors[spec.name].double() for w, item in zip(weights, updates, strict=True))
        exact = exact / sum(weights)
        assert float((found[spec.name].double() - exact).abs().max()) < 2.0**-32 + 1e-9


element = st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(element, st.integers(0, 10_000_000)), min_size=1, max_size=6), st.integers(1, 100))
def test_a_sum_never_wraps(tmp_path: Path, entries: list[tuple[float, int]], hundredths: int) -> None:
    """Also not with a cap, which multiplies weights."""
    options = Aggregation(max_share=hundredths / 100)
    accepted: list[tuple[Update, float, int]] = []
    for index, (value, cases) in enumerate(entries):
        item = update(str(index), float(value), {"organ": cases})
        try:
            require_in_range(SCHEMA, item, others=index, growth=options.largest_share.denominator)
        except FedfmsError as error:
            assert error.ids == ("FMS-X013",)
            continue
        if cases:
            accepted.append((item, value, cases))
    found = combined(tmp_path, [item for item, _, _ in accepted], options, SCHEMA)["shared"]
    weights = rules.capped({item.site: cases for item, _, cases in accepted}, options.largest_share)
    exact = sum(round(value * 2**32) * weights[item.site] for item, value, _ in accepted)
    want = exact / 2**32 / max(1, sum(weights.values()))
    assert float(found[0]) == pytest.approx(want, rel=1e-6, abs=1e-9)


def test_an_update_out_of_range_is_refused_with_its_tensors() -> None:
    with pytest.raises(FedfmsError) as caught:
        require_in_range(SCHEMA, update("b", [1.0, 1.0, 1e30], {"organ": 1}), others=1)
    assert caught.value.ids == ("FMS-X013",)
    assert [problem.where for problem in caught.value.problems] == ["shared"]
    require_in_range(SCHEMA, update("b", 2000.0, {"organ": 1000}), others=1)
    with pytest.raises(FedfmsError, match="FMS-X013"):
        require_in_range(SCHEMA, update("b", 2000.0, {"organ": 1000}), others=1, growth=5)


def test_the_range_holds_for_the_declared_number_of_sites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weighted_sum, "MAX_SITES", 3)
    monkeypatch.setattr(weighted_sum, "_LARGEST", (2**63 - 1) // 3)
    largest = (2**63 - 1) // 3 / 2**32
    updates = [update(str(index), largest * (1 - 1e-6), {"organ": 1}) for index in range(3)]
    assert float(mean(tmp_path, updates)["shared"][0]) == pytest.approx(largest, rel=1e-5)
    with pytest.raises(FedfmsError, match="more than 3"):
        require_in_range(SCHEMA, update("too many", 0.0, {"organ": 1}), others=3)


def test_every_order_of_arrival_gives_the_same_bits(tmp_path: Path) -> None:
    found = {bits(combined(tmp_path, order)) for order in itertools.permutations(some_updates(5))}
    assert len(found) == 1
