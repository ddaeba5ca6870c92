"""The lines a person reads."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from nvflare.fuel.utils.log_utils import ConciseLogFilter

from fedfms.flare.console import ProgressPrinter, dice_text, duration, quiet_console, reasons, size, where_kept
from fedfms.training.task import Progress


def test_progress_is_printed_every_five_seconds_and_at_the_end_of_a_stage(
    capsys: pytest.CaptureFixture[str],
) -> None:
    now = 0.0
    show = ProgressPrinter("[site-1] round 1/3", clock=lambda: now)
    for step in range(1, 13):
        now += 1.0
        show(Progress(stage="training", step=step, steps=12, loss=0.5, seconds_left=12.0 - step))
    show(Progress(stage="training", step=12, steps=12, loss=0.5))
    assert capsys.readouterr().out.splitlines() == [
        "[site-1] round 1/3  training 5/12  loss 0.5000  about 7 s left",
        "[site-1] round 1/3  training 10/12  loss 0.5000  about 2 s left",
        "[site-1] round 1/3  training 12/12  loss 0.5000",
    ]


def test_figures_read_well() -> None:
    assert [duration(seconds) for seconds in (48.4, 185, 7800)] == ["48 s", "3 min 05 s", "2 h 10 min"]
    assert [size(count) for count in (100, 16161024, 5 * 2**31)] == ["100 B", "15.4 MiB", "10.0 GiB"]
    assert dice_text({"organ": 0.5, "lesion": 0.25}, 0.375) == "Dice organ 0.500, lesion 0.250, mean 0.375"
    assert dice_text({"organ": 0.5, "lesion": None}, 0.5) == (
        "Dice organ 0.500, lesion no value, mean 0.500 (no value: no validation slice shows it, or no site reports it)"
    )
    assert dice_text({"organ": None}, None).startswith("no Dice: no validation slice shows a structure, or ")
    assert reasons(["FMS-D003"]) == "FMS-D003 an image or mask file is missing"


def test_the_final_model_is_named_where_a_person_finds_it(tmp_path: Path) -> None:
    """FLARE's server deletes the run folder at the end; the simulator does not."""
    assert where_kept("simulate_job", "default", tmp_path) == f"on this machine in {tmp_path}"
    words = where_kept("c532f6d8", "followup", tmp_path)
    assert "nvflare job download c532f6d8 -o result --study followup --startup-kit KIT;" in words
    assert "fedfms results result/c532f6d8" in words
    assert str(tmp_path) not in words


def test_flares_commentary_leaves_the_console_only_in_its_default_mode() -> None:
    root = logging.getLogger()
    default, chosen = logging.StreamHandler(), logging.StreamHandler()
    default.addFilter(ConciseLogFilter(logger_names=["custom"]))
    for handler in (default, chosen):
        handler.setLevel(logging.DEBUG)
        root.addHandler(handler)
    try:
        quiet_console()
        assert (default.level, chosen.level) == (logging.WARNING, logging.DEBUG)
    finally:
        root.removeHandler(default)
        root.removeHandler(chosen)
