"""The server's own component: notes what the server refuses, and lets it follow the files of its kit.

FLARE itself writes only authorized commands into the audit log: FLARE 2.9 checks the right to a command before it logs
the command, and notes a job that it did not deploy (code inside, altered after signing, no right) only in its ordinary
log and in the job's metadata.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.job_def import JobMetaKey
from nvflare.fuel.hci.server.authz import AuthzFilter
from nvflare.fuel.hci.server.constants import ConnProps
from nvflare.fuel.sec.audit import AuditService

from fedfms.configuration import printable
from fedfms.flare.participation import Doorkeeper, follow_studies


class RefusalAudit(FLComponent):
    """A component of the server's ``local/resources.json``: notes refused commands and jobs that ended too early.

    A command's line has the user, the command and ``refused``; a job's line has the job's id as reference and
    the reasons that server and sites gave when it was to be deployed.

    It also makes the server follow the files of studies and blocked participants in its kit
    (`fedfms.flare.participation`). That it is not a component of its own keeps ``resources.json`` of older kits valid.
    """

    def __init__(self) -> None:
        super().__init__()
        self._doorkeeper: Doorkeeper | None = None
        self.register_event_handler(EventType.JOB_ABORTED, self._on_aborted)
        self.register_event_handler(EventType.SYSTEM_BOOTSTRAP, self._on_bootstrap)
        arrivals = [EventType.CLIENT_REGISTER_RECEIVED, EventType.CLIENT_HEARTBEAT_RECEIVED]
        self.register_event_handler(arrivals, self._on_arrival)
        # On the class, because FLARE makes its one filter itself; once, however many components are built.
        if not hasattr(AuthzFilter.pre_command, "__wrapped__"):
            AuthzFilter.pre_command = _noted(AuthzFilter.pre_command)

    def _on_bootstrap(self, event_type: str, fl_ctx: FLContext) -> None:
        workspace = fl_ctx.get_prop(FLContextKey.WORKSPACE_OBJECT)
        follow_studies(workspace)
        self._doorkeeper = Doorkeeper(workspace)
        self._doorkeeper.guard()

    def _on_arrival(self, event_type: str, fl_ctx: FLContext) -> None:
        if self._doorkeeper is not None:
            self._doorkeeper.disconnect(fl_ctx.get_engine())

    def _on_aborted(self, event_type: str, fl_ctx: FLContext) -> None:
        data = fl_ctx.get_prop(FLContextKey.EVENT_DATA)
        job_id = data.get(JobMetaKey.JOB_ID.value, "") if isinstance(data, dict) else ""
        reasons = fl_ctx.get_prop(FLContextKey.JOB_DEPLOY_DETAIL)
        # FLARE keeps the list in its context until the next job; it is about this job only while this one is deployed.
        own = reasons if fl_ctx.get_prop(FLContextKey.JOB_RUN_NUMBER) == job_id else None
        detail = printable("; ".join(map(str, own or ())))
        AuditService.add_event("server", "job aborted", ref=str(job_id), msg=f" deployment: {detail}" if detail else "")


def _noted(check: Callable[..., bool]) -> Callable[..., bool]:
    @wraps(check)
    def pre_command(self: AuthzFilter, conn: Any, args: list[str]) -> bool:
        allowed = False
        try:
            allowed = check(self, conn, args)
        finally:
            if not allowed:
                user = printable(str(conn.get_prop(ConnProps.USER_NAME, "?")))
                AuditService.add_event(user, printable(str(conn.command)), msg=" refused")
        return allowed

    return pre_command
