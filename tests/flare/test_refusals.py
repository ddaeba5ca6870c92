"""What the server refuses is in its audit log."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.job_def import JobMetaKey
from nvflare.fuel.hci.server.authz import AuthzFilter
from nvflare.fuel.sec.audit import AuditService

from fedfms.flare.refusals import RefusalAudit
from fedfms.provision.overlay import template


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(AuditService, "the_auditor", None)
    monkeypatch.setattr(AuthzFilter, "pre_command", AuthzFilter.pre_command)
    AuditService.initialize(str(tmp_path / "audit.log"))
    yield tmp_path / "audit.log"
    AuditService.close()


def aborted(job_id: str, deployed: str) -> FLContext:
    fl_ctx = FLContext()
    fl_ctx.set_prop(FLContextKey.EVENT_DATA, {JobMetaKey.JOB_ID.value: job_id})
    fl_ctx.set_prop(FLContextKey.JOB_RUN_NUMBER, deployed)
    fl_ctx.set_prop(FLContextKey.JOB_DEPLOY_DETAIL, ["server: BYOC not permitted\n[E:forged]"])
    return fl_ctx


def test_a_job_that_was_not_deployed_is_noted_with_the_reason(log: Path) -> None:
    ((handler, arguments),) = RefusalAudit().get_event_handlers()[EventType.JOB_ABORTED]
    handler(EventType.JOB_ABORTED, aborted("job-1", "job-1"), **arguments)
    handler(EventType.JOB_ABORTED, aborted("job-1", "job-2"), **arguments)
    first, second = log.read_text().splitlines()
    assert "[R:job-1]" in first and first.endswith("deployment: server: BYOC not permitted?[E:forged]")
    assert second.endswith("[U:server][A:job aborted]"), "the reasons were another job's"


@pytest.mark.parametrize("allowed", [True, False])
def test_a_refused_command_is_noted_once(log: Path, monkeypatch: pytest.MonkeyPatch, allowed: bool) -> None:
    monkeypatch.setattr(AuthzFilter, "pre_command", lambda self, conn, args: allowed)
    RefusalAudit()
    RefusalAudit()
    conn = SimpleNamespace(command="shutdown all\nforged", get_prop=lambda name, default: "lead@example.org")
    assert AuthzFilter().pre_command(conn, ["shutdown", "all"]) is allowed
    lines = log.read_text().splitlines()
    assert len(lines) == (0 if allowed else 1)
    assert allowed or lines[0].endswith("[U:lead@example.org][A:shutdown all?forged] refused")


def test_a_check_that_throws_is_noted_and_still_throws(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def throw(self: object, conn: object, args: object) -> bool:
        raise AssertionError

    monkeypatch.setattr(AuthzFilter, "pre_command", throw)
    RefusalAudit()
    conn = SimpleNamespace(command="shutdown all", get_prop=lambda name, default: "lead@example.org")
    with pytest.raises(AssertionError):
        AuthzFilter().pre_command(conn, [])
    assert log.read_text().endswith("refused\n")


def test_the_servers_kit_has_it() -> None:
    paths = [component["path"] for component in json.loads(template("server_resources.json"))["components"]]
    assert f"{RefusalAudit.__module__}.{RefusalAudit.__name__}" in paths
