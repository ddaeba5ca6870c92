"""Restricts the server's commands that a site answers to those that a job needs.

``local/authorization.json`` protects a site against persons. It does not protect against the server: FLARE's client
asks it only when the server's message says so (``require_authz``), and takes the person's name, organisation and role
from the same message. Without this gate, a compromised server could read any file of the site with
the commands ``cat``, ``grep`` and ``ls``.

The commands that remain still name a job, and FLARE uses the name as a folder in the kit that it empties
(``delete_run``, and before it deploys). So a name that is not a UUID, such as ``egress`` or ``local``, is refused.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import AdminCommandNames, FLContextKey, JobConstants
from nvflare.apis.fl_context import FLContext
from nvflare.apis.workspace import Workspace
from nvflare.fuel.sec.audit import AuditService
from nvflare.private.admin_defs import Message, MsgHeader, ReturnCode, error_reply
from nvflare.private.defs import RequestHeader, SysCommandTopic, TrainingTopic
from nvflare.private.fed.client.admin import RequestProcessor
from nvflare.private.fed.client.admin_commands import AdminCommands
from nvflare.private.fed.client.client_req_processors import ClientRequestProcessors

from fedfms.errors import FedfmsError
from fedfms.flare.answers import ServerAnswers
from fedfms.site.application import read_application
from fedfms.site.notices import tell_run_broke

#: Commands about one job; each must name it.
ABOUT_A_JOB = frozenset(
    {
        TrainingTopic.DEPLOY,
        TrainingTopic.START_JOB,
        TrainingTopic.NOTIFY_JOB_STATUS,
        TrainingTopic.ABORT,
        TrainingTopic.ABORT_TASK,
        TrainingTopic.DELETE_RUN,
    }
)

#: What the parent process of a site answers. FLARE 2.9 would also answer: shell commands, system information,
#: resources, environment, statistics and errors of a job, and changes of what is logged.
ANSWERED = ABOUT_A_JOB | {
    TrainingTopic.CHECK_STATUS,
    TrainingTopic.GET_SCOPES,
    TrainingTopic.SHUTDOWN,
    TrainingTopic.RESTART,
    SysCommandTopic.REPORT_VERSION,
    TrainingTopic.CHECK_RESOURCE,
    TrainingTopic.CANCEL_RESOURCE,
}

#: What a job's own process answers. FLARE 2.9 would also show statistics and errors and change what is logged.
JOB_ANSWERED = frozenset(
    {
        AdminCommandNames.CHECK_STATUS,
        AdminCommandNames.ABORT,
        AdminCommandNames.ABORT_TASK,
        AdminCommandNames.SHUTDOWN,
    }
)

_log = logging.getLogger(__name__)
# As FLARE's server makes them: str(uuid.uuid4()).
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def names_a_job(request: Message) -> bool:
    """Whether a request names a job by a UUID, or is one that need not name any; the job's metadata must agree."""
    named = request.get_header(RequestHeader.JOB_ID)
    if named in (None, ""):
        return request.topic not in ABOUT_A_JOB
    facts = request.get_header(RequestHeader.JOB_META)
    other = facts.get(JobConstants.JOB_ID) if isinstance(facts, Mapping) else None
    return isinstance(named, str) and _UUID.fullmatch(named) is not None and other in (None, named)


def note_faults(workspace: Workspace, job_id: str) -> None:
    """Note in the audit log when a job that has arrived is not one that this site trains, and why in FLARE's log.

    The site's people are notified, if they want to know.

    The job's own process refuses it: FLARE does for a class outside the list, without a line in the audit log, and
    otherwise the executor.
    """
    try:
        read_application(Path(workspace.get_app_dir(job_id)))
    except FedfmsError as error:
        AuditService.add_event(user="", action="job refused", ref=job_id, msg=" " + " ".join(error.ids))
        _log.error("job %s is refused here: %s", job_id, error)
        tell_run_broke(Path(workspace.get_root_dir()), workspace.site_name, job_id, error.ids)


class NamedJobs(RequestProcessor):
    """One of FLARE's request processors, behind a check of the job's id.

    Args:
        processor: The processor that answers a request whose job id is a UUID.
    """

    def __init__(self, processor: RequestProcessor) -> None:
        self.processor = processor

    def get_topics(self) -> list[str]:
        """The topics of the wrapped processor."""
        topics: list[str] = self.processor.get_topics()
        return topics

    def process(self, req: Message, app_ctx: Any) -> Message:
        """Pass the request on, or refuse it with a line in the audit log and touch nothing of the site."""
        if names_a_job(req):
            reply = self.processor.process(req, app_ctx)
            if req.topic == TrainingTopic.DEPLOY and reply.get_header(MsgHeader.RETURN_CODE) == ReturnCode.OK:
                workspace = Workspace(app_ctx.args.workspace, app_ctx.get_client_name())
                note_faults(workspace, req.get_header(RequestHeader.JOB_ID))
            return reply
        AuditService.add_event(user="", action=f"{req.topic} refused", msg="the job's id is not a UUID")
        return error_reply("refused")


def limit_job_commands() -> None:
    """Remove FLARE's other commands from a job's own process, which the server can reach past the parent process."""
    AdminCommands.commands[:] = [item for item in AdminCommands.commands if item.get_command_name() in JOB_ANSWERED]


class CommandGate(FLComponent):
    """A component of a site's ``local/resources.json``: removes FLARE's other commands before the site connects.

    It also says when the server refuses the site (`fedfms.flare.answers`). That this is not a component of its own
    keeps ``resources.json`` of older kits valid.

    FLARE builds the components of ``resources.json`` before it hands its list of commands to the part that answers
    the server, and that list is shared. A job cannot add to it: its components are built in another process.

    Raises:
        RuntimeError: if a command that a job needs is missing, because FLARE is not the version this was made for;
            the site then does not start.
    """

    def __init__(self) -> None:
        super().__init__()
        kept = [item for item in ClientRequestProcessors.request_processors if ANSWERED.issuperset(item.get_topics())]
        missing = ANSWERED - {topic for item in kept for topic in item.get_topics()}
        if missing:
            raise RuntimeError(f"FLARE does not answer {sorted(missing)}; this package needs FLARE 2.9")
        # In place: FLARE's deployer holds the same list.
        ClientRequestProcessors.request_processors[:] = [
            item if isinstance(item, NamedJobs) else NamedJobs(item) for item in kept
        ]
        self.register_event_handler(EventType.SYSTEM_BOOTSTRAP, self._on_bootstrap)

    def _on_bootstrap(self, event_type: str, fl_ctx: FLContext) -> None:
        kit = Path(fl_ctx.get_prop(FLContextKey.WORKSPACE_OBJECT).get_root_dir())
        ServerAnswers(kit).watch(fl_ctx.get_engine().get_cell())
