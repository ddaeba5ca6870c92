"""The files of a task folder, by which the FLARE process and the training process exchange task and results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fedfms.configuration import Strict
from fedfms.errors import CATALOGUE, FedfmsError, Problem
from fedfms.exchange.replies import TaskKind
from fedfms.files import write_json

TASK_FILE = "task.json"
RECEIVED_FILE = "received.safetensors"
PROGRESS_FILE = "progress.json"
REPORT_FILE = "report.json"
UPDATE_FILE = "update.safetensors"
ERROR_FILE = "error.json"
#: In the state folder: the faults of the cases that ``strict: false`` leaves out; it stays at the site.
LEFT_OUT_FILE = "left_out.txt"
LOG_FILE = "worker.log"


class WorkerTask(Strict):
    """One task for the training process.

    Attributes:
        kind: ``ready`` checks data, backbone and cache; ``train`` trains one round; ``validate`` scores the received
            state; ``final`` keeps the received state as the site's inference checkpoint.
        site: The site's name.
        round: 0-based; for ``validate`` and ``final`` the number of rounds done.
        job_file: The job's ``training.yaml``.
        site_file: The site's ``site.yaml``.
        state_folder: Files that outlive the task: optimizer, cache, final model.
    """

    kind: TaskKind
    site: str
    round: int
    job_file: Path
    site_file: Path
    state_folder: Path


class Progress(Strict):
    """A progress report of the training process.

    Attributes:
        stage: What is being done, for people to read.
        step: Steps done in this stage.
        steps: Steps of this stage.
        loss: Of the last training step; None in other stages.
        seconds_left: Estimate for this stage; None before its first step.
    """

    stage: str
    step: int
    steps: int
    loss: float | None = None
    seconds_left: float | None = None


def write_error(path: Path, error: FedfmsError) -> None:
    """Write an error so that ``read_error`` gives it back."""
    write_json(
        path,
        [
            {"id": item.kind.id, "place": item.where, "detail": item.detail, "remedy": item.remedy}
            for item in error.problems
        ],
    )


def read_error(path: Path) -> FedfmsError:
    """The error that the training process wrote."""
    items: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return FedfmsError(Problem(CATALOGUE[item["id"]], item["place"], item["detail"], item["remedy"]) for item in items)
