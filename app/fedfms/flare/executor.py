"""The executor: does one task at a site, from the server's message to the reply."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from nvflare.apis.event_type import EventType
from nvflare.apis.executor import Executor
from nvflare.apis.fl_constant import FLContextKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.apis.signal import Signal
from nvflare.apis.utils.fl_context_utils import add_job_audit_event
from torch import Tensor

from fedfms.errors import (
    BACKBONE_DIFFERS,
    JOB_DIFFERS,
    NOT_APPROVED,
    SCHEMA_MISMATCH,
    UNEXPECTED,
    FedfmsError,
    Problem,
)
from fedfms.exchange.messages import ENCODING, JobContract, Task
from fedfms.exchange.replies import KINDS, REPORTS, TaskKind
from fedfms.files import write_json
from fedfms.flare.console import ProgressPrinter, quiet_console, say
from fedfms.flare.context import admit_task, job_file, job_location, report_locally, run_folder, tell_broken
from fedfms.flare.messages import MESSAGE, error_reply, register_types, round_of, to_shareable
from fedfms.flare.site_file import find_site_file
from fedfms.sam.checkpoint import load_checkpoint, save_exchange
from fedfms.sam.model import initial_state
from fedfms.site.admission import Admission, hours_over, require_cases, updates_used_up
from fedfms.site.allowance import received_file
from fedfms.site.application import read_application
from fedfms.site.description import submitter
from fedfms.site.job_location import JobLocation
from fedfms.site.notices import tell_certificates, tell_review_waits
from fedfms.site.policy import POLICY_FILE, site_policy
from fedfms.site.received_state import KeptState, of_this_run, trusted_task
from fedfms.site.records import make_closed, utc_now
from fedfms.site.review import PendingJob, clear_pending, write_pending
from fedfms.training.headers import job_header
from fedfms.training.process import TaskAborted, TaskRunner, WorkerResult, kept_result
from fedfms.training.task import LEFT_OUT_FILE, WorkerTask

#: Written when the checks of the task ready have passed at this site.
READY_FILE = "ready.json"


@dataclass(frozen=True)
class _TaskContext:
    """What the tasks that one message leads to have in common."""

    fl_ctx: FLContext
    site: str
    admission: Admission
    contract: JobContract
    folder: Path
    abort_signal: Signal


class FedfmsExecutor(Executor):
    """Runs the tasks ready, train, validate and final in a worker process and replies with what may travel.

    Before anything else of a task it asks the site's policy and review. A job that nobody has approved yet waits in the
    task ready; approved later, it catches up on the checks of ready and joins.

    No state that a task needs is kept here: the simulator with fewer threads than clients makes a new one for each.

    Attributes:
        poll_seconds: How often a waiting job looks for the decision.
    """

    poll_seconds = 2.0

    def __init__(self) -> None:
        super().__init__()
        self._runner = TaskRunner()
        self._one_task = threading.Lock()
        self.register_event_handler(EventType.END_RUN, self._on_end)
        register_types()
        quiet_console()

    def run_task(self, *arguments: Any) -> WorkerResult:
        """``TaskRunner.run``; replaced in tests."""
        return self._runner.run(*arguments)

    def _on_end(self, event_type: str, fl_ctx: FLContext) -> None:
        self._runner.close()
        location = job_location(fl_ctx)
        clear_pending(location.kit, location.job_id)

    def execute(self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        """Do one task.

        Returns:
            The reply of the task's kind, or a return code with error ids. The errors' text stays here: on
            stderr and in the run folder.
        """
        try:
            with self._alone(abort_signal):
                return self._execute(task_name, shareable, fl_ctx, abort_signal)
        except TaskAborted:
            return make_reply(ReturnCode.TASK_ABORTED)
        except FedfmsError as error:
            return _failed(task_name, error, error.ids, fl_ctx)
        except Exception as error:  # noqa: BLE001 - FLARE would log and stream its text
            return _failed(task_name, error, (UNEXPECTED.id,), fl_ctx)

    @contextmanager
    def _alone(self, abort_signal: Signal) -> Iterator[None]:
        """Admit one task at a time: two at once, which FLARE may ask for, would share a folder and the kept state."""
        while not self._one_task.acquire(timeout=self.poll_seconds):
            if abort_signal.triggered:
                raise TaskAborted
        try:
            yield
        finally:
            self._one_task.release()

    def _execute(self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        if task_name not in KINDS:
            return make_reply(ReturnCode.TASK_UNSUPPORTED)
        kind: TaskKind = task_name
        site: str = fl_ctx.get_identity_name()
        admission, contract = self._admit(kind, fl_ctx, abort_signal, round_of(shareable.get(MESSAGE)))
        task = _receive(shareable.get(MESSAGE), contract, kind, job_location(fl_ctx).kit, admission)
        folder = run_folder(fl_ctx) / "fedfms"
        context = _TaskContext(fl_ctx, site, admission, contract, folder, abort_signal)
        if kind in ("train", "validate") and not (folder / READY_FILE).is_file():
            # Approved after the task ready was over: its checks are still due.
            self._perform(Task("ready", 0, None), context)
        return to_shareable(self._perform(task, context))

    def _admit(
        self, kind: TaskKind, fl_ctx: FLContext, abort_signal: Signal, round_number: int | None
    ) -> tuple[Admission, JobContract]:
        """Ask policy and review; in the task ready, first wait for somebody to decide."""
        location = job_location(fl_ctx)
        if kind == "ready":
            tell_certificates(location.kit)
            self._wait_for_decision(fl_ctx, location, abort_signal)
        try:
            admitted = admit_task(fl_ctx, kind, round_number)
        except FedfmsError as error:
            if _is_undecided(error):
                # Told already, unless the approval has expired since, or the notice could not be sent.
                tell_review_waits(location, fl_ctx.get_identity_name())
            else:
                clear_pending(location.kit, location.job_id)
            add_job_audit_event(fl_ctx=fl_ctx, msg=f"site refused task {kind}: {' '.join(error.ids)}")
            raise
        clear_pending(location.kit, location.job_id)
        return admitted

    def _wait_for_decision(self, fl_ctx: FLContext, location: JobLocation, abort_signal: Signal) -> None:
        """Return when the job has been decided about, or after the minutes for which the policy lets it wait."""
        site = fl_ctx.get_identity_name()
        if location.simulated and not (location.kit / "local" / POLICY_FILE).exists():
            say(f"[{site}] no policy.yaml: the simulator's own applies (all scopes and figures, no review)")
        if not _waits_for_decision(fl_ctx):
            return
        deadline = time.monotonic() + 60 * _announce_waiting(location, site)
        while time.monotonic() < deadline and _waits_for_decision(fl_ctx):
            if abort_signal.triggered:
                raise TaskAborted
            time.sleep(self.poll_seconds)

    def _perform(self, task: Task, context: _TaskContext) -> dict[str, Any]:
        """Let the training process do the task. Returns the reply in the form in which it is sent."""
        fl_ctx, folder, kind = context.fl_ctx, context.folder, task.kind
        workspace = fl_ctx.get_engine().get_workspace()
        site_file = find_site_file(
            Path(workspace.get_site_config_dir()),
            context.site,
            simulated=bool(fl_ctx.get_prop(FLContextKey.SIMULATE_MODE, False)),
            run_folder=run_folder(fl_ctx),
        )
        title = f"[{context.site}] {_title(task, context.contract)}"
        task_folder = _task_folder(folder, kind, task.round)
        if kind == "train" and task.tensors is not None:
            if (kept := kept_result(task_folder, task.tensors)) is not None:
                say(f"{title}  asked for again: sending what was sent before")
                return _message(kind, context.site, task.round, kept, context.contract)
            if context.admission.only is not None:
                raise updates_used_up()
        try:
            result = self.run_task(
                WorkerTask(
                    kind=kind,
                    site=context.site,
                    round=task.round,
                    job_file=job_file(fl_ctx),
                    site_file=site_file,
                    state_folder=folder,
                ),
                task.tensors,
                task_folder,
                lambda: bool(context.abort_signal.triggered) or time.time() > context.admission.ends,
                ProgressPrinter(title),
            )
        except TaskAborted:
            if not context.abort_signal.triggered and time.time() > context.admission.ends:
                raise hours_over(context.admission.policy) from None
            raise
        if left_out := result.report.get("cases_left_out"):
            say(f"{title}  {left_out} cases with bad files are left out, see {folder / LEFT_OUT_FILE}")
        if kind == "ready":
            _require_same_digests(result.report, context.contract)
            require_cases(context.admission.policy, result.report["cases"])
            write_json(folder / READY_FILE, {"cases": result.report["cases"]})
        say(f"{title}  done")
        message = _message(kind, context.site, task.round, result, context.contract)
        with _after_the_work(fl_ctx, title):
            # The logs stay; the tensors of every round would fill the disk. Those of the last update are kept until the
            # next task, in case the server loses it.
            for file in task_folder.parent.glob("*/*.safetensors"):
                if kind != "train" or file.parent != task_folder:
                    file.unlink()
        return message


@contextmanager
def _after_the_work(fl_ctx: FLContext, title: str) -> Iterator[None]:
    """For what follows a task's work: a fault of the disk is reported locally and does not lose the reply."""
    try:
        yield
    except OSError as error:
        report_locally(fl_ctx, f"{title}: after the task", error)


def _failed(task_name: str, error: Exception, ids: tuple[str, ...], fl_ctx: FLContext) -> Shareable:
    """Report a failed task at the site. Returns the reply, which has the error ids only."""
    report_locally(fl_ctx, f"[{fl_ctx.get_identity_name()}] task {task_name} failed:", error)
    tell_broken(fl_ctx, ids)
    return error_reply(ReturnCode.EXECUTION_EXCEPTION, ids)


def _is_undecided(error: FedfmsError) -> bool:
    """Whether the site's missing decision is all that keeps a job from its task."""
    return error.ids == (NOT_APPROVED.id,)


def _waits_for_decision(fl_ctx: FLContext) -> bool:
    try:
        admit_task(fl_ctx, "ready")
    except FedfmsError as error:
        return _is_undecided(error)
    return False


def _announce_waiting(location: JobLocation, site: str) -> float:
    """Tell the people at the site that a job waits for their decision.

    Returns:
        For how many minutes it waits.
    """
    application = read_application(location.application)
    minutes = site_policy(location.kit, simulated=location.simulated).review.hold_minutes
    waiting = PendingJob(
        job_id=location.job_id,
        digest=application.review_sha256,
        since=utc_now(),
        task=application.job.task,
        submitter=submitter(location.state.parent),
    )
    write_pending(location.kit, waiting)
    tell_review_waits(location, site)
    say(f"[{site}] waiting {minutes:g} minutes for approval; approved later, the job joins in its next round")
    say(f"[{site}] in {location.kit}: fedfms review show {location.job_id} names the command to approve it")
    return minutes


def _receive(message: object, contract: JobContract, kind: TaskKind, kit: Path, admission: Admission) -> Task:
    """Apply the site's rules to what arrived, and store an accepted state for the next comparison."""
    path = received_file(kit, admission.application.review_sha256)
    trusted = trusted_task(
        message,
        contract,
        kind,
        lambda: _kept_state(path, admission.since),
        lambda: initial_state(contract.job.model, contract.job.seed),
    )
    for warning in trusted.warnings:
        say(warning)
    if trusted.keep and trusted.task.tensors is not None:
        make_closed(path.parent)
        save_exchange(path, job_header(contract.job, trusted.task.round), trusted.task.tensors)
    return trusted.task


def _kept_state(path: Path, approved: datetime | None) -> KeptState:
    """Read the state that was accepted last. One from an earlier run is deleted."""
    if path.is_file() and not of_this_run(datetime.fromtimestamp(path.stat().st_mtime, timezone.utc), approved):
        path.unlink()
    if not path.is_file():
        return KeptState(path, None)
    try:
        return KeptState(path, load_checkpoint(path))
    except FedfmsError as error:
        return KeptState(path, error)


def _task_folder(folder: Path, kind: TaskKind, round_number: int) -> Path:
    return folder / "tasks" / f"{kind}-{round_number:04d}"


def _title(task: Task, contract: JobContract) -> str:
    titles = {
        "ready": "checking data",
        "validate": "validating the last model",
        "final": "keeping the final model",
    }
    if task.kind == "train":
        return f"round {task.round + 1}/{contract.job.rounds}"
    return titles[task.kind]


def _message(
    kind: TaskKind, site: str, round_number: int, result: WorkerResult, contract: JobContract
) -> dict[str, Any]:
    """The reply in the form in which it is sent; the gates check it and rebuild it.

    Figures of the worker that no reply has a place for (the digest of the split, for one) stay at the site.
    """
    report: Mapping[str, Any] = result.report
    fields = {name: report[name] for name in REPORTS[kind].model_fields if name in report}
    message = {"kind": kind, "site": site, "round": round_number, **contract.digests, "report": fields}
    if result.update is not None:
        tensors: dict[str, Tensor] = result.update
        message["update"] = {"encoding": ENCODING, "cases": report["cases"], "tensors": tensors}
    return message


def _require_same_digests(report: Mapping[str, Any], contract: JobContract) -> None:
    """Compare the digests that the worker derived with this process's: it reads the job and builds the model itself.

    The digest of the backbone's file is checked wherever the file is read.
    """
    kinds = {"schema_sha256": SCHEMA_MISMATCH, "backbone_sha256": BACKBONE_DIFFERS, "job_sha256": JOB_DIFFERS}
    problems = [
        Problem(kinds[name], name, f"the worker found {report.get(name)}, the job requires {own}")
        for name, own in contract.digests.items()
        if report.get(name) != own
    ]
    if problems:
        raise FedfmsError(problems)
