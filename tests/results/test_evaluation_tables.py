"""The printed table of an evaluation."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from fedfms.results.evaluation_tables import scores_table
from fedfms.training.scores import Scores
from fedfms.training.summary import LEVEL, summarise


def printed(result: dict[str, Any]) -> list[str]:
    console = Console(width=80, no_color=True)
    with console.capture() as capture:
        console.print(scores_table(result))
    return [" ".join(line.split()) for line in capture.get().splitlines()]


def test_volumes_over_cases_and_slices_within_80_columns() -> None:
    cases = [("a", Scores("found", 0.75, 0.6, 4.0, 1.0)), ("b", Scores("missed", 0.0, 0.0)), ("c", Scores("absent"))]
    slices = [("a", Scores("found", 0.5, 0.4, 12.5, 2.0)), ("b", Scores("false_alarm"))]
    lines = printed(
        {
            "split": "test",
            "patients": 3,
            "cases": 3,
            "cases_left_out": 0,
            "slices": 40,
            "interval": {"level": LEVEL},
            "structures": {"liver": summarise(cases)},
            "per_slice": {"liver": summarise(slices)},
        }
    )
    assert lines[0] == "3 patients, 3 cases, 40 slices (test)"
    assert "structure over cases n over slices n" in lines
    assert "liver Dice 0.375 [0.000, 0.750] 2 0.500 1" in lines
    assert "HD95 mm 4.00 1 12.50 1" in lines
    assert "missed 1 2 0 1" in lines
    assert "false alarms 0 1 1 1" in lines
    assert "spacing" not in " ".join(lines) and "not estimable" not in " ".join(lines)


def test_images_over_cases_alone() -> None:
    cases = [("a", Scores("found", 0.75, 0.6)), ("a", Scores("false_alarm"))]
    summary = {"disc": summarise(cases), "cup": summarise([("a", Scores("absent"))])}
    result = {"split": "all", "patients": 1, "cases": 2, "cases_left_out": 0, "slices": 2, "interval": {"level": LEVEL}}
    lines = printed({**result, "structures": summary, "per_slice": summary})
    assert "structure over cases n" in lines
    assert "disc Dice 0.750 1" in lines
    assert "HD95 mm not estimable 0" in lines and "cup Dice not estimable 0" in lines
    assert "not estimable: no reference shows the structure" in " ".join(lines)
    assert "images without spacing have no distances in mm" in " ".join(lines)
