"""The gates: what may leave a site, and what the server accepts. Both rebuild a message and never pass one on.

FLARE's own filters fail open: they inspect the kinds of data they know and let the rest pass. These
fail closed, and they run twice at a site: as a filter that the job configures, and as a component of the
site's own ``privacy.json``, which no job can switch off and which enforces the site's ``policy.yaml``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from nvflare.apis.analytix import AnalyticsDataType, TrackConst
from nvflare.apis.dxo import DataKind, from_shareable
from nvflare.apis.event_type import EventType
from nvflare.apis.filter import Filter
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import EventScope, FedEventHeader, FLContextKey, ProcessType, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.apis.utils.fl_context_utils import add_job_audit_event

from fedfms.errors import CATALOGUE, GATE_CLOSED, SCOPE_REFUSED, UNEXPECTED, FedfmsError, Problem, fail
from fedfms.exchange.messages import JobContract, Reply, check_reply, message_digest, reply_message
from fedfms.exchange.replies import KINDS, ReadyReport, TrainReport
from fedfms.exchange.state import l2_norm
from fedfms.flare.commands import limit_job_commands
from fedfms.flare.context import admit_task, job_location, report_locally, run_contract, tell_broken
from fedfms.flare.messages import (
    MESSAGE,
    error_ids,
    error_reply,
    reply_content,
    round_of,
    serialized_bytes,
    to_shareable,
)
from fedfms.site.admission import require_cases, require_slices, updates_used_up
from fedfms.site.egress import EGRESS_FOLDER, EgressLine, describe_tensors, record, record_file
from fedfms.site.page import write_egress_page
from fedfms.site.records import locked, utc_now


def check_egress(reply: Shareable, contract: JobContract, *, task: str, site: str) -> Shareable:
    """Build the reply that may leave according to the job.

    Args:
        reply: What the executor, or the filter before this one, returned.
        contract: The site's own derivation from the job.
        task: Name of the task.
        site: The site's own name.

    Returns:
        A new reply; for a failed task only its return code and error ids.

    Raises:
        FedfmsError: what `fedfms.exchange.messages.check_reply` raises.
    """
    if reply.get_return_code() != ReturnCode.OK:
        return error_reply(reply.get_return_code(), error_ids(reply))
    limit = contract.job.update_norm_limit
    return to_shareable(
        reply_message(check_reply(reply.get(MESSAGE), contract, kind=task, site=site, norm_limit=limit), contract)
    )


def check_site_egress(reply: Shareable, fl_ctx: FLContext) -> tuple[Shareable, EgressLine]:
    """Build the reply that may leave according to the site's policy, and the line of the record about it.

    Args:
        reply: What the executor and the job's filter returned.
        fl_ctx: FLARE's context of the task.

    Raises:
        FedfmsError: what `admit_task` and `fedfms.exchange.messages.check_reply` raise; FMS-X012 for another
            scope, FMS-S006 for too few cases.
    """
    task, site = fl_ctx.get_prop(FLContextKey.TASK_NAME), fl_ctx.get_identity_name()
    if reply.get_return_code() != ReturnCode.OK:
        sent = error_reply(reply.get_return_code(), error_ids(reply))
        return sent, _line(sent, task, "refused")
    admission, contract = admit_task(fl_ctx, task, round_of(reply.get(MESSAGE)))
    policy = admission.policy
    if contract.job.scope not in policy.scopes:
        raise fail(SCOPE_REFUSED, "scope", f"the job exchanges {contract.job.scope}, allowed: {list(policy.scopes)}")
    limit = min(policy.update_norm_limit, contract.job.update_norm_limit)
    checked = check_reply(reply.get(MESSAGE), contract, kind=task, site=site, norm_limit=limit)
    if isinstance(checked.report, ReadyReport):
        require_cases(policy, checked.report.cases)
    if checked.update is not None:
        require_cases(policy, checked.update.cases)
        steps = checked.report.steps if isinstance(checked.report, TrainReport) else None
        require_slices(policy, steps, contract.job.batch_size)
    report, withheld = policy.withhold(checked.report)
    sent = to_shareable(reply_message(replace(checked, report=report), contract))
    digest = admission.application.review_sha256
    line = _line(sent, task, "withheld" if withheld else "sent", checked, withheld, digest)
    if admission.only is not None and line.sha256 not in admission.only:
        raise updates_used_up()
    return sent, line


def _line(
    sent: Shareable,
    task: str,
    decision: Literal["sent", "withheld", "refused"],
    reply: Reply | None = None,
    withheld: tuple[str, ...] = (),
    digest: str | None = None,
) -> EgressLine:
    """The line of the record about a reply; measured on what is really sent, not on what was meant to be."""
    content = reply_content(sent)
    update = reply.update if reply is not None else None
    return EgressLine(
        time=utc_now(),
        task=task if task in KINDS else "unknown",
        round=reply.round if reply is not None else None,
        decision=decision,
        review_sha256=digest,
        errors=error_ids(sent),
        bytes=serialized_bytes(content),
        sha256=message_digest(content),
        norm=l2_norm(update.tensors) if update is not None else None,
        cases=update.cases if update is not None else None,
        tensors=describe_tensors(update.tensors) if update is not None else (),
        report=content.get("report"),
        withheld=withheld,
    )


def _closed(fl_ctx: FLContext, error: BaseException) -> Shareable:
    """The reply of a gate that refused or failed: error ids and nothing else. Never raises."""
    ids = (GATE_CLOSED.id, *(error.ids if isinstance(error, FedfmsError) else ()))
    try:
        report_locally(fl_ctx, "The egress gate sent nothing:", error)
        add_job_audit_event(fl_ctx=fl_ctx, msg=f"egress gate closed: {' '.join(ids)}")
        tell_broken(fl_ctx, ids)
    except BaseException as failure:  # noqa: BLE001 - a record that fails must not open the gate
        print(f"the egress gate could not write its record: {type(failure).__name__}", flush=True)
    return error_reply(ReturnCode.TASK_RESULT_FILTER_ERROR, ids)


def check_ingress(result: Shareable, contract: JobContract, *, task: str, site: str, round_number: int) -> Reply:
    """The server's ingress gate: check a reply that arrived.

    Args:
        result: The reply.
        contract: The server's own derivation from the job.
        task: Name of the task that was sent.
        site: The site, as the transport authenticated it.
        round_number: Round of the task that was sent.

    Returns:
        A new reply that shares nothing with the one that arrived.

    Raises:
        FedfmsError: with the ids that a failed site names, or what `fedfms.exchange.messages.check_reply` raises.
    """
    if result.get_return_code() != ReturnCode.OK:
        ids = error_ids(result)
        kinds = [CATALOGUE[name] for name in ids] or [UNEXPECTED]
        raise FedfmsError(Problem(kind, site, f"the site replied {result.get_return_code()}") for kind in kinds)
    return check_reply(
        result.get(MESSAGE),
        contract,
        kind=task,
        site=site,
        norm_limit=contract.job.update_norm_limit,
        round_number=round_number,
    )


class EgressFilter(Filter):
    """The egress gate as the job configures it: ``task_result_filters`` in ``config_fed_client.json``."""

    def process(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        """Replace the reply by one that contains only what the schema and the closed lists name.

        Any failure becomes a reply of error ids: this never raises and never returns its input.
        """
        try:
            task, site = fl_ctx.get_prop(FLContextKey.TASK_NAME), fl_ctx.get_identity_name()
            return check_egress(shareable, run_contract(fl_ctx), task=task, site=site)
        # Also SystemExit and the like: a gate that fails must not let the original reply pass.
        except BaseException as error:  # noqa: BLE001
            return _closed(fl_ctx, error)


class ExitGate(FLComponent):
    """The site's own egress gate: a component in ``privacy.json``, after all filters of scope and job.

    It enforces ``local/policy.yaml`` and the review (`fedfms.site.admission`) once more, withholds figures, and writes
    the record of what leaves (`fedfms.site.egress`) before it leaves; without a line on the disk nothing is sent. It
    takes no arguments: the policy is the one place where a site says what it allows.

    FLARE loads these components only when the file also names at least one scope. Handlers of one event run
    in the order of construction, the site's components after the job's and before FLARE's own sender of
    federation events; those are emptied here too, because filters never see them.
    """

    def __init__(self) -> None:
        super().__init__()
        limit_job_commands()
        self.register_event_handler(EventType.AFTER_TASK_RESULT_FILTER, self._on_result)
        self.register_event_handler(EventType.END_RUN, self._on_end)

    def _on_result(self, event_type: str, fl_ctx: FLContext) -> None:
        """Rebuild the reply in place: FLARE only logs what a handler raises, and then sends the same object."""
        if fl_ctx.get_process_type() == ProcessType.SERVER_JOB:
            return  # the simulator gives the server the sites' files; nothing leaves a site there
        reply = fl_ctx.get_prop(FLContextKey.TASK_RESULT)
        raw = Shareable()
        try:
            dict.update(raw, reply)
        finally:
            # From here on nothing of the original can leave, even if something below fails.
            dict.clear(reply)
        dict.update(reply, self._let_out(raw, fl_ctx))

    @staticmethod
    def _let_out(raw: Shareable, fl_ctx: FLContext) -> Shareable:
        """The reply that may leave, after its line is on the disk. Never raises and never returns its input.

        One reply at a time: two tasks at once could both use the last allowed reply.
        """
        line = None
        try:
            location = job_location(fl_ctx)
            with locked(location.kit / EGRESS_FOLDER):
                try:
                    sent, line = check_site_egress(raw, fl_ctx)
                except BaseException as error:  # noqa: BLE001 - as in EgressFilter
                    sent = _closed(fl_ctx, error)
                line = line or _line(sent, fl_ctx.get_prop(FLContextKey.TASK_NAME), "refused")
                record(location.kit, location.job_id, line)
        except BaseException as error:  # noqa: BLE001
            return _closed(fl_ctx, error)
        return sent

    def _on_end(self, event_type: str, fl_ctx: FLContext) -> None:
        """Write the record as a page; the record itself is complete without it."""
        if fl_ctx.get_process_type() == ProcessType.SERVER_JOB:
            return
        location = job_location(fl_ctx)
        try:
            if record_file(location.kit, location.job_id).exists():
                write_egress_page(location.kit, location.job_id)
        except Exception as error:  # noqa: BLE001 - FLARE would log its text
            report_locally(fl_ctx, "The page about what left could not be written:", error)

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Empty every federation event that would leave: scalars, log lines, anything a component may send."""
        outgoing = (
            fl_ctx.get_prop(FLContextKey.EVENT_SCOPE) == EventScope.FEDERATION
            and fl_ctx.get_process_type() != ProcessType.SERVER_JOB
        )
        data = fl_ctx.get_prop(FLContextKey.EVENT_DATA)
        if outgoing and isinstance(data, Shareable) and data.get_header(FedEventHeader.DIRECTION, "out") == "out":
            kind = _kind_of(data)
            dict.clear(data)
            add_job_audit_event(fl_ctx=fl_ctx, msg=f"exit gate emptied a federation event: {kind}")


def _kind_of(data: Shareable) -> str:
    """The sort of data in an event, in words of FLARE's own lists; nothing of its content."""
    try:
        carried = from_shareable(data)
        if carried.data_kind != DataKind.ANALYTIC:
            return "no analytics"
        sort = carried.get_meta_prop(TrackConst.DATA_TYPE_KEY)
        return f"analytics, {sort.name}" if isinstance(sort, AnalyticsDataType) else "analytics"
    except Exception:  # noqa: BLE001 - it is only a word for the audit log; the event is emptied anyway
        return "ill-formed"
