"""Run tasks in training processes: start them, follow their progress, stop them on request.

The calling process holds no training memory and survives whatever happens to the training.
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
#: Environment of a training process. Activations of hundreds of megabytes are allocated and freed in every step. By
#: default glibc returns them to the kernel each time and pays for zeroed pages at the next step; keeping them costs
#: nothing, because the next step needs them.
MEMORY_REUSE = {"MALLOC_MMAP_THRESHOLD_": str(4 * 2**30), "MALLOC_TRIM_THRESHOLD_": str(8 * 2**30)}


class TaskAborted(Exception):
    """The task was stopped on request: ``aborted`` returned True."""


@dataclass(frozen=True)
class WorkerResult:
    """The result of a task.

    Attributes:
        report: Numbers, as each kind of task defines them (``fedfms.training.worker``).
        update: Local minus received state, for ``train``.
    """

    report: dict[str, Any]
    update: dict[str, Tensor] | None


class TaskRunner:
    """Runs the tasks of one site, each in a training process of its own.

    It may hold one process that was started early for a coming task and waits for it (``prepare``).
    """

    def __init__(self) -> None:
        self._prepared: tuple[Path, subprocess.Popen[bytes]] | None = None
        self._closed = False

    def run(
        self,
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
            aborted: Called several times a second; True stops the process.
            on_progress: Called with each new progress report.
            stall_seconds: Seconds without progress after which the process counts as hanging.

        Raises:
            FedfmsError: The training process' own error; FMS-T002 when it died, FMS-T003 when it hangs.
            TaskAborted: ``aborted`` returned True.
        """
        process = self._take_prepared(task_folder) or _start(task_folder)
        try:
            if received is not None:
                write_tensors(task_folder / RECEIVED_FILE, received)
            # Last: the process starts to work when this file appears.
            write_json(task_folder / TASK_FILE, task.model_dump(mode="json"))
            _follow(process, task_folder / PROGRESS_FILE, aborted, on_progress, stall_seconds)
        finally:
            _stop(process)
        return _result(task_folder, process.returncode)

    def prepare(self, task_folder: Path) -> None:
        """Start the process of a coming task, so that it has imported its modules when the task arrives.

        The imports take seconds in which the site would otherwise wait. The process ends when another one is prepared,
        when another task is run, with ``close``, or with this process. After ``close`` none is started.

        Args:
            task_folder: The folder that the coming call of ``run`` will name.
        """
        self._stop_prepared()
        if not self._closed:
            self._prepared = task_folder, _start(task_folder)

    def close(self) -> None:
        """End the process that was prepared and not used, and prepare no other one."""
        self._closed = True
        self._stop_prepared()

    def _take_prepared(self, task_folder: Path) -> subprocess.Popen[bytes] | None:
        """The living process that was prepared for this folder; one that waits for another task is ended."""
        prepared = self._prepared
        if prepared is None or prepared[0] != task_folder or prepared[1].poll() is not None:
            self._stop_prepared()  # it would only hold memory
            return None
        self._prepared = None
        return prepared[1]

    def _stop_prepared(self) -> None:
        prepared, self._prepared = self._prepared, None
        if prepared is not None:
            _stop(prepared[1])


def _result(task_folder: Path, returncode: int) -> WorkerResult:
    """The result that an ended process wrote, or its error."""
    if (task_folder / ERROR_FILE).exists():
        raise read_error(task_folder / ERROR_FILE)
    if returncode != 0 or not (task_folder / REPORT_FILE).exists():
        tail = (task_folder / LOG_FILE).read_text(errors="replace").strip().splitlines()[-3:]
        raise fail(WORKER_DIED, task_folder, f"exit code {returncode}; the end of its log: {' / '.join(tail)}")
    update_file = task_folder / UPDATE_FILE
    return WorkerResult(
        report=json.loads((task_folder / REPORT_FILE).read_text(encoding="utf-8")),
        update=safetensors.torch.load_file(str(update_file)) if update_file.exists() else None,
    )


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
            env={**MEMORY_REUSE, **os.environ},
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
            raise fail(WORKER_STALLED, progress_file.parent, f"no progress for {stall_seconds:.0f} s")
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
