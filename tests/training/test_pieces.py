"""Loss, metrics, schedule, sampling, hardware."""

from __future__ import annotations

import math
from itertools import islice

import pytest
import torch

from fedfms.data.description.site import Compute
from fedfms.data.slices.dataset import Case, SliceReference
from fedfms.errors import FedfmsError
from fedfms.training.hardware import choose_hardware
from fedfms.training.loss import SegmentationLoss
from fedfms.training.metrics import StructureMetrics
from fedfms.training.sampling import round_batches
from fedfms.training.schedule import FINAL, learning_rate_factor


def test_loss_reference_value() -> None:
    """Probability 0.5 everywhere, half of the reference set: Dice 0.5 and cross-entropy ln 2 by hand."""
    masks = torch.zeros(1, 1, 4, 4)
    masks[..., :2, :] = 1
    loss = SegmentationLoss()(torch.zeros(1, 1, 4, 4), masks, torch.tensor([[True]]))
    assert float(loss) == pytest.approx(0.5 + math.log(2), abs=1e-4)


def test_loss_leaves_out_what_is_not_annotated() -> None:
    logits = torch.randn(2, 2, 8, 8, requires_grad=True)
    masks = (torch.rand(2, 2, 8, 8) > 0.5).float()
    SegmentationLoss()(logits, masks, torch.tensor([[True, False], [True, True]])).backward()
    assert logits.grad is not None
    assert float(logits.grad[0, 1].abs().max()) == 0.0
    assert all(float(logits.grad[i, j].abs().max()) > 0 for i, j in ((0, 0), (1, 0), (1, 1)))


def test_metrics_by_hand() -> None:
    reference = torch.zeros(3, 1, 4, 4)
    reference[0, 0, 0, :] = 1  # 4 pixels
    reference[1, 0, 0, :2] = 1  # 2 pixels; the third slice is empty
    logits = torch.full((3, 1, 4, 4), -5.0)
    logits[0, 0, 0, :2] = 5  # 2 of 4 hit
    logits[1, 0, 0, :2] = 5  # exact
    logits[2, 0, 0, :2] = 5  # a false finding on an empty slice: not estimable
    metrics = StructureMetrics(("organ",))
    metrics.add(logits, reference, torch.ones(3, 1, dtype=torch.bool))
    report = metrics.report()["organ"]
    assert report["n"] == 2
    assert report["dice"] == pytest.approx((2 * 2 / 6 + 1) / 2)
    assert report["iou"] == pytest.approx((2 / 4 + 1) / 2)


def test_missed_structure_scores_zero() -> None:
    reference = torch.ones(1, 1, 2, 2)
    metrics = StructureMetrics(("organ",))
    metrics.add(torch.full((1, 1, 2, 2), -1.0), reference, torch.ones(1, 1, dtype=torch.bool))
    assert metrics.report()["organ"] == {"dice": 0.0, "iou": 0.0, "n": 1}


def test_empty_reference_is_not_estimable_and_not_annotated_is_left_out() -> None:
    metrics = StructureMetrics(("organ", "lesion"))
    masks = torch.zeros(1, 2, 4, 4)
    masks[0, 1] = 1
    metrics.add(torch.full((1, 2, 4, 4), -1.0), masks, torch.tensor([[True, False]]))
    nothing = {"dice": None, "iou": None, "n": 0}
    assert metrics.report() == {"organ": nothing, "lesion": nothing}


def test_threshold_is_probability_one_half() -> None:
    metrics = StructureMetrics(("organ",))
    masks = torch.ones(1, 1, 1, 2)
    metrics.add(torch.tensor([[[[0.01, -0.01]]]]), masks, torch.tensor([[True]]))
    assert metrics.report()["organ"]["dice"] == pytest.approx(2 / 3)


def test_schedule() -> None:
    assert learning_rate_factor(0.0, 0.1) == pytest.approx(0.1)
    assert learning_rate_factor(0.1, 0.1) == pytest.approx(1.0)
    assert learning_rate_factor(0.55, 0.1) == pytest.approx((1 + FINAL) / 2)
    assert learning_rate_factor(1.0, 0.1) == pytest.approx(FINAL)
    assert learning_rate_factor(0.0, 0.0) == pytest.approx(1.0)
    factors = [learning_rate_factor(i / 100, 0.05) for i in range(101)]
    assert factors[5:] == sorted(factors[5:], reverse=True)


def _slices(count: int) -> list[SliceReference]:
    return [SliceReference(Case(str(i), str(i), "train", "d", frozenset()), 0) for i in range(count)]


def test_each_pass_covers_every_slice_once_in_another_order() -> None:
    options = {"batch_size": 4, "variants": 3, "seed": 0, "site": "a", "round_index": 0}
    batches = list(islice(round_batches(_slices(10), None, **options), 6))
    assert [len(batch) for batch in batches] == [4, 4, 2, 4, 4, 2]
    passes = [[item for batch in batches[start : start + 3] for item in batch] for start in (0, 3)]
    orders = [[reference.case.identity for reference, _ in one] for one in passes]
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(str(i) for i in range(10))
    assert orders[0] != orders[1]
    assert {variant for _, variant in passes[0] + passes[1]} == {0, 1, 2}


def test_order_depends_on_seed_site_and_round_alone() -> None:
    def order(**changes: object) -> list[str]:
        options = {"batch_size": 4, "variants": 2, "seed": 0, "site": "a", "round_index": 0, **changes}
        return [r.case.identity for batch in round_batches(_slices(12), 3, **options) for r, _ in batch]

    assert order() == order()
    assert len({tuple(order()), tuple(order(seed=1)), tuple(order(site="b")), tuple(order(round_index=1))}) == 4


@pytest.mark.parametrize("fast", [False, True])
def test_precision_is_chosen_by_the_hardware_or_the_job(fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedfms.training.hardware.has_fast_bf16", lambda: fast)
    compute = Compute(device="cpu", threads=1)
    assert choose_hardware(compute, "fp32").dtype == torch.float32
    assert choose_hardware(compute, "bf16").dtype == torch.bfloat16
    assert choose_hardware(compute, "auto").dtype == (torch.bfloat16 if fast else torch.float32)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_missing_gpu_is_said() -> None:
    with pytest.raises(FedfmsError, match="FMS-T004"):
        choose_hardware(Compute(device="cuda"), "auto")
    assert choose_hardware(Compute(device="auto"), "auto").device.type == "cpu"
