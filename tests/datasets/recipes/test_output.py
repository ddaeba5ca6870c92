"""How a prepared folder is written: whole or not at all, and never over something else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from fedfms.datasets.recipes.output import README
from fedfms.datasets.recipes.prepare import RECIPES, prepare
from fedfms.errors import FedfmsError
from tests.command import Command
from tests.datasets.recipes.archives import fundus, prostate

PROSTATE, FUNDUS = RECIPES["prostate"], RECIPES["fundus"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return prostate(tmp_path / "source")


def refused(source: Path, out: Path, **options: object) -> str:
    with pytest.raises(FedfmsError) as caught:
        prepare(PROSTATE, source, out, **options)  # type: ignore[arg-type]
    assert caught.value.ids == ("FMS-D011",)
    return str(caught.value)


def test_readable_files_are_links_and_the_others_png(source: Path, tmp_path: Path) -> None:
    prepare(PROSTATE, source, tmp_path / "out")
    link = tmp_path / "out/BMC/masks/Case01.nii.gz"
    assert link.is_symlink()
    assert link.resolve() == (source / "BMC/Case01_Segmentation.nii.gz").resolve()
    prepare(FUNDUS, fundus(tmp_path / "photographs"), tmp_path / "discs")
    assert (tmp_path / "discs/REFUGE/images/g0001.jpg").is_symlink()
    mask = tmp_path / "discs/REFUGE/disc/g0001.png"
    assert not mask.is_symlink()
    with Image.open(mask) as image:
        assert sorted(colour for _, colour in image.getcolors()) == [0, 255]


def test_a_relative_source_gives_links_that_work(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    prepare(PROSTATE, Path("source"), Path("deep/er/out"))
    assert (tmp_path / "deep/er/out/HK/images/Case00.nii.gz").is_file()


def test_readme_names_sources_licences_and_labels(source: Path, tmp_path: Path) -> None:
    prepare(PROSTATE, source, tmp_path / "out")
    text = (tmp_path / "out" / README).read_text(encoding="utf-8")
    for words in (PROSTATE.parts[0].source, PROSTATE.parts[0].licence, *PROSTATE.notes, "| HK | 2 |", str(source)):
        assert words in text


def test_progress_counts_images(source: Path, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    prepare(PROSTATE, source, tmp_path / "out", on_case=lambda done, total: calls.append((done, total)))
    assert calls == [(number, 12) for number in range(1, 13)]


def test_an_earlier_result_is_replaced_only_when_asked(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare(PROSTATE, source, out)
    (out / "extra").write_text("x", encoding="utf-8")
    assert "--overwrite" in refused(source, out)
    assert (out / "extra").exists()
    prepare(PROSTATE, source, out, overwrite=True)
    assert not (out / "extra").exists()
    assert (out / "HK.yaml").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]
    assert (source / "HK/Case00.nii.gz").is_file(), "links are removed, not what they lead to"


def test_a_folder_of_somebody_else_is_never_replaced(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("x", encoding="utf-8")
    assert "not written by this command" in refused(source, out, overwrite=True)
    (out / README).write_text("# my notes", encoding="utf-8")
    assert "not written by this command" in refused(source, out, overwrite=True)
    assert (out / "thesis.txt").exists()


def test_an_empty_folder_is_used(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    prepare(PROSTATE, source, tmp_path / "out")
    assert (tmp_path / "out/HK.yaml").is_file()


@pytest.mark.parametrize("out", ["source", "source/out", "."])
def test_source_and_result_must_lie_apart(source: Path, tmp_path: Path, out: str) -> None:
    assert "overlaps" in refused(source, tmp_path / out, overwrite=True)


def test_a_failure_leaves_the_earlier_result(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    prepare(PROSTATE, source, out)
    monkeypatch.setattr(Path, "symlink_to", full_disk)
    assert "No space left" in refused(source, out, overwrite=True)
    assert (out / "HK/images/Case00.nii.gz").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


def full_disk(*_: object) -> None:
    raise OSError(28, os.strerror(28))


def test_an_interruption_leaves_nothing(source: Path, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(PROSTATE, source, tmp_path / "out", on_case=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_command(source: Path, tmp_path: Path, fedfms: Command) -> None:
    out = tmp_path / "out"
    result = fedfms("data", "prepare", "prostate", "--source", source, "--out", out)
    assert result.code == 0, result
    assert f"{out}/HK.yaml: 2 images" in result.out
    assert f"FEDFMS_SITES={out} nvflare simulator JOB -c RUNMC,BMC,I2CVB,UCL,BIDMC,HK" in result.err
    assert "warning: SAML: 12 images; its authors state 116" in result.err
    assert fedfms("data", "check", out / "HK.yaml").code == 0
    fedfms("data", "prepare", "prostate", "--source", source, "--out", out).failed_with("FMS-D011")
    assert fedfms("data", "prepare", "prostate", "--source", source, "--out", out, "--overwrite").code == 0
    nothing = fedfms("data", "prepare", "prostate", "--source", tmp_path / "typo", "--out", tmp_path / "x")
    assert "no such folder" in nothing.failed_with("FMS-D017")
    assert fedfms("data", "prepare", "lungs", "--source", source, "--out", tmp_path / "x").code == 2
    wrong = fedfms("data", "prepare", "fundus", "--source", source, "--out", tmp_path / "x", "--only", "REFUSE")
    assert wrong.code == 2
    assert "REFUGE, ORIGA, G1020, Drishti-GS" in wrong.err
