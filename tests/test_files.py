"""Folders that are either whole or as they were."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedfms.errors import FedfmsError
from fedfms.files import atomic_folder


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "earlier").write_text("whole")
    return tmp_path / "target"


def everything(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_takes_the_place_of_another(target: Path) -> None:
    with atomic_folder(target) as folder:
        (folder / "new").write_text("whole")
        assert everything(target) == {"earlier": "whole"}
    assert everything(target.parent) == {"target/new": "whole"}
    assert [path.name for path in target.parent.iterdir()] == ["target"]


@pytest.mark.parametrize("step", ["writing", "setting aside", "taking the place"])
def test_a_failure_at_any_step_leaves_what_was_there(target: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    rename = Path.rename

    def failing(path: Path, to: Path) -> Path:
        if (path == target) == (step == "setting aside") and not path.name.endswith(".old"):
            raise OSError(28, "No space left on device")
        return rename(path, to)

    with pytest.raises(FedfmsError, match="No space left"), atomic_folder(target) as folder:
        if step == "writing":
            raise OSError(28, "No space left on device")
        (folder / "new").write_text("whole")
        monkeypatch.setattr(Path, "rename", failing)
    assert everything(target.parent) == {"target/earlier": "whole"}
    assert [path.name for path in target.parent.iterdir()] == ["target"]
