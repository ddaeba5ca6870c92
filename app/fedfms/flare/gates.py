"""The gates: what may leave a site, and what the server lets in. Both rebuild a message; none passes one on.

FLARE's stock filters fail open: they look at the kinds of data they know and let the rest through. These
fail closed, and they run twice at a site: as a filter that the job configures, and as a component of the
site's own ``privacy.json``, which no job can switch off.
"""

from __future__ import annotations

import math
from typing import get_args

from nvflare.apis.event_type import EventType
from nvflare.apis.filter import Filter
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import EventScope, FedEventHeader, FLContextKey, ProcessType, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.apis.utils.fl_context_utils import add_job_audit_event

from fedfms.errors import CATALOGUE, GATE_CLOSED, SCOPE_REFUSED, UNEXPECTED, FedfmsError, Problem, fail
from fedfms.exchange import Reply, Terms, check_reply, reply_message
from fedfms.flare.messages import MESSAGE, error_ids, error_reply, to_shareable
from fedfms.flare.run import report_locally, run_terms
from fedfms.sam.config import Scope

SCOPES: tuple[str, ...] = get_args(Scope)


def leave(
    reply: Shareable, terms: Terms, *, task: str, site: str, scopes: tuple[str, ...], norm_limit: float
) -> Shareable:
    """Build the reply that may leave the site.

    Args:
        reply: What the executor, or the filter before, returned.
        terms: The site's own derivation from the job.
        task: Name of the task.
        site: The site's own name.
        scopes: Exchange scopes the site allows.
        norm_limit: Largest L2 norm of an update the site allows; the job's own limit holds as well.

    Raises:
        FedfmsError: FMS-X012 for another scope, or what `fedfms.exchange.check_reply` raises.
    """
    if reply.get_return_code() != ReturnCode.OK:
        return error_reply(reply.get_return_code(), error_ids(reply))
    if terms.job.scope not in scopes:
        raise fail(SCOPE_REFUSED, "scope", f"the job exchanges {terms.job.scope}, allowed: {list(scopes)}")
    limit = min(norm_limit, terms.job.update_norm_limit)
    checked = check_reply(reply.get(MESSAGE), terms, kind=task, site=site, norm_limit=limit)
    return to_shareable(reply_message(checked, terms))


def leave_or_close(reply: Shareable, fl_ctx: FLContext, *, scopes: tuple[str, ...], norm_limit: float) -> Shareable:
    """As `leave`, but whatever goes wrong becomes a reply of error ids; never raises, never its input."""
    try:
        return leave(
            reply,
            run_terms(fl_ctx),
            task=fl_ctx.get_prop(FLContextKey.TASK_NAME),
            site=fl_ctx.get_identity_name(),
            scopes=scopes,
            norm_limit=norm_limit,
        )
    # Also SystemExit and the like: a gate that dies must not leave the reply lying open.
    except BaseException as error:  # noqa: BLE001
        ids = error.ids if isinstance(error, FedfmsError) else ()
        closed = error_reply(ReturnCode.TASK_RESULT_FILTER_ERROR, (GATE_CLOSED.id, *ids))
        try:
            report_locally(fl_ctx, "The egress gate sent nothing:", error)
            add_job_audit_event(fl_ctx=fl_ctx, msg=f"egress gate closed: {' '.join((GATE_CLOSED.id, *ids))}")
        except BaseException as failure:  # noqa: BLE001 - a record that fails must not open the gate
            print(f"the egress gate could not write its record: {type(failure).__name__}", flush=True)
        return closed


def enter(result: Shareable, terms: Terms, *, task: str, site: str, round_number: int) -> Reply:
    """The server's ingress gate: the checked reply, or the reason why not.

    Raises:
        FedfmsError: the ids a failed site names, or what `fedfms.exchange.check_reply` raises.
    """
    if result.get_return_code() != ReturnCode.OK:
        ids = error_ids(result)
        kinds = [CATALOGUE[name] for name in ids] or [UNEXPECTED]
        raise FedfmsError(Problem(kind, site, f"the site replied {result.get_return_code()}") for kind in kinds)
    return check_reply(
        result.get(MESSAGE),
        terms,
        kind=task,
        site=site,
        norm_limit=terms.job.update_norm_limit,
        round_number=round_number,
    )


class EgressFilter(Filter):
    """The egress gate as the job configures it: ``task_result_filters`` in ``config_fed_client.json``."""

    def process(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        """Replace the reply by one that holds only what the schema and the closed lists name."""
        return leave_or_close(shareable, fl_ctx, scopes=SCOPES, norm_limit=math.inf)


class ExitGate(FLComponent):
    """The site's own egress gate: a component in ``privacy.json``, after all filters of scope and job.

    FLARE loads these components only when the file also names at least one scope. Handlers of one event run
    in the order of construction, the site's components after the job's and before FLARE's own sender of
    federation events; those are emptied here too, because filters never see them.

    Args:
        allowed_scopes: Exchange scopes the site takes part in.
        update_norm_limit: Largest L2 norm of an update that may leave.

    Raises:
        ValueError: for an unknown scope or a limit that is not positive; no job then starts at the site.
    """

    def __init__(self, allowed_scopes: list[str], update_norm_limit: float) -> None:
        super().__init__()
        unknown = [scope for scope in allowed_scopes if scope not in SCOPES]
        if unknown or not allowed_scopes:
            raise ValueError(f"allowed_scopes: choose from {list(SCOPES)}, found {allowed_scopes}")
        if not (isinstance(update_norm_limit, int | float) and 0 < update_norm_limit < math.inf):
            raise ValueError(f"update_norm_limit: expected a positive number, found {update_norm_limit!r}")
        self._scopes = tuple(allowed_scopes)
        self._norm_limit = float(update_norm_limit)
        self.register_event_handler(EventType.AFTER_TASK_RESULT_FILTER, self._on_result)

    def _on_result(self, event_type: str, fl_ctx: FLContext) -> None:
        """Rebuild the reply in place: FLARE only logs what a handler raises and sends the same object."""
        if fl_ctx.get_process_type() == ProcessType.SERVER_JOB:
            return  # the simulator gives the server the sites' files; nothing leaves a site there
        reply = fl_ctx.get_prop(FLContextKey.TASK_RESULT)
        raw = Shareable()
        try:
            dict.update(raw, reply)
        finally:
            # From here on nothing of the original can leave, whatever happens below.
            dict.clear(reply)
        dict.update(reply, leave_or_close(raw, fl_ctx, scopes=self._scopes, norm_limit=self._norm_limit))

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Empty every federation event on its way out: scalars, log lines, whatever a component may send."""
        outgoing = (
            fl_ctx.get_prop(FLContextKey.EVENT_SCOPE) == EventScope.FEDERATION
            and fl_ctx.get_process_type() != ProcessType.SERVER_JOB
        )
        data = fl_ctx.get_prop(FLContextKey.EVENT_DATA)
        if outgoing and isinstance(data, Shareable) and data.get_header(FedEventHeader.DIRECTION, "out") == "out":
            dict.clear(data)
            add_job_audit_event(fl_ctx=fl_ctx, msg="exit gate emptied a federation event")
