"""Whether a run reached its end with all its sites: from what the ledger says happened, not from FLARE's last word."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fedfms.errors import CATALOGUE
from fedfms.results.ledger_lines import AcceptedUpdate, ClosedRound, LedgerLine, OtherLine

#: ``complete``: to its end, with every site in every round; ``degraded``: to its end, but a site missed rounds;
#: ``aborted``: it stopped before its end.
Outcome = Literal["complete", "degraded", "aborted"]


@dataclass(frozen=True)
class Missed:
    """The rounds in which a site that was connected at the start did not count.

    Attributes:
        site: Its name.
        rounds: The rounds, counted from 1.
        ids: Error ids that say why, each once; empty when it did not reply.
    """

    site: str
    rounds: tuple[int, ...]
    ids: tuple[str, ...]

    def __str__(self) -> str:
        known = [f"{item} {CATALOGUE[item].title}" if item in CATALOGUE else item for item in self.ids]
        word = "round" if len(self.rounds) == 1 else "rounds"
        return f"{self.site} missed {word} {_ranges(self.rounds)}: {'; '.join(known) or 'no reply'}"


def missed_rounds(lines: Sequence[LedgerLine]) -> tuple[Missed, ...]:
    """The sites that missed rounds, by name.

    Args:
        lines: The ledger, without what was repeated after a resumption.
    """
    others = [line for line in lines if isinstance(line, OtherLine)]
    ready = {line.site: line.errors for line in others if line.event == "ready"}
    reasons = {(line.site, line.round): line.errors for line in others if line.event in ("update", "excluded")}
    sites = sorted(ready.keys() | {line.site for line in lines if isinstance(line, AcceptedUpdate)})
    closed = [line for line in lines if isinstance(line, ClosedRound)]
    missed = []
    for site in sites:
        rounds = [line.round for line in closed if site not in line.accepted]
        ids = dict.fromkeys(item for number in rounds for item in reasons.get((site, number), ready.get(site, ())))
        if rounds:
            missed.append(Missed(site, tuple(number + 1 for number in rounds), tuple(ids)))
    return tuple(missed)


def _ranges(numbers: Sequence[int]) -> str:
    """``1, 3-5`` for 1, 3, 4 and 5."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][-1] + 1:
            found[-1].append(number)
        else:
            found.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in found)
