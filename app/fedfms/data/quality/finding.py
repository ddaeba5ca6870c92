"""The findings of ``fedfms data check``: the lines of its table."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from fedfms.data.volume.remedies import nameless_remedy
from fedfms.errors import ErrorKind, Problem

Severity = Literal["FAIL", "WARN"]

# Any path or UID in a text. Of a path with a blank only a part is found; such problems are then listed one by one.
_NAME = re.compile(r"\S*[/\\]\S*|\b\d+(?:\.\d+){4,}")


@dataclass(frozen=True)
class Finding:
    """One finding about a dataset, a task or a key.

    Attributes:
        kind: Entry of the catalogue of errors.
        severity: ``FAIL`` when the data should not be used as they are, else ``WARN``.
        where: Dataset, task or key of ``site.yaml``; never a file or a patient.
        count: Number of cases concerned, or 1 when it concerns all of ``where``.
        detail: Numbers and names of structures; never a file or a patient.
        remedy: What to do.
        named: The files concerned, when the finding is the same for all; must not leave this machine.
        problems: The problem of each file, when they differ; must not leave this machine.
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
        """The files concerned; of several files with the same problem only the first."""
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
        """The finding as JSON values; ``show_ids`` adds the files concerned."""
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
    """Shorthand for a finding of severity ``WARN`` with the remedy of the catalogue."""
    return Finding(kind, "WARN", where, count, detail, kind.remedy, tuple(named))


def plain(problems: Iterable[Problem]) -> list[Finding]:
    """One finding, with its full text, for each problem whose text contains only keys and counts."""
    return [
        Finding(item.kind, "FAIL", item.where, 1, item.detail, item.remedy or item.kind.remedy) for item in problems
    ]


def summed(cases: Sequence[Sequence[Problem]], severity: Severity, where: str) -> list[Finding]:
    """One finding for each kind of problem and remedy, for problems whose texts name files.

    Args:
        cases: The problems of each bad case.
        severity: Severity of the findings.
        where: Dataset or task.
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
