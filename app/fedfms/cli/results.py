"""``fedfms evaluate`` and ``fedfms results``: how good a model and a run are."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from fedfms.cli.printing import AsJson, print_json
from fedfms.files import write_json


def evaluate(
    model: Annotated[Path, typer.Option(help="A checkpoint written by fedfms.")],
    site: Annotated[Path, typer.Option(help="The site.yaml with images and reference masks.")],
    out: Annotated[Path, typer.Option(help="Folder for metrics.json and cases.csv.")],
    split: Annotated[str, typer.Option(help="train, validation, test or all.")] = "validation",
    task: Annotated[str | None, typer.Option(help="Task in site.yaml; by default the model's own.")] = None,
    show_ids: Annotated[bool, typer.Option("--show-ids", help="Name the cases in both files.")] = False,
) -> None:
    """Score a model on a site's data, at native resolution.

    Dice, IoU, HD95 and ASSD (mm) per structure, with 95 % intervals over patients. Volumes are scored as a whole and
    slice by slice. An empty reference is not estimable and does not count. See docs/evaluation.md.
    """
    from fedfms.data.description.site import load_site
    from fedfms.results.evaluation_tables import scores_table, write_cases
    from fedfms.training.evaluation import evaluate as run

    if split not in ("train", "validation", "test", "all"):
        raise typer.BadParameter("write train, validation, test or all", param_hint="--split")
    with Progress(console=Console(stderr=True)) as progress:
        bars = {
            "checking": progress.add_task("checking files", total=None),
            "scoring": progress.add_task("scoring slices", total=None),
        }

        def show(stage: str, done: int, total: int) -> None:
            progress.update(bars[stage], completed=done, total=total)

        result = run(model, load_site(site), split, task, show, show_ids=show_ids)
    # Before writing, so that a full disk does not cost the result.
    Console().print(scores_table(result))
    write_json(out / "metrics.json", result)
    write_cases(out / "cases.csv", result)
    print(f"written: {out / 'metrics.json'}, {out / 'cases.csv'} ({result['notice']})")


def results(
    run: Annotated[Path, typer.Argument(help="A simulator workspace, or a downloaded job.")],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for results.png: one slice per hospital before and after."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show the results of a run: Dice per hospital before, of the best and of the last model, bytes, and a picture.

    Ends with 0 after a complete run, with 3 after a degraded one, in which a hospital missed rounds, and with 1 after
    one that was aborted. FLARE's own exit code and last word do not tell them apart.
    """
    from dataclasses import asdict

    from fedfms.errors import RUN_FOLDER, fail
    from fedfms.results.run_folder import incomplete, open_run
    from fedfms.results.run_tables import model_line, outcome_text, picture_title, rounds_table, run_table

    found = open_run(run)
    if as_json:
        print_json({"outcome": found.result.outcome, **asdict(found.result)})
    else:
        console = Console()
        console.print(rounds_table(found.result))
        console.print(run_table(found.result))
        for refusal in found.result.refusals:
            console.print(f"{refusal} (docs/errors.md)", style="yellow", markup=False)
        print(outcome_text(found.result))
        print(model_line(found.result, found.model_file))
    if out is not None:
        from fedfms.results.pictures import draw, make_row
        from fedfms.sam.checkpoint import read_header

        notes = sys.stderr if as_json else sys.stdout
        names = [name for name in found.result.sites if name in found.site_files]
        if not names:
            raise fail(
                RUN_FOLDER,
                run,
                "no hospital's data is on this machine, so there is nothing to draw",
                "Leave --out away, or run the command on the machine where the hospitals' site.yaml files are.",
            )
        if absent := sorted(set(found.result.sites) - set(names)):
            print(f"not in the picture, because their data is not on this machine: {', '.join(absent)}", file=notes)
        rows = [make_row(name, found.site_files[name], found.model_file) for name in names]
        header = read_header(found.model_file)
        draw(rows, header.model.structures, picture_title(found.result, header.rounds), out / "results.png")
        print(f"picture: {out / 'results.png'}", file=notes)
    if found.result.outcome == "aborted":
        raise incomplete(run, found.result)
    if found.result.outcome == "degraded":
        raise typer.Exit(3)
