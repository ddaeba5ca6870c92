"""The order of the tests names files that there are, and every federation; who gets what next."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any, cast

from tests.scheduling import FEDERATIONS, LONG, SideBySide, unit_of

PROJECT = Path(__file__).parents[1]
OTHER = "tests/test_files.py"


def _next(others: dict[str, bool], waiting: tuple[str, ...]) -> str:
    """What a process gets that has nothing, where each other has one unit, done or not, and these are left."""
    scheduler = SideBySide.__new__(SideBySide)
    assigned: dict[str, dict[str, dict[str, bool]]] = {"idle": {}}
    assigned |= {str(number): {unit: {"test": done}} for number, (unit, done) in enumerate(others.items())}
    scheduler.assigned_work = cast(Any, assigned)
    scheduler.workqueue = OrderedDict((name, {"test": False}) for name in waiting)
    return scheduler._next(cast(Any, "idle"))


def test_every_name_is_a_file_or_folder_of_tests() -> None:
    assert [name for name in (*FEDERATIONS, *LONG) if not (PROJECT / name).exists()] == []


def test_every_file_with_a_federation_is_known_as_one() -> None:
    files = [path.relative_to(PROJECT).as_posix() for path in (PROJECT / "tests" / "integration").rglob("test_*.py")]
    assert {unit_of(f"{file}::test") for file in files} == set(FEDERATIONS)


def test_federations_start_first_in_all_processes_but_one() -> None:
    waiting = (OTHER, LONG[1], LONG[0], FEDERATIONS[2], FEDERATIONS[1])
    assert _next({}, waiting) == FEDERATIONS[1], "the longest first; so does a process that is alone"
    assert _next({FEDERATIONS[0]: False, OTHER: False}, waiting) == FEDERATIONS[1]
    assert _next({FEDERATIONS[0]: False, FEDERATIONS[3]: False}, waiting) == LONG[0]
    assert _next({FEDERATIONS[0]: False, FEDERATIONS[3]: True}, waiting) == FEDERATIONS[1]


def test_the_rest_comes_after_what_is_long_and_federations_last_if_nothing_else_is_left() -> None:
    two = {FEDERATIONS[0]: False, FEDERATIONS[3]: False}
    assert _next(two, (FEDERATIONS[1], OTHER, LONG[1])) == LONG[1]
    assert _next(two, (FEDERATIONS[1], OTHER)) == OTHER
    assert _next(two, (FEDERATIONS[2], FEDERATIONS[1])) == FEDERATIONS[1]
