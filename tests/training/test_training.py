"""Local training: it learns, repeats to the bit, keeps to its budget, and treats missing structures fairly."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fedfms.errors import FedfmsError
from fedfms.job import TrainingJob
from fedfms.sam.model import build_model
from fedfms.sam.segmenter import Segmenter
from fedfms.training.feed import SliceFeed
from fedfms.training.optimizer import load_optimizer, make_optimizer, save_optimizer
from fedfms.training.schedule import FINAL
from fedfms.training.trainer import RoundResult, train_round
from fedfms.training.validation import validate
from tests.training.conftest import DiscData, make_hardware, make_job


def train(
    job: TrainingJob, data: DiscData, rounds: tuple[int, ...] = (0,), max_batch: int | None = None
) -> tuple[Segmenter, SliceFeed, list[RoundResult]]:
    torch.manual_seed(job.seed)
    hardware = make_hardware(max_batch=max_batch)
    model = build_model(job.model, job.seed)
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
    with pytest.raises(FedfmsError, match="FMS-T001"):
        train(make_job(learning_rate=1e30, local_work={"steps": 20}), discs)


def test_learning_rate_follows_the_whole_federation(discs: DiscData) -> None:
    results = train(make_job(rounds=4, warmup=0.25), discs, rounds=(0, 1, 3))[2]
    warm, full, last = (result.learning_rate for result in results)
    assert warm < 0.01 and full <= 0.01 and last < full
    assert last == pytest.approx(0.01 * FINAL, rel=0.1)
