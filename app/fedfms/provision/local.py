"""Starts the kits of a federation on this machine, waits until they are connected, and stops them by process id.

For trials and tests: in production every kit lies on its own machine and is started there with ``startup/start.sh``.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from fedfms.errors import ADMIN_COMMAND_FAILED, START_FAILED, FedfmsError, Problem, fail
from fedfms.provision.flare_command import flare, private_folder
from fedfms.site.kit import Kit, open_kit

#: The doctor in start.sh reads a site's data and times a training step.
START_SECONDS = 300.0
CONNECT_SECONDS = 120.0
STOP_SECONDS = 20.0
#: FLARE's file of the loop that restarts it, and of FLARE's own process; both hold one number.
DAEMON_PID, PID = "daemon_pid.fl", "pid.fl"
_POLL_SECONDS = 0.5


@dataclass
class LocalFederation:
    """Kits that were started here.

    Attributes:
        kits: In the order of starting.
        admin: Kit of a person who may ask for the status.
        environment: Variables for the kits' processes beside this process's own.
    """

    admin: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    kits: list[Kit] = field(default_factory=list)
    _seen: dict[int, psutil.Process] = field(default_factory=dict)

    def start(self, folder: Path) -> Kit:
        """Start a kit through its own ``startup/start.sh``, with the Python that runs this.

        Raises:
            FedfmsError: FMS-K018 with the end of what it printed.
        """
        kit = open_kit(folder)
        stale = [name for name in (DAEMON_PID, PID) if self._process(kit, name) is not None]
        if stale:
            raise fail(START_FAILED, kit.folder, f"a process of this kit is running already ({', '.join(stale)})")
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        log = kit.folder / "start.log"
        log.touch(mode=0o600)
        with log.open("wb") as output:
            # start.sh ends as soon as FLARE's loop runs in the background; the loop must outlive it.
            process = subprocess.Popen(
                ["bash", str(kit.startup / "start.sh")],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PATH": path, **self.environment},
                start_new_session=True,
            )
            self.kits.append(kit)
            try:
                code = process.wait(START_SECONDS)
            except subprocess.TimeoutExpired:
                # The doctor that start.sh waits for as well.
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                code = -1
        if code != 0:
            shown = log.read_text(encoding="utf-8", errors="replace")[-2000:]
            raise fail(START_FAILED, kit.folder, f"start.sh ended with {code}: {shown}")
        deadline = time.monotonic() + START_SECONDS
        while self._process(kit, PID) is None:
            if time.monotonic() > deadline:
                raise fail(START_FAILED, kit.folder, f"no process after {START_SECONDS:.0f} s: {console(kit)}")
            time.sleep(_POLL_SECONDS)
        self.processes()
        return kit

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
            self.processes()
            if set(names) <= found:
                return
            if time.monotonic() > deadline:
                absent = ", ".join(sorted(set(names) - found))
                detail = f"after {seconds:.0f} s not connected: {absent}. {reason}"
                raise fail(START_FAILED, self.admin, detail)
            time.sleep(_POLL_SECONDS)

    def processes(self) -> list[psutil.Process]:
        """The kits' processes that run now: FLARE's loops, FLARE, jobs and their training."""
        for kit in self.kits:
            for name in (DAEMON_PID, PID):
                process = self._process(kit, name)
                if process is not None:
                    self._remember(process)
        for process in list(self._seen.values()):
            self._remember(process)
        return [process for process in self._seen.values() if _runs(process)]

    def _remember(self, process: psutil.Process) -> None:
        try:
            for item in (process, *process.children(recursive=True)):
                if item.pid not in self._seen or not self._seen[item.pid].is_running():
                    self._seen[item.pid] = item
        except psutil.Error:
            pass  # it has ended

    def _process(self, kit: Kit, name: str) -> psutil.Process | None:
        return _named_process(kit.folder, name)

    def stop(self, kits: Sequence[Kit] | None = None) -> None:
        """Stop all kits, or some: first the loop that would restart FLARE, then FLARE and all that it started.

        Raises:
            FedfmsError: FMS-K018 if a process does not end even when killed.
        """
        self.processes()
        chosen = self.kits if kits is None else list(kits)
        for kit in reversed(chosen):
            for name in (DAEMON_PID, PID):
                process = self._process(kit, name)
                if process is not None:
                    _end([process, *_children(process)])
            for name in (DAEMON_PID, PID):
                (kit.folder / name).unlink(missing_ok=True)
        if kits is None:
            # What lost its parent: a job's process whose FLARE ended first.
            _end([process for process in self._seen.values() if _runs(process)])
            left = [process.pid for process in self.processes()]
            if left:
                raise fail(START_FAILED, self.admin, f"processes {left} did not end")
        self.kits = [kit for kit in self.kits if kit not in chosen]


def running_kits(kits: Path) -> list[str]:
    """Names of the kits below a folder that run now, with their process ids."""
    found = []
    for kit in sorted(kits.iterdir()) if kits.is_dir() else ():
        processes = [_named_process(kit.resolve(), name) for name in (DAEMON_PID, PID)]
        if numbers := [str(process.pid) for process in processes if process is not None]:
            found.append(f"{kit.name} (process {', '.join(numbers)})")
    return found


def _named_process(kit: Path, name: str) -> psutil.Process | None:
    """The running process that a pid file of a kit names; None for a file that is stale."""
    try:
        process = psutil.Process(int((kit / name).read_text(encoding="utf-8")))
        # A pid may have been given to another process since.
        belongs = any(str(kit) in argument for argument in process.cmdline())
        return process if belongs and _runs(process) else None
    except (OSError, ValueError, psutil.Error):
        return None


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


def _end(processes: Sequence[psutil.Process]) -> None:
    """Ask each process to end, the first one first; kill what has not ended after a while."""
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
    """The end of what a kit printed."""
    path = kit.folder / "console.log"
    return path.read_text(encoding="utf-8", errors="replace")[-2000:] if path.exists() else "no console.log"


def admin_command(kit: Path, *arguments: object, seconds: float = 60.0) -> Mapping[str, object]:
    """Give an administrator's command, such as ``system status``, with a person's kit.

    Raises:
        FedfmsError: FMS-K019
    """
    with private_folder(kit.resolve()) as home:
        options = (*arguments, "--startup-kit", kit.resolve())
        return flare(options, home, failure=ADMIN_COMMAND_FAILED, place=kit.name, seconds=seconds)


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
    server: Path, sites: Sequence[Path], admin: Path, environment: Mapping[str, str] | None = None
) -> Iterator[LocalFederation]:
    """Start a server and its sites, wait until they are connected, and stop all at the end, whatever happens.

    Raises:
        FedfmsError: FMS-K001 or FMS-K018
    """
    federation = LocalFederation(admin, dict(environment or {}))
    try:
        federation.start(server)
        for site in sites:
            federation.start(site)
        federation.wait_connected([open_kit(site).name for site in sites])
        yield federation
    finally:
        federation.stop()
