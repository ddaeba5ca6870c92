"""The executor: one task of a site, from the server's message to the reply."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nvflare.apis.event_type import EventType
from nvflare.apis.executor import Executor
from nvflare.apis.fl_constant import FLContextKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.apis.signal import Signal
from torch import Tensor

from fedfms.errors import BACKBONE_DIFFERS, JOB_DIFFERS, SCHEMA_MISMATCH, UNEXPECTED, FedfmsError, Problem
from fedfms.exchange import ENCODING, Task, Terms, check_task
from fedfms.exchanged_state import check_tensors, require_bounded_change, require_same_start
from fedfms.flare.console import ProgressPrinter, quiet_console, say
from fedfms.flare.messages import MESSAGE, error_reply, register_tensors, to_shareable
from fedfms.flare.run import job_file, report_locally, run_folder, run_terms
from fedfms.flare.site_file import find_site_file
from fedfms.reports import KINDS, REPORTS, Kind
from fedfms.sam.checkpoint import load_checkpoint, require_same_model, save_exchange
from fedfms.sam.model import initial_state
from fedfms.training.headers import job_header
from fedfms.training.process import TaskAborted, WorkerResult, prepare_worker, run_task, stop_prepared
from fedfms.training.task import LEFT_OUT_FILE, WorkerTask

RECEIVED = "received.safetensors"


class FedfmsExecutor(Executor):
    """Runs the tasks ready, train, validate and final in a worker process and replies with what may travel.

    Nothing that a task needs lives here: the simulator with fewer threads than clients makes a new one for each.

    Attributes:
        run_task: Runs a task in the training process; replaced in tests.
        prepare_worker: Starts the training process of the coming task; replaced in tests.
    """

    run_task: Callable[..., WorkerResult] = staticmethod(run_task)
    prepare_worker: Callable[[Path], None] = staticmethod(prepare_worker)

    def __init__(self) -> None:
        super().__init__()
        self._tasks_done = 0
        self.register_event_handler(EventType.END_RUN, self._on_end)
        register_tensors()
        quiet_console()

    def _on_end(self, event_type: str, fl_ctx: FLContext) -> None:
        stop_prepared()

    def execute(self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        """Do one task.

        Returns:
            The reply of the task's kind, or a return code with error ids. The errors' text stays here: on
            stderr and in the run folder.
        """
        try:
            return self._execute(task_name, shareable, fl_ctx, abort_signal)
        except TaskAborted:
            return make_reply(ReturnCode.TASK_ABORTED)
        except FedfmsError as error:
            report_locally(fl_ctx, f"[{fl_ctx.get_identity_name()}] task {task_name} failed:", error)
            return error_reply(ReturnCode.EXECUTION_EXCEPTION, error.ids)
        except Exception as error:  # noqa: BLE001 - FLARE would log and stream its text
            report_locally(fl_ctx, f"[{fl_ctx.get_identity_name()}] task {task_name} failed:", error)
            return error_reply(ReturnCode.EXECUTION_EXCEPTION, [UNEXPECTED.id])

    def _execute(self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        if task_name not in KINDS:
            return make_reply(ReturnCode.TASK_UNSUPPORTED)
        kind: Kind = task_name
        site: str = fl_ctx.get_identity_name()
        terms = run_terms(fl_ctx)
        task = check_task(shareable.get(MESSAGE), terms, kind=kind)
        folder = run_folder(fl_ctx) / "fedfms"
        if task.tensors is not None:
            require_trusted_state(task, terms, folder)
        workspace = fl_ctx.get_engine().get_workspace()
        site_file = find_site_file(
            Path(workspace.get_site_config_dir()),
            site,
            simulated=bool(fl_ctx.get_prop(FLContextKey.SIMULATE_MODE, False)),
            run_folder=run_folder(fl_ctx),
        )
        title = f"[{site}] {_title(task, terms)}"
        task_folder = _task_folder(folder, kind, task.round)
        result = self.run_task(
            WorkerTask(
                kind=kind,
                site=site,
                round=task.round,
                job_file=job_file(fl_ctx),
                site_file=site_file,
                state_folder=folder,
            ),
            task.tensors,
            task_folder,
            lambda: bool(abort_signal.triggered),
            ProgressPrinter(title),
        )
        if left_out := result.report.get("cases_left_out"):
            say(f"{title}  {left_out} cases with bad files are left out, see {folder / LEFT_OUT_FILE}")
        say(f"{title}  done")
        reply = to_shareable(_message(kind, site, task.round, result, terms))
        try:
            for file in task_folder.glob("*.safetensors"):
                file.unlink()  # the log stays, the tensors of every round would fill the disk
            self._warm_up(task, terms, folder)
        except OSError as error:  # the work is done: what follows it must not cost it
            report_locally(fl_ctx, f"{title}: after the task", error)
        return reply

    def _warm_up(self, task: Task, terms: Terms, folder: Path) -> None:
        """Start the coming task's training process while the server aggregates, if this process lives on."""
        self._tasks_done += 1
        if task.kind == "train" and self._tasks_done > 1:
            following = task.round + 1
            kind: Kind = "train" if following < terms.job.rounds else "validate"
            self.prepare_worker(_task_folder(folder, kind, following))


def require_trusted_state(task: Task, terms: Terms, folder: Path) -> None:
    """Hold the received state against what the site knows, then keep it for the next comparison.

    Raises:
        FedfmsError: FMS-X008 in round 0 when it is not what backbone and seed give, FMS-X003 later when it
            moved further than the accepted updates can move it.
    """
    assert task.tensors is not None
    path = folder / RECEIVED
    kept = None
    if task.round > 0 and path.is_file():
        try:
            kept = load_checkpoint(path)
            require_same_model(path, kept.header.model, terms.job.model)
        except FedfmsError as error:
            say(f"{path} cannot be read ({' '.join(error.ids)}); measuring from the state before round 0")
    if kept is not None:
        last, rounds = kept.tensors, kept.header.rounds
    else:
        # Also the yardstick of a site that joins late or has lost its file.
        last, rounds = check_tensors(initial_state(terms.job.model, terms.job.seed), terms.schema), 0
    if task.round == 0:
        require_same_start(task.tensors, last)
    else:
        require_bounded_change(
            task.tensors,
            last,
            rounds=abs(task.round - rounds),
            structures=len(terms.job.structures),
            norm_limit=terms.job.update_norm_limit,
            momentum=terms.job.server_momentum,
        )
    save_exchange(path, job_header(terms.job, task.round), task.tensors)


def _task_folder(folder: Path, kind: Kind, round_number: int) -> Path:
    return folder / "tasks" / f"{kind}-{round_number:04d}"


def _title(task: Task, terms: Terms) -> str:
    titles = {
        "ready": "checking data",
        "validate": "validating the last model",
        "final": "keeping the best model",
    }
    if task.kind == "train":
        return f"round {task.round + 1}/{terms.job.rounds}"
    return titles[task.kind]


def _message(kind: Kind, site: str, round_number: int, result: WorkerResult, terms: Terms) -> dict[str, Any]:
    """The reply in the form in which it travels; the gates check it and rebuild it.

    Figures of the worker that no reply has a place for (the digest of the split, for one) stay at the site.
    """
    report: Mapping[str, Any] = result.report
    if kind == "ready":
        _require_same_digests(report, terms)
    fields = {name: report[name] for name in REPORTS[kind].model_fields if name in report}
    message = {"kind": kind, "site": site, "round": round_number, **terms.digests, "report": fields}
    if result.update is not None:
        tensors: dict[str, Tensor] = result.update
        message["update"] = {"encoding": ENCODING, "cases": report["cases"], "tensors": tensors}
    return message


def _require_same_digests(report: Mapping[str, Any], terms: Terms) -> None:
    """A second pair of eyes: the worker read the job and built the model by itself.

    That the backbone's file has the digest it should have is checked wherever it is read.
    """
    kinds = {"schema_sha256": SCHEMA_MISMATCH, "backbone_sha256": BACKBONE_DIFFERS, "job_sha256": JOB_DIFFERS}
    problems = [
        Problem(kinds[name], name, f"the worker found {report.get(name)}, the job demands {own}")
        for name, own in terms.digests.items()
        if report.get(name) != own
    ]
    if problems:
        raise FedfmsError(problems)
