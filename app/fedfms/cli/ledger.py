"""``fedfms ledger``: look at the server's record of a run, and find out whether it was changed."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any

import typer

from fedfms.cli.printing import AsJson, print_json

ledger_app = typer.Typer(no_args_is_help=True, help="For the study lead: the server's record of a run.")

Run = Annotated[
    Path, typer.Argument(help="A simulator workspace, a downloaded job, or the job's folder at the server.")
]


@ledger_app.command("verify")
def ledger_verify(
    run: Run,
    egress: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SITE=FILE", help="A site's record of what left it, KIT/egress/JOB.jsonl; repeat for more sites."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check that no line of the ledger was changed, removed or moved, and that the sites' records agree with it.

    Each line holds the SHA-256 of the line before. A ledger that was written anew as a whole, or whose end was cut off,
    does not show it by itself: the sites' records do, and the digest of the last line, if it was kept elsewhere.

    Ends with 1 and every place that does not fit.
    """
    from fedfms.errors import FedfmsError
    from fedfms.results.ledger_file import differences, open_ledger
    from fedfms.results.run_result import find_ledger
    from fedfms.site.egress import read_record_file

    pairs = [entry.partition("=") for entry in egress or ()]
    if wrong := ["".join(pair) for pair in pairs if not all(pair)]:
        raise typer.BadParameter(f"write SITE=FILE, not {', '.join(wrong)}", param_hint="--egress")
    if len({site for site, _, _ in pairs}) < len(pairs):
        raise typer.BadParameter("one file for each site", param_hint="--egress")
    ledger = open_ledger(find_ledger(run))
    if problems := differences(ledger, {site: read_record_file(Path(file)) for site, _, file in pairs}):
        raise FedfmsError(problems)
    if as_json:
        print_json(
            {"lines": len(ledger.lines), "last_sha256": ledger.last_sha256, "sites": [pair[0] for pair in pairs]}
        )
        return
    print(f"{ledger.path}: {len(ledger.lines)} lines")
    if ledger.last_sha256 is None:
        print("written by version 0.1, in which no line vouches for another: changes would not be found")
    else:
        print(f"each follows the one before; SHA-256 of the last line: {ledger.last_sha256}")
    for site, _, file in pairs:
        print(f"{site}: all replies of {file} are in the ledger, and no others")


@ledger_app.command("show")
def ledger_show(run: Run, as_json: AsJson = False) -> None:
    """Show the ledger line by line: when, what happened, which round, which site, and what was refused.

    Fails like `verify` when it was changed.
    """
    from rich.console import Console
    from rich.table import Table

    from fedfms.results.ledger_file import open_ledger
    from fedfms.results.run_result import find_ledger

    lines = open_ledger(find_ledger(run)).lines
    if as_json:
        print_json(lines)
        return
    table = Table("time (UTC)", "event", "round", "site", "outcome")
    for line in lines:
        number = line.get("round")
        table.add_row(
            datetime.fromtimestamp(line["time"], timezone.utc).strftime("%Y-%m-%d %H:%M:%S"),
            line["event"],
            "" if number is None else str(number + 1),
            line.get("site", ""),
            _outcome(line),
        )
    Console().print(table)


def _outcome(line: dict[str, Any]) -> str:
    errors = " ".join(line.get("errors", ()))
    if line["event"] == "round":
        return f"from {', '.join(line['accepted']) or 'no site'}"
    if line["event"] == "choice":
        return f"the model after round {line['rounds']}"
    if line["event"] == "excluded":
        return f"left out {errors}"
    if "accepted" in line:
        return "accepted" if line["accepted"] else f"refused {errors}" if errors else "no reply"
    return errors
