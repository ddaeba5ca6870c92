"""The server's ledger as a file: whether its lines are as they were written, and agree with the sites' records."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedfms.access import require_readable
from fedfms.errors import LEDGER_DAMAGED, LEDGER_DIFFERS, RUN_FOLDER, Problem, fail, reason_of
from fedfms.site.egress import EgressLine
from fedfms.site.records import is_chained, last_digest, read_lines

#: The lines that answer for a site's reply, with the task that was replied to.
_TASKS = {"ready": "ready", "update": "train", "validate": "validate", "final": "final"}


@dataclass(frozen=True)
class LedgerFile:
    """A ledger that was read.

    Attributes:
        path: The file.
        lines: Its lines in the order in which they were written. A last one without its end does not count.
        last_sha256: SHA-256 of the last line, which vouches for all before it; None for a ledger of version 0.1, in
            which lines do not name the line before.
    """

    path: Path
    lines: list[dict[str, Any]]
    last_sha256: str | None


def open_ledger(path: Path) -> LedgerFile:
    """Read a ledger.

    Raises:
        FedfmsError: FMS-R001 when it is not a ledger; FMS-R003 with every line that was changed, or that does not
            follow the one before; FMS-D019 when it may not be read.
    """
    require_readable(path)
    chained = is_chained(path)
    lines = read_lines(path, LEDGER_DAMAGED) if chained else _lines_of_version_0_1(path)
    for number, line in enumerate(lines, 1):
        if not isinstance(line, dict) or not isinstance(line.get("event"), str):
            raise fail(RUN_FOLDER, f"{path}, line {number}", "not a ledger: no event")
        if not isinstance(line.get("time"), (int, float)):
            raise fail(RUN_FOLDER, f"{path}, line {number}", "not a ledger: no time")
    return LedgerFile(path, lines, last_digest(path) if chained else None)


def _lines_of_version_0_1(path: Path) -> list[Any]:
    try:
        whole = path.read_text(encoding="utf-8").split("\n")[:-1]
    except (OSError, UnicodeDecodeError) as error:
        raise fail(RUN_FOLDER, path, f"not a ledger: {reason_of(error)}") from error
    lines = []
    for number, line in enumerate(whole, 1):
        try:
            lines.append(json.loads(line))
        except ValueError as error:
            raise fail(RUN_FOLDER, f"{path}, line {number}", f"not a ledger: {reason_of(error)}") from error
    return lines


@dataclass(frozen=True)
class _Message:
    """A reply as both sides note it."""

    task: str
    sha256: str
    bytes: int


def differences(ledger: LedgerFile, records: Mapping[str, Sequence[EgressLine]]) -> list[Problem]:
    """Compare a ledger with what sites have noted of the replies that left them.

    Args:
        ledger: The ledger.
        records: The record of this run by site.

    Returns:
        A problem FMS-R004 for each reply that only one of the two knows.
    """
    problems = []
    for site, record in records.items():
        left = Counter(_Message(line.task, line.sha256, line.bytes) for line in record)
        arrived = Counter(_arrived(ledger.lines, site))
        rounds = {line.sha256: line.round for line in record}
        for message in (left - arrived).elements():
            number = rounds[message.sha256]
            named = message.task if number is None else f"{message.task} of round {number + 1}"
            detail = f"the reply to {named} left the site ({message.bytes} bytes) and is not in the ledger"
            problems.append(Problem(LEDGER_DIFFERS, site, f"{detail}: {message.sha256}"))
        for message in (arrived - left).elements():
            detail = f"a reply to {message.task} is in the ledger ({message.bytes} bytes) and not in the site's record"
            problems.append(Problem(LEDGER_DIFFERS, site, f"{detail}: {message.sha256}"))
    return problems


def _arrived(lines: Iterable[Mapping[str, Any]], site: str) -> Iterable[_Message]:
    for line in lines:
        task = _TASKS.get(line["event"]) if isinstance(line.get("event"), str) else None
        if task is not None and line.get("site") == site and line.get("message_sha256") is not None:
            yield _Message(task, line["message_sha256"], line["bytes_up"])
