"""``fedfms poc``: a whole provisioned federation on this machine."""

from __future__ import annotations

import signal
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from rich.console import Console

#: Exit code of a command that Ctrl-C ended, as shells have it.
INTERRUPTED = 130


def poc(
    job: Annotated[Path, typer.Argument(help="A job folder whose task is 'segmentation', as the demo data have it.")],
    workspace: Annotated[Path, typer.Option(help="Folder; 'generated' in it is replaced.")] = Path("poc_workspace"),
    port: Annotated[int, typer.Option(min=1, max=65535, help="The server's port on 127.0.0.1.")] = 8102,
    minutes: Annotated[float, typer.Option(min=0.1, help="Time limit of the job.")] = 60,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="KEY=VALUE, as 'fedfms job new' takes it; repeat for more."),
    ] = None,
) -> None:
    """Try a federation of three synthetic hospitals on this machine, with certificates, review and records.

    Provisions, starts a server and three sites that listen on 127.0.0.1 alone, approves the job at each site, submits
    it as study lead, waits, downloads and shows the result, and stops everything at the end, also after Ctrl-C.
    """
    from fedfms.errors import FedfmsError
    from fedfms.provision.poc import approve, prepare, run, started
    from fedfms.results.run_folder import open_run
    from fedfms.results.run_tables import model_line, outcome_text, rounds_table, run_table

    console = Console(soft_wrap=True, highlight=False)

    def say(line: str) -> None:
        console.print(line, markup=False)

    def step(line: str) -> None:
        console.print(f"\n== {line}", style="bold", markup=False)

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            signal.signal(number, _stop)
    try:
        step("Prepare: keys, certificates, kits, demo data")
        trial = prepare(workspace, job, settings or (), port=port)
        say(f"kits of server, {', '.join(trial.sites)} and two persons: {trial.kits}")
        step("Review: each hospital reviews the job before it is submitted, and approves it")
        approve(trial, say)
        step(f"Start: the server on 127.0.0.1:{port} and three sites, with mutual TLS; each runs the doctor first")
        with started(trial, say, doctor=True):
            try:
                step("Submit, wait, download")
                done = run(trial, say, seconds=60 * minutes)
            finally:
                step("Stop")
    except KeyboardInterrupt:
        say("interrupted; all processes have ended, there is no result")
        raise typer.Exit(INTERRUPTED) from None
    except FedfmsError:
        say("failed; all processes have ended, there is no result")
        raise
    say("all processes have ended")
    step("Result")
    found = open_run(done.result)
    Console().print(rounds_table(found.result))
    Console().print(run_table(found.result))
    for refusal in found.result.refusals:
        say(f"{refusal} (docs/errors.md)")
    say(outcome_text(found.result))
    say(model_line(found.result, found.model_file))
    step("What has left each hospital")
    for name, record in done.records.items():
        say(f"{name}: {record.with_suffix('.html')}; also: fedfms egress {done.job_id} --kit {trial.sites[name]}")


def _stop(number: int, frame: FrameType | None) -> None:
    """A request to end, or a closed terminal, ends the command as Ctrl-C does: what was started is stopped first."""
    raise KeyboardInterrupt
