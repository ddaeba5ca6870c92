"""A site answers only the commands that a job needs, whatever the server says about who asks."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from nvflare.apis.workspace import Workspace
from nvflare.fuel.sec.audit import AuditService
from nvflare.private.admin_defs import Message, MsgHeader, ReturnCode, ok_reply
from nvflare.private.defs import RequestHeader, SysCommandTopic, TrainingTopic
from nvflare.private.fed.client.admin import RequestProcessor
from nvflare.private.fed.client.client_req_processors import ClientRequestProcessors

from fedfms.flare.commands import ABOUT_A_JOB, ANSWERED, JOB_ANSWERED, CommandGate, NamedJobs
from fedfms.provision.overlay import template


@pytest.fixture(autouse=True)
def own_list(monkeypatch: pytest.MonkeyPatch) -> None:
    """FLARE's list is the process's own."""
    monkeypatch.setattr(ClientRequestProcessors, "request_processors", list(ClientRequestProcessors.request_processors))


def topics() -> set[str]:
    return {topic for item in ClientRequestProcessors.request_processors for topic in item.get_topics()}


def test_flare_itself_would_answer_more() -> None:
    refused = {
        SysCommandTopic.SHELL, SysCommandTopic.SYS_INFO, SysCommandTopic.REPORT_RESOURCES, SysCommandTopic.REPORT_ENV,
        SysCommandTopic.CONFIGURE_SITE_LOG, TrainingTopic.CONFIGURE_JOB_LOG,
        "info.show_stats", "info.show_errors", "info.reset_errors",
    }  # fmt: skip
    assert topics() - ANSWERED == refused, "FLARE has changed: decide about what is new"


def test_the_gate_leaves_what_a_job_needs_in_the_list_that_flare_holds() -> None:
    held = ClientRequestProcessors.request_processors
    CommandGate()
    assert ClientRequestProcessors.request_processors is held
    assert topics() == ANSWERED
    CommandGate()
    assert topics() == ANSWERED


def test_another_flare_is_refused() -> None:
    ClientRequestProcessors.request_processors[:] = ClientRequestProcessors.request_processors[3:]
    with pytest.raises(RuntimeError, match=r"train\.check_status"):
        CommandGate()


def test_every_sites_kit_has_the_gate() -> None:
    paths = [component["path"] for component in json.loads(template("site_resources.json"))["components"]]
    assert f"{CommandGate.__module__}.{CommandGate.__name__}" in paths


PROJECT = Path(__file__).parents[2]
UUID = "6f1c2a34-0000-4000-8000-000000000001"
HOSTILE: list[Any] = [
    "egress", "review", "local", "startup", "", None, ".", "..", f"../{UUID}", f"{UUID}/..", UUID.upper(), f"{UUID}\n",
    7, [UUID],
]  # fmt: skip


def engine_of(kit: Path) -> Any:
    """What the look asks FLARE's engine for."""
    for name in ("startup", "local"):
        (kit / name).mkdir(exist_ok=True)
    return SimpleNamespace(args=SimpleNamespace(workspace=str(kit)), get_client_name=lambda: "hospital-a")


class Reached(RequestProcessor):  # type: ignore[misc]
    def __init__(self, topic: str) -> None:
        self.topic = topic
        self.asked: list[Message] = []

    def get_topics(self) -> list[str]:
        return [self.topic]

    def process(self, req: Message, app_ctx: object) -> Message:
        self.asked.append(req)
        return ok_reply()


def request(topic: str, job_id: Any, **headers: Any) -> Message:
    message = Message(topic=topic, body="")
    for name, value in {RequestHeader.JOB_ID: job_id, **headers}.items():
        message.set_header(name, value)
    return message


@pytest.fixture
def audited(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(AuditService, "add_event", lambda **facts: lines.append(f"{facts['action']}: {facts['msg']}"))
    return lines


@pytest.mark.parametrize("topic", sorted(ABOUT_A_JOB))
@pytest.mark.parametrize("job_id", HOSTILE, ids=repr)
def test_a_job_id_that_is_no_uuid_reaches_no_folder_of_the_kit(topic: str, job_id: Any, audited: list[str]) -> None:
    behind = Reached(topic)
    reply = NamedJobs(behind).process(request(topic, job_id), None)
    assert behind.asked == [] and reply.get_header(MsgHeader.RETURN_CODE) == ReturnCode.ERROR
    assert audited == [f"{topic} refused: the job's id is not a UUID"]


@pytest.mark.parametrize("topic", sorted(ABOUT_A_JOB))
def test_flares_own_job_ids_pass(
    topic: str, audited: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    behind = Reached(topic)
    gate = NamedJobs(behind)
    monkeypatch.setattr("fedfms.flare.commands.note_faults", lambda *_: None)
    gate.process(request(topic, UUID), engine_of(tmp_path))
    gate.process(request(topic, UUID, **{RequestHeader.JOB_META: {"job_id": UUID}}), engine_of(tmp_path))
    assert len(behind.asked) == 2 and audited == []
    gate.process(request(topic, UUID, **{RequestHeader.JOB_META: {"job_id": "local"}}), None)
    assert len(behind.asked) == 2, "the job's facts may not name another folder"


def test_what_is_about_no_job_needs_no_id(audited: list[str]) -> None:
    behind = Reached(TrainingTopic.CHECK_RESOURCE)
    gate = NamedJobs(behind)
    gate.process(request(behind.topic, ""), None)
    gate.process(request(behind.topic, UUID), None)
    assert len(behind.asked) == 2
    gate.process(request(behind.topic, "egress"), None)
    assert len(behind.asked) == 2


def test_the_gate_puts_the_look_before_every_command() -> None:
    CommandGate()
    CommandGate()
    processors = ClientRequestProcessors.request_processors
    assert all(isinstance(item, NamedJobs) and not isinstance(item.processor, NamedJobs) for item in processors)


def test_the_exit_gate_takes_the_jobs_process_the_commands_that_no_job_needs() -> None:
    """In a process of its own: the list is FLARE's, one for all."""
    code = (
        "from nvflare.private.fed.client.admin_commands import AdminCommands\n"
        "from fedfms.flare.gates import ExitGate\n"
        "held = AdminCommands.commands\n"
        "print(*(item.get_command_name() for item in held))\n"
        "ExitGate()\n"
        "print(*(item.get_command_name() for item in held))\n"
        "print(AdminCommands.commands is held, AdminCommands.get_command('show_errors'))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    before, after, last = result.stdout.splitlines()[-3:]
    gone = {"show_stats", "show_errors", "reset_errors", "configure_job_log"}
    assert set(before.split()) - JOB_ANSWERED == gone, "decide about what is new in FLARE"
    assert set(after.split()) == JOB_ANSWERED
    assert last == "True None", "the part that answers holds the same list"


def deployed(tmp_path: Path, training: str) -> tuple[Message, Any]:
    """A request to deploy, and FLARE's engine after it has done so."""
    engine = engine_of(tmp_path)
    app = Path(Workspace(str(tmp_path), "hospital-a").get_app_dir(UUID))
    shutil.copytree(PROJECT / "jobs" / "fedmsa" / "app", app)
    (app / "config" / "training.yaml").write_text(training)
    return request(TrainingTopic.DEPLOY, UUID), engine


def test_a_job_that_no_site_trains_is_noted_when_it_arrives(
    tmp_path: Path, audited: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    message, engine = deployed(tmp_path, "rounds: 0\n")
    reply = NamedJobs(Reached(TrainingTopic.DEPLOY)).process(message, engine)
    assert reply.get_header(MsgHeader.RETURN_CODE) == ReturnCode.OK, "its own process refuses, and tells the server"
    assert audited == ["job refused:  FMS-J002"]
    assert UUID in caplog.text and "rounds" in caplog.text


def test_a_job_of_this_package_is_not_noted(tmp_path: Path, audited: list[str]) -> None:
    good = (PROJECT / "jobs" / "fedmsa" / "app" / "config" / "training.yaml").read_text()
    NamedJobs(Reached(TrainingTopic.DEPLOY)).process(*deployed(tmp_path, good))
    assert audited == []
