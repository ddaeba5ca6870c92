"""The running server follows the files in its kit: studies, blocked sites, blocked people."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.workspace import Workspace
from nvflare.fuel.hci.proto import InternalCommands
from nvflare.fuel.hci.server.authz import AuthzFilter
from nvflare.fuel.hci.server.constants import ConnProps
from nvflare.fuel.sec.audit import AuditService
from nvflare.private.fed.server.client_manager import ClientManager
from nvflare.security.study_registry import StudyRegistryService

from fedfms.flare.participation import Doorkeeper, follow_studies
from fedfms.flare.refusals import RefusalAudit
from fedfms.site.blocking import SERVER_FILE


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workspace]:
    """A server's kit; what is changed in FLARE's classes is changed back."""
    for name in ("startup", "local"):
        (tmp_path / name).mkdir()
    for owner, name in ((AuthzFilter, "pre_command"), (ClientManager, "is_client_disabled")):
        monkeypatch.setattr(owner, name, getattr(owner, name))
    monkeypatch.setattr(StudyRegistryService, "get_registry", staticmethod(StudyRegistryService.get_registry))
    monkeypatch.setattr(StudyRegistryService, "_registry", None)
    monkeypatch.setattr(AuditService, "the_auditor", None)
    AuditService.initialize(str(tmp_path / "audit.log"))
    yield Workspace(str(tmp_path), "server")
    AuditService.close()


def write_studies(path: Path, *names: str) -> None:
    content = {name: {"site_orgs": {"hospital_a": ["hospital-a"]}, "admins": []} for name in names}
    path.with_suffix(".new").write_text(json.dumps({"format_version": "1.0", "studies": content}))
    path.with_suffix(".new").replace(path)


def known() -> set[str]:
    registry = StudyRegistryService.get_registry()
    return set(registry.get_studies()) if registry is not None else set()


def write_blocked(workspace: Workspace, *names: str) -> None:
    entries = {name: {"time": "2026-11-30T12:00:00+00:00", "reason": "left"} for name in names}
    (Path(workspace.get_root_dir()) / SERVER_FILE).write_text(json.dumps(entries))


def test_studies_are_those_of_the_file_that_counts_now(workspace: Workspace, caplog: pytest.LogCaptureFixture) -> None:
    root = Path(workspace.get_root_dir())
    follow_studies(workspace)
    assert known() == set()
    write_studies(root / "local" / "study_registry.json", "first")
    assert known() == {"first"}
    write_studies(root / "study_registry.json", "first", "second")
    assert known() == {"first", "second"}
    (root / "study_registry.json").write_text("{")
    assert known() == {"first", "second"} and "still counts" in caplog.text
    assert known() == {"first", "second"} and caplog.text.count("still counts") == 1
    write_studies(root / "study_registry.json", "third")
    assert known() == {"third"}


def test_a_blocked_site_counts_as_disabled_until_it_is_unblocked(workspace: Workspace) -> None:
    Doorkeeper(workspace).guard()
    manager = ClientManager("fedfms")
    assert not manager.is_client_disabled("hospital-a")
    write_blocked(workspace, "hospital-a")
    assert manager.is_client_disabled("hospital-a") and not manager.is_client_disabled("hospital-b")
    manager.disabled_clients.add("hospital-b")
    assert manager.is_client_disabled("hospital-b"), "FLARE's own command still counts"
    write_blocked(workspace)
    assert not manager.is_client_disabled("hospital-a")


class Conn:
    """What FLARE knows of a person's connection."""

    def __init__(self, user: str) -> None:
        self.command = "list_jobs"
        self.props = {ConnProps.USER_NAME: user}
        self.said: list[str] = []

    def get_prop(self, name: str, default: Any = None) -> Any:
        return self.props.get(name, default)

    def append_error(self, text: str, meta: object) -> None:
        self.said.append(f"error {text}")

    def append_string(self, text: str) -> None:
        self.said.append(text)


def test_a_blocked_persons_commands_and_login_are_refused(workspace: Workspace) -> None:
    Doorkeeper(workspace).guard()
    thief, lead = Conn("thief@example.org"), Conn("lead@example.org")
    login = [InternalCommands.CERT_LOGIN, "thief@example.org"]
    assert AuthzFilter().pre_command(thief, ["list_jobs"]) and AuthzFilter().pre_command(Conn(""), login)
    write_blocked(workspace, "thief@example.org")
    assert not AuthzFilter().pre_command(thief, ["list_jobs"])
    assert thief.said == ["error this person is blocked at the server"]
    before = Conn("")
    assert not AuthzFilter().pre_command(before, login) and before.said[0].startswith("REJECT")
    assert AuthzFilter().pre_command(lead, ["list_jobs"]) and lead.said == []
    audit = (Path(workspace.get_root_dir()) / "audit.log").read_text()
    assert audit.count("[U:thief@example.org][A:list_jobs] refused: blocked") == 2


class Engine:
    """A server's engine with connected sites."""

    def __init__(self, *names: str) -> None:
        self.clients = {f"token of {name}": SimpleNamespace(name=name, token=f"token of {name}") for name in names}

    def get_clients(self) -> list[Any]:
        return list(self.clients.values())

    def remove_clients(self, tokens: list[str]) -> None:
        for token in tokens:
            del self.clients[token]


def test_the_servers_component_follows_from_its_start_and_disconnects(workspace: Workspace) -> None:
    component, fl_ctx, engine = RefusalAudit(), FLContext(), Engine("hospital-a", "hospital-b")
    fl_ctx.set_prop(FLContextKey.WORKSPACE_OBJECT, workspace, private=True)
    fl_ctx.get_engine = lambda: engine

    def fire(event: str) -> None:
        for handler, arguments in component.get_event_handlers()[event]:
            handler(event, fl_ctx, **arguments)

    fire(EventType.CLIENT_HEARTBEAT_RECEIVED)  # before the start is complete
    fire(EventType.SYSTEM_BOOTSTRAP)
    write_studies(Path(workspace.get_root_dir()) / "study_registry.json", "late")
    assert known() == {"late"}
    fire(EventType.CLIENT_HEARTBEAT_RECEIVED)
    assert len(engine.clients) == 2
    write_blocked(workspace, "hospital-a")
    fire(EventType.CLIENT_HEARTBEAT_RECEIVED)
    fire(EventType.CLIENT_REGISTER_RECEIVED)
    assert [client.name for client in engine.get_clients()] == ["hospital-b"]
    audit = (Path(workspace.get_root_dir()) / "audit.log").read_text()
    (line,) = (line for line in audit.splitlines() if "[R:hospital-a]" in line)
    assert line.endswith("[U:server][A:site disconnected] blocked")


def test_nobody_is_admitted_while_the_list_was_never_read(
    workspace: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    """It may name whoever knocks. Once it was read, what it said goes on counting."""
    path = Path(workspace.get_root_dir()) / SERVER_FILE
    path.write_text("{")
    Doorkeeper(workspace).guard()
    is_out = ClientManager("fedfms").is_client_disabled
    assert is_out("hospital-a") and "nothing was read before" in caplog.text
    write_blocked(workspace, "hospital-b")
    assert is_out("hospital-b") and not is_out("hospital-a")
    path.write_text("{  ")
    assert is_out("hospital-b") and not is_out("hospital-a") and "still counts" in caplog.text
