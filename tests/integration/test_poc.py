"""``make poc`` and ``fedfms poc`` as a user types them: from nothing to the results, and stopped in the middle."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import psutil
import pytest

from fedfms.provision.poc import GENERATED, SITES
from fedfms.sam.checkpoint import load_segmenter
from fedfms.site.egress import read_record
from tests.integration.test_provisioning import is_loopback, left_behind
from tests.provision.federations import PROJECT, free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

TINY = (
    "backbone=vit_test",
    "preprocessing.input_size=64",
    "precision=fp32",
    "rounds=1",
    "local_work.steps=1",
    "empty_slices=0",
)


def of_kits(folder: Path) -> list[psutil.Process]:
    """All that was started through a kit's start.sh below a folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("FEDFMS_STARTED_FOR", "").partition(" ")[2].startswith(str(folder)):
                found.append(process)
        except psutil.Error:
            continue  # it has ended, or is another user's
    return found


class Poc:
    """The command while it runs; by ``make poc`` with this environment as the virtual one, which is there already.

    Attributes:
        text: What it has printed until now.
        sockets: Addresses that it and the kits were seen to listen at, by port.
        commands: Command lines of the processes whose sockets were looked at.
    """

    def __init__(self, workspace: Path, *settings: str, by_make: bool = False) -> None:
        self.folder = workspace / GENERATED
        self.text = ""
        self.sockets: dict[int, str] = {}
        self.commands: set[str] = set()
        self.port = free_port()
        options = [word for setting in settings for word in ("--set", setting)]
        if by_make:
            command = ["make", f"--old-file={sys.prefix}/.installed", "poc", f"VENV={sys.prefix}"]
            command += [f"POC_WORKSPACE={workspace}", f"POC_PORT={self.port}", f"POC_OPTIONS={' '.join(options)}"]
        else:
            command = [sys.executable, "-m", "fedfms.cli", "poc", str(PROJECT / "jobs" / "fedmsa")]
            command += ["--workspace", str(workspace), "--port", str(self.port), *options]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "COLUMNS": "200"}
        environment.pop("FEDFMS_SKIP_DOCTOR", None)
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            cwd=PROJECT,
            # Whoever runs the tests in the background of a shell has made them ignore it, and children inherit that.
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            print(line, end="")
            self.text += line

    def until(self, reached: Callable[[], bool], seconds: float = 900) -> None:
        """Look at the sockets until something is reached; fails when the command ends before."""
        deadline = time.monotonic() + seconds
        while not reached():
            assert self.process.poll() is None and time.monotonic() < deadline, self.text
            self._look()
            time.sleep(0.3)

    def end(self, seconds: float = 900) -> int:
        deadline = time.monotonic() + seconds
        while self.process.poll() is None and time.monotonic() < deadline:
            self._look()
            time.sleep(0.3)
        code = self.process.wait(max(deadline - time.monotonic(), 0.1))
        self._reader.join()
        return code

    def _look(self) -> None:
        for process in of_kits(self.folder):
            try:
                connections = process.net_connections(kind="inet")
                command = " ".join(process.cmdline())
            except psutil.Error:
                continue  # it has ended meanwhile
            self.commands.add(command)
            for connection in connections:
                if connection.status == psutil.CONN_LISTEN:
                    self.sockets[connection.laddr.port] = connection.laddr.ip


@contextmanager
def poc(workspace: Path, *settings: str, by_make: bool = False) -> Iterator[Poc]:
    """The command; afterwards nothing of it runs any more, else it is ended and the test fails."""
    command = Poc(workspace, *settings, by_make=by_make)
    try:
        yield command
    finally:
        if command.process.poll() is None:
            command.process.send_signal(signal.SIGTERM)
            command.end(120)
        left = left_behind(workspace)
        marked = of_kits(command.folder)
        for process in marked:
            process.kill()
        assert left == [] and marked == []


def test_from_nothing_to_the_table_of_results(tmp_path: Path) -> None:
    with poc(tmp_path, *TINY, by_make=True) as command:
        assert command.end() == 0, command.text
    text, kits = command.text, tmp_path / GENERATED / "kits"
    for name in ("localhost", *SITES):
        assert re.search(rf"{name} runs after \d+ s; fedfms doctor: \d+ PASS, \d+ WARN, 0 FAIL", text)
    assert "round 1/1: accepted hospital-a, hospital-b, hospital-c" in text, "progress is shown"
    words = ["== Prepare", "== Review", "== Start", "== Submit", "FINISHED:COMPLETED", "== Stop", "== Result"]
    assert [text.index(word) for word in words] == sorted(text.index(word) for word in words)
    table = text[text.index("== Result") :]
    for name in SITES:
        # Hospital, structure, Dice before and after, bytes.
        assert re.search(rf"{name}\W+lesion\W+0\.\d{{3}}\W+0\.\d{{3}}\W+0\.1 MB", table), table
    (model,) = re.findall(r"^model \(best model, after round 1\): (.+)$", table, re.MULTILINE)
    assert load_segmenter(Path(model))[1].rounds == 1
    for name in SITES:
        (page,) = re.findall(rf"^{name}: (.+\.html); also: fedfms egress", table, re.MULTILINE)
        record = read_record(kits / name, Path(page).stem)
        assert [line.task for line in record] == ["ready", "train", "validate", "final"] and Path(page).is_file()

    assert command.port in command.sockets
    # Server and sites, and the processes of the job at each.
    for module in ("server_train", "client_train", "runner_process", "worker_process"):
        assert any(module in found for found in command.commands), module
    assert all(is_loopback(address) for address in command.sockets.values()), command.sockets


def test_interrupted_while_the_doctors_look(tmp_path: Path) -> None:
    """No pid file names these processes yet."""
    with poc(tmp_path, *TINY) as command:
        command.until(lambda: "localhost runs" in command.text and len(of_kits(command.folder)) > 4)
        command.process.send_signal(signal.SIGINT)
        time.sleep(0.2)
        # Somebody who does not want to wait: the stop goes on.
        command.process.send_signal(signal.SIGINT)
        assert command.end(120) == 130, command.text
    assert "interrupted; all processes have ended" in command.text and "== Result" not in command.text
    # The port is free for the next run.
    assert not any(item.laddr.port == command.port for item in psutil.net_connections() if item.status == "LISTEN")
