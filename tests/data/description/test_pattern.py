from __future__ import annotations

from pathlib import Path

from fedfms.data.description.pattern import PathPattern


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def found(root: Path, text: str) -> list[tuple[str, dict[str, str]]]:
    return [(path.relative_to(root).as_posix(), texts) for path, texts in PathPattern(text).find(root)]


def test_placeholders_stand_for_text_without_slash(tmp_path: Path) -> None:
    touch(tmp_path, "p1/a.png", "p1/deep/b.png", "p2/c.png", "p2/c.txt")
    assert found(tmp_path, "{patient}/{case}.png") == [
        ("p1/a.png", {"patient": "p1", "case": "a"}),
        ("p2/c.png", {"patient": "p2", "case": "c"}),
    ]


def test_a_repeated_placeholder_is_the_same_text(tmp_path: Path) -> None:
    touch(tmp_path, "p1/p1_x.png", "p1/p2_x.png")
    assert found(tmp_path, "{patient}/{patient}_{case}.png") == [("p1/p1_x.png", {"patient": "p1", "case": "x"})]


def test_wildcards(tmp_path: Path) -> None:
    touch(tmp_path, "x/y/a.1.PNG", "b.png", "x/[c].png")
    assert [name for name, _ in found(tmp_path, "**/{case}.*")] == ["b.png", "x/[c].png", "x/y/a.1.PNG"]
    assert found(tmp_path, "x/[{case}].png") == [("x/[c].png", {"case": "c"})]
    assert found(tmp_path, "x/y/{case}.*") == [("x/y/a.1.PNG", {"case": "a.1"})]


def test_hidden_files_do_not_fit(tmp_path: Path) -> None:
    touch(tmp_path, ".DS_Store", "._a.png", "a.png", ".trash/b.png")
    assert [name for name, _ in found(tmp_path, "**/{case}.*")] == ["a.png"]
