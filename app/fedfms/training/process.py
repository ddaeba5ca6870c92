"""Run a task in the training process, follow its signs of life, stop it when asked.

The process that calls this holds no training memory and survives whatever happens to the training.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from fedfms.errors import WORKER_DIED, WORKER_STALLED, fail
from fedfms.files import write_json
from fedfms.tensor_files import write_tensors
from fedfms.training.task import (
    ERROR_FILE,
    LOG_FILE,
    PROGRESS_FILE,
    RECEIVED_FILE,
    REPORT_FILE,
    TASK_FILE,
    UPDATE_FILE,
    Progress,
    WorkerTask,
    read_error,
)

_POLL_SECONDS = 0.1
_STALL_SECONDS = 3600.0
_STOP_SECONDS = 10.0
# Activations of hundreds of megabytes are allocated and freed in every step. By default glibc returns them to the
# kernel each time and pays for zeroed pages at the next step; keeping them costs nothing, the next step needs them.
_MEMORY_REUSE = {"MALLOC_MMAP_THRESHOLD_": str(4 * 2**30), "MALLOC_TRIM_THRESHOLD_": str(8 * 2**30)}

_prepared: dict[Path, subprocess.Popen[bytes]] = {}


class TaskAborted(Exception):
    """The task was stopped on request."""


@dataclass(frozen=True)
class WorkerResult:
    """What the training process gave back.

    Attributes:
        report: Numbers, as each kind of task defines them (``fedfms.training.worker``).
        update: Local minus received state, for ``train``.
    """

    report: dict[str, Any]
    update: dict[str, Tensor] | None


def run_task(
    task: WorkerTask,
    received: Mapping[str, Tensor] | None,
    task_folder: Path,
    aborted: Callable[[], bool],
    on_progress: Callable[[Progress], None],
    stall_seconds: float = _STALL_SECONDS,
) -> WorkerResult:
    """Run one task to its end.

    Args:
        task: What to do.
        received: The global state, for ``train``, ``validate`` and ``final``.
        task_folder: Folder for this task's files; emptied first.
        aborted: Asked several times a second; True stops the process.
        on_progress: Called with each new sign of life.
        stall_seconds: Longest silence that is not taken for a hanging process.

    Raises:
        FedfmsError: The training process' own error; FMS-T002 when it died, FMS-T003 when it fell silent.
        TaskAborted: When ``aborted`` said so.
    """
    process = _prepared.pop(task_folder, None)
    stop_prepared()  # one that waits for another task would only hold memory
    if process is None or process.poll() is not None:
        process = _start(task_folder)
    try:
        if received is not None:
            write_tensors(task_folder / RECEIVED_FILE, received)
        # Last: its appearance starts the work.
        write_json(task_folder / TASK_FILE, task.model_dump(mode="json"))
        _follow(process, task_folder / PROGRESS_FILE, aborted, on_progress, stall_seconds)
    finally:
        _stop(process)
    if (task_folder / ERROR_FILE).exists():
        raise read_error(task_folder / ERROR_FILE)
    if process.returncode != 0 or not (task_folder / REPORT_FILE).exists():
        tail = (task_folder / LOG_FILE).read_text(errors="replace").strip().splitlines()[-3:]
        raise fail(WORKER_DIED, task_folder, f"exit code {process.returncode}; its last words: {' / '.join(tail)}")
    update_file = task_folder / UPDATE_FILE
    return WorkerResult(
        report=json.loads((task_folder / REPORT_FILE).read_text(encoding="utf-8")),
        update=safetensors.torch.load_file(str(update_file)) if update_file.exists() else None,
    )


def prepare_worker(task_folder: Path) -> None:
    """Start the process of a coming task, so that it has its modules when the task arrives.

    Importing them takes seconds, in which the site would otherwise wait. At most one process is prepared; it ends when
    another one is, with ``stop_prepared``, or with this process.

    Args:
        task_folder: The folder that the coming call of ``run_task`` will name.
    """
    stop_prepared()
    _prepared[task_folder] = _start(task_folder)


def stop_prepared() -> None:
    """End the process that was prepared and not used."""
    while _prepared:
        _stop(_prepared.popitem()[1])


def _start(task_folder: Path) -> subprocess.Popen[bytes]:
    """A training process that waits for the task file of an empty folder."""
    shutil.rmtree(task_folder, ignore_errors=True)
    task_folder.mkdir(parents=True)
    with (task_folder / LOG_FILE).open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "fedfms.training.worker", str(task_folder), str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**_MEMORY_REUSE, **os.environ},
        )


def _follow(
    process: subprocess.Popen[bytes],
    progress_file: Path,
    aborted: Callable[[], bool],
    on_progress: Callable[[Progress], None],
    stall_seconds: float,
) -> None:
    last_change, last_content = time.monotonic(), ""
    while True:
        ended = process.poll() is not None
        content = progress_file.read_text(encoding="utf-8") if progress_file.exists() else ""
        if content != last_content:
            last_change, last_content = time.monotonic(), content
            on_progress(Progress.model_validate_json(content))
        if ended:
            return
        if aborted():
            raise TaskAborted
        if time.monotonic() - last_change > stall_seconds:
            raise fail(WORKER_STALLED, progress_file.parent, f"no sign of life for {stall_seconds:.0f} s")
        time.sleep(_POLL_SECONDS)


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
