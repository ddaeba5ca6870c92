"""A study lead's three steps with a job: submit, wait, download, done with FLARE's own commands."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from fedfms.errors import ADMIN_COMMAND_FAILED, JOB_UNFINISHED, fail
from fedfms.provision.local import admin_command
from fedfms.site.job_check import check_job_folder

COMPLETED = "FINISHED:COMPLETED"
#: FLARE's words for a job that will not go on.
_OVER = ("FINISHED", "FAILED_TO_RUN", "ABANDONED")
DOWNLOAD_SECONDS = 600.0
#: A command starts Python, connects and asks; on a busy machine with few cores that alone took a minute.
_SECONDS = 180.0


def submit(lead: Path, job: Path, study: str) -> str:
    """Check a job folder as server and sites will check it, and submit it.

    Args:
        lead: The lead's kit.
        job: The job folder.
        study: Name of the study.

    Returns:
        The job's id.

    Raises:
        FedfmsError: what `fedfms.site.job_check.check_job_folder` finds; FMS-K019.
    """
    check_job_folder(job)
    answer = admin_command(lead, "job", "submit", "-j", job.resolve(), "--study", study, seconds=_SECONDS)
    return _text(lead, answer.get("job_id"))


def status(lead: Path, job_id: str, study: str) -> str:
    """FLARE's status of a job: ``SUBMITTED``, ``RUNNING``, ``FINISHED:COMPLETED`` and so on.

    Raises:
        FedfmsError: FMS-K019
    """
    answer = admin_command(lead, "job", "meta", job_id, "--study", study, seconds=_SECONDS)
    return _text(lead, answer.get("status"))


def wait(
    lead: Path,
    job_id: str,
    study: str,
    seconds: float,
    *,
    poll_seconds: float = 10.0,
    meanwhile: Callable[[], None] = lambda: None,
) -> str:
    """Wait until a job is over.

    Args:
        lead: The lead's kit.
        job_id: The job.
        study: Its study.
        seconds: Time limit.
        poll_seconds: Time between two questions to FLARE; each is a separate process and connection.
        meanwhile: Called about twice a second.

    Returns:
        The last status.

    Raises:
        FedfmsError: FMS-K021 when the time is up, FMS-K019.
    """
    deadline = time.monotonic() + seconds
    while True:
        state = status(lead, job_id, study)
        if state.startswith(_OVER):
            meanwhile()
            return state
        if time.monotonic() > deadline:
            raise fail(JOB_UNFINISHED, job_id, f"after {seconds:.0f} s FLARE says {state}")
        pause = min(time.monotonic() + poll_seconds, deadline)
        while time.monotonic() < pause:
            meanwhile()
            time.sleep(0.5)


def download(lead: Path, job_id: str, study: str, out: Path) -> Path:
    """Fetch a job's result from the server.

    Args:
        lead: The lead's kit.
        job_id: The job.
        study: Its study.
        out: Folder; the result becomes ``<out>/<job id>``.

    Raises:
        FedfmsError: FMS-K019
    """
    out.mkdir(mode=0o700, parents=True, exist_ok=True)
    options = ("job", "download", job_id, "-o", out.resolve(), "--study", study)
    admin_command(lead, *options, seconds=DOWNLOAD_SECONDS)
    result = out / job_id
    if not result.is_dir():
        raise fail(ADMIN_COMMAND_FAILED, lead, f"FLARE downloaded nothing to {result}")
    return result


def _text(lead: Path, value: object) -> str:
    if not isinstance(value, str):
        raise fail(ADMIN_COMMAND_FAILED, lead, f"FLARE's answer names no job: {value!r}")
    return value
