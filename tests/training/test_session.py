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
class Place:
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
def place(tmp_path: Path) -> Place:
    site = load_site(write_raster_site(tmp_path / "site"))
    return Place(tmp_path, make_job(task="organ-lesion", scope="decoder", augmentation={"variants": 1}), site)


def items(session: Session) -> list[Item]:
    return [(reference, 0) for reference in session.dataset.slices("all")]


def all_slices(session: Session) -> Batch:
    (batch,) = session.feed.batches([items(session)])
    return batch


def test_digests_of_unchanged_files_are_taken_over(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    first = place.open()
    before = all_slices(first)
    assert len(first.feed.digests) == len(place.images) == 8
    first.write_record(place.record)
    again = place.open()
    assert again.feed.digests == first.feed.digests
    monkeypatch.setattr(again.dataset, "load", lambda _: pytest.fail("a cached slice was read"))
    assert torch.equal(all_slices(again).activation, before.activation)


@pytest.mark.parametrize("folder", ["images", "masks"])
def test_a_changed_file_is_not_taken_for_the_one_it_was(place: Place, folder: str) -> None:
    """The cache is asked by digest: one kept from before the change would answer with the old slice."""
    first = place.open()
    before = all_slices(first)
    first.write_record(place.record)
    for path in (place.folder / "site" / folder).iterdir():
        ImageOps.mirror(Image.open(path)).save(path)
    second = place.open()
    assert second.feed.digests == {}
    after, fresh = all_slices(second), all_slices(place.open("another cache"))
    assert torch.equal(after.activation, fresh.activation) and torch.equal(after.masks, fresh.masks)
    changed = (before.activation, after.activation) if folder == "images" else (before.masks, after.masks)
    assert not torch.equal(*changed)


@pytest.mark.parametrize("damage", ["half", "missing", "another form"])
def test_a_record_that_cannot_be_read_is_made_anew(place: Place, damage: str) -> None:
    first = place.open()
    all_slices(first)
    first.write_record(place.record)
    text = place.record.read_text()
    if damage == "half":
        place.record.write_text(text[: len(text) // 2])
    elif damage == "missing":
        place.record.unlink()
    else:
        place.record.write_text(json.dumps({**json.loads(text), "digests": {"p0_0.png": "x"}}))
    again = place.open()
    assert again.feed.digests == {}
    again.write_record(place.record)
    assert json.loads(place.record.read_text())["findings"] == json.loads(text)["findings"]


def test_the_record_names_no_file(place: Place) -> None:
    session = place.open()
    all_slices(session)
    session.write_record(place.record)
    assert not [path for path in place.images if path.stem in place.record.read_text()]
