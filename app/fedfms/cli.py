"""The ``fedfms`` command: parses, calls the package, prints.

Heavy imports stay inside the commands, so that ``--help`` answers at once.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from fedfms.errors import FedfmsError
from fedfms.files import write_json

if TYPE_CHECKING:
    from fedfms.data.check import CheckReport

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Federated fine-tuning of Segment Anything for medical images on NVIDIA FLARE. Research use only.",
)
data_app = typer.Typer(no_args_is_help=True, help="Describe and check the data of a hospital.")
job_app = typer.Typer(no_args_is_help=True, help="Make and check job folders.")
model_app = typer.Typer(no_args_is_help=True, help="Backbones and what a scope exchanges.")
app.add_typer(data_app, name="data")
app.add_typer(job_app, name="job")
app.add_typer(model_app, name="model")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


def main() -> None:
    """Entry point: a known failure prints its problems and ends with 1."""
    try:
        app()
    except FedfmsError as error:
        Console(stderr=True, soft_wrap=True).print(f"[red]{len(error.problems)} problem(s):[/red]")
        print(error, file=sys.stderr)
        sys.exit(1)


def _print_json(content: Any) -> None:
    print(json.dumps(content, indent=1))


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(help="A checkpoint written by fedfms.")], as_json: AsJson = False
) -> None:
    """Say what a checkpoint is: architecture, structures, scope, parameters, bytes, digests."""
    from fedfms.sam.checkpoint import describe

    content = describe(file)
    if as_json:
        _print_json(content)
        return
    tensors = content.pop("tensors")
    _print_pairs(content)
    print(f"{len(tensors)} tensors; their names: fedfms inspect --json {file}")


def _print_pairs(content: dict[str, Any]) -> None:
    for key, value in content.items():
        print(f"{key:22} {f'{value:,}' if isinstance(value, int) else value}")


@app.command()
def evaluate(
    model: Annotated[Path, typer.Option(help="A checkpoint written by fedfms.")],
    site: Annotated[Path, typer.Option(help="The site.yaml with images and reference masks.")],
    out: Annotated[Path, typer.Option(help="Folder for metrics.json.")],
    split: Annotated[str, typer.Option(help="train, validation, test or all.")] = "validation",
    task: Annotated[Optional[str], typer.Option(help="Task in site.yaml, if not the model's own.")] = None,  # noqa: UP045
) -> None:
    """Score a model on a site's data: Dice and IoU per structure, at native resolution.

    A slice whose reference is empty is not estimable and does not count.
    """
    from fedfms.data.site import load_site
    from fedfms.training.evaluation import evaluate as run

    if split not in ("train", "validation", "test", "all"):
        raise typer.BadParameter("write train, validation, test or all", param_hint="--split")
    with Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task("slices", total=None)
        result = run(
            model, load_site(site), split, task, lambda done, total: progress.update(bar, completed=done, total=total)
        )
    write_json(out / "metrics.json", result)
    table = Table(title=f"{result['slices']} slices of {result['cases']} cases ({split})")
    for heading in ("structure", "Dice", "IoU", "slices with a reference"):
        table.add_column(heading)
    for name, values in result["structures"].items():
        cells = ["not estimable" if values[m]["mean"] is None else f"{values[m]['mean']:.4f}" for m in ("dice", "iou")]
        table.add_row(name, *cells, str(values["dice"]["n"]))
    Console().print(table)
    print(f"written: {out / 'metrics.json'} ({result['notice']})")


@app.command()
def results(
    run: Annotated[Path, typer.Argument(help="A simulator workspace, or a downloaded job.")],
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Folder for results.png: one slice per hospital before and after."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what a run reached: Dice per hospital before and after, bytes exchanged, and a picture.

    Fails when the run did not finish; FLARE's own exit code does not tell.
    """
    from dataclasses import asdict

    from fedfms.errors import RUN_FOLDER, fail
    from fedfms.report.run import open_run
    from fedfms.report.tables import rounds_table, run_table

    found = open_run(run)
    if as_json:
        _print_json(asdict(found.result))
    else:
        console = Console()
        console.print(rounds_table(found.result))
        console.print(run_table(found.result))
        for refusal in found.result.refusals:
            console.print(f"{refusal} (docs/errors.md)", style="yellow", markup=False)
        print(f"model: {found.model_file}")
    if out is not None:
        from fedfms.report.pictures import draw, make_row
        from fedfms.sam.checkpoint import read_header

        notes = sys.stderr if as_json else sys.stdout
        names = [name for name in found.result.sites if name in found.site_files]
        if not names:
            raise fail(RUN_FOLDER, run, "no hospital's data is on this machine, so there is nothing to draw")
        if absent := sorted(set(found.result.sites) - set(names)):
            print(f"not in the picture, because their data is not on this machine: {', '.join(absent)}", file=notes)
        rows = [make_row(name, found.site_files[name], found.model_file) for name in names]
        structures = read_header(found.model_file).model.structures
        title = f"one validation slice per hospital, before and after {found.result.rounds} rounds"
        draw(rows, structures, title, out / "results.png")
        print(f"picture: {out / 'results.png'}", file=notes)
    if found.result.chosen_rounds is None:
        raise fail(RUN_FOLDER, run, f"the run stopped after {found.result.rounds} rounds, before its end")


@data_app.command("check")
def data_check(
    site: Annotated[Path, typer.Argument(metavar="SITE.YAML", help="The site's description.")], as_json: AsJson = False
) -> None:
    """Read every file that a site.yaml names and list what is wrong. Ends with 1 if anything is."""
    from fedfms.data.check import check_site

    with Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task("cases", total=None)
        report = check_site(site, on_case=lambda done, total: progress.update(bar, completed=done, total=total))
    if as_json:
        _print_json(report.as_json())
    else:
        _print_check(report)
    if not report.ok:
        raise typer.Exit(1)


def _print_check(report: CheckReport) -> None:
    console = Console(soft_wrap=True)
    contents = Table()
    for heading in ("dataset", "structure", "annotated cases", "slices with it"):
        contents.add_column(heading, overflow="fold")
    for row in report.rows:
        slices = ", ".join(f"{split} {count}" for split, count in row.slices_per_split.items())
        sizes = " to ".join(f"{size[0]} x {size[1]}" for size in dict.fromkeys((row.smallest, row.largest)) if size)
        spacing = (
            " to ".join(f"{value:.2f} mm" for value in dict.fromkeys(row.spacing)) if row.spacing else "no spacing"
        )
        print(f"{row.dataset}: task {row.task}, {row.format}, {row.patients} patients, {row.cases} cases")
        print(f"  slices: {slices}; pixels: {sizes}, {spacing}")
        for item in row.structures:
            contents.add_row(row.dataset, item.name, str(item.annotated_cases), str(item.filled_slices))
    if report.rows:
        console.print(contents)
    for warning in report.warnings:
        console.print("[yellow]warning[/yellow]", warning, highlight=False)
    for problem in report.left_out:
        console.print(f"left out {problem}", style="yellow", highlight=False, markup=False)
    for problem in report.problems:
        console.print("[red]problem[/red]", problem, highlight=False, markup=False)
    console.print("[green]PASS[/green]" if report.ok else f"[red]FAIL: {len(report.problems)} problem(s)[/red]")


@data_app.command("sites")
def data_sites(
    root: Annotated[Path, typer.Argument(help="Folder with one sub-folder per hospital, each with images/.")],
    structure: Annotated[list[str], typer.Option(help="NAME=FOLDER of its masks; repeat for more structures.")],
    out: Annotated[Path, typer.Option(help="Folder for the files; use it as FEDFMS_SITES.")],
    patient_column: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Column of manifest.csv that names the patient. Without: each image is a patient."),
    ] = None,
    task: Annotated[Optional[str], typer.Option(help="Name by which jobs ask for the data.")] = None,  # noqa: UP045
) -> None:
    """Write one site.yaml per hospital folder below ROOT.

    Example: `fedfms data sites DATA --structure tumour=masks --patient-column patient --out sites`, then
    `FEDFMS_SITES=sites nvflare simulator JOB -c hospital_a,hospital_b`.
    """
    from pydantic import TypeAdapter, ValidationError

    from fedfms.configuration import TaskName
    from fedfms.data.sites_from_folders import DEFAULT_TASK, parse_structures, write_sites

    try:
        structures = parse_structures(structure)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--structure") from None
    name = DEFAULT_TASK if task is None else task
    try:
        TypeAdapter(TaskName).validate_python(name)
    except ValidationError:
        raise typer.BadParameter(f"'{name}': only a-z, 0-9, - and _", param_hint="--task") from None
    report = write_sites(root, structures, out=out, patient_column=patient_column, task=name)
    for warning in report.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    for file in report.files:
        print(file)
    names = ",".join(file.stem for file in report.files)
    print(f"use them with: FEDFMS_SITES={out.resolve()} nvflare simulator JOB -c {names}", file=sys.stderr)


def _set_help() -> str:
    from fedfms.job_folder import job_keys

    return "KEY=VALUE, repeated. Keys: " + ", ".join(job_keys()) + ". jobs/README.md explains each one."


@job_app.command("new")
def job_new(
    source: Annotated[Path, typer.Option("--from", help="An existing job folder.")],
    out: Annotated[Path, typer.Option(help="The new folder; must not exist.")],
    settings: Annotated[Optional[list[str]], typer.Option("--set", help=_set_help())] = None,  # noqa: UP045
) -> None:
    """Make a job folder from an existing one with other settings.

    Example: `fedfms job new --from jobs/fedmsa --set structures=tumour --set local_work.epochs=1 --set rounds=5
    --out my_job`. Lists are written `a,b`. Another backbone brings its published digest.
    """
    from fedfms.job_folder import new_job

    job = new_job(source, settings or [], out)
    print(f"{out}: task {job.task}, structures {', '.join(job.structures)}, {job.backbone}, scope {job.scope}")
    print(f"job configuration digest {job.sha256}")


@job_app.command("check")
def job_check(folder: Annotated[Path, typer.Argument(help="A job folder.")]) -> None:
    """Check a job's training.yaml the way server and sites will."""
    from fedfms.job import load_job
    from fedfms.job_folder import TRAINING_FILE
    from fedfms.sam.model import schema_of

    job = load_job(folder / TRAINING_FILE)
    schema = schema_of(job.model)
    print(f"{folder}: valid; exchanges {schema.parameters:,} parameters, {schema.bytes:,} bytes each way and round")


@model_app.command("summary")
def model_summary(
    backbone: Annotated[str, typer.Option(help="vit_t, vit_b, vit_l, vit_h or vit_test.")],
    scope: Annotated[str, typer.Option(help="full, adapters+decoder or decoder.")],
    structures: Annotated[str, typer.Option(help="Names of the structures, separated by commas.")] = "structure",
    input_size: Annotated[
        Optional[int], typer.Option(help="Input size in pixels; the backbone's own if not given.")  # noqa: UP045
    ] = None,
    blocks: Annotated[str, typer.Option(help="Blocks with adapters: all, or the last k.")] = "all",
    as_json: AsJson = False,
) -> None:
    """Count parameters and bytes of a backbone in a scope. Needs no weights."""
    from pydantic import ValidationError

    from fedfms.configuration import validation_problems
    from fedfms.errors import MODEL_INVALID
    from fedfms.sam.backbones import BACKBONES, published_sha256
    from fedfms.sam.checkpoint import summary
    from fedfms.sam.config import ModelConfig

    if backbone not in BACKBONES:
        raise typer.BadParameter(f"write one of {', '.join(BACKBONES)}", param_hint="--backbone")
    options = {
        "backbone": backbone,
        "backbone_sha256": published_sha256(backbone),
        "input_size": input_size or BACKBONES[backbone].native_size,
        "structures": [name.strip() for name in structures.split(",")],
        "scope": scope,
        "adapter": {"blocks": int(blocks) if blocks.isdecimal() else blocks},
    }
    try:
        config = ModelConfig.model_validate(options)
    except ValidationError as error:
        raise validation_problems(error, MODEL_INVALID, Path("options"), options) from None
    content = summary(config)
    if as_json:
        _print_json(content)
    else:
        _print_pairs(content)


@model_app.command("init")
def model_init(
    backbone: Annotated[str, typer.Argument(help="vit_t, vit_b, vit_l or vit_h.")],
    seed: Annotated[int, typer.Option(help="Another seed, other weights.")] = 0,
    out: Annotated[
        Optional[Path], typer.Option(help="Folder; FEDFMS_BACKBONES if not given.")  # noqa: UP045
    ] = None,
) -> None:
    """Write a backbone file with random weights, for trials without a download, and print its digest."""
    import hashlib

    from fedfms.files import atomic_path, environment_folder
    from fedfms.sam.backbones import BACKBONES, FOLDER_VARIABLE, random_weights, serialise

    # vit_test is made on the spot and never looked up in a folder.
    names = [name for name in BACKBONES if name != "vit_test"]
    if backbone not in names:
        raise typer.BadParameter(f"write one of {', '.join(names)}", param_hint="BACKBONE")
    folder = out or environment_folder(FOLDER_VARIABLE)
    if folder is None:
        raise typer.BadParameter(f"give --out FOLDER or set {FOLDER_VARIABLE}", param_hint="--out")
    content = serialise(random_weights(BACKBONES[backbone], seed))
    path = folder / f"{backbone}-random-{seed}.safetensors"
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
    print(f"{path}: random weights, for trials only")
    print(f"backbone_sha256={hashlib.sha256(content).hexdigest()}")


if __name__ == "__main__":
    main()
