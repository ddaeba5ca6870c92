"""Starts the kits of a federation on this machine, waits until they are connected, and stops them by process id.

For trials and tests: in production every kit is on its own machine and is started there with ``startup/start.sh``.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import psutil

from fedfms.errors import ADMIN_COMMAND_FAILED, START_FAILED, FedfmsError, Problem, fail
from fedfms.provision.flare_command import flare, private_folder
from fedfms.site.kit import Kit, open_kit

#: The doctor in start.sh reads a site's data and times a training step.
START_SECONDS = 300.0
CONNECT_SECONDS = 120.0
STOP_SECONDS = 20.0
#: FLARE's file of the loop that restarts it, and of FLARE's own process; both contain one number.
DAEMON_PID, PID = "daemon_pid.fl", "pid.fl"
#: What start.sh printed, the doctor's table among it.
START_LOG = "start.log"
_POLL_SECONDS = 0.5
_STOP_ATTEMPTS = 3
_SHOWN = 2000  # characters of a log in an error
#: Names the federation and the kit that a process was started for.
_MARK = "FEDFMS_STARTED_FOR"
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass
class LocalFederation:
    """Kits of one federation that run on this machine.

    Attributes:
        kits: The kits, in the order in which they were started.
        admin: Kit of a person who may ask for the status.
        environment: Environment variables for the kits' processes, in addition to this process's own.
    """

    admin: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    kits: list[Kit] = field(default_factory=list)
    _token: str = field(default_factory=lambda: uuid4().hex)

    def start(self, folder: Path) -> Kit:
        """Start a kit with its own ``startup/start.sh`` and the Python that runs this.

        Raises:
            FedfmsError: FMS-K018 with the end of what it printed.
        """
        return self.start_together([folder])[0]

    def start_together(self, folders: Sequence[Path], started: Callable[[Kit], None] = lambda kit: None) -> list[Kit]:
        """Start kits at the same time, so that their doctors run in parallel.

        Args:
            folders: The kits.
            started: Called once for each, when FLARE runs.

        Raises:
            FedfmsError: FMS-K018 with the last lines that the kit printed; the others then run until they are stopped.
        """
        kits = [open_kit(folder) for folder in folders]
        for kit in kits:
            if stale := [name for name in (DAEMON_PID, PID) if kit_process(kit.folder, name) is not None]:
                raise fail(START_FAILED, kit.folder, f"a process of this kit is running already ({', '.join(stale)})")
        launched = [(kit, self._launch(kit)) for kit in kits]
        deadline = time.monotonic() + START_SECONDS
        for kit, process in launched:
            try:
                code = process.wait(max(deadline - time.monotonic(), 0.0))
            except subprocess.TimeoutExpired:
                shown = f"start.sh has not ended after {START_SECONDS:.0f} s: {start_log(kit)[-_SHOWN:]}"
                raise fail(START_FAILED, kit.folder, shown) from None
            if code != 0:
                raise fail(START_FAILED, kit.folder, f"start.sh ended with {code}: {start_log(kit)[-_SHOWN:]}")
            while kit_process(kit.folder, PID) is None:
                if time.monotonic() > deadline:
                    raise fail(START_FAILED, kit.folder, f"no process after {START_SECONDS:.0f} s: {console(kit)}")
                time.sleep(_POLL_SECONDS)
            started(kit)
        return kits

    def _launch(self, kit: Kit) -> subprocess.Popen[bytes]:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        # Before anything runs, so that stopping never misses it.
        self.kits.append(kit)
        log = kit.folder / START_LOG
        log.touch(mode=0o600)
        with log.open("wb") as output:
            # start.sh ends as soon as FLARE's loop runs in the background; the loop must outlive it.
            return subprocess.Popen(
                ["bash", str(kit.startup / "start.sh")],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PATH": path, **self.environment, _MARK: self._mark(kit)},
                start_new_session=True,
            )

    def _mark(self, kit: Kit) -> str:
        return f"{self._token} {kit.folder}"

    def wait_connected(self, names: Sequence[str], seconds: float = CONNECT_SECONDS) -> None:
        """Wait until the server counts these sites as connected.

        Raises:
            FedfmsError: FMS-K018
        """
        deadline = time.monotonic() + seconds
        found: set[str] = set()
        reason = ""
        while True:
            try:
                found = connected_sites(self.admin)
                reason = ""
            except FedfmsError as error:
                reason = str(error)
            if set(names) <= found:
                return
            if time.monotonic() > deadline:
                absent = ", ".join(sorted(set(names) - found))
                detail = f"after {seconds:.0f} s not connected: {absent}. {reason}"
                raise fail(START_FAILED, self.admin, detail)
            time.sleep(_POLL_SECONDS)

    def processes(self, kits: Sequence[Kit] | None = None) -> list[psutil.Process]:
        """Running processes of all kits or some: start.sh and its doctor, FLARE's loop, FLARE, jobs, training.

        They are found by an environment variable that all inherit, also those whose parent has ended.
        """
        marks = {self._mark(kit) for kit in (self.kits if kits is None else kits)}
        return [process for process in psutil.process_iter() if _marked(process) in marks and _runs(process)]

    def stop(self, kits: Sequence[Kit] | None = None) -> None:
        """Stop all kits or some: first the loops that would restart FLARE, then FLARE and everything it started.

        Raises:
            FedfmsError: FMS-K018 if a process does not end even when killed.
        """
        chosen = self.kits if kits is None else list(kits)
        for _ in range(_STOP_ATTEMPTS):
            # What a process started while it was being stopped is met in the next attempt.
            if not (running := self.processes(chosen)):
                break
            loops = [kit_process(kit.folder, DAEMON_PID) for kit in chosen]
            first = {process.pid for process in loops if process is not None}
            _end(sorted(running, key=lambda process: process.pid not in first))
        if left := [process.pid for process in self.processes(chosen)]:
            raise fail(START_FAILED, self.admin, f"processes {left} did not end")
        for kit in chosen:
            for name in (DAEMON_PID, PID):
                (kit.folder / name).unlink(missing_ok=True)
        self.kits = [kit for kit in self.kits if kit not in chosen]


def _marked(process: psutil.Process) -> str | None:
    """The mark that a process was started with."""
    try:
        return process.environ().get(_MARK)
    except psutil.Error:
        return None  # it has ended, or is another user's


@contextmanager
def undisturbed() -> Iterator[None]:
    """Delay Ctrl-C and a request to end until the block is over; only in the main thread, where they arrive."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {number: signal.signal(number, lambda number, _: came.append(number)) for number in _ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])


def running_kits(kits: Path) -> list[str]:
    """Process ids of the running kits below a folder, by name."""
    found = []
    for kit in sorted(kits.iterdir()) if kits.is_dir() else ():
        processes = [kit_process(kit.resolve(), name) for name in (DAEMON_PID, PID)]
        if numbers := [str(process.pid) for process in processes if process is not None]:
            found.append(f"{kit.name} (process {', '.join(numbers)})")
    return found


def kit_process(kit: Path, name: str) -> psutil.Process | None:
    """The running process that one of a kit's pid files names; None if the file is missing or stale."""
    process = named_process(kit, name)
    try:
        # A pid may have been given to another process since; /srv/site-10 is not /srv/site-1.
        own = (str(kit), f"{kit}{os.sep}")
        if process is not None and any(word == own[0] or word.startswith(own[1]) for word in process.cmdline()):
            return process
    except psutil.Error:
        pass  # it has ended, or belongs to another user: not this kit's
    return None


def named_process(kit: Path, name: str) -> psutil.Process | None:
    """The running process with the number in one of a kit's pid files, even if it is another program's."""
    try:
        process = psutil.Process(int((kit / name).read_text(encoding="utf-8")))
        return process if _runs(process) else None
    except (OSError, ValueError, psutil.Error):
        return None


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _end(processes: Sequence[psutil.Process]) -> None:
    """Ask each process to end, in order; kill those that have not ended after a while."""
    for process in processes:
        try:
            process.terminate()
        except psutil.Error:
            continue
    _, left = psutil.wait_procs(list(processes), timeout=STOP_SECONDS)
    for process in left:
        try:
            process.kill()
        except psutil.Error:
            continue
    psutil.wait_procs(left, timeout=STOP_SECONDS)


def console(kit: Kit) -> str:
    """The last lines that a kit printed."""
    path = kit.folder / "console.log"
    return path.read_text(encoding="utf-8", errors="replace")[-_SHOWN:] if path.exists() else "no console.log"


def start_log(kit: Kit) -> str:
    """The file with the output of a kit's start.sh."""
    return (kit.folder / START_LOG).read_text(encoding="utf-8", errors="replace")


def admin_command(kit: Path, *arguments: object, seconds: float = 60.0) -> Mapping[str, object]:
    """Run an administrator's command, such as ``system status``, with a person's kit.

    Raises:
        FedfmsError: FMS-K019 when it is refused or the server does not answer.
    """
    with private_folder(kit.resolve()) as home:
        options = (*arguments, "--startup-kit", kit.resolve())
        return flare(options, home, failure=ADMIN_COMMAND_FAILED, where=kit.name, seconds=seconds)


def connected_sites(admin: Path) -> set[str]:
    """Names of the sites that the server counts as connected.

    Raises:
        FedfmsError: FMS-K019
    """
    answer = admin_command(admin, "system", "status")
    clients = answer.get("clients")
    if not isinstance(clients, list):
        raise FedfmsError([Problem(ADMIN_COMMAND_FAILED, str(admin), f"no list of clients in the answer {answer}")])
    return {str(entry.get("client_name") or entry.get("name")) for entry in clients if isinstance(entry, dict)}


@contextmanager
def local_federation(
    server: Path,
    sites: Sequence[Path],
    admin: Path,
    environment: Mapping[str, str] | None = None,
    started: Callable[[Kit], None] = lambda kit: None,
) -> Iterator[LocalFederation]:
    """Start a server and its sites, wait until they are connected, and stop all of them at the end in any case.

    Args:
        server: The server's kit.
        sites: The sites' kits.
        admin: Kit of a person who may ask for the status.
        environment: Environment variables for the kits' processes, in addition to this process's own.
        started: Called for each kit when FLARE runs.

    Raises:
        FedfmsError: FMS-K001 or FMS-K018
    """
    federation = LocalFederation(admin, dict(environment or {}))
    try:
        # The server first: a site's doctor wants to reach it.
        federation.start_together([server], started)
        federation.start_together(sites, started)
        federation.wait_connected([open_kit(site).name for site in sites])
        yield federation
    finally:
        with undisturbed():
            federation.stop()
