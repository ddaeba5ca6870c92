"""What ``fedfms data check`` has to say: one line of its table."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from fedfms.data.volume.remedies import nameless_remedy
from fedfms.errors import ErrorKind, Problem

Severity = Literal["FAIL", "WARN"]

# Any path or UID in a text. Of a path with a blank only a part is found: its problem then may stand for itself.
_NAME = re.compile(r"\S*[/\\]\S*|\b\d+(?:\.\d+){4,}")


@dataclass(frozen=True)
class Finding:
    """One thing found in a dataset or task.

    Attributes:
        kind: Entry of the catalogue.
        severity: ``FAIL`` when the data should not be used as they are.
        where: Dataset, task or key of ``site.yaml``; no file and no patient.
        count: Cases concerned, or 1 for what concerns the place as a whole.
        detail: Numbers and names of structures; no file and no patient.
        remedy: What to do.
        named: What ``detail`` must not say: the files concerned. For this machine only.
        problems: Likewise what is wrong with each, where that differs.
    """

    kind: ErrorKind
    severity: Severity
    where: str
    count: int
    detail: str
    remedy: str
    named: tuple[str, ...] = field(default=(), repr=False)
    problems: tuple[Problem, ...] = field(default=(), repr=False)

    @property
    def files(self) -> tuple[str, ...]:
        """The files concerned, one text each."""
        return (*self.named, *map(_said, self.problems))

    @property
    def files_in_short(self) -> list[str]:
        """The same, where several files have the same problem with the first of them only."""
        alike: dict[tuple[str, ...], list[Problem]] = {}
        for problem in self.problems:
            texts = (_NAME.sub("", problem.detail), _NAME.sub("", _remedy(problem)))
            alike.setdefault(texts, []).append(problem)
        lines = list(self.named)
        for group in alike.values():
            places = len({problem.where for problem in group})
            lines.append((f"{places} files or folders, such as " if places > 1 else "") + _said(group[0]))
        return lines

    def as_json(self, *, show_ids: bool) -> dict[str, Any]:
        """JSON values; ``show_ids`` adds the files concerned."""
        content: dict[str, Any] = {
            "id": self.kind.id,
            "severity": self.severity,
            "place": self.where,
            "count": self.count,
            "title": self.kind.title,
            "detail": self.detail,
            "remedy": self.remedy,
        }
        return {**content, "files": list(self.files)} if show_ids else content


def warning(kind: ErrorKind, where: str, count: int, detail: str, named: Iterable[str] = ()) -> Finding:
    """Shorthand for what does not make the check fail."""
    return Finding(kind, "WARN", where, count, detail, kind.remedy, tuple(named))


def plain(problems: Iterable[Problem]) -> list[Finding]:
    """Problems whose texts name keys and counts only: one finding each, in full."""
    return [
        Finding(item.kind, "FAIL", item.where, 1, item.detail, item.remedy or item.kind.remedy) for item in problems
    ]


def summed(cases: Sequence[Sequence[Problem]], severity: Severity, where: str) -> list[Finding]:
    """Problems whose texts name files: one finding for each kind and what to do about it.

    Args:
        cases: The problems of each bad case.
        severity: Of the findings.
        where: Of the findings.
    """
    groups: dict[tuple[ErrorKind, str], dict[int, list[Problem]]] = {}
    for number, problems in enumerate(cases):
        for problem in dict.fromkeys(problems):
            concerned = groups.setdefault((problem.kind, nameless_remedy(problem)), {})
            concerned.setdefault(number, []).append(problem)
    return [
        Finding(
            kind,
            severity,
            where,
            len(concerned),
            "",
            remedy,
            problems=tuple(problem for problems in concerned.values() for problem in problems),
        )
        for (kind, remedy), concerned in groups.items()
    ]


def _said(problem: Problem) -> str:
    return f"{problem.where}: {problem.detail} -> {_remedy(problem)}"


def _remedy(problem: Problem) -> str:
    return problem.remedy or problem.kind.remedy
