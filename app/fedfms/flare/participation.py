"""Who may take part, as the files in the server's kit say now: FLARE itself would have to be stopped for some changes.

FLARE 2.9 reads its studies once, and its own commands change them for a project_admin alone, or for an org_admin
within the own organisation; it can disable a site, but not a person. ``fedfms kit study`` and ``fedfms kit block``
write files instead, at the server, and this module makes the running server follow them.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any, Generic, TypeVar

from nvflare.apis.workspace import Workspace
from nvflare.fuel.hci.proto import InternalCommands, MetaStatusValue, make_meta
from nvflare.fuel.hci.server.authz import AuthzFilter
from nvflare.fuel.hci.server.constants import ConnProps
from nvflare.fuel.sec.audit import AuditService
from nvflare.private.fed.server.client_manager import ClientManager
from nvflare.security.study_registry import StudyRegistry, StudyRegistryService

from fedfms.configuration import printable
from fedfms.errors import KIT_UNREADABLE, FedfmsError, fail, reason_of
from fedfms.site.blocking import SERVER_FILE, Block, read_blocks

_log = logging.getLogger(__name__)
_Content = TypeVar("_Content")


class FollowedFile(Generic[_Content]):
    """The content of a file, read again whenever another file is in its place.

    Args:
        find: Gives the file's path, which may change.
        read: Reads it; raises FedfmsError if it cannot be read.
        content: What counts until it was read for the first time.
    """

    def __init__(self, find: Callable[[], Path], read: Callable[[Path], _Content], content: _Content) -> None:
        self._find, self._read = find, read
        self._content = content
        self._seen: object = None
        self._was_read = False

    def __call__(self) -> _Content:
        """The content as the file has it now; what was read before, while the file cannot be read."""
        path = self._find()
        try:
            status = path.stat()
            stamp: object = (path, status.st_ino, status.st_mtime_ns, status.st_size)
        except OSError as error:
            stamp = (path, error.errno)
        if stamp != self._seen:
            try:
                self._content = self._read(path)
            except FedfmsError as error:
                kept = "what was read before still counts" if self._was_read else "nothing was read before"
                _log.error("%s: %s", kept, error)
            else:
                self._was_read = True
            self._seen = stamp
        return self._content


def _read_registry(path: Path) -> StudyRegistry | None:
    """FLARE's registry; None if there is no file."""
    if not path.exists():
        return None
    try:
        return StudyRegistry(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise fail(KIT_UNREADABLE, path, reason_of(error)) from error


def follow_studies(workspace: Workspace) -> None:
    """Let FLARE look into the file of studies whenever it asks for them, instead of once."""
    registry = FollowedFile(
        lambda: Path(workspace.get_study_registry_file_path()), _read_registry, StudyRegistryService.get_registry()
    )

    def get_registry() -> StudyRegistry | None:
        # FLARE's own commands for studies keep their result there, and in the same file.
        found = registry()
        StudyRegistryService.initialize(found)
        return found

    StudyRegistryService.get_registry = staticmethod(get_registry)


class Doorkeeper:
    """Keeps out whom the server's kit names as blocked; everybody while its list cannot be read and was not before.

    Args:
        workspace: The server's workspace, which is its kit.
    """

    def __init__(self, workspace: Workspace) -> None:
        path = Path(workspace.get_root_dir()) / SERVER_FILE
        unknown: Mapping[str, Block] | None = None
        self._blocked = FollowedFile(lambda: path, lambda file: read_blocks(file, KIT_UNREADABLE), unknown)

    def guard(self) -> None:
        """Make FLARE ask this doorkeeper too whether it may admit a site or carry out a person's command."""
        ClientManager.is_client_disabled = self._with_blocked_sites(ClientManager.is_client_disabled)
        AuthzFilter.pre_command = self._without_blocked_people(AuthzFilter.pre_command)

    def _keeps_out(self, name: str) -> bool:
        blocked = self._blocked()
        return blocked is None or name in blocked

    def disconnect(self, engine: Any) -> None:
        """End the sessions of all sites that are blocked."""
        blocked = self._blocked() or {}
        for client in engine.get_clients() if blocked else ():
            if client.name in blocked:
                engine.remove_clients([client.token])
                AuditService.add_event("server", "site disconnected", ref=client.name, msg=" blocked")

    def _with_blocked_sites(self, check: Callable[[Any, str], bool]) -> Callable[[Any, str], bool]:
        @wraps(check)
        def is_client_disabled(manager: Any, client_name: str) -> bool:
            return self._keeps_out(client_name) or check(manager, client_name)

        return is_client_disabled

    def _without_blocked_people(self, check: Callable[..., bool]) -> Callable[..., bool]:
        @wraps(check)
        def pre_command(own: AuthzFilter, conn: Any, args: list[str]) -> bool:
            logs_in = args[:1] == [InternalCommands.CERT_LOGIN]
            user = str(args[1] if logs_in and len(args) > 1 else conn.get_prop(ConnProps.USER_NAME, ""))
            if not self._keeps_out(user):
                return check(own, conn, args)
            AuditService.add_event(printable(user), printable(str(conn.command)), msg=" refused: blocked")
            if logs_in:
                conn.append_string("REJECT: this person is blocked at the server")
            else:
                text = "this person is blocked at the server"
                conn.append_error(text, meta=make_meta(MetaStatusValue.NOT_AUTHORIZED, text))
            return False

        return pre_command
