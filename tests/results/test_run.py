"""What ``fedfms results`` makes of a run: ledger, tables, picture; and what it says of half a run."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from fedfms.datasets.phantom import write_demo_site
from fedfms.errors import CATALOGUE, FedfmsError
from fedfms.exchange.replies import TrainReport, ValidateReport
from fedfms.results.outcome import Missed
from fedfms.results.pictures import Row, draw, make_row
from fedfms.results.run_folder import open_run
from fedfms.results.run_result import Refusal, RunResult, find_ledger, mean, read_ledger
from fedfms.results.run_tables import model_line, picture_title, rounds_table, run_table
from fedfms.sam.checkpoint import save_inference
from fedfms.sam.model import initial_state
from fedfms.training.headers import job_header
from fedfms.training.task import WorkerTask
from tests.command import Command
from tests.generators import preprocessing, write_raster_site
from tests.training.conftest import make_job

BYTES_DOWN, BYTES_UP = 2_500_000, 2_400_000


def scores(organ: float | None, lesion: float | None) -> dict[str, Any]:
    return {
        name: {"dice": value, "iou": None if value is None else value / 2, "n": 0 if value is None else 4}
        for name, value in (("organ", organ), ("lesion", lesion))
    }


def update(site: str, number: int, organ: float | None, lesion: float | None = 0.25, **changes: Any) -> dict[str, Any]:
    """A line as the aggregator writes it."""
    report = TrainReport.model_validate(
        {
            "steps": 4,
            "training_seconds": 8.0,
            "seconds": 10.0 + number,
            "loss": 0.5,
            "learning_rate": 0.001,
            "peak_memory_bytes": 10**9 + number,
            "received": scores(organ, lesion),
            "local": scores(0.99, 0.99),
        }
    )
    line = {
        "event": "update",
        "accepted": True,
        "errors": [],
        "cases": {"organ": 6, "lesion": 6},
        "norm": 1.0,
        "bytes_up": BYTES_UP,
        "bytes_up_tensors": BYTES_UP - 1000,
        "report": report.model_dump(mode="json"),
        "round": number,
        "site": site,
    }
    return {**line, **changes}


def refused(site: str, number: int, *ids: str) -> dict[str, Any]:
    return {"event": "update", "accepted": False, "errors": list(ids), "round": number, "site": site}


def round_line(number: int, accepted: list[str]) -> dict[str, Any]:
    """A line as the controller writes it."""
    return {
        "event": "round",
        "round": number,
        "accepted": accepted,
        "received_dice": {"organ": 0.1, "lesion": 0.2},
        "received_mean_dice": 0.15,
        "bytes_down": BYTES_DOWN * 2,
        "bytes_down_each": BYTES_DOWN,
        "bytes_down_tensors_each": BYTES_DOWN - 1000,
        "bytes_up": BYTES_UP * len(accepted),
        "seconds": 12.5,
    }


def validate_line(site: str, rounds: int, organ: float, lesion: float | None = 0.75) -> dict[str, Any]:
    report = ValidateReport.model_validate({"received": scores(organ, lesion), "seconds": 2.0, "peak_memory_bytes": 5})
    return {
        "event": "validate",
        "site": site,
        "accepted": True,
        "errors": [],
        "report": report.model_dump(mode="json"),
        "rounds": rounds,
    }


CHOICE = {"event": "choice", "rounds": 2, "mean_dice": 0.7, "last_dice": {}, "last_mean_dice": 0.7}
RUN: list[dict[str, Any]] = [
    {"event": "start"},
    {"event": "ready", "site": "north", "accepted": True, "errors": [], "report": {}},
    {"event": "ready", "site": "west", "accepted": False, "errors": ["FMS-D004"], "report": None},
    update("north", 0, 0.125, lesion=None),
    update("south", 0, 0.25),
    round_line(0, ["north", "south"]),
    update("north", 1, 0.5),
    refused("south", 1, "FMS-X003"),
    round_line(1, ["north"]),
    validate_line("north", 2, 0.875),
    validate_line("south", 2, 0.75),
    CHOICE,
]


def write_ledger(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"time": 1.0, **line}) + "\n" for line in lines))
    return path


@dataclass
class Workspace:
    """A simulator's workspace with one run of ``vit_test`` on two hospitals."""

    folder: Path
    sites: dict[str, Path] = field(default_factory=dict)

    @property
    def server(self) -> Path:
        return self.folder / "server" / "simulate_job" / "app_server"

    @property
    def model(self) -> Path:
        return self.server / "models" / "best" / "model.safetensors"

    def write(self, lines: list[dict[str, Any]]) -> None:
        write_ledger(self.server / "ledger.jsonl", lines)

    def write_model(self) -> None:
        job = make_job(task="organ-lesion")
        generator = torch.Generator().manual_seed(3)
        state = {
            name: tensor + 0.3 * torch.randn(tensor.shape, generator=generator)
            for name, tensor in initial_state(job.model, job.seed).items()
        }
        save_inference(self.model, job_header(job, 2), state)

    def write_site(self, name: str) -> None:
        self.sites[name] = write_raster_site(self.folder / "data" / name, patients=3, images=1)
        task = WorkerTask(
            kind="train",
            site=name,
            round=0,
            job_file=self.folder / "training.yaml",
            site_file=self.sites[name],
            state_folder=self.folder,
        )
        path = self.folder / name / "simulate_job" / "fedfms" / "tasks" / "train-0000" / "task.json"
        path.parent.mkdir(parents=True)
        path.write_text(task.model_dump_json())


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    result = Workspace(tmp_path / "workspace")
    result.write(RUN)
    result.write_model()
    for name in ("north", "south"):
        result.write_site(name)
    return result


def text_of(*tables: Any) -> str:
    console = Console(file=StringIO(), width=200)
    for table in tables:
        console.print(table)
    stream = console.file
    assert isinstance(stream, StringIO)
    return stream.getvalue()


def row_of(text: str, *words: str) -> list[str]:
    """Cells of the first table line that begins with the words."""
    for line in text.splitlines():
        cells = [cell.strip() for cell in re.split("[│┃]", line.strip("│┃ "))]
        if " ".join(cells).split()[: len(words)] == list(words):
            return cells
    raise AssertionError(f"no line {words} in\n{text}")


# --- the ledger -----------------------------------------------------------------------------------------


def test_ledger(tmp_path: Path) -> None:
    result = read_ledger(write_ledger(tmp_path / "ledger.jsonl", RUN))
    assert (result.rounds, result.chosen_rounds, result.round_seconds) == (2, 2, [12.5, 12.5])
    assert result.chosen_mean_dice == 0.7
    assert list(result.sites) == ["north", "south"]
    north, south = result.sites.values()
    assert north.dice == {"organ": [0.125, 0.5, 0.875], "lesion": [None, 0.25, 0.75]}
    assert north.bytes_up == [BYTES_UP, BYTES_UP] and north.bytes_down == [BYTES_DOWN, BYTES_DOWN]
    assert north.seconds == [10.0, 11.0] and north.peak_memory_bytes == 10**9 + 1
    assert south.bytes_down == [BYTES_DOWN]
    assert result.refusals == [
        Refusal("west", "ready", ("FMS-D004",)),
        Refusal("south", "round 2", ("FMS-X003",)),
    ]
    assert str(result.refusals[1]) == "south, round 2: FMS-X003 " + CATALOGUE["FMS-X003"].title


def test_round_without_an_accepted_update_leaves_a_gap(tmp_path: Path) -> None:
    """Otherwise the value of a later model would be listed under an earlier one."""
    result = read_ledger(write_ledger(tmp_path / "ledger.jsonl", RUN))
    assert result.sites["south"].dice["organ"] == [0.25, None, 0.75]
    late = [*RUN[:3], update("north", 0, 0.1), round_line(0, ["north"]), *RUN[6:]]
    late.insert(6, update("south", 1, 0.5))
    assert read_ledger(write_ledger(tmp_path / "late.jsonl", late)).sites["south"].dice["organ"] == [None, 0.5, 0.75]


def test_site_without_a_last_validation(tmp_path: Path) -> None:
    lines = [line for line in RUN if not (line["event"] == "validate" and line["site"] == "south")]
    lost = {**validate_line("south", 2, 0.5), "accepted": False, "errors": ["FMS-T002"], "report": None}
    result = read_ledger(write_ledger(tmp_path / "ledger.jsonl", [*lines, lost]))
    assert result.sites["south"].dice["organ"] == [0.25, None, None]
    assert Refusal("south", "validate", ("FMS-T002",)) in result.refusals


def test_run_that_stopped(tmp_path: Path) -> None:
    result = read_ledger(write_ledger(tmp_path / "ledger.jsonl", RUN[:7]))
    assert result.chosen_rounds is None and result.rounds == 1
    assert result.sites["north"].dice["organ"] == [0.125, 0.5]


@pytest.mark.parametrize(
    "text", ["not json\n", "[1]\n", '{"time": 1}\n', '{"event": "update", "accepted": true}\n', "\xff"]
)
def test_file_that_is_not_a_ledger(tmp_path: Path, text: str) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(FedfmsError, match="FMS-R001 .*not a ledger"):
        read_ledger(path)


def test_every_wrong_key_of_a_line_is_named_with_the_line(tmp_path: Path) -> None:
    broken = {**update("north", 0, 0.5), "bytes_up": "many", "round": -1}
    del broken["site"]
    path = write_ledger(tmp_path / "ledger.jsonl", [RUN[0], broken])
    with pytest.raises(FedfmsError) as caught:
        read_ledger(path)
    assert [item.where for item in caught.value.problems] == [
        f"{path}, line 2: {key}" for key in ("site", "round", "bytes_up")
    ]
    assert all(item.detail.startswith("not a ledger: ") for item in caught.value.problems)


def test_fields_of_a_later_version_are_ignored(tmp_path: Path) -> None:
    lines = [{**line, "colour": "blue", "errors": line.get("errors", [])} for line in RUN]
    lines.append({"event": "rest", "why": {"of": "it"}})
    assert read_ledger(write_ledger(tmp_path / "ledger.jsonl", lines)).rounds == 2


def test_a_structure_that_one_report_lacks_has_no_value(tmp_path: Path) -> None:
    lines = [json.loads(json.dumps(line)) for line in RUN]
    del lines[6]["report"]["received"]["lesion"]
    assert read_ledger(write_ledger(tmp_path / "ledger.jsonl", lines)).sites["north"].dice["lesion"] == [
        None,
        None,
        0.75,
    ]


def test_ledger_is_found_below_the_folder(tmp_path: Path) -> None:
    with pytest.raises(FedfmsError, match="FMS-R001 .*0 files"):
        find_ledger(tmp_path)
    path = write_ledger(tmp_path / "a" / "b" / "ledger.jsonl", RUN)
    assert find_ledger(tmp_path) == find_ledger(tmp_path / "a" / "b") == path
    write_ledger(tmp_path / "c" / "ledger.jsonl", RUN)
    with pytest.raises(FedfmsError, match="FMS-R001 .*2 files"):
        find_ledger(tmp_path)
    assert find_ledger(tmp_path / "a") == path


def test_mean_leaves_out_what_is_not_estimable() -> None:
    assert mean([0.5, None, 1.0]) == 0.75
    assert mean([None]) is None and mean([]) is None


# --- the tables -----------------------------------------------------------------------------------------


def test_tables(tmp_path: Path) -> None:
    result = read_ledger(write_ledger(tmp_path / "ledger.jsonl", RUN))
    text = text_of(run_table(result))
    assert "2 rounds, 2 hospitals" in text
    assert row_of(text, "hospital")[2:4] == ["before round 1", "best model (round 2)"]
    assert row_of(text, "north", "organ") == ["north", "organ", "0.125", "0.875", "2.4 MB", "2.5 MB"]
    assert row_of(text, "south", "organ") == ["south", "organ", "0.250", "0.750", "2.4 MB", "2.5 MB"]
    assert row_of(text, "lesion")[1:3] == ["no value", "0.750"]
    assert "The best model by Dice (mean 0.700) is the one after round 2; it went to every hospital." in text
    text = text_of(rounds_table(result))
    assert row_of(text, "hospital")[1:] == ["before", "1", "2"]
    assert row_of(text, "north", "organ")[1:] == ["0.125", "0.500", "0.875"]
    assert row_of(text, "south", "organ")[1:] == ["0.250", "no value", "0.750"]


def test_the_last_model_is_shown_beside_a_better_earlier_one(tmp_path: Path) -> None:
    result = read_ledger(write_ledger(tmp_path / "ledger.jsonl", [*RUN[:-1], {**CHOICE, "rounds": 1}]))
    text = text_of(run_table(result))
    assert row_of(text, "hospital")[2:5] == ["before round 1", "best model (round 1)", "last model (round 2)"]
    assert row_of(text, "north", "organ")[2:5] == ["0.125", "0.500", "0.875"]
    assert "is the one after round 1" in text
    assert picture_title(result, 1).endswith("before round 1, and the best model, after round 1 of 2")
    unscored = [line for line in RUN[:-1] if line["event"] != "validate"]
    result = read_ledger(write_ledger(tmp_path / "unscored.jsonl", [*unscored, {**CHOICE, "rounds": 1}]))
    text = text_of(run_table(result))
    assert row_of(text, "hospital")[4] == "last model (round 2)" and row_of(text, "north", "organ")[4] == "no value"


def test_without_any_dice_no_model_is_called_the_best(tmp_path: Path) -> None:
    result = read_ledger(write_ledger(tmp_path / "ledger.jsonl", [*RUN[:-1], {**CHOICE, "mean_dice": None}]))
    text = text_of(run_table(result))
    assert "best model" not in text and row_of(text, "hospital")[3] == "last model (round 2)"
    assert "No hospital reported a Dice, so no model is known to be the best: the last one, after round 2" in text
    assert model_line(result, Path("m")) == "model (last model, after round 2): m"
    assert picture_title(result, 2).endswith("before round 1, and the last model, after round 2 of 2")


def test_a_run_that_stopped_shows_what_was_scored_last(tmp_path: Path) -> None:
    result = read_ledger(write_ledger(tmp_path / "ledger.jsonl", RUN[:7]))
    text = text_of(run_table(result))
    assert "1 round, 2 hospitals" in text and row_of(text, "hospital")[3] == "last scored (round 1)"
    assert "The run stopped after 1 round, before its end: no model went to the hospitals." in text
    assert model_line(result, Path("m")) == "model (best one before the run stopped): m"
    assert picture_title(result, 1).endswith("before round 1, and after round 1 of 1")


def test_a_missing_value_is_explained_below_the_table_that_has_one(tmp_path: Path) -> None:
    result = read_ledger(write_ledger(tmp_path / "ledger.jsonl", RUN))
    for table in (run_table, rounds_table):
        text = " ".join(text_of(table(result)).split())
        assert "no value: no validation slice there shows the structure, or the hospital's policy withholds" in text
    whole = [line for line in RUN if line.get("site") == "north" or line["event"] in ("round", "choice")]
    whole[1] = update("north", 0, 0.125)
    result = read_ledger(write_ledger(tmp_path / "whole.jsonl", whole))
    assert "no value" not in text_of(run_table(result), rounds_table(result))


def test_tables_of_a_run_without_an_update() -> None:
    nothing = RunResult({}, 0, [], None, None, [])
    assert "0 rounds, 0 hospitals" in text_of(run_table(nothing), rounds_table(nothing))


# --- the run's folder -----------------------------------------------------------------------------------


def test_parts_of_a_run_are_found(workspace: Workspace) -> None:
    run = open_run(workspace.folder)
    assert run.model_file == workspace.model
    assert run.site_files == workspace.sites
    assert run.result.chosen_rounds == 2


def test_run_without_a_model_says_why(workspace: Workspace) -> None:
    workspace.model.unlink()
    with pytest.raises(
        FedfmsError,
        match="FMS-R002 .*no model was kept.*west, ready: FMS-D004 .*south, round 2: FMS-X.*Look the ids up",
    ):
        open_run(workspace.folder)
    workspace.write([line for line in RUN if not line.get("errors") and line["event"] != "choice"])
    with pytest.raises(FedfmsError, match="FMS-R002 .*names no error -> Either it is still running") as caught:
        open_run(workspace.folder)
    assert "ids" not in str(caught.value)


def test_downloaded_job_has_no_data_of_the_hospitals(workspace: Workspace) -> None:
    assert open_run(workspace.server).site_files == {}
    workspace.sites["north"].unlink()
    assert set(open_run(workspace.folder).site_files) == {"south"}


def test_task_file_that_cannot_be_read(workspace: Workspace) -> None:
    (path, _) = sorted(workspace.folder.rglob("task.json"))
    path.write_text("{}")
    with pytest.raises(FedfmsError, match="FMS-R001 .*not a task"):
        open_run(workspace.folder)


# --- the picture ----------------------------------------------------------------------------------------


def test_row_shows_the_slice_before_and_after(workspace: Workspace) -> None:
    row = make_row("north", workspace.sites["north"], workspace.model)
    assert row.image.shape == (40, 32, 3) and row.image.min() == 0 and row.image.max() == 1
    assert row.reference.shape == row.before.shape == row.after.shape == (2, 40, 32)
    masks = [np.asarray(Image.open(path)) for path in (workspace.sites["north"].parent / "masks").iterdir()]
    assert any(np.array_equal(row.reference, np.stack([mask > 0, mask == 2])) for mask in masks)
    assert (row.before != row.after).mean() > 0.01, "the trained model predicts something else"


def test_row_shows_the_slice_and_not_its_neighbours_as_colours(tmp_path: Path) -> None:
    rules = preprocessing({"rule": "percentile", "low": 0, "high": 100}, channels="neighbours").model_dump()
    site = write_demo_site(tmp_path / "demo", "site-1")
    job = make_job(task="segmentation", preprocessing=rules)
    save_inference(tmp_path / "model.safetensors", job_header(job, 1), initial_state(job.model, 0))
    row = make_row("site-1", site, tmp_path / "model.safetensors")
    assert np.array_equal(row.image[..., 0], row.image[..., 1]) and row.image.max() == 1


def test_picture_shows_what_the_rows_say(workspace: Workspace, tmp_path: Path) -> None:
    row = make_row("north", workspace.sites["north"], workspace.model)

    def pixels(*rows: Row) -> np.ndarray:
        draw(rows, ("organ", "lesion"), "title", tmp_path / "picture.png")
        assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG\r\n")
        return np.asarray(Image.open(tmp_path / "picture.png").convert("RGB")).astype(int)

    found = pixels(row)
    assert found.shape[0] > 250 and found.shape[1] > 900
    assert found.std() > 10, "not a blank page"
    # Only the last quarter, the column "after", changes with the last mask; only the third one with "before".
    quarter = found.shape[1] // 4
    for changed, column in ((replace(row, after=~row.after), 3), (replace(row, before=~row.before), 2)):
        difference = np.abs(pixels(changed) - found).sum(axis=(0, 2))
        (columns,) = difference.nonzero()
        assert len(columns) > 0
        assert column * quarter - 40 <= columns.min() and columns.max() <= (column + 1) * quarter + 40
    assert pixels(row, row).shape[0] > 1.5 * found.shape[0]
    assert not list(tmp_path.glob(".*")), "no half file is left"


def test_every_structure_has_a_line_even_the_tenth(tmp_path: Path) -> None:
    masks = np.zeros((10, 20, 20), bool)
    image = np.zeros((20, 20, 3), np.float32)
    names = [f"s{index}" for index in range(10)]
    draw([Row("a", image, masks, masks, masks)], names, "title", tmp_path / "empty.png")
    filled = masks.copy()
    filled[9, 5:15, 5:15] = True
    draw([Row("a", image, masks, masks, filled)], names, "title", tmp_path / "filled.png")
    assert (tmp_path / "empty.png").read_bytes() != (tmp_path / "filled.png").read_bytes()


# --- the command ----------------------------------------------------------------------------------------


def test_results_prints_tables_and_draws(fedfms: Command, workspace: Workspace, tmp_path: Path) -> None:
    result = fedfms("results", workspace.folder, "--out", tmp_path / "out")
    assert result.code == 3, "degraded: south missed a round, west both"
    assert row_of(result.out, "north", "organ")[1:] == ["0.125", "0.500", "0.875"]
    assert "south, round 2: FMS-X003" in result.out and "west, ready: FMS-D004" in result.out
    assert f"model (best model, after round 2): {workspace.model}" in result.out
    picture = tmp_path / "out" / "results.png"
    assert f"picture: {picture}" in result.out
    assert picture.stat().st_size > 20_000
    with Image.open(picture) as image:
        assert image.height > 400, "a line for each of the two hospitals"


def test_results_as_json(fedfms: Command, workspace: Workspace, tmp_path: Path) -> None:
    found = fedfms("results", workspace.folder, "--json", "--out", tmp_path / "out").json()
    assert found["chosen_rounds"] == 2
    assert found["sites"]["north"]["dice"]["organ"] == [0.125, 0.5, 0.875]


COMPLETE = [
    {"event": "ready", "site": "north", "accepted": True, "errors": []},
    {"event": "ready", "site": "south", "accepted": True, "errors": []},
    update("north", 0, 0.125),
    update("south", 0, 0.25),
    round_line(0, ["north", "south"]),
    validate_line("north", 1, 0.875),
    {**CHOICE, "rounds": 1},
]


def test_the_outcome_of_a_run_and_its_exit_code(fedfms: Command, workspace: Workspace) -> None:
    workspace.write(COMPLETE)
    result = fedfms("results", workspace.folder)
    assert result.code == 0 and "outcome: complete: every hospital's update counted in every round" in result.out
    assert fedfms("results", workspace.folder, "--json").json()["outcome"] == "complete"

    workspace.write(RUN)
    result = fedfms("results", workspace.folder)
    assert result.code == 3 and "outcome: degraded" in result.out
    assert f"  south missed round 2: FMS-X003 {CATALOGUE['FMS-X003'].title}" in result.out
    assert f"  west missed rounds 1-2: FMS-D004 {CATALOGUE['FMS-D004'].title}" in result.out

    workspace.write(COMPLETE[:-1])
    result = fedfms("results", workspace.folder)
    assert result.code == 1 and "outcome: aborted" in result.out and "FMS-R002" in result.err


def test_who_missed_which_rounds_and_why(tmp_path: Path) -> None:
    sites = ("north", "south", "west")
    lines: list[dict[str, Any]] = [{"event": "ready", "site": site, "errors": []} for site in sites]
    for number in range(5):
        accepted = ["north"] if number in (1, 2, 4) else ["north", "south", "west"]
        lines += [update(site, number, 0.5) for site in accepted]
        lines += [refused("west", number, "FMS-T002")] if number == 1 else []
        lines += [update("west", number, 0.5)] if number == 2 else []
        lines += [{"event": "excluded", "site": "west", "round": 2, "errors": ["FMS-X016"]}] if number == 2 else []
        lines += [round_line(number, accepted)]
    found = read_ledger(write_ledger(tmp_path / "ledger.jsonl", lines))
    assert found.missed == (
        Missed("south", (2, 3, 5), ()),
        Missed("west", (2, 3, 5), ("FMS-T002", "FMS-X016")),
    )
    assert str(found.missed[0]) == "south missed rounds 2-3, 5: no reply"
    again = [*lines, {"event": "resume", "rounds": 4}, update("south", 4, 0.5), round_line(4, ["south"])]
    missed = read_ledger(write_ledger(tmp_path / "again.jsonl", again)).missed
    assert [(item.site, item.rounds) for item in missed] == [("north", (5,)), ("south", (2, 3)), ("west", (2, 3, 5))]


def test_incomplete_run_is_an_error_after_what_there_is(fedfms: Command, workspace: Workspace) -> None:
    workspace.write(RUN[:7])
    result = fedfms("results", workspace.folder)
    assert result.code == 1
    assert "north" in result.out
    assert "FMS-R002" in result.err and "it stopped after 1 round; the ledger says: west, ready: FMS-D004" in result.err
    assert "Traceback" not in result.err


def test_folder_without_a_run_is_an_error(fedfms: Command, workspace: Workspace, tmp_path: Path) -> None:
    fedfms("results", tmp_path / "nowhere").failed_with("FMS-R001", "nowhere")
    workspace.model.unlink()
    fedfms("results", workspace.folder).failed_with("FMS-R002", "no model was kept", "FMS-D004")


def test_picture_needs_data_on_this_machine(fedfms: Command, workspace: Workspace, tmp_path: Path) -> None:
    assert fedfms("results", workspace.server).code == 3
    result = fedfms("results", workspace.server, "--out", tmp_path / "out")
    assert result.code == 1 and "no hospital's data is on this machine" in result.err
    assert "Leave --out away" in result.err
    assert not (tmp_path / "out").exists()


def test_hospital_without_data_here_is_named(fedfms: Command, workspace: Workspace, tmp_path: Path) -> None:
    workspace.sites["south"].unlink()
    result = fedfms("results", workspace.folder, "--out", tmp_path / "out")
    assert result.code == 3 and "not in the picture, because their data is not on this machine: south" in result.out
