"""What ``fedfms data check`` has to say: one line of its table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from fedfms.errors import ErrorKind, Problem

Severity = Literal["FAIL", "WARN"]


@dataclass(frozen=True)
class Finding:
    """One thing found in a dataset or task.

    Attributes:
        kind: Entry of the catalogue.
        severity: ``FAIL`` when the data should not be used as they are.
        place: Dataset, task or key of ``site.yaml``; no file and no patient.
        count: Cases concerned, or 1 for what concerns the place as a whole.
        detail: Numbers and names of structures; no file and no patient.
        remedy: What to do.
        named: What ``detail`` must not say: the files concerned, one text each. For this machine only.
    """

    kind: ErrorKind
    severity: Severity
    place: str
    count: int
    detail: str
    remedy: str
    named: tuple[str, ...] = field(default=(), repr=False)

    def as_json(self, *, show_ids: bool) -> dict[str, Any]:
        """JSON values; ``show_ids`` adds the files concerned."""
        content: dict[str, Any] = {
            "id": self.kind.id,
            "severity": self.severity,
            "place": self.place,
            "count": self.count,
            "title": self.kind.title,
            "detail": self.detail,
            "remedy": self.remedy,
        }
        return {**content, "files": list(self.named)} if show_ids else content


def warning(kind: ErrorKind, place: str, count: int, detail: str, named: Iterable[str] = ()) -> Finding:
    """Shorthand for what does not make the check fail."""
    return Finding(kind, "WARN", place, count, detail, kind.remedy, tuple(named))


def plain(problems: Iterable[Problem]) -> list[Finding]:
    """Problems whose texts name keys and counts only: one finding each, in full."""
    return [
        Finding(item.kind, "FAIL", item.place, 1, item.detail, item.remedy or item.kind.remedy) for item in problems
    ]


def summed(problems: Sequence[Problem], severity: Severity, place: str) -> list[Finding]:
    """Problems whose texts name files: one finding for each kind."""
    kinds = dict.fromkeys(item.kind for item in problems)
    by_kind = {kind: [item for item in problems if item.kind is kind] for kind in kinds}
    return [
        Finding(kind, severity, place, len(items), "", kind.remedy, tuple(map(str, items)))
        for kind, items in by_kind.items()
    ]
