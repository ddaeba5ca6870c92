"""Which of the server's commands a site answers: those that a job needs, and no others.

``local/authorization.json`` protects a site against persons. It does not protect against the server: FLARE's client
asks it only when the server's message says so (``require_authz``), and takes the person's name, organisation and role
from the same message. Without this gate, a server that somebody has taken over could read any file of the site with
the commands ``cat``, ``grep`` and ``ls``.
"""

from __future__ import annotations

from nvflare.apis.fl_component import FLComponent
from nvflare.private.defs import SysCommandTopic, TrainingTopic
from nvflare.private.fed.client.client_req_processors import ClientRequestProcessors

#: What the parent process of a site answers. FLARE 2.9 would also answer: shell commands, system information,
#: resources, environment, statistics and errors of a job, and changes of what is logged.
ANSWERED = frozenset(
    {
        TrainingTopic.CHECK_STATUS,
        TrainingTopic.GET_SCOPES,
        TrainingTopic.DEPLOY,
        TrainingTopic.START_JOB,
        TrainingTopic.NOTIFY_JOB_STATUS,
        TrainingTopic.ABORT,
        TrainingTopic.ABORT_TASK,
        TrainingTopic.DELETE_RUN,
        TrainingTopic.SHUTDOWN,
        TrainingTopic.RESTART,
        SysCommandTopic.REPORT_VERSION,
        TrainingTopic.CHECK_RESOURCE,
        TrainingTopic.CANCEL_RESOURCE,
    }
)


class CommandGate(FLComponent):
    """A component of a site's ``local/resources.json``: takes FLARE's other commands away before the site connects.

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
        ClientRequestProcessors.request_processors[:] = kept
