"""The printed summary of a run."""

from __future__ import annotations

from rich.table import Table

from fedfms.results.run_result import RunResult


def megabytes(count: float) -> str:
    """Bytes as MB (10^6), for people."""
    return f"{count / 1e6:.1f} MB"


def dice_text(value: float | None) -> str:
    """A Dice value, or that there is none: not estimable, or not reported."""
    return "no value" if value is None else f"{value:.3f}"


def run_table(result: RunResult) -> Table:
    """Per hospital and structure: Dice before the first round and of the kept model; bytes.

    A run that did not reach its end has kept no model; the column then shows the last one that was scored.
    """
    kept = result.chosen_rounds if result.chosen_rounds is not None else -1
    table = Table(title=f"{result.rounds} rounds, {len(result.sites)} hospitals: Dice on validation patients")
    for heading in ("hospital", "structure", "Dice before", "Dice after", "up per round", "down per round"):
        table.add_column(heading, justify="left" if heading in ("hospital", "structure") else "right")
    for site in result.sites.values():
        for index, (structure, values) in enumerate(site.dice.items()):
            table.add_row(
                site.site if index == 0 else "",
                structure,
                dice_text(values[0]),
                dice_text(values[kept] if kept < len(values) else None),
                megabytes(sum(site.bytes_up) / len(site.bytes_up)) if index == 0 else "",
                megabytes(sum(site.bytes_down) / len(site.bytes_down)) if index == 0 and site.bytes_down else "",
            )
        table.add_section()
    return table


def rounds_table(result: RunResult) -> Table:
    """Dice per hospital, structure and round."""
    table = Table(title="Dice of the received model, by rounds of training it has seen")
    table.add_column("hospital")
    entries = max((len(values) for site in result.sites.values() for values in site.dice.values()), default=0)
    for number in range(entries):
        table.add_column(str(number), justify="right")
    for site in result.sites.values():
        for structure, values in site.dice.items():
            cells = [dice_text(value) for value in values]
            table.add_row(f"{site.site} {structure}", *cells, *[""] * (entries - len(cells)))
    return table
