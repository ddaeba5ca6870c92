"""Slices as batches and steps: in order, one ahead, and no further."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from fedfms.sam.model import build_model
from fedfms.training.feed import Item, SliceFeed
from tests.training.conftest import DiscData, make_hardware, make_job


@pytest.fixture
def feed(discs: DiscData) -> SliceFeed:
    job = make_job(scope="decoder")
    return SliceFeed(discs, build_model(job.model, 0), make_hardware(), job.preprocessing, job.seed, None)  # type: ignore[arg-type]


def test_a_step_is_cut_into_micro_batches_of_the_same_slices(discs: DiscData, feed: SliceFeed) -> None:
    items: list[Item] = [(reference, 0) for reference in discs.slices("train")]
    plan = [items[:5], items[5:7], items[7:]]
    steps = list(feed.steps(plan, micro_batch=2))
    assert [[len(part.scaled) for part in parts] for parts in steps] == [[2, 2, 1], [2], [1]]
    whole = list(feed.batches(plan))
    for parts, batch in zip(steps, whole, strict=True):
        assert torch.equal(torch.cat([part.activation for part in parts]), batch.activation)
        assert torch.equal(torch.cat([part.masks for part in parts]), batch.masks)


def test_one_step_is_read_ahead_of_an_endless_plan(discs: DiscData, feed: SliceFeed) -> None:
    items: list[Item] = [(reference, 0) for reference in discs.slices("train")]
    asked: list[int] = []

    def endless() -> Iterator[Sequence[Item]]:
        while True:
            asked.append(len(asked))
            yield items[:3]

    stream = feed.steps(endless(), micro_batch=3)
    for taken in (1, 2, 3):
        next(stream)
        assert len(asked) == taken + 1
    stream.close()
    assert len(asked) == 4 and discs.loads == 3 * 4


def test_reading_ahead_computes_in_one_thread_and_leaves_the_training_its_own(
    discs: DiscData, feed: SliceFeed, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[int] = []
    read = feed._read

    def watched(chunk: Sequence[Item]) -> object:
        threads.append(torch.get_num_threads())
        return read(chunk)

    monkeypatch.setattr(feed, "_read", watched)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert len(list(feed.batches([[(discs.slices("train")[0], 0)]]))) == 1
        assert torch.get_num_threads() == 2
        with ThreadPoolExecutor(1) as later:
            assert later.submit(torch.get_num_threads).result() == 2
    finally:
        torch.set_num_threads(before)
    assert threads == [1]
