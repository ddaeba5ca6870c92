"""The prefix cache: equal to no cache, bounded, keyed by all that matters, indifferent to broken files."""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from fedfms.data.description.site import SiteDescription
from fedfms.data.slices.dataset import Sample, SliceReference
from fedfms.errors import FedfmsError
from fedfms.sam.model import build_model
from fedfms.sam.segmenter import Segmenter
from fedfms.training import cache as cache_module
from fedfms.training.cache import PrefixCache, code_sha256
from fedfms.training.feed import SliceFeed, chunked
from fedfms.training.hardware import choose_hardware
from fedfms.training.optimizer import make_optimizer
from fedfms.training.session import open_cache
from fedfms.training.trainer import train_round
from tests.generators import preprocessing, raster_dataset
from tests.training.conftest import DiscData, make_hardware, make_job

LIMIT = 10**9
PERCENTILES = {"rule": "percentile", "low": 1, "high": 99}


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _feed(data: DiscData, cache: PrefixCache | None) -> SliceFeed:
    job = make_job(scope="decoder")
    model = build_model(job.model, job.seed)
    return SliceFeed(data, model, make_hardware(), job.preprocessing, job.seed, cache)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("scope", ["decoder", "adapters+decoder"])
def test_training_with_cache_equals_training_without(
    discs: DiscData, tmp_path: Path, scope: str, precision: Literal["fp32", "bf16"]
) -> None:
    states = []
    hardware = make_hardware(precision)
    cache = PrefixCache(tmp_path, LIMIT, {})
    for used in (None, cache, cache):  # the third run reads everything from the disk
        job = make_job(scope=scope)
        model = build_model(job.model, job.seed)
        feed = SliceFeed(discs, model, hardware, job.preprocessing, job.seed, used)
        optimizer = make_optimizer(model, job.learning_rate, job.weight_decay)
        train_round(
            model, optimizer, feed, discs.slices("train"), job, hardware,
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


def test_key_covers_slice_and_variant(tmp_path: Path) -> None:
    cache = PrefixCache(tmp_path, LIMIT, {})
    assert len({cache.path("slice", 0), cache.path("slice", 1), cache.path("other", 0)}) == 3


def _path(folder: Path, model: Segmenter | None = None, **changes: Any) -> Path:
    """The file of a slice in the cache that a job opens; changes other than of the model itself need none built."""
    job = make_job(**changes)
    site = SiteDescription.model_validate({"datasets": [raster_dataset()], "compute": {"device": "cpu"}})
    hardware = choose_hardware(site.compute, job.precision)
    cache = open_cache(job, site, model or build_model(job.model, job.seed), hardware, folder)
    assert cache is not None
    return cache.path("slice", 0)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"adapter": {"blocks": 1}}, id="first trainable unit"),
        pytest.param({"preprocessing": preprocessing(size=96).model_dump()}, id="input size"),
        pytest.param({"preprocessing": preprocessing(PERCENTILES).model_dump()}, id="intensity"),
        pytest.param({"preprocessing": preprocessing(slice_axis="coronal").model_dump()}, id="slice axis"),
        pytest.param({"structures": ["lesion", "organ"]}, id="order of structures"),
        pytest.param({"seed": 1}, id="seed"),
        pytest.param({"precision": "bf16"}, id="precision"),
    ],
)
def test_each_value_of_the_job_that_decides_the_content_is_in_the_key(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert _path(tmp_path, **changes) != _path(tmp_path)


def test_the_backbone_is_in_the_key_and_what_the_trainable_units_depend_on_is_not(tmp_path: Path) -> None:
    model = build_model(make_job().model, 0)
    path = _path(tmp_path, model)
    assert _path(tmp_path, model, backbone_sha256="e" * 64) != path
    assert _path(tmp_path, rounds=7, learning_rate=0.5, augmentation={"variants": 5}) == path


class Relabelled(DiscData):
    """The same images with the lesion drawn elsewhere."""

    def load(self, reference: SliceReference) -> Sample:
        sample = super().load(reference)
        return replace(sample, masks=np.flip(sample.masks, axis=2).copy())


@pytest.mark.parametrize("relabelled", [Relabelled(2), DiscData(2, lesion_annotated=False)])
def test_a_slice_with_other_masks_is_not_found(tmp_path: Path, relabelled: DiscData) -> None:
    data = DiscData(2)
    items = [(reference, 0) for reference in data.slices("train")]
    (before,) = _feed(data, PrefixCache(tmp_path, LIMIT, {})).batches([items])
    (after,) = _feed(relabelled, PrefixCache(tmp_path, LIMIT, {})).batches([items])
    (uncached,) = _feed(relabelled, None).batches([items])
    assert torch.equal(after.masks, uncached.masks) and torch.equal(after.annotated, uncached.annotated)
    assert not (torch.equal(after.masks, before.masks) and torch.equal(after.annotated, before.annotated))
    assert torch.equal(after.activation, before.activation)


def test_key_covers_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = PrefixCache(tmp_path, LIMIT, {}).path("slice", 0)
    monkeypatch.setattr("fedfms.training.cache.code_sha256", lambda: "changed")
    assert PrefixCache(tmp_path, LIMIT, {}).path("slice", 0) != path


@pytest.mark.parametrize("change", ["content", "another file", "another name"])
def test_digest_of_the_code_covers_every_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    package = Path(cache_module.__file__).parents[1]
    shutil.copytree(package, tmp_path / "package", ignore=shutil.ignore_patterns("__pycache__"))
    unchanged = code_sha256()
    monkeypatch.setattr(cache_module, "__file__", str(tmp_path / "package" / "training" / "cache.py"))
    assert code_sha256() == unchanged
    changed = tmp_path / "package" / "data" / "slices" / "intensity.py"
    if change == "content":
        changed.write_bytes(changed.read_bytes() + b"\n")
    elif change == "another file":
        (tmp_path / "package" / "sam" / "windows_of_another_kind.py").touch()
    else:
        changed.rename(changed.with_name("intensities.py"))
    assert code_sha256() != unchanged


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
