"""A job's process that something kills is started again; one that ends by itself, or that FLARE ends, is not."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from nvflare.apis.job_launcher_spec import JobReturnCode
from nvflare.utils.process_utils import ProcessAdapter, spawn_process

from fedfms.flare.launchers import RESTARTS, RestartingHandle

WAIT = "import time; time.sleep(60)"


class Starter:
    """Starts Python programs, one after the other, and keeps their processes; the last is started again and again."""

    def __init__(self, *programs: str) -> None:
        self.programs = programs
        self.processes: list[int] = []

    def __call__(self) -> ProcessAdapter:
        program = self.programs[min(len(self.processes), len(self.programs) - 1)]
        adapter = spawn_process([sys.executable, "-c", program], dict(os.environ))
        assert adapter.pid is not None
        self.processes.append(adapter.pid)
        return adapter


def handle_of(starter: Starter, folder: Path, pause: float = 0.05) -> RestartingHandle:
    return RestartingHandle(starter, "the process of job 1", folder / "_process_rc.txt", pause)


def until(reached: object, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not reached():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_killed_process_is_started_again_and_its_last_end_counts(tmp_path: Path) -> None:
    starter = Starter(WAIT, WAIT, "raise SystemExit(0)")
    handle = handle_of(starter, tmp_path)
    waiting = threading.Thread(target=handle.wait)
    waiting.start()
    for number in (1, 2):
        assert handle.poll() == JobReturnCode.UNKNOWN, "to FLARE it runs"
        os.kill(starter.processes[-1], signal.SIGKILL)
        until(lambda number=number: len(starter.processes) == number + 1)
    waiting.join(30)
    assert not waiting.is_alive() and len(starter.processes) == 3
    assert handle.poll() == JobReturnCode.SUCCESS


def test_it_is_not_started_without_end(tmp_path: Path) -> None:
    starter = Starter("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    handle = handle_of(starter, tmp_path)
    handle.wait()
    assert len(starter.processes) == 1 + RESTARTS and handle.poll() == JobReturnCode.EXECUTION_ERROR


@pytest.mark.parametrize(("code", "file", "starts"), [(0, False, 1), (1, True, 1), (1, False, 2), (2, False, 1)])
def test_only_an_end_without_a_return_code_is_taken_for_a_crash(
    code: int, file: bool, starts: int, tmp_path: Path
) -> None:
    """FLARE's transfer of tensors calls os._exit(1) when it fails; a job that fails writes its code first."""
    written = f"open({str(tmp_path / '_process_rc.txt')!r}, 'w').write('1');" if file else ""
    starter = Starter(f"import os; {written} os._exit({code})", "raise SystemExit(0)")
    handle = handle_of(starter, tmp_path)
    handle.wait()
    assert len(starter.processes) == starts


def test_what_flare_ends_stays_ended(tmp_path: Path) -> None:
    starter = Starter(WAIT)
    handle = handle_of(starter, tmp_path)
    waiting = threading.Thread(target=handle.wait)
    waiting.start()
    handle.terminate()
    waiting.join(30)
    assert not waiting.is_alive() and len(starter.processes) == 1
    assert handle.poll() == JobReturnCode.EXECUTION_ERROR


def test_an_end_that_flare_asks_for_in_the_pause_counts(tmp_path: Path) -> None:
    starter = Starter(WAIT)
    handle = handle_of(starter, tmp_path, pause=30)
    waiting = threading.Thread(target=handle.wait)
    waiting.start()
    os.kill(starter.processes[0], signal.SIGKILL)
    until(lambda: not psutil.pid_exists(starter.processes[0]))
    handle.terminate()
    waiting.join(30)
    assert not waiting.is_alive() and len(starter.processes) == 1


def test_what_a_killed_process_had_started_goes_with_it(tmp_path: Path) -> None:
    """A training would otherwise go on beside that of the new process."""
    note = tmp_path / "child"
    child = f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {WAIT!r}]);"
    starter = Starter(f"{child} open({str(note)!r}, 'w').write(str(p.pid)); p.wait()", "raise SystemExit(0)")
    handle = handle_of(starter, tmp_path)
    until(lambda: note.exists() and note.read_text())
    left = int(note.read_text())
    os.kill(starter.processes[0], signal.SIGKILL)
    handle.wait()
    until(lambda: not psutil.pid_exists(left) or psutil.Process(left).status() == psutil.STATUS_ZOMBIE)
