"""A note in a site's kit that the server refuses the site: written by the running site, read by the doctor."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

from fedfms.access import exists
from fedfms.configuration import Strict, read_json, validated
from fedfms.errors import KIT_UNREADABLE
from fedfms.files import write_json

_FILE = "refused.json"


class Refusal(Strict):
    """The server's refusal.

    Attributes:
        time: Of the first answer that refused, ISO 8601, in UTC.
        reason: In the server's words.
    """

    time: str
    reason: str


def note_refusal(kit: Path, reason: str) -> None:
    """Write down that the server refuses the site from now on; raises FMS-D011 when it cannot be written."""
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    write_json(kit / _FILE, Refusal(time=now, reason=reason).model_dump())
    (kit / _FILE).chmod(0o600)


def forget_refusal(kit: Path) -> None:
    """Delete the note, because the server has admitted the site."""
    (kit / _FILE).unlink(missing_ok=True)


def read_refusal(kit: Path) -> Refusal | None:
    """The refusal that still holds as far as the site knows; None if there is none.

    Raises:
        FedfmsError: FMS-K001 when the note cannot be read.
    """
    path = kit / _FILE
    return validated(Refusal, read_json(path, KIT_UNREADABLE), KIT_UNREADABLE, path) if exists(path) else None
