"""Starts a job's process, and starts it again when something killed it: FLARE would end the job for everybody.

Both go on where they were: the server's process from the state that it committed last, a site's from its run folder.
"""

from __future__ import annotations

import logging
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from nvflare.apis.fl_constant import FLContextKey, FLMetaKey, JobConstants
from nvflare.apis.fl_context import FLContext
from nvflare.apis.job_launcher_spec import JobReturnCode
from nvflare.app_common.job_launcher.client_process_launcher import ClientProcessJobLauncher
from nvflare.app_common.job_launcher.process_launcher import ProcessHandle
from nvflare.app_common.job_launcher.server_process_launcher import ServerProcessJobLauncher
from nvflare.utils.job_launcher_utils import get_credential_env
from nvflare.utils.process_utils import ProcessAdapter, spawn_process

#: How often one job's process is started again: an update that ends it must not do so without end.
RESTARTS = 3
#: Seconds between the end and the new start, in which its connections are closed.
PAUSE_SECONDS = 2.0
#: What the job's process of the server is called; FLARE builds the launcher in it, too.
_SERVER_JOB = "runner_process"
_RUNNING = JobReturnCode.UNKNOWN
_log = logging.getLogger(__name__)


class RestartingHandle(ProcessHandle):
    """A job's process that is started again after a signal, or an end without a return code, until FLARE ends it.

    Args:
        start: Starts the process.
        title: What the log calls it.
        return_code_file: Where the process leaves its return code when it ends by itself.
        pause_seconds: Seconds before it is started again.
    """

    adapter: ProcessAdapter

    def __init__(
        self,
        start: Callable[[], ProcessAdapter],
        title: str,
        return_code_file: Path,
        pause_seconds: float = PAUSE_SECONDS,
    ) -> None:
        self._start, self._title, self._return_code_file = start, title, return_code_file
        self._pause = pause_seconds
        self._left = RESTARTS
        self._ended = threading.Event()
        self._lock = threading.Lock()
        super().__init__(process_adapter=start())

    def terminate(self) -> None:
        """End the process, and start no other."""
        with self._lock:
            self._ended.set()
            super().terminate()

    def poll(self) -> Any:
        """Its return code, once `wait` has seen its last end; before, it counts as running."""
        return super().poll() if self._ended.is_set() else _RUNNING

    def wait(self) -> None:
        """Return when the process has ended for good."""
        while True:
            self.adapter.wait()
            code = self.adapter.poll()
            with self._lock:
                if self._ended.is_set() or not self._was_killed(code) or self._left == 0:
                    self._ended.set()
                    return
                self._left -= 1
            _log.warning("%s ended with %s; it is started again, %d more times at most", self._title, code, self._left)
            self._end_group()
            self._ended.wait(self._pause)
            with self._lock:
                if self._ended.is_set():
                    return
                self.adapter = self._start()

    def _was_killed(self, code: int | None) -> bool:
        """Whether something ended it: a signal, or FLARE's own ``os._exit`` after a failed transfer."""
        return code is not None and (code < 0 or (code == 1 and not self._return_code_file.exists()))

    def _end_group(self) -> None:
        """End what the process has started: it led a group of its own."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.adapter.pid, signal.SIGKILL)


def _launch(launcher: Any, job_meta: dict[str, Any], fl_ctx: FLContext) -> RestartingHandle:
    """As FLARE's ``ProcessJobLauncher.launch_job``; without a folder of the job's own code, which no kit allows."""
    job_id = job_meta[JobConstants.JOB_ID]
    arguments = shlex.split(launcher.get_command(job_meta, fl_ctx), True)
    environment = {**os.environ, **get_credential_env(fl_ctx.get_prop(FLContextKey.JOB_PROCESS_ARGS) or {})}
    folder = Path(fl_ctx.get_prop(FLContextKey.WORKSPACE_OBJECT).get_run_dir(job_id))
    return RestartingHandle(
        lambda: spawn_process(arguments, environment),
        f"the process of job {job_id}",
        folder / FLMetaKey.PROCESS_RC_FILE,
    )


class SiteLauncher(ClientProcessJobLauncher):
    """In the ``resources.json`` of a site, in place of FLARE's launcher."""

    def launch_job(self, job_meta: dict[str, Any], fl_ctx: FLContext) -> RestartingHandle:
        return _launch(self, job_meta, fl_ctx)


class ServerLauncher(ServerProcessJobLauncher):
    """In the ``resources.json`` of the server, in place of FLARE's launcher."""

    def __init__(self) -> None:
        super().__init__()
        if _SERVER_JOB in " ".join(sys.argv[:1]):
            # A site's update may arrive at a new process before the job's components exist. FLARE ends a process that
            # gets a type it does not know; what resources.json names is built before the connection is.
            from fedfms.flare.messages import register_types  # not in the parent process: it needs no torch

            register_types()

    def launch_job(self, job_meta: dict[str, Any], fl_ctx: FLContext) -> RestartingHandle:
        return _launch(self, job_meta, fl_ctx)
