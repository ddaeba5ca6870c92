"""Check for processes and process files of an earlier start."""

from __future__ import annotations

import fcntl
import os

from fedfms.doctor.examination import Examination
from fedfms.doctor.result import Result, failed, passed, warned
from fedfms.errors import STALE_PROCESS
from fedfms.provision.local import DAEMON_PID, PID, kit_process, named_process
from fedfms.site.kit import Kit

#: ``start.sh`` holds a lock on this file for as long as a process of the kit runs; it tells so by the variable.
LOCK = "start.lock"
STARTING = "FEDFMS_STARTING"


def stale(examination: Examination) -> list[Result]:
    """FLARE does not start while ``daemon_pid.fl`` names any running process, even if it is another program's."""
    kit, results = examination.kit, []
    for name in (DAEMON_PID, PID):
        if not (kit.folder / name).exists():
            continue
        own, other = kit_process(kit.folder, name), named_process(kit.folder, name)
        if own is not None:
            results.append(warned(STALE_PROCESS, f"the kit is running already: {name} names process {own.pid}"))
        elif other is not None and name == DAEMON_PID:
            text = f"{name} is of an earlier start, and its number {other.pid} belongs to another program now"
            results.append(failed(STALE_PROCESS, text, f"Delete {name} in the kit; FLARE would not start."))
        else:
            results.append(warned(STALE_PROCESS, f"{name} is from an earlier start that did not end properly"))
    if not any("running already" in result.what for result in results) and STARTING not in os.environ and _held(kit):
        # FLARE writes no process file in the foreground.
        results.append(warned(STALE_PROCESS, f"the kit is running already: {LOCK} is held"))
    return results or [passed(STALE_PROCESS, "no process of this kit runs, no process file is left")]


def _held(kit: Kit) -> bool:
    try:
        with (kit.folder / LOCK).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False  # it was never started
    return False
