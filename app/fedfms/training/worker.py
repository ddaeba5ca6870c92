"""The training process: ``python -m fedfms.training.worker STATE_FOLDER PARENT_PROCESS_ID``.

Its standard input names one task folder after the other, each a line of JSON. There it reads ``task.json`` and
``received.safetensors``, writes ``progress.json`` as it goes, for training ``update.safetensors``, and last
``report.json``; or ``error.json``, and ends. It also ends when it has had nothing to do for ten minutes, and when the
process that started it is gone.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from fedfms.data.description.site import load_site
from fedfms.errors import OUT_OF_MEMORY, UNEXPECTED, FedfmsError, fail, reason_of
from fedfms.files import atomic_path, sha256_file, write_json
from fedfms.job.training import TrainingJob, load_job
from fedfms.sam.checkpoint import save_inference
from fedfms.tensor_files import write_tensors
from fedfms.training.hardware import is_lack_of_memory, peak_memory_bytes, release_memory
from fedfms.training.headers import job_header
from fedfms.training.optimizer import load_optimizer, make_optimizer, save_optimizer
from fedfms.training.session import Session, open_session
from fedfms.training.task import (
    ERROR_FILE,
    LEFT_OUT_FILE,
    LOG_FILE,
    PROGRESS_FILE,
    RECEIVED_FILE,
    REPORT_FILE,
    TASK_FILE,
    UPDATE_FILE,
    Progress,
    WorkerTask,
    write_error,
)
from fedfms.training.trainer import train_round
from fedfms.training.validation import validate

MODEL_FILE = "model.safetensors"
#: The moments after so many rounds of the job. Two are kept: a round that is asked for again, after a crash, begins
#: with the moments that it began with before.
OPTIMIZER_FILE = "optimizer-{:04d}.safetensors"
_OPTIMIZERS, _KEPT_OPTIMIZERS = "optimizer-*.safetensors", 2
CACHE_FOLDER = "cache"
RECORD_FILE = "data.json"
FINGERPRINT_FILE = "fingerprint.json"
_PROGRESS_SECONDS = 0.5
#: How long a process waits for its next task, and how often it looks whether the process that started it is there.
_IDLE_SECONDS = 600.0
_WAIT_SECONDS = 1.0


class Reporter:
    """Writes the progress file, at most twice a second, and ends the process when its parent is gone."""

    def __init__(self, path: Path, parent: int) -> None:
        self._path = path
        # Given, not looked up: the parent may be gone before this process has imported its modules.
        self._parent = parent
        self._stage = ""
        self._stage_begin = 0.0
        self._last = 0.0

    def __call__(self, stage: str, step: int, steps: int, loss: float | None = None) -> None:
        if os.getppid() != self._parent:
            sys.exit("the process that started this training is gone")
        now = time.monotonic()
        if stage != self._stage:
            self._stage, self._stage_begin, self._last = stage, now, 0.0
        if step < steps and now - self._last < _PROGRESS_SECONDS:
            return
        self._last = now
        left = (now - self._stage_begin) / step * (steps - step) if step else None
        progress = Progress(stage=stage, step=step, steps=steps, loss=loss, seconds_left=left)
        # Not synced: nobody needs it after a power cut, and it is written twice a second.
        write_json(self._path, progress.model_dump(), sync=False)


def main(parent: int) -> int:
    """Do the tasks that standard input names; returns the exit code."""
    # The default ends the process without clearing its temporary files.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    threads = torch.get_num_threads()
    while folder := _next_task(parent):
        # The log is also the sign that the task has begun: without it, a new process does the task.
        with (folder / LOG_FILE).open("ab") as log:
            sys.stdout.flush()
            os.dup2(log.fileno(), sys.stdout.fileno())
            os.dup2(log.fileno(), sys.stderr.fileno())
        torch.set_num_threads(threads)  # what an earlier task's site.yaml said
        if not do_task(folder, parent):
            return 1
        release_memory()
    os.close(sys.stdin.fileno())
    return 0


def _next_task(parent: int) -> Path | None:
    """The next task's folder; None when there is none for long, or nobody is left to name one."""
    until = time.monotonic() + _IDLE_SECONDS
    while os.getppid() == parent and time.monotonic() < until:
        if select.select([sys.stdin], [], [], _WAIT_SECONDS)[0]:
            line = sys.stdin.readline()
            return Path(json.loads(line)) if line else None
    return None


def do_task(folder: Path, parent: int) -> bool:
    """Do one task and write its report or its error; returns whether it succeeded."""
    try:
        task = WorkerTask.model_validate_json((folder / TASK_FILE).read_text(encoding="utf-8"))
        report = run(task, folder, Reporter(folder / PROGRESS_FILE, parent))
        write_json(folder / REPORT_FILE, report)
    except FedfmsError as error:
        write_error(folder / ERROR_FILE, error)
        return False
    except Exception as error:  # noqa: BLE001 - the last resort: whatever it is, the site gets an id and the log
        traceback.print_exc()
        kind = OUT_OF_MEMORY if is_lack_of_memory(error) else UNEXPECTED
        write_error(folder / ERROR_FILE, fail(kind, folder, reason_of(error)))
        return False
    return True


def run(task: WorkerTask, folder: Path, report: Reporter) -> dict[str, Any]:
    """Do the task and return its report."""
    job = load_job(task.job_file)
    report(f"opening data and {job.backbone}", 0, 1)
    if task.kind == "final":
        return _keep_final(task, job, folder)
    torch.manual_seed(job.seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Filling every fresh tensor first is for finding reads of memory that nobody wrote; it costs time in each step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    session = open_session(
        job,
        load_site(task.site_file),
        task.state_folder / CACHE_FOLDER,
        # The first task reads everything, whatever an earlier run left here.
        None if task.kind == "ready" else task.state_folder / RECORD_FILE,
        lambda done, cases: report("reading all cases", done, cases),
    )
    if task.kind == "ready":
        session.write_record(task.state_folder / RECORD_FILE)
        _write_left_out(task.state_folder / LEFT_OUT_FILE, session)
        write_json(task.state_folder / FINGERPRINT_FILE, session.dataset.fingerprint)
        return _ready(job, session)
    session.model.load_exchanged(safetensors.torch.load_file(str(folder / RECEIVED_FILE)))
    if task.kind == "validate":
        return _validate(job, session, report)
    figures = _train(task, job, session, folder, report)
    session.write_record(task.state_folder / RECORD_FILE)
    return figures


def _write_left_out(path: Path, session: Session) -> None:
    """Write the reasons for the people at the site; the server gets the count alone."""
    path.unlink(missing_ok=True)
    if session.dataset.left_out:
        with atomic_path(path) as temporary:
            lines = [f"{problem}\n" for case in session.dataset.left_out for problem in case]
            temporary.write_text("".join(lines), encoding="utf-8")


def _ready(job: TrainingJob, session: Session) -> dict[str, Any]:
    dataset = session.dataset
    assert dataset.fingerprint is not None, "the ready task reads every file"
    return {
        "cases": dataset.cases_per_structure("train"),
        "cases_left_out": len(dataset.left_out),
        "slices": {"train": len(session.training), "validation": len(dataset.slices("validation"))},
        "fingerprint_sha256": dataset.fingerprint["sha256"],
        "schema_sha256": session.model.schema.sha256,
        "backbone_sha256": job.backbone_sha256,
        "job_sha256": job.sha256,
    }


def _validate(job: TrainingJob, session: Session, report: Reporter) -> dict[str, Any]:
    begin = time.monotonic()
    received = _scores("validating the received model", job, session, report)
    return {
        "received": received,
        "seconds": time.monotonic() - begin,
        "peak_memory_bytes": peak_memory_bytes(),
    }


def _scores(stage: str, job: TrainingJob, session: Session, report: Reporter) -> dict[str, Any]:
    return validate(
        session.model,
        session.feed,
        session.dataset.slices("validation"),
        session.hardware,
        job.batch_size,
        lambda step, steps: report(stage, step, steps),
    )


def _train(task: WorkerTask, job: TrainingJob, session: Session, folder: Path, report: Reporter) -> dict[str, Any]:
    model = session.model
    begin = time.monotonic()
    received_scores = _scores("validating the received model", job, session, report)
    before = {name: tensor.clone() for name, tensor in model.exchanged().items()}

    optimizer = make_optimizer(model, job.learning_rate, job.weight_decay)
    if (moments := _moments_before(task.state_folder, task.round)) is not None:
        load_optimizer(moments, optimizer, model)
    result = train_round(
        model,
        optimizer,
        session.feed,
        session.training,
        job,
        session.hardware,
        site=task.site,
        round_index=task.round,
        on_step=lambda step, steps, loss: report(_training_stage(session), step, steps, loss),
        on_fill=lambda done, items: report("filling the cache", done, items),
    )
    save_optimizer(task.state_folder / OPTIMIZER_FILE.format(task.round + 1), optimizer, model)
    for path in sorted(task.state_folder.glob(_OPTIMIZERS))[:-_KEPT_OPTIMIZERS]:
        path.unlink()
    local_scores = _scores("validating the locally trained model", job, session, report)
    after = model.exchanged()
    write_tensors(folder / UPDATE_FILE, {name: after[name] - before[name] for name in model.schema.names})
    return {
        "cases": session.dataset.cases_per_structure("train"),
        "steps": result.steps,
        "training_seconds": result.seconds,
        "seconds": time.monotonic() - begin,
        "loss": result.loss,
        "learning_rate": result.learning_rate,
        "peak_memory_bytes": peak_memory_bytes(),
        "received": received_scores,
        "local": local_scores,
    }


def _moments_before(state_folder: Path, round_number: int) -> Path | None:
    """The newest moments that no later round than the one before has changed."""
    usable = [
        path for path in sorted(state_folder.glob(_OPTIMIZERS)) if path.name <= OPTIMIZER_FILE.format(round_number)
    ]
    return usable[-1] if usable else None


def _training_stage(session: Session) -> str:
    return "training" if session.cache is None or not session.cache.full else "training (cache full: compute.cache_gb)"


def _keep_final(task: WorkerTask, job: TrainingJob, folder: Path) -> dict[str, Any]:
    path = task.state_folder / MODEL_FILE
    save_inference(path, job_header(job, task.round), safetensors.torch.load_file(str(folder / RECEIVED_FILE)))
    # Gigabytes that nothing of this job reads any more; a cache that the site named itself stays.
    shutil.rmtree(task.state_folder / CACHE_FOLDER, ignore_errors=True)
    for moments in task.state_folder.glob(_OPTIMIZERS):
        moments.unlink()
    return {"model_sha256": sha256_file(path)}


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[2])))
