"""Participants that are blocked: the authority makes no certificate for them, the server answers them nothing.

FLARE knows no list of revoked certificates. So the server's own list counts until the certificate ends: a blocked site
is disconnected and not admitted again, a blocked person's commands are refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from pathlib import Path

from fedfms.access import exists
from fedfms.configuration import Strict, read_json
from fedfms.errors import KIT_UNREADABLE, PARTICIPANT_BLOCKED, ErrorKind, FedfmsError, Problem, fail
from fedfms.files import locked_folder, write_json
from fedfms.site.kit import Kit

#: In the server's kit.
SERVER_FILE = "blocked.json"


class Block(Strict):
    """Since when and why a participant is blocked.

    Attributes:
        time: ISO 8601, in UTC.
        reason: In the words of who blocked it.
    """

    time: str
    reason: str


def read_blocks(path: Path, unreadable: ErrorKind) -> Mapping[str, Block]:
    """Blocked participants, by name; empty if there is no file.

    Raises:
        FedfmsError: of kind ``unreadable``.
    """
    content = read_json(path, unreadable) if exists(path) else {}
    try:
        return {name: Block.model_validate(entry) for name, entry in content.items()}
    except ValueError as error:
        raise fail(unreadable, path, f"not as 'fedfms kit block' writes it: {error}") from None


def add_block(path: Path, name: str, reason: str, unreadable: ErrorKind) -> None:
    """Write down that a participant is blocked from now on.

    Raises:
        FedfmsError: of kind ``unreadable`` when the present list cannot be read, FMS-D011 when it cannot be written.
    """
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    with locked_folder(path.parent):
        _write(path, {**read_blocks(path, unreadable), name: Block(time=now, reason=reason)})


def remove_block(path: Path, name: str, unreadable: ErrorKind) -> bool:
    """Delete a participant from the list.

    Returns:
        Whether it was blocked.

    Raises:
        FedfmsError: as `add_block`.
    """
    with locked_folder(path.parent):
        blocks = dict(read_blocks(path, unreadable))
        found = blocks.pop(name, None) is not None
        if found:
            _write(path, blocks)
        return found


def _write(path: Path, blocks: Mapping[str, Block]) -> None:
    write_json(path, {name: block.model_dump() for name, block in blocks.items()})
    path.chmod(0o600)


def blocked_problems(blocks: Mapping[str, Block], names: Iterable[str]) -> list[Problem]:
    """Problems FMS-K016, one for each of the names that is blocked."""
    return [
        Problem(PARTICIPANT_BLOCKED, name, f"since {blocks[name].time}: {blocks[name].reason}")
        for name in names
        if name in blocks
    ]


def read_server_blocks(kit: Kit) -> Mapping[str, Block]:
    """Participants that are blocked at the server, by name.

    Raises:
        FedfmsError: FMS-K001 when the list in the server's kit cannot be read.
    """
    return read_blocks(kit.folder / SERVER_FILE, KIT_UNREADABLE)


def refuse_blocked_at(kit: Kit, names: Iterable[str]) -> None:
    """Raise FMS-K016 with every one of the names that is blocked at the server."""
    if problems := blocked_problems(read_server_blocks(kit), names):
        raise FedfmsError(problems)
