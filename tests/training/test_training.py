"""Local training: it learns, repeats to the bit, keeps to its budget, and treats missing structures fairly."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedfms.errors import FedfmsError
from fedfms.job.training import TrainingJob
from fedfms.sam.model import build_model
from fedfms.sam.segmenter import Segmenter
from fedfms.training.boxes import draw_boxes
from fedfms.training.feed import SliceFeed
from fedfms.training.loss import SegmentationLoss
from fedfms.training.optimizer import load_optimizer, make_optimizer, save_optimizer, trained_parameters
from fedfms.training.sampling import round_batches, round_generator
from fedfms.training.schedule import FINAL, learning_rate_factor
from fedfms.training.trainer import RoundResult, train_round, training_step
from fedfms.training.validation import validate
from tests.training.conftest import DiscData, make_hardware, make_job


def train(
    job: TrainingJob,
    data: DiscData,
    rounds: tuple[int, ...] = (0,),
    model: Segmenter | None = None,
    **compute: Any,
) -> tuple[Segmenter, SliceFeed, list[RoundResult]]:
    torch.manual_seed(job.seed)
    hardware = make_hardware("bf16" if job.precision == "bf16" else "fp32", **compute)
    model = model or build_model(job.model, job.seed)
    feed = SliceFeed(data, model, hardware, job.preprocessing, job.seed, None)
    optimizer = make_optimizer(model, job.learning_rate, job.weight_decay)
    results = [
        train_round(
            model,
            optimizer,
            feed,
            data.slices("train"),
            job,
            hardware,
            site="hospital-a",
            round_index=index,
            on_step=lambda *_: None,
        )
        for index in rounds
    ]
    return model, feed, results


def states_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def test_training_learns(discs: DiscData) -> None:
    job = make_job(scope="full", local_work={"steps": 200}, rounds=1, augmentation={"variants": 1})
    model, feed, (result,) = train(job, discs)
    assert result.steps == 200
    start = build_model(job.model, job.seed)
    before = validate(
        start,
        SliceFeed(discs, start, make_hardware(), job.preprocessing, 0, None),
        discs.slices("validation"),
        make_hardware(),
        4,
        lambda *_: None,
    )
    after = validate(model, feed, discs.slices("validation"), make_hardware(), 4, lambda *_: None)
    assert after["organ"]["dice"] > 0.7 > (before["organ"]["dice"] or 0)
    assert after["organ"]["n"] == 8


def test_same_seed_same_bits_other_seed_other_bits(discs: DiscData) -> None:
    one, same, other = (train(make_job(seed=seed), discs)[0].exchanged() for seed in (0, 0, 1))
    assert states_equal(one, same)
    assert not states_equal(one, other)


def test_round_resumed_from_disk_equals_one_process(discs: DiscData, tmp_path: Path) -> None:
    """FLARE may run every task in a fresh process: optimizer moments come from the disk."""
    job = make_job()
    together = train(job, discs, rounds=(0, 1))[0].exchanged()

    model, feed, _ = train(job, discs, rounds=())
    hardware, path = make_hardware(), tmp_path / "optimizer.safetensors"
    for index in (0, 1):
        optimizer = make_optimizer(model, job.learning_rate, job.weight_decay)
        assert load_optimizer(path, optimizer, model) is (index == 1)
        train_round(
            model,
            optimizer,
            feed,
            discs.slices("train"),
            job,
            hardware,
            site="hospital-a",
            round_index=index,
            on_step=lambda *_: None,
        )
        save_optimizer(path, optimizer, model)
    assert states_equal(together, model.exchanged())


def test_optimizer_of_another_schema_is_not_taken(discs: DiscData, tmp_path: Path) -> None:
    model, _, _ = train(make_job(), discs, rounds=())
    optimizer = make_optimizer(model, 0.01, 0.0)
    save_optimizer(tmp_path / "optimizer.safetensors", optimizer, model)
    other = build_model(make_job(scope="decoder").model, 0)
    assert not load_optimizer(tmp_path / "optimizer.safetensors", make_optimizer(other, 0.01, 0.0), other)


def test_micro_batches_do_not_change_the_result(discs: DiscData) -> None:
    whole = train(make_job(), discs)[0].exchanged()
    parts = train(make_job(), discs, max_batch=3)[0].exchanged()
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], atol=1e-4, rtol=1e-3)


def test_bf16_computes_in_bf16_and_exchanges_fp32(discs: DiscData) -> None:
    start = build_model(make_job().model, 0).exchanged()
    updates, losses = [], []
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        job = make_job(precision=precision)
        model = build_model(job.model, job.seed)
        frozen: set[torch.dtype] = set()
        trained: set[torch.dtype] = set()
        for seen, module in ((frozen, model.encoder.patch_embed.proj), (trained, model.encoder.layers[0].mlp)):
            module.register_forward_hook(lambda _, __, output, seen=seen: seen.add(output.dtype))
        _, feed, (result,) = train(job, discs, model=model)
        validate(model, feed, discs.slices("validation"), make_hardware(precision), 4, lambda *_: None)
        assert frozen == trained == {dtype}
        state = model.exchanged()
        assert {tensor.dtype for tensor in state.values()} == {torch.float32}
        assert all(tensor.isfinite().all() for tensor in state.values())
        updates.append(torch.cat([(state[name] - start[name]).flatten() for name in start]))
        losses.append(result.loss)
    assert math.isfinite(losses[1]) and losses[1] == pytest.approx(losses[0], rel=0.01)
    assert 0 < (updates[1] - updates[0]).norm() < 0.3 * updates[0].norm()


@pytest.mark.parametrize(("clip", "bounded"), [(1e-3, True), (1e6, False)])
def test_the_clip_bounds_the_gradient(discs: DiscData, clip: float, bounded: bool) -> None:
    model, _, _ = train(make_job(gradient_clip=clip, local_work={"steps": 1}), discs)
    gradients = [parameter.grad for parameter in trained_parameters(model).values()]
    norm = nn.utils.get_total_norm([gradient for gradient in gradients if gradient is not None])
    assert (norm <= 1.001e-3) == bounded


def test_gradient_checkpointing_runs_each_block_again_and_changes_no_bit(discs: DiscData) -> None:
    job = make_job()
    states, passes = [], []
    for checkpointing in (False, True):
        model = build_model(job.model, job.seed)
        calls: list[bool] = []
        # Before, not after: the second run of a block ends as soon as the backward pass has what it needs.
        model.encoder.layers[0].register_forward_pre_hook(lambda *_, calls=calls: calls.append(True))
        train(job, discs, model=model, gradient_checkpointing=checkpointing)
        states.append(model.exchanged())
        passes.append(len(calls))
    assert passes == [4, 8]
    assert states_equal(*states)


def test_weight_decay_shrinks_matrices_and_filters_only() -> None:
    model = build_model(make_job(scope="full").model, 0)
    parameters = trained_parameters(model)
    before = {}
    for name, parameter in parameters.items():
        nn.init.constant_(parameter, 2.0)
        parameter.grad = torch.zeros_like(parameter)
        before[name] = parameter.detach().clone()
    make_optimizer(model, learning_rate=0.1, weight_decay=0.5).step()
    shrunk = [name for name, parameter in parameters.items() if not torch.equal(parameter, before[name])]
    assert shrunk == [name for name, parameter in parameters.items() if parameter.ndim >= 2]
    for name in shrunk:
        torch.testing.assert_close(parameters[name].detach(), before[name] * (1 - 0.1 * 0.5))


@pytest.mark.parametrize("max_batch", [None, 3])
def test_boxes_go_to_the_model_and_the_loss_is_over_what_they_ask_for(
    discs: DiscData, monkeypatch: pytest.MonkeyPatch, max_batch: int | None
) -> None:
    job = make_job()
    model = build_model(job.model, job.seed)
    from_prefix, loss = model.from_prefix, SegmentationLoss.__call__
    shown: list[Tensor | None] = []
    judged: list[tuple[Tensor, Tensor]] = []

    def noting_boxes(activation: Tensor, boxes: Tensor | None = None) -> Tensor:
        shown.append(boxes)
        return from_prefix(activation, boxes=boxes)

    def noting_pairs(self: SegmentationLoss, logits: Tensor, masks: Tensor, asked: Tensor) -> Tensor:
        judged.append((masks, asked))
        return loss(self, logits, masks, asked)

    monkeypatch.setattr(model, "from_prefix", noting_boxes)
    monkeypatch.setattr(SegmentationLoss, "__call__", noting_pairs)
    train(job, discs, model=model, max_batch=max_batch)
    generator = round_generator(job.seed, "hospital-a", 0, "boxes")
    for boxes, (masks, asked) in zip(shown, judged, strict=True):
        drawn, expected = draw_boxes(masks, torch.ones_like(asked), generator)
        assert boxes is not None and torch.equal(boxes, drawn)
        assert torch.equal(asked, expected)
    assert not all(asked.all() for _, asked in judged), "no image of the round was given a box"


def test_padding_is_not_validated(discs: DiscData) -> None:
    """Slices of 48 x 64 in an input of 64: the model's answer below them is nobody's business."""
    job = make_job()
    model, feed, _ = train(job, discs, rounds=())
    from_prefix = model.from_prefix
    reports = []
    for value in (-10.0, 10.0):

        def answer(activation: Tensor, value: float = value) -> Tensor:
            logits = from_prefix(activation)
            logits[:, :, 48:] = value
            return logits

        model.from_prefix = answer  # type: ignore[method-assign]
        reports.append(validate(model, feed, discs.slices("validation"), make_hardware(), 4, lambda *_: None))
    assert reports[0] == reports[1]
    assert reports[0]["organ"]["n"] == 8 and reports[0]["organ"]["dice"] > 0


@pytest.mark.parametrize(
    ("work", "steps"), [({"epochs": 1}, 2), ({"epochs": 2.5}, 5), ({"epochs": 0.1}, 1), ({"steps": 7}, 7)]
)
def test_local_work_in_epochs_and_steps(discs: DiscData, work: dict[str, Any], steps: int) -> None:
    assert train(make_job(local_work=work), discs)[2][0].steps == steps


def test_local_work_in_minutes(discs: DiscData) -> None:
    begin = time.monotonic()
    result = train(make_job(local_work={"minutes": 0.02}), discs)[2][0]
    assert result.steps >= 1
    assert 1.2 <= time.monotonic() - begin < 20


def test_missing_structure_gets_no_gradient_from_its_mask() -> None:
    """Structures own their hypernetworks: one without annotation must not move."""
    data = DiscData(4, lesion_annotated=False)
    job = make_job(weight_decay=0.0, scope="decoder", missing_structure="mask")
    before = build_model(job.model, job.seed).exchanged()
    after = train(job, data)[0].exchanged()
    lesion = [name for name in after if name.startswith("decoder.structures.lesion.hypernetwork")]
    organ = [name for name in after if name.startswith("decoder.structures.organ.hypernetwork")]
    assert lesion and all(torch.equal(before[name], after[name]) for name in lesion)
    assert organ and not any(torch.equal(before[name], after[name]) for name in organ)


def test_loss_that_is_not_finite_stops(discs: DiscData) -> None:
    with pytest.raises(FedfmsError, match="FMS-T001 round 1, step "):
        train(make_job(learning_rate=1e30, local_work={"steps": 20}), discs)


def test_learning_rate_follows_the_whole_federation(discs: DiscData) -> None:
    results = train(make_job(rounds=4, warmup=0.25), discs, rounds=(0, 1, 3))[2]
    warm, full, last = (result.learning_rate for result in results)
    assert warm < 0.01 and full <= 0.01 and last < full
    assert last == pytest.approx(0.01 * FINAL, rel=0.1)


def test_the_optimizer_steps_at_the_rate_of_the_schedule(discs: DiscData, monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job(rounds=2, warmup=0.0)
    rates: list[set[float]] = []
    step = torch.optim.AdamW.step

    def noting(self: torch.optim.AdamW) -> None:
        rates.append({group["lr"] for group in self.param_groups})
        step(self)

    monkeypatch.setattr(torch.optim.AdamW, "step", noting)
    train(job, discs, rounds=(1,))
    assert rates == [{0.01 * learning_rate_factor((1 + done / 4) / 2, 0.0)} for done in range(4)]


def test_a_round_works_through_its_own_plan_and_tells_each_step(discs: DiscData) -> None:
    job = make_job()
    model, feed, _ = train(job, discs, rounds=())
    plans: list[list[Any]] = []
    told: list[tuple[int, int]] = []
    steps = feed.steps

    def noting(plan: Any, micro_batch: int) -> Any:
        plans.append(list(plan))
        return steps(plans[-1], micro_batch)

    feed.steps = noting  # type: ignore[method-assign]
    for site, index in (("a", 0), ("a", 1), ("b", 1)):
        train_round(
            model, make_optimizer(model, 0.01, 0.0), feed, discs.slices("train"), job, make_hardware(),
            site=site, round_index=index, on_step=lambda done, planned, _: told.append((done, planned)),
        )  # fmt: skip
        options = {"batch_size": 4, "variants": 2, "seed": 0, "site": site, "round_index": index}
        assert plans[-1] == list(round_batches(discs.slices("train"), 4, **options))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)] * 3


def test_each_step_follows_the_gradient_of_its_own_mean_loss(discs: DiscData) -> None:
    """Nothing of an earlier step is left in it, and each annotated pair counts the same."""
    job = make_job(gradient_clip=1e6)
    model, feed, _ = train(job, discs, rounds=())
    items = [(reference, 0) for reference in discs.slices("train")]
    optimizer = make_optimizer(model, 0.01, 0.0)
    parameters = trained_parameters(model)
    for parts in feed.steps([items[:3], items[3:]], micro_batch=2):
        generator = round_generator(0, "a", 0, "boxes")
        boxes = [draw_boxes(part.masks, part.annotated, generator) for part in parts]
        losses, pairs = [], 0
        for part, (box, asked) in zip(parts, boxes, strict=True):
            losses.append(SegmentationLoss()(model.from_prefix(part.activation, boxes=box), part.masks, asked))
            pairs += int(asked.sum())
        mean = sum(losses) / pairs
        expected = torch.autograd.grad(mean, list(parameters.values()), allow_unused=True)
        prompts = round_generator(0, "a", 0, "boxes")
        loss = training_step(model, optimizer, parts, make_hardware(), SegmentationLoss(), 1e6, prompts)
        assert loss == pytest.approx(float(mean.detach()))
        for parameter, gradient in zip(parameters.values(), expected, strict=True):
            if gradient is None:
                assert parameter.grad is None
            else:
                torch.testing.assert_close(parameter.grad, gradient, atol=1e-6, rtol=1e-4)


def test_validation_looks_at_unchanged_slices(discs: DiscData) -> None:
    job = make_job()
    model, feed, _ = train(job, discs, rounds=())
    asked: list[Any] = []
    batches = feed.batches

    def noting(chunks: Any) -> Any:
        asked.extend(item for chunk in chunks for item in chunk)
        return batches(chunks)

    feed.batches = noting  # type: ignore[method-assign]
    told: list[tuple[int, int]] = []
    validate(model, feed, discs.slices("validation"), make_hardware(max_batch=3), 4, lambda *step: told.append(step))
    assert asked == [(reference, 0) for reference in discs.slices("validation")]
    assert told == [(3, 8), (6, 8), (8, 8)]
