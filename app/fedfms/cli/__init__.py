"""The ``fedfms`` command: parses, calls the package, prints.

Heavy imports stay inside the commands, so that ``--help`` answers at once.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NoReturn

import typer
from rich.console import Console

from fedfms.access import refusal, unwritable
from fedfms.cli.data import data_app
from fedfms.cli.doctor import doctor
from fedfms.cli.job import job_app
from fedfms.cli.kit_members import kit_app
from fedfms.cli.ledger import ledger_app
from fedfms.cli.model import inspect, model_app
from fedfms.cli.notify import notify_app
from fedfms.cli.poc import poc
from fedfms.cli.predict import predict
from fedfms.cli.results import evaluate, results
from fedfms.cli.review import egress, review_app
from fedfms.errors import FedfmsError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Federated fine-tuning of Segment Anything for medical images on NVIDIA FLARE. Research use only.",
)
for command in (inspect, evaluate, predict, results, egress, doctor, poc):
    app.command()(command)
app.add_typer(data_app, name="data")
app.add_typer(job_app, name="job")
app.add_typer(kit_app, name="kit")
app.add_typer(ledger_app, name="ledger")
app.add_typer(model_app, name="model")
app.add_typer(notify_app, name="notify")
app.add_typer(review_app, name="review")


def main() -> None:
    """Entry point: a known failure prints its problems and ends with 1."""
    try:
        app()
    except PermissionError as error:
        # Every place that reads or writes says so itself; this one is for those that were forgotten.
        if error.filename is None:
            raise
        path = Path(os.fsdecode(error.filename))
        problem = refusal(path)
        _report(unwritable(path, error) if problem is None else FedfmsError([problem]))
    except FedfmsError as error:
        _report(error)


def _report(error: FedfmsError) -> NoReturn:
    Console(stderr=True, soft_wrap=True).print(f"[red]{len(error.problems)} problem(s):[/red]")
    print(error, file=sys.stderr)
    sys.exit(1)
