"""The printed summary of a run. Rounds are counted from 1 everywhere in it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rich.table import Table
from rich.text import Text

from fedfms.results.run_result import RunResult

_NO_VALUE = "no value"
_MEANING = (
    f"{_NO_VALUE}: no validation slice there shows the structure, or the hospital's policy withholds the figure, "
    "or its reply with the figure was not accepted"
)


def megabytes(count: float) -> str:
    """Bytes as MB (10^6), for people."""
    return f"{count / 1e6:.1f} MB"


def dice_text(value: float | None) -> str:
    """A Dice value, or that there is none: not estimable, or not reported."""
    return _NO_VALUE if value is None else f"{value:.3f}"


def rounds_text(count: int) -> str:
    """``1 round``, ``2 rounds``."""
    return f"{count} round{'' if count == 1 else 's'}"


def chosen_text(result: RunResult) -> str:
    """Which model went to every site, and why that one; of a run that stopped, that none did."""
    number = result.chosen_rounds
    if number is None:
        return f"The run stopped after {rounds_text(result.rounds)}, before its end: no model went to the hospitals."
    if result.chosen_mean_dice is None:
        return (
            f"No hospital reported a Dice, so no model is known to be the best: the last one, after round {number}, "
            "went to every hospital. Its folder is called models/best all the same."
        )
    mean = f"{result.chosen_mean_dice:.3f}"
    return f"The best model by Dice (mean {mean}) is the one after round {number}; it went to every hospital."


def outcome_text(result: RunResult) -> str:
    """Whether the run reached its end with all hospitals, and who missed which rounds why."""
    words = {
        "complete": "complete: every hospital's update counted in every round",
        "degraded": "degraded: it reached its end, but not with every hospital in every round",
        "aborted": "aborted: it stopped before its end",
    }
    return "\n".join([f"outcome: {words[result.outcome]}", *(f"  {item}" for item in result.missed)])


def model_line(result: RunResult, path: Path) -> str:
    """The line that names the file of the model, and which model it is."""
    number = result.chosen_rounds
    which = "best one before the run stopped" if number is None else f"{result.chosen_name}, after round {number}"
    return f"model ({which}): {path}"


def picture_title(result: RunResult, rounds: int) -> str:
    """The title of the picture with a model that has seen so many rounds of the run's."""
    model = f"the {result.chosen_name}, " if rounds == result.chosen_rounds else ""
    return f"one validation slice per hospital: before round 1, and {model}after round {rounds} of {result.rounds}"


def _shown_models(result: RunResult, entries: int) -> dict[str, int]:
    """Headings of the columns for trained models, and the number of rounds that each model has seen."""
    if result.chosen_rounds is None:
        last = entries - 1
        return {f"last scored (round {last})": last} if last > 0 else {}
    chosen = {f"{result.chosen_name} (round {result.chosen_rounds})": result.chosen_rounds}
    if result.chosen_rounds >= result.rounds:
        return chosen
    return {**chosen, f"last model (round {result.rounds})": result.rounds}


def run_table(result: RunResult) -> Table:
    """Per hospital and structure: Dice before the first round, of the model that went to every site, and of the last
    one where that is another; bytes.

    A run that did not reach its end has sent no model; the column then shows the last one that was scored.
    """
    models = _shown_models(result, _entries(result))
    table = Table(
        title=f"{rounds_text(result.rounds)}, {len(result.sites)} hospitals: Dice on validation patients",
    )
    for heading in ("hospital", "structure"):
        table.add_column(heading)
    for heading in ("before round 1", *models, "up per round", "down per round"):
        table.add_column(heading, justify="right")
    found: list[float | None] = []
    for site in result.sites.values():
        for index, (structure, values) in enumerate(site.dice.items()):
            shown = [values[number] if number < len(values) else None for number in (0, *models.values())]
            found += shown
            table.add_row(
                site.site if index == 0 else "",
                structure,
                *map(dice_text, shown),
                megabytes(sum(site.bytes_up) / len(site.bytes_up)) if index == 0 else "",
                megabytes(sum(site.bytes_down) / len(site.bytes_down)) if index == 0 and site.bytes_down else "",
            )
        table.add_section()
    table.caption = _caption(found, chosen_text(result))
    return table


def rounds_table(result: RunResult) -> Table:
    """Dice per hospital, structure and round."""
    table = Table(title="Dice of the model after each round, as the hospitals received it")
    table.add_column("hospital")
    entries = _entries(result)
    for number in range(entries):
        table.add_column(str(number) if number else "before", justify="right")
    found: list[float | None] = []
    for site in result.sites.values():
        for structure, values in site.dice.items():
            found += values
            table.add_row(f"{site.site} {structure}", *map(dice_text, values))
    table.caption = _caption(found)
    return table


def _entries(result: RunResult) -> int:
    """Number of models that were scored, the one before the first round included."""
    return max((len(values) for site in result.sites.values() for values in site.dice.values()), default=0)


def _caption(values: Iterable[float | None], *sentences: str) -> Text | None:
    """What is below a table: the sentences, and what a missing value means if there is one."""
    lines = [*sentences, *([_MEANING] if None in values else [])]
    return Text("\n".join(lines)) if lines else None
