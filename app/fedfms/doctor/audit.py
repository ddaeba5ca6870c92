"""A start that the doctor forbids stands in the kit's audit log, although FLARE, whose log it is, does not run then."""

from __future__ import annotations

import getpass
from datetime import datetime
from uuid import uuid4

from fedfms.doctor.checkup import Report

AUDIT_LOG = "audit.log"


def note_refused_start(report: Report) -> None:
    """Append a line with the ids of what is wrong, in the form of FLARE's own lines."""
    ids = dict.fromkeys(result.id for result in report.results if result.severity == "FAIL")
    line = f"[E:{uuid4()}][T:{datetime.now()}][U:{getpass.getuser()}][A:start refused] {' '.join(ids)}\n"
    path = report.kit.folder / AUDIT_LOG
    path.touch(mode=0o600)
    with path.open("a", encoding="utf-8") as file:
        file.write(line)
