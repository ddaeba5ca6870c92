"""What a task takes over from an earlier one: digests of slices, and only of files that have not changed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageOps

from fedfms.data.description.site import SiteDescription, load_site
from fedfms.job.training import TrainingJob
from fedfms.training.feed import Batch, Item
from fedfms.training.session import Session, open_session
from tests.generators import write_raster_site
from tests.training.conftest import make_job


@dataclass
class SiteFolder:
    """A site's folder with the cache and the record that one task after the other finds there."""

    folder: Path
    job: TrainingJob
    site: SiteDescription

    @property
    def record(self) -> Path:
        return self.folder / "data.json"

    @property
    def images(self) -> list[Path]:
        return sorted((self.folder / "site" / "images").iterdir())

    def open(self, cache: str = "cache") -> Session:
        return open_session(self.job, self.site, self.folder / cache, self.record)


@pytest.fixture
def site_folder(tmp_path: Path) -> SiteFolder:
    site = load_site(write_raster_site(tmp_path / "site"))
    return SiteFolder(tmp_path, make_job(task="organ-lesion", scope="decoder", augmentation={"variants": 1}), site)


def items(session: Session) -> list[Item]:
    return [(reference, 0) for reference in session.dataset.slices("all")]


def all_slices(session: Session) -> Batch:
    (batch,) = session.feed.batches([items(session)])
    return batch


def test_digests_of_unchanged_files_are_taken_over(site_folder: SiteFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    first = site_folder.open()
    before = all_slices(first)
    assert len(first.feed.digests) == len(site_folder.images) == 8
    first.write_record(site_folder.record)
    again = site_folder.open()
    assert again.feed.digests == first.feed.digests
    monkeypatch.setattr(again.dataset, "load", lambda _: pytest.fail("a cached slice was read"))
    assert torch.equal(all_slices(again).activation, before.activation)


@pytest.mark.parametrize("folder", ["images", "masks"])
def test_a_changed_file_is_not_taken_for_the_one_it_was(site_folder: SiteFolder, folder: str) -> None:
    """The cache is asked by digest: one kept from before the change would answer with the old slice."""
    first = site_folder.open()
    before = all_slices(first)
    first.write_record(site_folder.record)
    for path in (site_folder.folder / "site" / folder).iterdir():
        ImageOps.mirror(Image.open(path)).save(path)
    second = site_folder.open()
    assert second.feed.digests == {}
    after, fresh = all_slices(second), all_slices(site_folder.open("another cache"))
    assert torch.equal(after.activation, fresh.activation) and torch.equal(after.masks, fresh.masks)
    changed = (before.activation, after.activation) if folder == "images" else (before.masks, after.masks)
    assert not torch.equal(*changed)


@pytest.mark.parametrize("damage", ["half", "missing", "another form"])
def test_a_record_that_cannot_be_read_is_made_anew(site_folder: SiteFolder, damage: str) -> None:
    first = site_folder.open()
    all_slices(first)
    first.write_record(site_folder.record)
    text = site_folder.record.read_text()
    if damage == "half":
        site_folder.record.write_text(text[: len(text) // 2])
    elif damage == "missing":
        site_folder.record.unlink()
    else:
        site_folder.record.write_text(json.dumps({**json.loads(text), "digests": {"p0_0.png": "x"}}))
    again = site_folder.open()
    assert again.feed.digests == {}
    again.write_record(site_folder.record)
    assert json.loads(site_folder.record.read_text())["findings"] == json.loads(text)["findings"]


def test_the_record_names_no_file(site_folder: SiteFolder) -> None:
    session = site_folder.open()
    all_slices(session)
    session.write_record(site_folder.record)
    assert not [path for path in site_folder.images if path.stem in site_folder.record.read_text()]
