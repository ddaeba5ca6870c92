"""The result of a check, and how checks are run so that none stops the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fedfms.doctor.examination import Examination, NotKnown
from fedfms.errors import FILE_REFUSED, ErrorKind, FedfmsError, Problem, first_of, reason_of

Severity = Literal["PASS", "WARN", "FAIL", "SKIP"]


#: Most problems that one line of the table lists.
_SHOWN = 5


@dataclass(frozen=True)
class Result:
    """One line of the doctor's table.

    Attributes:
        kind: Entry of the catalogue; its id identifies the check, also when it passes.
        severity: PASS; WARN; FAIL, which prevents the kit from starting; or SKIP: not checked, because of another
            check's FAIL.
        what: What was found. Names no patient, and no files except the kit's own and the backbones'.
        remedy: What to do; empty when the check passes.
        because: Of SKIP, the check that says what is wrong.
    """

    kind: ErrorKind
    severity: Severity
    what: str
    remedy: str = ""
    because: ErrorKind | None = None

    @property
    def id(self) -> str:
        """Id of the check, such as ``FMS-H001``."""
        return self.kind.id

    def as_json(self) -> dict[str, Any]:
        """The result as ``fedfms doctor --json`` prints it."""
        return {"id": self.id, "severity": self.severity, "what": self.what, "remedy": self.remedy}


def passed(kind: ErrorKind, what: str) -> Result:
    """A check that found nothing wrong."""
    return Result(kind, "PASS", what)


def warned(kind: ErrorKind, what: str, remedy: str | None = None) -> Result:
    """A check that found something to look at; the kit can start."""
    return Result(kind, "WARN", what, remedy or kind.remedy)


def failed(kind: ErrorKind, what: str, remedy: str | None = None) -> Result:
    """A check that found a reason why the kit must not start."""
    return Result(kind, "FAIL", what, remedy or kind.remedy)


def skipped(kind: ErrorKind, because: ErrorKind) -> Result:
    """A check that could not be done, because what it needs is what another check reports as wrong."""
    return Result(kind, "SKIP", f"not checked, because of {because.id}", f"Correct {because.id} first.", because)


def without_unfounded_skips(results: Sequence[Result]) -> tuple[Result, ...]:
    """The results, with FAIL for each SKIP whose cause no line reports: nothing starts unchecked for no reason."""
    founded = {result.kind for result in results if result.severity == "FAIL"}
    while more := {item.kind for item in results if item.severity == "SKIP" and item.because in founded} - founded:
        founded |= more
    return tuple(
        failed(item.kind, item.what) if item.severity == "SKIP" and item.because not in founded else item
        for item in results
    )


def remedies(problems: Iterable[Problem]) -> str:
    """The remedies of problems, each once; the catalogue's where a problem has none of its own."""
    return " ".join(dict.fromkeys(item.remedy or item.kind.remedy for item in problems))


def listed(problems: Iterable[Problem], examination: Examination) -> str:
    """The first problems of the kit's own files in one text, with paths below the kit. Never for problems of data."""
    prefix = f"{examination.kit.folder}/"
    texts = [f"{item.kind.id} {item.where.removeprefix(prefix)}: {item.detail}" for item in problems]
    return first_of(texts, _SHOWN, "; ")


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        kind: Entry of the catalogue.
        run: Does the check and returns one result or several.
        about_data: Whether a failure's text may name the site's files; only its public part is then shown.
    """

    kind: ErrorKind
    run: Callable[[Examination], Result | list[Result]]
    about_data: bool = False

    def __call__(self, examination: Examination) -> list[Result]:
        """Run the check; any exception becomes a FAIL of this check, or a SKIP where another check reports it."""
        try:
            found = self.run(examination)
        except FedfmsError as error:
            if isinstance(error, NotKnown) and error.reported_by is not self.kind:
                return [skipped(self.kind, error.reported_by)]
            text = error.public if self.about_data else listed(error.problems, examination)
            return [failed(self.kind, text, _own_remedy(error))]
        except Exception as error:  # noqa: BLE001 - one broken check must not hide what the others find
            text = type(error).__name__ if self.about_data else reason_of(error)
            return [failed(self.kind, f"the check itself failed: {text}")]
        return found if isinstance(found, list) else [found]


def _own_remedy(error: FedfmsError) -> str | None:
    """The remedy for files that may not be read; the check's own remedy is for damaged ones. None for other errors."""
    return FILE_REFUSED.remedy if FILE_REFUSED.id in error.ids else None
