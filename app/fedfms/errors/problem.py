"""What a failure is: kinds with stable ids, problems with place and cause, and the error that carries them.

The kinds themselves are declared in the modules beside this one, one module for each area.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class ErrorKind:
    """One entry of the catalogue. Nothing in it comes from a user's file, so it may leave the machine.

    Attributes:
        id: ``FMS-``, a letter for the area and three digits; never reused.
        title: The cause, a phrase without a full stop.
        remedy: What the user can do, one sentence.
    """

    id: str
    title: str
    remedy: str


CATALOGUE: dict[str, ErrorKind] = {}


def declare(identifier: str, title: str, remedy: str) -> ErrorKind:
    """Add a kind to the catalogue.

    Raises:
        ValueError: The id is declared already.
    """
    if identifier in CATALOGUE:
        raise ValueError(f"error id {identifier} is declared twice")
    return CATALOGUE.setdefault(identifier, ErrorKind(identifier, title, remedy))


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong. Names of files that are not UTF-8 are escaped, so that every text can be printed.

    Args:
        kind: Entry of the catalogue.
        where: A file, a key such as ``preprocessing.input_size``, a tensor's name. Stays local.
        detail: Cause, with the values found and expected. Stays local.
        remedy: More specific advice than the catalogue's, for example what to write instead. Stays local.
    """

    kind: ErrorKind
    where: str
    detail: str
    remedy: str | None = None

    def __post_init__(self) -> None:
        for name in ("where", "detail"):
            escaped = getattr(self, name).encode("utf-8", "backslashreplace").decode()
            object.__setattr__(self, name, escaped)

    def __str__(self) -> str:
        return f"{self.kind.id} {self.where}: {self.detail} -> {self.remedy or self.kind.remedy}"


class FedfmsError(Exception):
    """One or more problems, raised together so that a user sees all of them at once.

    Args:
        problems: At least one problem.
    """

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        if not self.problems:
            raise ValueError("a FedfmsError needs at least one problem")
        super().__init__("\n".join(str(problem) for problem in self.problems))

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids of the problems, without repetition, in order of appearance."""
        return tuple(dict.fromkeys(problem.kind.id for problem in self.problems))

    @property
    def public(self) -> str:
        """The text that may leave the site: ids, titles and counts."""
        counts = Counter(problem.kind.id for problem in self.problems)
        return "; ".join(
            f"{identifier} {CATALOGUE[identifier].title} ({counts[identifier]}x)" for identifier in self.ids
        )


def fail(kind: ErrorKind, where: object, detail: str, remedy: str | None = None) -> FedfmsError:
    """Shorthand for an error of one problem: ``raise fail(KIND, place, detail)``."""
    return FedfmsError([Problem(kind, str(where), detail, remedy)])
