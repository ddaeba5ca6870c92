"""The weighted mean: right, the same bits in every order, never wrapping."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedfms.errors import FedfmsError
from fedfms.exchange.messages import JobContract, Update
from fedfms.flare import weighted_sum
from fedfms.flare.weighted_sum import WeightedSum
from fedfms.sam.scope import Schema, TensorSpec
from tests.flare.builders import make_tensors, make_update

SCHEMA = Schema((TensorSpec("shared", (3,)), TensorSpec("decoder.structures.organ.token", (2,))))
HEX = "0" * 64


def update(site: str, values: float | list[float], cases: dict[str, int]) -> Update:
    numbers = torch.tensor([values] * 3 if isinstance(values, float) else values, dtype=torch.float32)
    tensors = {"shared": numbers, "decoder.structures.organ.token": numbers[:2].clone()}
    return Update(HEX, HEX, HEX, 0, site, cases, tensors)


def mean(updates: list[Update]) -> dict[str, torch.Tensor]:
    total = WeightedSum(SCHEMA)
    for item in updates:
        total.add(item)
    return total.mean()


def test_each_tensor_is_weighed_by_its_own_cases() -> None:
    result = mean([update("a", 1.0, {"organ": 1, "lesion": 9}), update("b", 4.0, {"organ": 2, "lesion": 0})])
    # Shared: 9 and 2 cases. The organ's own tensor: 1 and 2.
    assert torch.allclose(result["shared"], torch.full((3,), (9 * 1 + 2 * 4) / 11))
    assert torch.allclose(result["decoder.structures.organ.token"], torch.full((2,), (1 * 1 + 2 * 4) / 3))


def test_a_site_without_the_structure_does_not_move_its_tensors() -> None:
    result = mean([update("a", 1.0, {"organ": 3, "lesion": 3}), update("b", 9.0, {"organ": 0, "lesion": 5})])
    assert torch.equal(result["decoder.structures.organ.token"], torch.ones(2))
    alone = mean([update("b", 9.0, {"organ": 0, "lesion": 5})])
    assert torch.equal(alone["decoder.structures.organ.token"], torch.zeros(2))


def test_every_order_of_arrival_gives_the_same_bits(contract: JobContract) -> None:
    updates = [
        make_update(contract, f"site-{index}", seed=index, cases={"organ": 7 + 13 * index, "lesion": 3 * index})
        for index in range(5)
    ]

    def bits(order: tuple[Update, ...]) -> bytes:
        total = WeightedSum(contract.schema)
        for item in order:
            total.add(item)
        return b"".join(tensor.numpy().tobytes() for tensor in total.mean().values())

    assert len({bits(order) for order in itertools.permutations(updates)}) == 1


def test_floating_point_sums_would_depend_on_the_order(contract: JobContract) -> None:
    """Shows that the test above has something to find."""
    first, second, third = (make_tensors(contract, seed, scale=1.0) for seed in range(3))
    name = contract.schema.names[0]
    one, other = (first[name] + second[name]) + third[name], first[name] + (second[name] + third[name])
    assert not torch.equal(one, other)


def test_the_mean_agrees_with_double_precision(contract: JobContract) -> None:
    updates = [make_update(contract, f"s{i}", seed=i, cases={"organ": 3 + i, "lesion": 2 + i}) for i in range(4)]
    total = WeightedSum(contract.schema)
    for item in updates:
        total.add(item)
    for spec in contract.schema.tensors:
        weights = [item.cases[spec.structure] if spec.structure else max(item.cases.values()) for item in updates]
        exact = sum(w * item.tensors[spec.name].double() for w, item in zip(weights, updates, strict=True))
        exact = exact / sum(weights)
        assert float((total.mean()[spec.name].double() - exact).abs().max()) < 2.0**-32 + 1e-9


element = st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(element, st.integers(0, 10_000_000)), min_size=1, max_size=6))
def test_a_sum_never_wraps(entries: list[tuple[float, int]]) -> None:
    total = WeightedSum(SCHEMA)
    exact, weights = 0, 0
    for index, (value, cases) in enumerate(entries):
        try:
            total.add(update(str(index), float(value), {"organ": cases}))
        except FedfmsError as error:
            assert error.ids == ("FMS-X013",)
            continue
        exact += round(value * 2**32) * cases
        weights += cases
    want = exact / 2**32 / max(1, weights)
    assert float(total.mean()["shared"][0]) == pytest.approx(want, rel=1e-6, abs=1e-9)


def test_an_update_out_of_range_is_refused_as_a_whole() -> None:
    total = WeightedSum(SCHEMA)
    total.add(update("a", 1.0, {"organ": 1}))
    with pytest.raises(FedfmsError) as caught:
        total.add(update("b", [1.0, 1.0, 1e30], {"organ": 1}))
    assert caught.value.ids == ("FMS-X013",)
    assert [problem.where for problem in caught.value.problems] == ["shared"]
    assert total.sites == 1 and torch.equal(total.mean()["decoder.structures.organ.token"], torch.ones(2))


def test_the_range_holds_for_the_declared_number_of_sites(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weighted_sum, "MAX_SITES", 3)
    monkeypatch.setattr(weighted_sum, "_LARGEST", (2**63 - 1) // 3)
    largest = (2**63 - 1) // 3 / 2**32
    total = WeightedSum(SCHEMA)
    for index in range(3):
        total.add(update(str(index), largest * (1 - 1e-6), {"organ": 1}))
    assert float(total.mean()["shared"][0]) == pytest.approx(largest, rel=1e-5)
    with pytest.raises(FedfmsError, match="more than 3"):
        total.add(update("too many", 0.0, {"organ": 1}))


def test_memory_does_not_grow_with_the_number_of_sites() -> None:
    total = WeightedSum(SCHEMA)
    storages = {name: tensor.data_ptr() for name, tensor in total._sums.items()}
    for index in range(20):
        total.add(update(str(index), 0.5, {"organ": 2}))
    assert {name: tensor.data_ptr() for name, tensor in total._sums.items()} == storages
    assert not any(isinstance(value, Update) for value in vars(total).values())
