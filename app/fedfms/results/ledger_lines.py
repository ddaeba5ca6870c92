"""What a line of the server's ledger must have for the results to be read from it.

Lines have more fields than are named here, and a later version may add some: unknown fields are ignored. Rounds are
counted as in the messages: ``round`` from 0, ``rounds`` is the number of rounds that a model has seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, NonNegativeInt, Tag, TypeAdapter, ValidationError

from fedfms.configuration import validation_problems
from fedfms.errors import RUN_FOLDER, FedfmsError


class _Lenient(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class ScoreFigures(_Lenient):
    """Scores of one structure at one site; None where not estimable or withheld."""

    dice: float | None


class Report(_Lenient):
    """Figures of a site's reply; None where its policy withholds them.

    Attributes:
        received: Scores of the received model, by structure.
        seconds: Duration of the task.
        peak_memory_bytes: Largest resident memory of the training process.
    """

    received: dict[str, ScoreFigures]
    seconds: float | None
    peak_memory_bytes: int | None


class AcceptedUpdate(_Lenient):
    """An update that was accepted when it arrived; ``bytes_up`` is its size. A later line may exclude it."""

    event: Literal["update"]
    site: str
    round: NonNegativeInt
    report: Report
    bytes_up: int


class AcceptedValidation(_Lenient):
    """A site's scores of the last aggregate, which has seen ``rounds`` rounds."""

    event: Literal["validate"]
    site: str
    rounds: NonNegativeInt
    report: Report


class ClosedRound(_Lenient):
    """A round that was aggregated: from which sites, how many bytes went to each, and its duration."""

    event: Literal["round"]
    round: NonNegativeInt
    accepted: tuple[str, ...]
    bytes_down_each: int
    seconds: float


class Choice(_Lenient):
    """Which model goes to all sites: the rounds it has seen, and its mean Dice; None when no site reported one."""

    event: Literal["choice"]
    rounds: NonNegativeInt
    mean_dice: float | None


class Resumed(_Lenient):
    """The run went on from the state after ``rounds`` rounds: what was written of later ones happened again."""

    event: Literal["resume"]
    rounds: NonNegativeInt


class OtherLine(_Lenient):
    """Any other line. What was refused, or why the run stopped, is in ``errors``."""

    event: str
    site: str = "server"
    round: NonNegativeInt | None = None
    errors: tuple[str, ...] = ()


LedgerLine = AcceptedUpdate | AcceptedValidation | ClosedRound | Choice | Resumed | OtherLine


def _kind(line: Mapping[str, Any]) -> str:
    """The tag of the model for a line. Tags are not keys of a line: errors name the path of keys only."""
    event = line.get("event")
    known = bool(line.get("accepted")) if event in ("update", "validate") else event in ("round", "choice", "resume")
    return f"{event} line" if known else "other line"


_LINE: TypeAdapter[LedgerLine] = TypeAdapter(
    Annotated[
        Annotated[AcceptedUpdate, Tag("update line")]
        | Annotated[AcceptedValidation, Tag("validate line")]
        | Annotated[ClosedRound, Tag("round line")]
        | Annotated[Choice, Tag("choice line")]
        | Annotated[Resumed, Tag("resume line")]
        | Annotated[OtherLine, Tag("other line")],
        Discriminator(_kind),
    ]
)


def ledger_line(content: Mapping[str, Any], where: Path) -> LedgerLine:
    """What the results need of a line.

    Args:
        content: The line.
        where: File and number of the line, for the error.

    Raises:
        FedfmsError: FMS-R001 with every key that a line of a ledger needs and this one has not, or has otherwise.
    """
    try:
        return _LINE.validate_python(content)
    except ValidationError as error:
        found = validation_problems(error, RUN_FOLDER, where, content)
        raise FedfmsError(replace(item, detail=f"not a ledger: {item.detail}") for item in found.problems) from None
