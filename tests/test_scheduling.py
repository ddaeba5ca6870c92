"""The order of the tests names files that there are, and every federation."""

from __future__ import annotations

from pathlib import Path

from tests.scheduling import FEDERATIONS, LONG, unit_of

PROJECT = Path(__file__).parents[1]


def test_every_name_is_a_file_or_folder_of_tests() -> None:
    assert [name for name in (*FEDERATIONS, *LONG) if not (PROJECT / name).exists()] == []


def test_every_file_with_a_federation_is_known_as_one() -> None:
    files = [path.relative_to(PROJECT).as_posix() for path in (PROJECT / "tests" / "integration").rglob("test_*.py")]
    assert {unit_of(f"{file}::test") for file in files} == set(FEDERATIONS)
