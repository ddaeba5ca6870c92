"""What left the sites beside what reached the server."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from fedfms.site.egress import read_record

_TASKS = {"ready": "ready", "update": "train", "validate": "validate", "final": "final"}

Messages = list[tuple[str, str, str, int]]


def arrived(ledger_file: Path) -> Messages:
    """Site, task, digest and bytes of every reply that the server's ledger names, sorted."""
    ledger = [json.loads(line) for line in ledger_file.read_text().splitlines()]
    return sorted(
        (line["site"], _TASKS[line["event"]], line["message_sha256"], line["bytes_up"])
        for line in ledger
        if line["event"] in _TASKS
    )


def sent(kits: Mapping[str, Path], job_id: str) -> Messages:
    """The same from the sites' own records."""
    return sorted(
        (name, line.task, line.sha256, line.bytes) for name, kit in kits.items() for line in read_record(kit, job_id)
    )
