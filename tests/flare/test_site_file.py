"""Where site.yaml is looked for, in the simulator and in earnest."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedfms.errors import FedfmsError
from fedfms.flare import site_file
from fedfms.flare.site_file import find_site_file


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("FEDFMS_SITES", raising=False)
    folder = tmp_path / "local"
    folder.mkdir()
    return folder


def find(local: Path, *, simulated: bool, site: str = "site-1") -> Path:
    return find_site_file(local, site, simulated=simulated, run_folder=local.parent / "run")


def write(path: Path) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("x")
    return path


def test_a_real_site_prefers_its_own_kit_and_the_simulator_the_folder_of_sites(
    local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, named = write(local / "site.yaml"), write(local.parent / "sites" / "site-1.yaml")
    monkeypatch.setenv("FEDFMS_SITES", str(named.parent))
    assert find(local, simulated=False) == own
    assert find(local, simulated=True) == named
    own.unlink()
    assert find(local, simulated=False) == named


@pytest.mark.parametrize("simulated", [True, False])
def test_a_folder_of_sites_without_this_one_is_an_error_and_never_demo_data(
    simulated: bool, local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDFMS_SITES", str(local.parent))
    with pytest.raises(FedfmsError) as caught:
        find(local, simulated=simulated)
    assert caught.value.ids == ("FMS-D012",)
    assert "site-1.yaml" in str(caught.value)


def test_a_real_site_never_gets_demo_data(local: Path) -> None:
    with pytest.raises(FedfmsError) as caught:
        find(local, simulated=False)
    assert caught.value.ids == ("FMS-D012",)


def test_demo_data_is_made_once_and_says_that_it_is_synthetic(
    local: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = []

    def fake(folder: Path, name: str) -> Path:
        calls.append(name)
        folder.mkdir(parents=True)
        return write(folder / "site.yaml")

    monkeypatch.setattr(site_file, "write_demo_site", fake)
    first = find(local, simulated=True)
    assert first.is_file() and "SYNTHETIC" in capsys.readouterr().out
    assert find(local, simulated=True) == first and calls == ["site-1"]


def test_demo_data_left_half_written_is_made_again(local: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(folder: Path, name: str) -> Path:
        write(folder.parent / folder.name / "x") if folder.exists() else folder.mkdir(parents=True)
        raise KeyboardInterrupt

    monkeypatch.setattr(site_file, "write_demo_site", interrupted)
    with pytest.raises(KeyboardInterrupt):
        find(local, simulated=True)

    def complete(folder: Path, name: str) -> Path:
        folder.mkdir(parents=True)
        return write(folder / "site.yaml")

    monkeypatch.setattr(site_file, "write_demo_site", complete)
    assert find(local, simulated=True).is_file()


def test_a_relative_folder_is_taken_from_where_the_command_was_given(
    local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FLARE changes its working directory before it loads anything of ours."""
    named = write(local.parent / "sites" / "site-1.yaml")
    monkeypatch.setenv("PWD", str(local.parent))
    monkeypatch.setenv("FEDFMS_SITES", "sites")
    monkeypatch.chdir(local)
    assert find(local, simulated=True) == named
