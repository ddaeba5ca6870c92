"""Blocks participants: at the authority, which makes no certificate for them any more, and at the running server."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter, ValidationError

from fedfms.configuration import read_json
from fedfms.errors import (
    AUTHORITY_UNUSABLE,
    KIT_UNREADABLE,
    PARTICIPANT_UNKNOWN,
    PROJECT_INVALID,
    FedfmsError,
    Problem,
)
from fedfms.provision.authority import BLOCKED_FILE, Authority
from fedfms.provision.project import HostName, PersonName, SiteName
from fedfms.provision.studies import members
from fedfms.site.blocking import SERVER_FILE, add_block, remove_block
from fedfms.site.kit import Kit


def block(
    name: str,
    reason: str,
    *,
    authority: Authority | None = None,
    server: Kit | None = None,
    in_advance: bool = False,
) -> None:
    """Block a participant. Both lists, or the one that is at hand, name it from now on.

    Args:
        name: The participant.
        reason: Why, for the record.
        authority: The authority, which makes no certificate for it any more.
        server: The server's kit. The running server disconnects a site, or refuses a person's commands.
        in_advance: Whether to allow a participant that is known to neither.

    Raises:
        FedfmsError: FMS-K003 for an empty or impossible name or reason, FMS-K017 for one that has no certificate of the
            authority and is in no study of the server: a misspelt name would block nobody. FMS-K001 or FMS-K005 when a
            list cannot be read.
    """
    problems = [] if reason.strip() else [Problem(PROJECT_INVALID, "reason", "is empty")]
    if not any(_fits(name, form) for form in (HostName, SiteName, PersonName)):
        problems.append(Problem(PROJECT_INVALID, "name", f"{name!r} is not a name of a participant"))
    elif not in_advance and name not in _known(authority, server):
        lacks = ["has no certificate of this authority"] if authority is not None else []
        lacks += ["is in no study of this server"] if server is not None else []
        detail = f"{' and '.join(lacks)}; to block it all the same: --in-advance"
        problems.append(Problem(PARTICIPANT_UNKNOWN, name, detail))
    if problems:
        raise FedfmsError(problems)
    if server is not None:
        add_block(server.folder / SERVER_FILE, name, reason, KIT_UNREADABLE)
    if authority is not None:
        add_block(authority.folder / BLOCKED_FILE, name, reason, AUTHORITY_UNUSABLE)


def unblock(name: str, *, authority: Authority | None = None, server: Kit | None = None) -> None:
    """Delete a participant from both lists, or from the one that is at hand.

    Raises:
        FedfmsError: FMS-K017 if none of them names it; FMS-K001 or FMS-K005 when a list cannot be read.
    """
    found = []
    if server is not None:
        found.append(remove_block(server.folder / SERVER_FILE, name, KIT_UNREADABLE))
    if authority is not None:
        found.append(remove_block(authority.folder / BLOCKED_FILE, name, AUTHORITY_UNUSABLE))
    if not any(found):
        raise FedfmsError([Problem(PARTICIPANT_UNKNOWN, name, "is not blocked")])


def disabled_by_flare(server: Kit) -> set[str]:
    """Sites that FLARE's own command has disabled at a server; raises FMS-K001 when FLARE's list cannot be read."""
    path = server.folder / "disabled_clients.json"
    return set(read_json(path, KIT_UNREADABLE).get("disabled_clients", ())) if path.exists() else set()


def _known(authority: Authority | None, server: Kit | None) -> set[str]:
    admitted = authority.admitted() if authority is not None else set()
    return admitted | (members(server) if server is not None else set())


def _fits(name: str, form: Any) -> bool:
    try:
        TypeAdapter[str](form).validate_python(name)
    except ValidationError:
        return False
    return True
