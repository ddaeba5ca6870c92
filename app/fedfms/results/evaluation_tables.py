"""The result of ``fedfms evaluate`` as a printed table and as CSV rows."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from fedfms.files import atomic_path

# Title and number of decimals.
_METRICS = {"dice": ("Dice", 3), "iou": ("IoU", 3), "hd95_mm": ("HD95 mm", 2), "assd_mm": ("ASSD mm", 2)}


def scores_table(result: dict[str, Any]) -> Table:
    """Means with intervals per structure: over cases, and over slices where a case has several.

    Args:
        result: From ``fedfms.training.evaluation.evaluate``.
    """
    units = {"cases": result["structures"]}
    if result["slices"] > result["cases"]:
        units["slices"] = result["per_slice"]
    counts = ", ".join(f"{result[unit]} {unit}" for unit in ("patients", *units))
    if result["cases_left_out"]:
        counts += f"; {result['cases_left_out']} left out because of bad files"
    caption = f"mean [{result['interval']['level']:.0%} interval over patients]"
    if any(found[metric]["mean"] is None for found in _annotated(units.values()) for metric in _METRICS):
        caption += "\nnot estimable: no reference shows the structure"
        caption += "; distances also where it was missed in all, or without spacing"
    if any(values["support"]["without_spacing"] for values in result["structures"].values()):
        caption += "\nimages without spacing have no distances in mm"
    table = Table(
        title=f"{counts} ({result['split']})",
        caption=Text(caption),
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column("structure", overflow="fold")
    table.add_column("", no_wrap=True)
    for unit in units:
        table.add_column(f"over {unit}", justify="right", no_wrap=True)
        table.add_column("n", justify="right", no_wrap=True)
    for name in result["structures"]:
        found = [structures[name] for structures in units.values()]
        supports = [values["support"] for values in found]
        if not supports[0]["annotated"]:
            table.add_row(name, "not annotated")
            table.add_section()
            continue
        for metric, (title, decimals) in _METRICS.items():
            cells = [(_interval(values[metric], decimals), values[metric]["n"]) for values in found]
            _add_row(table, name if metric == "dice" else "", title, cells)
        _add_row(table, "", "missed", [(item["missed"], item["estimable"]) for item in supports])
        empty = [(item["false_alarms"], item["annotated"] - item["estimable"]) for item in supports]
        _add_row(table, "", "false alarms", empty)
        table.add_section()
    return table


def _annotated(units: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Scores of the structures that the table has values of."""
    for structures in units:
        yield from (values for values in structures.values() if values["support"]["annotated"])


def _add_row(table: Table, structure: str, title: str, cells: Sequence[tuple[object, int]]) -> None:
    # As Text, because a square bracket begins markup in rich.
    table.add_row(structure, title, *(Text(str(item)) for cell in cells for item in cell))


def _interval(value: dict[str, Any], decimals: int) -> str:
    if value["mean"] is None:
        return "not estimable"
    mean = f"{value['mean']:.{decimals}f}"
    return mean if value["low"] is None else f"{mean} [{value['low']:.{decimals}f}, {value['high']:.{decimals}f}]"


def write_cases(path: Path, result: dict[str, Any]) -> None:
    """Write one row per case and annotated structure as CSV; an empty cell is a value that is not estimable.

    Raises:
        FedfmsError: FMS-D011 when it cannot be written.
    """
    cases = [{key: value for key, value in case.items() if key != "structures"} for case in result["per_case"]]
    rows = [
        {**about, "structure": name, **scores}
        for about, case in zip(cases, result["per_case"], strict=True)
        for name, scores in case["structures"].items()
    ]
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [*cases[0], "structure", "outcome", *_METRICS])
        writer.writeheader()
        writer.writerows(rows)
