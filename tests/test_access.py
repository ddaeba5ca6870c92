"""What may not be read is told apart from what is missing, and says who is refused by what."""

from __future__ import annotations

import errno
import os
import re
from functools import partial
from pathlib import Path

import pytest

from fedfms import access
from fedfms.access import (
    children,
    exists,
    is_dir,
    is_file,
    paths_that_fit,
    refusal,
    require_readable,
    unreadable,
    unwritable,
    walk,
)
from fedfms.errors import FILE_REFUSED, IMAGE_UNREADABLE, FedfmsError, Problem
from tests.accounts import held_to_modes, shut

ME = rf"account \S+ \(uid {os.geteuid()}\)"
OWNER = r"it belongs to .+ \(uid \d+\), group .+ \(gid \d+\)"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("a/b/c.png", "a/d.png", "a/.hidden/e.png", "a/b/.f.png", "lost+found/x.png", "g[1].png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "link").symlink_to("a")
    (tmp_path / "nowhere").symlink_to("missing")
    return tmp_path


def refused(call: object) -> tuple[Problem, ...]:
    with pytest.raises(FedfmsError) as caught:
        call()  # type: ignore[operator]
    assert {problem.kind for problem in caught.value.problems} == {FILE_REFUSED}
    return caught.value.problems


def test_a_file_that_may_not_be_read(tree: Path) -> None:
    path = tree / "a" / "d.png"
    with shut(path, 0o040):
        (problem,) = refused(lambda: require_readable(path))
        assert is_file(path) and exists(path), "it is there"
        assert unreadable(IMAGE_UNREADABLE, path, FileNotFoundError("no access")).problems == (problem,)
    assert problem.where == str(path)
    assert re.fullmatch(rf"{ME} may not read it: {OWNER}, mode 0040", problem.detail)
    assert unreadable(IMAGE_UNREADABLE, path, ValueError("cut")).ids == ("FMS-D004",)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files to others")
def test_the_owner_is_named(tree: Path) -> None:
    path = tree / "a" / "d.png"
    path.chmod(0o600)
    os.chown(path, 4711, 4712)
    with held_to_modes():
        problem = refusal(path)
    assert problem is not None and problem.detail.endswith("it belongs to uid 4711, group gid 4712, mode 0600")


@pytest.mark.parametrize("mode", [0o000, 0o600])
def test_the_first_folder_that_refuses_is_named(mode: int, tree: Path) -> None:
    path = tree / "a" / "b" / "c.png"
    with shut(tree / "a", mode):
        for call in (is_file, is_dir, exists, require_readable):
            (problem,) = refused(partial(call, path))
            assert problem.where == str(path) and f" may not enter {tree / 'a'}: it belongs to " in problem.detail
            assert f"mode {mode:04o}" in problem.detail
        link = refusal(tree / "link" / "d.png")
        assert link is not None and f"may not enter {tree / 'a'}: " in link.detail


def test_what_is_missing_is_not_refused(tree: Path) -> None:
    for name in ("missing", "nowhere", "a/d.png/below", "x" * 300, "null\0byte"):
        path = tree / name
        assert refusal(path) is None and not exists(path) and not is_file(path) and not is_dir(path)
        require_readable(path)
    assert children(tree / "missing") == [] and list(walk(tree / "missing", [])) == []


def test_a_folder_that_may_not_be_listed(tree: Path) -> None:
    with shut(tree / "a" / "b", 0o100):
        (problem,) = refused(lambda: children(tree / "a" / "b"))
        assert " may not list it: it belongs to " in problem.detail
        assert is_file(tree / "a" / "b" / "c.png"), "it may be entered"
        found: list[Problem] = []
        names = [path.name for path in walk(tree, found, hidden=False)]
        assert names == ["a", "b", "d.png", "g[1].png", "link", "nowhere"]
        assert [item.where for item in found] == [str(tree / "a" / "b")]
        for pattern in ("**/*.png", "a/*/*.png", "*/b/*"):
            problems = refused(partial(paths_that_fit, tree, pattern))
            assert problems[0].where == str(tree / "a" / "b")
        assert paths_that_fit(tree, "a/*.png") == [tree / "a" / "d.png"], "it is not looked into"


PATTERNS = (
    "* *.png **/*.png a/**/* a/*/c.png a/b/c.png */*/* missing/* link/* [a-g]* ** a/.hidden/*".split()  # noqa: SIM905
)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_finds_what_pathlib_finds(pattern: str, tree: Path) -> None:
    hidden = ".hidden" in pattern
    expected = {
        path
        for path in tree.glob(pattern)
        if path.name != "lost+found"
        and "lost+found" not in path.parts
        and (hidden or not any(part.startswith(".") for part in path.relative_to(tree).parts))
    }
    assert paths_that_fit(tree, pattern) == sorted(expected)


@pytest.mark.parametrize(
    ("number", "cause", "remedy"),
    [
        (errno.ENOSPC, "the disk of {folder} is full", "Free space on the disk of {folder}"),
        (errno.EDQUOT, "has used up its quota on the disk of {folder}", "ask the administrator for a larger quota"),
        (errno.EROFS, "{folder} is on a disk that is mounted read-only", "mount it for writing"),
        (errno.EACCES, "may not write there; {folder}: it belongs to ", "setfacl -m u:{uid}:rwx {folder}"),
        (errno.EIO, "OSError: Input/output error", "Free space or correct"),
    ],
)
def test_each_reason_why_a_file_cannot_be_written_has_its_remedy(
    number: int, cause: str, remedy: str, tmp_path: Path
) -> None:
    error = unwritable(tmp_path / "not" / "yet.json", OSError(number, os.strerror(number)))
    (problem,) = error.problems
    assert error.ids == ("FMS-D011",) and cause.format(folder=tmp_path) in problem.detail
    assert remedy.format(folder=tmp_path, uid=os.geteuid()) in str(problem)
    assert "chown" not in str(problem) and ("setfacl" in str(problem)) == (number == errno.EACCES)


def test_a_folder_that_may_not_be_written_names_what_refuses(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with shut(tmp_path / "a"), pytest.raises(PermissionError) as caught:
        (tmp_path / "a" / "b").mkdir()
    with shut(tmp_path / "a"):
        (problem,) = unwritable(tmp_path / "a" / "b", caught.value).problems
    assert f"may not write there; {tmp_path / 'a'}: it belongs to " in problem.detail and "mode 0000" in problem.detail
    assert f":x {tmp_path / 'a'}'" in str(problem), "it has to be entered, no more"


def test_a_file_that_is_there_names_its_folder_or_itself(tmp_path: Path) -> None:
    """A file is replaced as a whole, so the folder must be open; where it is, the file itself refuses."""
    path = tmp_path / "a" / "x.json"
    path.parent.mkdir()
    path.write_text("{}")
    denied = PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    (problem,) = unwritable(path, denied).problems
    assert f"may not write there; {path}: it belongs to " in problem.detail and f":rw {path}'" in str(problem)
    with shut(path.parent, 0o500):
        (problem,) = unwritable(path, denied).problems
    assert f"{path.parent}: it belongs to " in problem.detail and f":rwx {path.parent}'" in str(problem)


def test_nobody_is_told_to_take_a_folder_from_its_owner(tmp_path: Path) -> None:
    denied = PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    for path in (Path("/not_there/out/x.json"), tmp_path / "x.json"):
        (problem,) = unwritable(path, denied).problems
        assert "chown" not in str(problem) and str(problem).count("another place") == 1


def test_accounts_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert access.user_name(4711) == "uid 4711"
    monkeypatch.setattr(access.os, "geteuid", lambda: 4711)
    assert access.account() == "account uid 4711"
