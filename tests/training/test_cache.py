"""The prefix cache: equal to no cache, bounded, keyed by all that matters, indifferent to broken files."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fedfms.data.dataset import Sample, SliceReference
from fedfms.errors import FedfmsError
from fedfms.sam.model import build_model
from fedfms.training.cache import PrefixCache
from fedfms.training.feed import SliceFeed, chunked
from fedfms.training.optimizer import make_optimizer
from fedfms.training.trainer import train_round
from tests.training.conftest import DiscData, make_hardware, make_job

LIMIT = 10**9


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _feed(data: DiscData, cache: PrefixCache | None, scope: str = "decoder", precision: str = "fp32") -> SliceFeed:
    job = make_job(scope=scope)
    model = build_model(job.model, job.seed)
    return SliceFeed(data, model, make_hardware(), job.preprocessing, job.seed, cache)


@pytest.mark.parametrize("scope", ["decoder", "adapters+decoder"])
def test_training_with_cache_equals_training_without(discs: DiscData, tmp_path: Path, scope: str) -> None:
    states = []
    cache = PrefixCache(tmp_path, LIMIT, {})
    for used in (None, cache, cache):  # the third run reads everything from the disk
        job = make_job(scope=scope)
        model = build_model(job.model, job.seed)
        feed = SliceFeed(discs, model, make_hardware(), job.preprocessing, job.seed, used)
        optimizer = make_optimizer(model, job.learning_rate, job.weight_decay)
        train_round(
            model, optimizer, feed, discs.slices("train"), job, make_hardware(),
            site="a", round_index=0, on_step=lambda *_: None,
        )  # fmt: skip
        states.append(model.exchanged())
    for name in states[0]:
        assert torch.equal(states[0][name], states[1][name])
        assert torch.equal(states[0][name], states[2][name])
    assert _files(tmp_path)


class Volumes(DiscData):
    """Three volumes of four slices; ``read`` is the volume of each slice in the order of reading."""

    def __init__(self) -> None:
        super().__init__(12)
        self.read: list[str] = []

    def slices(self, split: str) -> list[SliceReference]:
        plain = super().slices(split)
        return [SliceReference(plain[number - number % 4].case, number % 4) for number in range(len(plain))]

    def load(self, reference: SliceReference) -> Sample:
        self.read.append(reference.case.identity)
        slice_case = replace(reference.case, identity=f"case{int(reference.case.identity[4:]) + reference.index}")
        return super().load(SliceReference(slice_case, 0))

    def digest(self, reference: SliceReference) -> str:
        return hashlib.sha256(f"{reference.case.identity} {reference.index}".encode()).hexdigest()


@pytest.mark.parametrize("limit", [LIMIT, 1])
def test_volumes_are_read_one_after_the_other_before_the_first_step(tmp_path: Path, limit: int) -> None:
    states, reads, filled, steps = [], [], [], []
    for cache in (None, PrefixCache(tmp_path, limit, {})):
        job = make_job(scope="decoder", local_work={"epochs": 3})
        data, model = Volumes(), build_model(job.model, job.seed)
        feed = SliceFeed(data, model, make_hardware(), job.preprocessing, job.seed, cache)  # type: ignore[arg-type]
        train_round(
            model, make_optimizer(model, 0.01, 0.0), feed, data.slices("train"), job, make_hardware(),
            site="a", round_index=0, on_step=lambda *_: steps.append(len(filled)),
            on_fill=lambda done, items: filled.append((done, items)),
        )  # fmt: skip
        states.append(model.exchanged())
        reads.append([name for name, before in zip(data.read, [None, *data.read], strict=False) if name != before])
    for name in states[0]:
        assert torch.equal(states[0][name], states[1][name])
    assert len(reads[0]) > 9, "without the cache it goes from volume to volume"
    assert set(steps[:9]) == {0} and len(steps) == 18
    if limit == LIMIT:
        assert reads[1] == ["case0", "case4", "case8"]
        assert filled[-1][0] == filled[-1][1] == len(filled) and set(steps[9:]) == {len(filled)}
    else:
        assert len(filled) == 1, "a full cache ends it"


def test_second_pass_does_not_prepare_again(discs: DiscData, tmp_path: Path) -> None:
    items = [(reference, variant) for reference in discs.slices("train") for variant in (0, 1)]
    feed = _feed(discs, PrefixCache(tmp_path, LIMIT, {}))
    first = [batch.activation for batch in feed.batches(chunked(items, 4))]
    loads = discs.loads
    second = [batch.activation for batch in feed.batches(chunked(items, 4))]
    assert discs.loads == loads
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    assert not torch.equal(first[0][0], first[0][1]), "variants differ"


def test_at_the_bound_it_stops_adding_and_still_works(discs: DiscData, tmp_path: Path) -> None:
    items = [(reference, 0) for reference in discs.slices("train")]
    one_file = 16 * 4 * 4 * 4 + 2 * 64 * 64 + 1024  # activation, masks, the rest
    cache = PrefixCache(tmp_path, 3 * one_file, {})
    batches = list(_feed(discs, cache).batches(chunked(items, 4)))
    assert sum(len(batch.scaled) for batch in batches) == 8
    assert cache.full
    kept = _files(tmp_path)
    assert len(kept) == 3
    assert sum(path.stat().st_size for path in kept) <= cache.used_bytes <= 3 * one_file
    list(_feed(discs, PrefixCache(tmp_path, 3 * one_file, {})).batches(chunked(items, 4)))
    assert _files(tmp_path) == kept, "nothing of the job's own is evicted"


def test_sites_that_share_a_folder_share_its_bound(discs: DiscData, tmp_path: Path) -> None:
    items = [(reference, 0) for reference in discs.slices("train")]
    one_file = 16 * 4 * 4 * 4 + 2 * 64 * 64 + 1024
    caches = [PrefixCache(tmp_path, 4 * one_file, {"site": name}) for name in ("a", "b")]
    for cache in caches:  # both were opened while the folder was empty
        list(_feed(discs, cache).batches(chunked(items, 4)))
    assert all(cache.full for cache in caches)
    assert len(_files(tmp_path)) <= 5


def test_what_other_jobs_left_makes_room(discs: DiscData, tmp_path: Path) -> None:
    items = [(reference, 0) for reference in discs.slices("train")]
    one_file = 16 * 4 * 4 * 4 + 2 * 64 * 64 + 1024
    for name in ("oldest", "older"):
        list(_feed(discs, PrefixCache(tmp_path, 20 * one_file, {"job": name})).batches(chunked(items, 4)))
    oldest, older = (PrefixCache(tmp_path, LIMIT, {"job": name}).path("x", 0).parent for name in ("oldest", "older"))
    os.utime(oldest, (1, 1))
    abandoned = older / ".half.safetensors.1.ab.tmp"
    abandoned.write_bytes(b"x")
    os.utime(abandoned, (1, 1))
    new = PrefixCache(tmp_path, 20 * one_file, {"job": "new"})
    assert not oldest.exists() and len(_files(older)) == len(items) and not abandoned.exists()
    list(_feed(discs, new).batches(chunked(items, 4)))
    assert not new.full


@pytest.mark.parametrize(
    "change", [{"cut": "x"}, {"backbone_sha256": "x"}, {"preprocessing": {"input_size": 32}}, {"dtype": "bfloat16"}]
)
def test_key_covers_what_decides_the_content(tmp_path: Path, change: dict[str, object]) -> None:
    common: dict[str, object] = {"cut": "a", "backbone_sha256": "a", "preprocessing": {"input_size": 64}, "dtype": "f"}
    path = PrefixCache(tmp_path, LIMIT, common).path("slice", 0)
    assert PrefixCache(tmp_path, LIMIT, {**common, **change}).path("slice", 0) != path
    assert PrefixCache(tmp_path, LIMIT, common).path("slice", 0) == path
    assert PrefixCache(tmp_path, LIMIT, common).path("slice", 1) != path
    assert PrefixCache(tmp_path, LIMIT, common).path("other", 0) != path


def test_key_covers_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = PrefixCache(tmp_path, LIMIT, {}).path("slice", 0)
    monkeypatch.setattr("fedfms.training.cache.code_sha256", lambda: "changed")
    assert PrefixCache(tmp_path, LIMIT, {}).path("slice", 0) != path


def test_broken_file_is_written_again(discs: DiscData, tmp_path: Path) -> None:
    items = [(discs.slices("train")[0], 0)]
    (expected,) = _feed(discs, PrefixCache(tmp_path, LIMIT, {})).batches([items])
    (path,) = _files(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    (again,) = _feed(discs, PrefixCache(tmp_path, LIMIT, {})).batches([items])
    assert torch.equal(expected.activation, again.activation)
    assert path.read_bytes() == whole


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(FedfmsError, match="FMS-D009"):
        PrefixCache(tmp_path / "file" / "cache", LIMIT, {})


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(FedfmsError, match="FMS-D009"):
        PrefixCache(tmp_path / "cache", LIMIT, {})


def test_full_disk_ends_caching_not_training(discs: DiscData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fedfms.training.cache.safetensors.torch.save_file", full)
    cache = PrefixCache(tmp_path, LIMIT, {})
    batches = list(_feed(discs, cache).batches(chunked([(r, 0) for r in discs.slices("train")], 4)))
    assert len(batches) == 2
    assert cache.full
    assert not _files(tmp_path)
