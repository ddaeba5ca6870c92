"""Run tasks in a training process: start it, hand it tasks, follow their progress, stop it on request.

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
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
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
    """Runs the tasks of one site, one after the other, in a training process.

    The process is started for the first task and does the following ones too, so that its modules, which take seconds
    to import, are imported once. After a task that failed or was stopped, the next one gets a new process.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
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
            TaskAborted: ``aborted`` returned True, or ``close`` was called.
        """
        shutil.rmtree(task_folder, ignore_errors=True)
        task_folder.mkdir(parents=True)
        if received is not None:
            write_tensors(task_folder / RECEIVED_FILE, received)
        write_json(task_folder / TASK_FILE, task.model_dump(mode="json"))

        def stopped() -> bool:
            return self._closed or aborted()

        process, self._process = self._process, None
        if process is None or not _took(process, task_folder, stopped, on_progress, stall_seconds):
            if stopped():
                raise TaskAborted
            process = _start(task_folder, task.state_folder)
            _took(process, task_folder, stopped, on_progress, stall_seconds)
        result = _result(task_folder, process)
        self._process = process
        if self._closed:
            self._end()
        return result

    def close(self) -> None:
        """End the process, if there is one, and start no other."""
        self._closed = True
        self._end()

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            _stop(process)


def _took(
    process: subprocess.Popen[bytes],
    task_folder: Path,
    aborted: Callable[[], bool],
    on_progress: Callable[[Progress], None],
    stall_seconds: float,
) -> bool:
    """Give a task to a process and follow it to its end; False when the process had ended before it began the task.

    It says that it begins with the log in the task's folder; of a new process the log is there from the start.
    """
    assert process.stdin is not None
    done = False
    try:
        try:
            process.stdin.write(f"{json.dumps(str(task_folder))}\n".encode())
            process.stdin.flush()
        except BrokenPipeError:
            _stop(process)
        _follow(process, task_folder, aborted, on_progress, stall_seconds)
        done = (task_folder / REPORT_FILE).exists()
    finally:
        if not done:
            _stop(process)
    return (task_folder / LOG_FILE).exists()


def kept_result(task_folder: Path, received: Mapping[str, Tensor]) -> WorkerResult | None:
    """The result of a training that was done before from the same state; None without one.

    After a crash of the server a round is asked for again. A site answers with the bytes that it has sent already: they
    tell nothing new, and training again need not give the same ones.
    """
    try:
        before = safetensors.torch.load_file(str(task_folder / RECEIVED_FILE))
        same = before.keys() == received.keys() and all(torch.equal(before[name], received[name]) for name in before)
        if not same or not (task_folder / UPDATE_FILE).exists():
            return None
        report = json.loads((task_folder / REPORT_FILE).read_text(encoding="utf-8"))
        return WorkerResult(report, safetensors.torch.load_file(str(task_folder / UPDATE_FILE)))
    except (OSError, ValueError, safetensors.SafetensorError):
        return None  # it was cut off in the middle: then it is done again


def _result(task_folder: Path, process: subprocess.Popen[bytes]) -> WorkerResult:
    """The result of a task that is over, or its error."""
    if (task_folder / ERROR_FILE).exists():
        raise read_error(task_folder / ERROR_FILE)
    if not (task_folder / REPORT_FILE).exists():
        tail = (task_folder / LOG_FILE).read_text(errors="replace").strip().splitlines()[-3:]
        detail = f"exit code {process.returncode}; the end of its log: {' / '.join(tail)}"
        raise fail(WORKER_DIED, task_folder, detail)
    update_file = task_folder / UPDATE_FILE
    return WorkerResult(
        report=json.loads((task_folder / REPORT_FILE).read_text(encoding="utf-8")),
        update=safetensors.torch.load_file(str(update_file)) if update_file.exists() else None,
    )


def _start(task_folder: Path, state_folder: Path) -> subprocess.Popen[bytes]:
    """A training process; what it says before its first task is in the log of that task.

    The state folder in its command line is for people who look at a list of processes.
    """
    with (task_folder / LOG_FILE).open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "fedfms.training.worker", str(state_folder), str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**MEMORY_REUSE, **os.environ},
        )


def _follow(
    process: subprocess.Popen[bytes],
    task_folder: Path,
    aborted: Callable[[], bool],
    on_progress: Callable[[Progress], None],
    stall_seconds: float,
) -> None:
    """Return when the task has its report or its error, or when the process has ended."""
    progress_file = task_folder / PROGRESS_FILE
    last_change, last_content = time.monotonic(), ""
    while True:
        ended = (
            process.poll() is not None or (task_folder / REPORT_FILE).exists() or (task_folder / ERROR_FILE).exists()
        )
        content = progress_file.read_text(encoding="utf-8") if progress_file.exists() else ""
        if content != last_content:
            last_change, last_content = time.monotonic(), content
            on_progress(Progress.model_validate_json(content))
        if ended and (task_folder / REPORT_FILE).exists():
            return
        if aborted():
            raise TaskAborted
        if ended:
            return
        if time.monotonic() - last_change > stall_seconds:
            raise fail(WORKER_STALLED, task_folder, f"no progress for {stall_seconds:.0f} s")
        time.sleep(_POLL_SECONDS)


def _stop(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    with suppress(BrokenPipeError):  # of a process that ended before it read its task
        process.stdin.close()
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
