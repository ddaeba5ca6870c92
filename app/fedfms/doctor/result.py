"""What a check says, and how checks are run so that none stops the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from fedfms.doctor.examination import Examination
from fedfms.errors import ErrorKind, FedfmsError, Problem, first_of, reason_of

Severity = Literal["PASS", "WARN", "FAIL"]


#: Most problems that one line of the table lists.
_SHOWN = 5


@dataclass(frozen=True)
class Result:
    """One line of the doctor's table.

    Attributes:
        kind: Entry of the catalogue; its id stands for the check, also when it passes.
        severity: FAIL keeps the kit from starting.
        what: What was found. Names no patient and no file but the kit's own and the backbones'.
        remedy: What to do; empty when it passes.
    """

    kind: ErrorKind
    severity: Severity
    what: str
    remedy: str = ""

    @property
    def id(self) -> str:
        return self.kind.id

    def as_json(self) -> dict[str, Any]:
        return {"id": self.id, "severity": self.severity, "what": self.what, "remedy": self.remedy}


def passed(kind: ErrorKind, what: str) -> Result:
    """All is well."""
    return Result(kind, "PASS", what)


def warned(kind: ErrorKind, what: str, remedy: str | None = None) -> Result:
    """The kit can start, but somebody should look at this."""
    return Result(kind, "WARN", what, remedy or kind.remedy)


def failed(kind: ErrorKind, what: str, remedy: str | None = None) -> Result:
    """The kit must not start."""
    return Result(kind, "FAIL", what, remedy or kind.remedy)


def listed(problems: Iterable[Problem], examination: Examination) -> str:
    """The first problems of the kit's own files in one text, with paths below the kit. Never for problems of data."""
    prefix = f"{examination.kit.folder}/"
    texts = [f"{item.kind.id} {item.where.removeprefix(prefix)}: {item.detail}" for item in problems]
    return first_of(texts, _SHOWN, "; ")


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        kind: What it is about.
        run: Gives one line or several.
        about_data: Whether a failure's text may name the site's files; only its public part is then shown.
    """

    kind: ErrorKind
    run: Callable[[Examination], Result | list[Result]]
    about_data: bool = False

    def __call__(self, examination: Examination) -> list[Result]:
        """Run it; whatever it raises becomes a FAIL of this check."""
        try:
            found = self.run(examination)
        except FedfmsError as error:
            text = error.public if self.about_data else listed(error.problems, examination)
            return [failed(self.kind, text)]
        except Exception as error:  # noqa: BLE001 - one broken check must not hide what the others find
            text = type(error).__name__ if self.about_data else reason_of(error)
            return [failed(self.kind, f"the check itself failed: {text}")]
        return found if isinstance(found, list) else [found]
