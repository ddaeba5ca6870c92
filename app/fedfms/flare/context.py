"""Where a FLARE run keeps its files, and where to write texts that must not leave the machine."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from functools import lru_cache
from pathlib import Path

from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext

from fedfms.errors import JOB_DIFFERS, NOT_APPROVED, REJECTED, FedfmsError, fail, reason_of
from fedfms.exchange.messages import JobContract
from fedfms.job.training import load_job
from fedfms.sam.model import schema_of
from fedfms.site.admission import Admission, admit
from fedfms.site.application import TRAINING
from fedfms.site.job_location import JobLocation
from fedfms.site.notices import tell_run_broke


def run_folder(fl_ctx: FLContext) -> Path:
    """The run folder of this job in the workspace of this site or server, ``<workspace>/<job id>``."""
    return Path(fl_ctx.get_engine().get_workspace().get_run_dir(fl_ctx.get_job_id()))


def app_folder(fl_ctx: FLContext) -> Path:
    """The deployed app of this job; the server's is part of the job's result."""
    return Path(fl_ctx.get_engine().get_workspace().get_app_dir(fl_ctx.get_job_id()))


def state_folder(fl_ctx: FLContext, job_id: str) -> Path:
    """Where the server commits the state of a run: outside the run folder, which FLARE removes when the job ends.

    The simulator has no store of its own; there it is in the run folder.
    """
    store = os.environ.get("FEDFMS_STORE")
    if store:
        return Path(store) / "state" / job_id
    return Path(fl_ctx.get_engine().get_workspace().get_run_dir(job_id)) / "fedfms" / "state"


def job_file(fl_ctx: FLContext) -> Path:
    """``training.yaml`` in the deployed app.

    Not by FLARE's ``get_app_config_dir``: kits that its ``package`` command makes leave the folder's name empty.
    """
    return app_folder(fl_ctx) / TRAINING


def job_location(fl_ctx: FLContext) -> JobLocation:
    """The job at this site, for policy, review and the record of what leaves."""
    workspace = fl_ctx.get_engine().get_workspace()
    return JobLocation(
        kit=Path(workspace.get_root_dir()),
        job_id=fl_ctx.get_job_id(),
        application=app_folder(fl_ctx),
        state=run_folder(fl_ctx) / "fedfms",
        simulated=bool(fl_ctx.get_prop(FLContextKey.SIMULATE_MODE, False)),
    )


def admit_task(fl_ctx: FLContext, task: str, round_number: int | None = None) -> tuple[Admission, JobContract]:
    """Ask the site's policy and review whether this job may do a task here.

    Args:
        fl_ctx: FLARE's context of the task.
        task: Its name.
        round_number: Its round, as the message says; of the task train an update that has left may leave again.

    Returns:
        The admission, and the job with its schema as this process derived them.

    Raises:
        FedfmsError: as `fedfms.site.admission.admit`; FMS-X005 when the job's file was changed since it was first read.
    """
    admission, contract = admit(job_location(fl_ctx), task, round_number), run_contract(fl_ctx)
    if admission.application.job != contract.job:
        raise fail(JOB_DIFFERS, job_file(fl_ctx), "was changed while the job ran")
    return admission, contract


def run_contract(fl_ctx: FLContext) -> JobContract:
    """The job and its schema, derived here and not taken from a message.

    Raises:
        FedfmsError: FMS-J001 or FMS-J002 for the job's file, FMS-M005 for its model.
    """
    return _contract(job_file(fl_ctx))


@lru_cache(maxsize=4)
def _contract(path: Path) -> JobContract:
    job = load_job(path)
    return JobContract(job=job, schema=schema_of(job.model))


def report_locally(fl_ctx: FLContext, title: str, error: BaseException) -> None:
    """Write an error's full text to stderr and to the run folder, never to FLARE's loggers.

    FLARE streams error logs to the server; a text with paths and keys must not be in them.
    """
    local = isinstance(error, FedfmsError)
    text = str(error) if local else "".join(traceback.format_exception(error)).rstrip()
    print(f"{title}\n{text}", file=sys.stderr, flush=True)
    try:
        folder = run_folder(fl_ctx) / "fedfms"
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "errors.log").open("a", encoding="utf-8") as file:
            file.write(f"{datetime.now(timezone.utc).isoformat(timespec='seconds')} {title}\n{text}\n")
    except OSError as failure:
        print(f"the local error log cannot be written: {failure}", file=sys.stderr, flush=True)


def tell_broken(fl_ctx: FLContext, ids: Iterable[str]) -> None:
    """Notify the people of this site or server that the job failed here, if they want to know. Never raises.

    Not for what they decided themselves (rejected), nor for what only waits for their decision.
    """
    ids = tuple(ids)
    if not set(ids) & {NOT_APPROVED.id, REJECTED.id}:
        try:
            location = job_location(fl_ctx)
        except Exception as error:  # noqa: BLE001 - a notice must not replace the failure that it is about
            print(f"nobody was notified: {reason_of(error)}", file=sys.stderr, flush=True)
            return
        tell_run_broke(location.kit, fl_ctx.get_identity_name(), location.job_id, ids)


@contextmanager
def public_errors(fl_ctx: FLContext, title: str) -> Iterator[None]:
    """Turn a FedfmsError, which ends the job, into a RuntimeError of its public text: FLARE logs what it catches."""
    try:
        yield
    except FedfmsError as error:
        report_locally(fl_ctx, title, error)
        tell_broken(fl_ctx, error.ids)
        raise RuntimeError(error.public) from None
