"""``fedfms doctor``: whether a kit, its machine and its data are ready."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedfms.cli.printing import AsJson, print_json

if TYPE_CHECKING:
    from fedfms.doctor.checkup import Report

_COLOURS = {"PASS": "green", "WARN": "yellow", "FAIL": "red", "SKIP": "cyan"}


def doctor(
    kit: Annotated[
        Path | None,
        typer.Argument(help="The kit. Default: the environment variable FEDFMS_KIT, else the current folder."),
    ] = None,
    job: Annotated[Path | None, typer.Option(help="A job folder to prepare for.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Connect nowhere.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Read no data and time no training step.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check a kit, its machine, its data and the connection to the server. Exits with 1 if any check fails.

    A kit's start.sh runs this first. The output names no patient, and no files except the kit's own and the backbones'.
    """
    from fedfms.doctor.checkup import check_up, note_refused_start
    from fedfms.doctor.processes import STARTING
    from fedfms.files import environment_folder
    from fedfms.site.job_location import KIT_VARIABLE

    # FLARE and TensorFlow log in every process that they found no GPU; the doctor reports on it itself.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    folder = kit or environment_folder(KIT_VARIABLE) or Path.cwd()
    with Console(stderr=True).status("looking at the kit") as status:
        report = check_up(
            folder,
            job,
            offline=offline,
            quick=quick,
            on_check=lambda check: status.update(f"{check.kind.id} ..."),
        )
    if as_json:
        print_json(report.as_json())
    else:
        _print_report(report)
    if not report.ok:
        if os.environ.get(STARTING):
            note_refused_start(report)
        raise typer.Exit(1)


def _print_report(report: Report) -> None:
    kit = report.kit
    table = Table(title=Text(f"{kit.kind} {kit.name} of {kit.project}"), show_lines=True)
    for heading in ("", "id", "what", "remedy"):
        table.add_column(heading, overflow="fold", no_wrap=heading in ("", "id"))
    for result in report.results:
        severity = Text(result.severity, style=_COLOURS[result.severity])
        table.add_row(severity, result.id, Text(result.what), Text(result.remedy))
    Console().print(table)
    counts = {name: sum(result.severity == name for result in report.results) for name in _COLOURS}
    print(", ".join(f"{count} {name}" for name, count in counts.items() if count or name != "SKIP"))
    # Once more at the end, where people who read a log look first.
    for result in report.results:
        if result.severity == "FAIL":
            print(f"{result.id} {result.what} -> {result.remedy}")
