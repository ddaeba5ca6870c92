"""Read the server's ledger of a run: who trained, how well, how many bytes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedfms.access import is_file, paths_that_fit
from fedfms.errors import CATALOGUE, RUN_FOLDER, fail
from fedfms.exchange.replies import LEDGER_FILE
from fedfms.results.ledger_file import open_ledger
from fedfms.results.ledger_lines import (
    AcceptedUpdate,
    AcceptedValidation,
    Choice,
    ClosedRound,
    LedgerLine,
    OtherLine,
    Resumed,
    ScoreFigures,
    ledger_line,
)
from fedfms.results.outcome import Missed, Outcome, missed_rounds


@dataclass(frozen=True)
class SiteResult:
    """One hospital's part in a run.

    Attributes:
        site: Its name.
        dice: Validation Dice of the received model per structure, one entry per round and a last one for the final
            aggregate; None where not estimable or not reported: in a round whose update was not accepted, or because
            the site's policy withholds it.
        bytes_up: Serialised bytes of each accepted update.
        bytes_down: Serialised bytes of each state sent to it.
        seconds: Seconds of each round at the site; None where the site's policy withholds them.
        peak_memory_bytes: Largest over the rounds that report it; None when none does.
    """

    site: str
    dice: dict[str, list[float | None]]
    bytes_up: list[int]
    bytes_down: list[int]
    seconds: list[float | None]
    peak_memory_bytes: int | None


@dataclass(frozen=True)
class Refusal:
    """Something that a site or the server refused, or the reason why the run stopped.

    Attributes:
        site: The site it concerns, or ``server``.
        phase: ``round 1`` and so on, or the ledger's name of the phase.
        ids: Error ids.
    """

    site: str
    phase: str
    ids: tuple[str, ...]

    def __str__(self) -> str:
        known = [f"{item} {CATALOGUE[item].title}" if item in CATALOGUE else item for item in self.ids]
        return f"{self.site}, {self.phase}: {'; '.join(known)}"


@dataclass(frozen=True)
class RunResult:
    """The outcome of a run, as its ledger records it.

    Attributes:
        sites: One entry per site that sent an update, by name.
        rounds: Rounds that were aggregated.
        round_seconds: Wall-clock seconds of each round at the server.
        chosen_rounds: Rounds of training that the model has seen that went to every site; None when the run did not
            reach its end.
        chosen_mean_dice: Its mean validation Dice, by which it was chosen; None when no site reported one: then it is
            the last model.
        refusals: In the order in which they happened.
        missed: Sites that missed rounds.
    """

    sites: dict[str, SiteResult]
    rounds: int
    round_seconds: list[float]
    chosen_rounds: int | None
    chosen_mean_dice: float | None
    refusals: list[Refusal]
    missed: tuple[Missed, ...] = ()

    @property
    def outcome(self) -> Outcome:
        """Whether it reached its end with all sites."""
        if self.chosen_rounds is None:
            return "aborted"
        return "degraded" if self.missed else "complete"

    @property
    def chosen_name(self) -> str:
        """What the model is called that went to every site: nothing makes it the best one when nothing was measured."""
        return "last model" if self.chosen_mean_dice is None else "best model"


def find_ledger(folder: Path) -> Path:
    """The ledger below a simulator workspace, a downloaded job or the run folder itself, or the file that was named.

    Raises:
        FedfmsError: FMS-R001 when there is none, or several; FMS-D019 when a folder may not be listed.
    """
    if folder.name == LEDGER_FILE and is_file(folder):
        return folder
    found = [folder / LEDGER_FILE] if is_file(folder / LEDGER_FILE) else paths_that_fit(folder, f"**/{LEDGER_FILE}")
    if len(found) != 1:
        detail = f"{len(found)} files named {LEDGER_FILE} below it"
        raise fail(RUN_FOLDER, folder, detail)
    return found[0]


def read_ledger(path: Path) -> RunResult:
    """Read a ledger and collect its lines by site and round.

    Raises:
        FedfmsError: FMS-R001 when it is not a ledger, with the line that is not one of a ledger; FMS-R003 when it was
            changed; FMS-D019 when it may not be read.
    """
    lines = open_ledger(path).lines
    return _result(
        _as_it_counts([ledger_line(line, Path(f"{path}, line {number}")) for number, line in enumerate(lines, 1)])
    )


def _as_it_counts(lines: Iterable[LedgerLine]) -> list[LedgerLine]:
    """The lines without those of rounds that were repeated after a resumption, and of what came after the rounds."""
    counted: list[LedgerLine] = []
    for line in lines:
        if isinstance(line, Resumed):
            counted = [earlier for earlier in counted if not _is_repeated(earlier, line.rounds)]
        counted.append(line)
    return counted


def _is_repeated(line: LedgerLine, rounds: int) -> bool:
    if rounds == 0:
        return True  # the sites were asked again whether they are ready
    if isinstance(line, (AcceptedUpdate, ClosedRound)):
        return line.round >= rounds
    if isinstance(line, OtherLine):
        return line.event in ("validate", "final", "stop") or (line.round is not None and line.round >= rounds)
    return isinstance(line, (AcceptedValidation, Choice))


def _result(lines: Sequence[LedgerLine]) -> RunResult:
    excluded = {(line.site, line.round) for line in lines if isinstance(line, OtherLine) and line.event == "excluded"}
    updates = [line for line in lines if isinstance(line, AcceptedUpdate) and (line.site, line.round) not in excluded]
    rounds = [line for line in lines if isinstance(line, ClosedRound)]
    choice = next((line for line in lines if isinstance(line, Choice)), None)
    # By the rounds of training that the received model has seen: a round without an accepted update of a site
    # leaves a gap and does not shift the ones after it.
    received: dict[str, dict[int, Mapping[str, ScoreFigures]]] = {}
    for line in updates:
        received.setdefault(line.site, {})[line.round] = line.report.received
    for validation in lines:
        if isinstance(validation, AcceptedValidation) and validation.site in received:
            received[validation.site][validation.rounds] = validation.report.received
    entries = 1 + max((number for seen in received.values() for number in seen), default=-1)
    sites = {}
    for name, seen in sorted(received.items()):
        own = [line for line in updates if line.site == name]
        reports = [line.report for line in own]
        sites[name] = SiteResult(
            site=name,
            dice={
                structure: [_dice(seen.get(number, {}), structure) for number in range(entries)]
                for structure in reports[0].received
            },
            bytes_up=[line.bytes_up for line in own],
            bytes_down=[line.bytes_down_each for line in rounds if name in line.accepted],
            seconds=[report.seconds for report in reports],
            peak_memory_bytes=max(
                (report.peak_memory_bytes for report in reports if report.peak_memory_bytes is not None),
                default=None,
            ),
        )
    return RunResult(
        sites=sites,
        rounds=len(rounds),
        round_seconds=[line.seconds for line in rounds],
        chosen_rounds=choice.rounds if choice else None,
        chosen_mean_dice=choice.mean_dice if choice else None,
        refusals=[
            Refusal(line.site, line.event if line.round is None else f"round {line.round + 1}", line.errors)
            for line in lines
            if isinstance(line, OtherLine) and line.errors
        ],
        missed=missed_rounds(lines),
    )


def _dice(scores: Mapping[str, ScoreFigures], structure: str) -> float | None:
    return scores[structure].dice if structure in scores else None


def mean(values: Iterable[float | None]) -> float | None:
    """Mean of the estimable values; None when there is none."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
