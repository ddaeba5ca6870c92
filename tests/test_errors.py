"""The catalogue of errors: complete in docs/errors.md, no dead entry, nothing private in public texts."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from fedfms import errors
from fedfms.errors import CATALOGUE, ErrorKind, FedfmsError, Problem, declare, fail, reason_of

PROJECT = Path(__file__).parents[1]
PAGE = PROJECT / "docs" / "errors.md"
CONSTANTS = {name: value for name, value in vars(errors).items() if isinstance(value, ErrorKind)}
KINDS = list(CATALOGUE.values())


def page_rows() -> list[list[str]]:
    """Cells of every line of the page's tables that is about an error, with the section's letter first."""
    rows, section = [], ""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if match := re.match(r"## ([A-Z]): ", line):
            section = match.group(1)
        if line.startswith("| `"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            rows.append([section, cells[0].strip("`"), *cells[1:]])
    return rows


def test_page_lists_every_error_once_with_title_and_remedy() -> None:
    rows = page_rows()
    assert {row[1] for row in rows} == set(CATALOGUE), "docs/errors.md and the catalogue differ"
    assert len(rows) == len(CATALOGUE)
    for section, identifier, title, remedy, _ in rows:
        kind = CATALOGUE[identifier]
        assert (title, remedy) == (kind.title, kind.remedy), identifier
        assert section == identifier[4], f"{identifier} is listed under {section}"


def test_page_names_no_error_that_does_not_exist() -> None:
    for path in [*(PROJECT / "docs").glob("*.md"), PROJECT / "README.md", PROJECT / "jobs" / "README.md"]:
        named = set(re.findall(r"FMS-[A-Z]\d+", path.read_text(encoding="utf-8")))
        assert named <= set(CATALOGUE), path.name


def test_docstrings_name_no_error_that_does_not_exist() -> None:
    for path in (PROJECT / "app").rglob("*.py"):
        named = set(re.findall(r"FMS-[A-Z]\d+", path.read_text(encoding="utf-8")))
        assert named <= set(CATALOGUE), path.name


def test_ids_are_unique_and_well_formed() -> None:
    assert set(CONSTANTS) and {kind.id for kind in CONSTANTS.values()} == set(CATALOGUE)
    assert len(CONSTANTS) == len(CATALOGUE), "two constants share an entry"
    for identifier, kind in CATALOGUE.items():
        assert kind.id == identifier
        assert re.fullmatch(r"FMS-[A-Z]\d{3}", identifier)
    areas: dict[str, list[int]] = {}
    for identifier in CATALOGUE:
        areas.setdefault(identifier[4], []).append(int(identifier[5:]))
    for area, numbers in areas.items():
        regular = [number for number in numbers if number != 999]
        assert regular == list(range(1, len(regular) + 1)), f"area {area} is not numbered through"


def test_an_id_cannot_be_declared_twice() -> None:
    before = dict(CATALOGUE)
    with pytest.raises(ValueError, match="FMS-J001 is declared twice"):
        declare("FMS-J001", "another", "Another.")
    assert before == CATALOGUE


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.id)
def test_title_and_remedy_are_one_phrase_and_one_sentence(kind: ErrorKind) -> None:
    assert not kind.title.endswith(".")
    assert kind.remedy.endswith(".") and kind.remedy[0].isupper()
    assert "|" not in kind.title + kind.remedy, "would break the table"


def test_titles_differ() -> None:
    assert len({kind.title for kind in KINDS}) == len(KINDS)


def uses() -> set[str]:
    """Names of the catalogue's constants that code in app/ reads; imports alone do not count."""
    found = set()
    for path in (PROJECT / "app").rglob("*.py"):
        if path.parent.name == "errors":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
                found.add(node.id)
    return found & set(CONSTANTS)


def test_every_error_is_raised_somewhere() -> None:
    assert set(CONSTANTS) - uses() == set(), "dead entries of the catalogue"


def calls(path: Path, *names: str) -> list[ast.Call]:
    tree = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return [node for node in tree if isinstance(node, ast.Call) and getattr(node.func, "id", "") in names]


def test_remedies_that_are_shown_without_names_are_constants() -> None:
    found = [call for path in (PROJECT / "app").rglob("*.py") for call in calls(path, "GeneralRemedy")]
    assert len(found) > 20
    for call in found:
        (text,) = call.args
        assert isinstance(text, ast.Constant) and isinstance(text.value, str), ast.unparse(call)
        assert text.value.endswith(".") and text.value[0].isupper(), text.value


@pytest.mark.parametrize("reader", ["dicom/*", "readers/*", "slices/intensity", "slices/discovery"])
def test_constant_remedies_of_readers_are_shown_without_names(reader: str) -> None:
    paths = list((PROJECT / "app" / "fedfms" / "data").glob(f"{reader}.py"))
    assert any(calls(path, "fail", "Problem") for path in paths), "the readers were not found"
    for path in paths:
        for call in calls(path, "fail", "Problem"):
            remedy = call.args[3] if len(call.args) > 3 else None
            assert not isinstance(remedy, ast.Constant), ast.unparse(call)


SECRET = "patient_4711 /data/hospital/tumour.png"


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.id)
def test_public_text_holds_nothing_of_the_place_the_cause_or_the_remedy(kind: ErrorKind) -> None:
    error = fail(kind, SECRET, f"found {SECRET}", f"Delete {SECRET}.")
    assert error.public == f"{kind.id} {kind.title} (1x)"
    assert SECRET in str(error)


def test_public_text_counts_by_kind_in_order_of_appearance() -> None:
    one, other = errors.IMAGE_MISSING, errors.LABEL_UNKNOWN
    error = FedfmsError(Problem(kind, f"{SECRET} {n}", f"detail {n}") for n, kind in enumerate([one, other, one]))
    assert error.ids == (one.id, other.id)
    assert error.public == f"{one.id} {one.title} (2x); {other.id} {other.title} (1x)"


def test_local_text_has_one_line_per_problem_with_place_cause_and_remedy() -> None:
    error = FedfmsError(
        [Problem(errors.IMAGE_MISSING, "a.png", "not there"), Problem(errors.SITE_INVALID, "b", "c", "Write d.")]
    )
    assert str(error).splitlines() == [
        f"FMS-D003 a.png: not there -> {errors.IMAGE_MISSING.remedy}",
        "FMS-D002 b: c -> Write d.",
    ]


def test_an_error_without_a_problem_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="at least one problem"):
        FedfmsError([])


def test_reasons_are_short_and_repeat_no_path() -> None:
    assert reason_of(PermissionError(13, "Permission denied", "/data/case")) == "PermissionError: Permission denied"
    assert reason_of(MemoryError()) == "MemoryError"
    assert len(reason_of(ValueError("x" * 10_000))) < 400
