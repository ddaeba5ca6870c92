"""The guides: every link from one page to another leads somewhere, and the decisions are all in their index."""

from __future__ import annotations

import pkgutil
import re
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest
import yaml

import fedfms

PROJECT = Path(__file__).parents[1]
PAGES = sorted(path for pattern in ("*.md", "docs/**/*.md", "*/README.md") for path in PROJECT.glob(pattern))
DECISIONS = PROJECT / "docs" / "decisions"


def anchors(text: str) -> set[str]:
    """What GitHub calls the headings of a page in links."""
    without_code = re.sub(r"^ *```.*?^ *```$", "", text, flags=re.MULTILINE | re.DOTALL)
    seen: Counter[str] = Counter()
    found = set()
    for heading in re.findall(r"^#+ (.+)$", without_code, re.MULTILINE):
        name = (
            re.sub(r"[^\w\- ]", "", re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()).strip().replace(" ", "-")
        )
        found.add(f"{name}-{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return found


def exists(target: str, page: Path, text: str) -> bool:
    """Whether a link on a page leads to a file or folder of the project, and to a heading in it if it names one."""
    name, _, anchor = target.partition("#")
    path = (page.parent / name).resolve() if name else page
    if not path.exists() or PROJECT not in path.parents:
        return False
    return not anchor or anchor in anchors(text if path == page else path.read_text(encoding="utf-8"))


def broken_links(page: Path, text: str) -> list[str]:
    """Links within the project that lead nowhere."""
    without_code = re.sub(r"`[^`\n]*`", "", text)
    targets = re.findall(r"\]\(([^)\s]+)\)", without_code) + re.findall(r'<img src="([^"]+)"', without_code)
    return [target for target in targets if not re.match("[a-z]+:", target) and not exists(target, page, text)]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(PROJECT)))
def test_links_lead_somewhere(page: Path) -> None:
    assert broken_links(page, page.read_text(encoding="utf-8")) == []


def test_broken_links_are_found() -> None:
    text = "## What *it* `is`, now\n[a](#what-it-is-now) [b](#what) [c](docs/errors.md#j-job) [d](docs/errors.md#k-job)"
    text += " [e](nothing.md) [f](https://example.org) [g](../outside)\n```\n# comment\n```\n[h](#comment)"
    text += '<img src="docs/images/demo.png"> <img src="docs/images/none.png">'
    wrong = ["#what", "docs/errors.md#k-job", "nothing.md", "../outside", "#comment", "docs/images/none.png"]
    assert broken_links(PROJECT / "README.md", text) == wrong


def test_every_decision_is_in_the_index_and_has_its_parts() -> None:
    records = sorted(path for path in DECISIONS.glob("*.md") if path.name != "README.md")
    listed = re.findall(r"^\| \[(\d{4})\]\((\S+)\) \| \S", (DECISIONS / "README.md").read_text("utf-8"), re.MULTILINE)
    assert [name for _, name in listed] == [path.name for path in records]
    assert [int(number) for number, _ in listed] == list(range(1, len(records) + 1))
    for (number, _), path in zip(listed, records, strict=True):
        text = path.read_text(encoding="utf-8")
        assert text.startswith(f"# {int(number)}. "), path.name
        parts = re.findall(r"^\*\*(Context|Decision|Measured|Consequences)\b", text, re.MULTILINE)
        # Not every decision rests on a measurement.
        assert [part for part in parts if part != "Measured"] == ["Context", "Decision", "Consequences"], path.name


def test_the_citation_names_this_version_and_the_paper_as_the_readme_does() -> None:
    citation = yaml.safe_load((PROJECT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == fedfms.__version__
    paper = citation["references"][0]
    readme = " ".join((PROJECT / "README.md").read_text(encoding="utf-8").replace("\n> ", " ").split())
    assert paper["title"] in readme and paper["url"] in readme
    assert all(author["family-names"] in readme for author in paper["authors"])


def moved_names() -> list[tuple[str, str]]:
    """Old and new full names in the changelog's tables; ``.x`` after ``a.b`` stands for ``a.x``."""
    text = (PROJECT / "CHANGELOG.md").read_text(encoding="utf-8")
    section = text.partition("### Moved modules\n")[2].partition("\n## ")[0]
    pairs = []
    for row in re.findall(r"^\| (`.*`) \| (`.*`) \|$", section, re.MULTILINE):
        cells = []
        for cell in row:
            names = re.findall(r"`([^`]+)`", cell)
            parent = names[0].rpartition(".")[0]
            cells.append([parent + name if name.startswith(".") else name for name in names])
        pairs += zip(*cells, strict=True)
    return pairs


def resolves(name: str) -> bool:
    """Whether a module, something in it, or a field of a dataclass has this name."""
    owner, _, last = name.rpartition(".")
    try:
        found = pkgutil.resolve_name(name)
        # A folder that a move has left behind, with nothing but __pycache__ in it, imports as a package without a file.
        return not isinstance(found, ModuleType) or found.__file__ is not None
    except (AttributeError, ImportError):
        try:
            return last in getattr(pkgutil.resolve_name(owner), "__dataclass_fields__", {})
        except (AttributeError, ImportError):
            return False


def test_the_names_that_the_changelog_gives_for_moved_ones_exist() -> None:
    pairs = moved_names()
    assert ("fedfms.site.place", "fedfms.site.job_location") in pairs
    assert [new for _, new in pairs if not resolves(new)] == []
    # Old names are found by fedfms.moved alone: no file is left at an old place (tests/test_moved.py tries each).
    kept = {"fedfms.data.dicom", "fedfms.exchange", "fedfms.job"}
    files = {old for old, _ in pairs if (PROJECT / "app" / Path(*old.split("."))).with_suffix(".py").exists()}
    assert files - kept == set()
