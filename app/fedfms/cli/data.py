"""``fedfms data``: describe, prepare and check the data of a hospital."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from fedfms.cli.printing import AsJson, print_json

if TYPE_CHECKING:
    from fedfms.data.quality.check import CheckReport, DatasetRow
    from fedfms.data.quality.finding import Finding
    from fedfms.errors import Problem

_WHICH_FILES = "Which files, and what was found in them: add --show-ids."

data_app = typer.Typer(no_args_is_help=True, help="Describe and check the data of a hospital.")


@data_app.command("init")
def data_init(
    root: Annotated[Path, typer.Argument(help="Folder with images, and masks if there are any.")],
    out: Annotated[Path, typer.Option(help="The site.yaml to write.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
) -> None:
    """Write a first site.yaml from the files in a folder. It asks nothing; every guess is a comment in the file."""
    from fedfms.data.authoring.first_site.write import write_first_site

    report = write_first_site(root, out, overwrite=overwrite)
    print(f"{out}: {report.format}, {report.cases} images, masks: {', '.join(report.masks) or 'none'}")
    print(f"{len(report.guesses)} guesses to read in it; then: fedfms data check {out}", file=sys.stderr)


@data_app.command("check")
def data_check(
    site: Annotated[Path, typer.Argument(metavar="SITE.YAML", help="The site's description.")],
    as_json: AsJson = False,
    show_ids: Annotated[
        bool, typer.Option("--show-ids", help="Name the files concerned; for this machine only.")
    ] = False,
    fingerprint: Annotated[
        Path | None,
        typer.Option(help="JSON file to write: counts, spacings, intensities and digests, without any name."),
    ] = None,
) -> None:
    """Read every file that a site.yaml names, and list what is wrong or unusual. Exit status 1 if anything is FAIL."""
    from fedfms.data.quality.check import check_site
    from fedfms.files import write_json

    with Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task("cases", total=None)
        report = check_site(site, on_case=lambda done, total: progress.update(bar, completed=done, total=total))
    withheld = _withheld(site, report)
    if as_json:
        print_json({**report.as_json(show_ids=show_ids), "never_reported": withheld})
    else:
        _print_check(report, show_ids)
        for line in withheld:
            print(f"WARN {line}", file=sys.stderr)
    if fingerprint is not None:
        if report.fingerprint is not None:
            write_json(fingerprint, report.fingerprint)
        else:
            print(f"{fingerprint} is not written: site.yaml cannot be read", file=sys.stderr)
    if not report.ok:
        raise typer.Exit(1)


def _withheld(site: Path, report: CheckReport) -> list[str]:
    """Scores that the policy beside the site.yaml, if there is one, will withhold in every round."""
    from fedfms.access import is_file
    from fedfms.errors import FedfmsError
    from fedfms.site.policy import POLICY_FILE, load_policy
    from fedfms.site.withholding import validation_slices_by_task, withheld_structures

    try:
        if not is_file(site.with_name(POLICY_FILE)):
            return []
        policy = load_policy(site.with_name(POLICY_FILE))
    except FedfmsError as error:
        return [f"{POLICY_FILE} beside it: which scores it withholds is not known ({' '.join(error.ids)})"]
    return [
        f"task {task}: {sentence}"
        for task, slices in validation_slices_by_task(report).items()
        for sentence in withheld_structures(policy, slices).values()
    ]


def _print_check(report: CheckReport, show_ids: bool) -> None:
    console = Console(soft_wrap=True)
    contents = Table("dataset", "structure", "annotated cases", "slices with it")
    for row in report.rows:
        print(f"{row.dataset}: task {row.task}, {row.format}, {row.patients} patients, {row.cases} cases")
        print(f"  {_slices(row)}")
        for item in row.structures:
            filled = "unknown" if item.filled_slices is None else str(item.filled_slices)
            contents.add_row(row.dataset, item.name, str(item.annotated_cases), filled)
    if contents.row_count:
        Console().print(contents)
    for finding in report.findings if show_ids else ():
        for line in finding.files_in_short:
            console.print(f"{finding.kind.id} {line}", highlight=False, markup=False)
    if report.findings:
        Console().print(_findings_table(report.findings))
    if any(finding.files for finding in report.findings) and not show_ids:
        console.print(_WHICH_FILES, highlight=False)
    if show_ids and any(len(finding.files_in_short) < len(finding.files) for finding in report.findings):
        console.print("All files of a problem that several have: add --json.", highlight=False)
    fails = sum(finding.severity == "FAIL" for finding in report.findings)
    warnings = len(report.findings) - fails
    console.print("[green]PASS[/green]" if report.ok else f"[red]FAIL: {fails} finding(s)[/red]", end="")
    console.print(f", {warnings} warning(s)" if warnings else "", highlight=False)


def _slices(row: DatasetRow) -> str:
    if row.slices_per_split is None:
        return "slices, pixels and spacing: unknown, no case could be read"
    slices = ", ".join(f"{split} {count}" for split, count in row.slices_per_split.items())
    sizes = " to ".join(f"{size[0]} x {size[1]}" for size in dict.fromkeys((row.smallest, row.largest)) if size)
    spacing = " to ".join(dict.fromkeys(f"{value:.2f} mm" for value in row.spacing or ())) or "no spacing"
    part = f" (of {row.cases_read} cases that could be read)" if row.cases_read < row.cases else ""
    return f"slices: {slices}; pixels: {sizes}, {spacing}{part}"


def _findings_table(findings: Sequence[Finding]) -> Table:
    table = Table(show_lines=True)
    for heading in ("id", "severity", "count", "where", "what", "remedy"):
        table.add_column(heading, no_wrap=heading in ("id", "severity", "count"), overflow="fold")
    for finding in findings:
        style = "red" if finding.severity == "FAIL" else "yellow"
        what = ": ".join(part for part in (finding.kind.title, finding.detail) if part)
        cells = (finding.kind.id, finding.severity, str(finding.count), finding.where, what, finding.remedy)
        table.add_row(*(Text(cell, style=style if cell == finding.severity else "") for cell in cells))
    return table


@data_app.command("preview")
def data_preview(
    site: Annotated[Path, typer.Argument(metavar="SITE.YAML", help="The site's description.")],
    out: Annotated[Path, typer.Option(help="PNG to write.")],
    cases: Annotated[int, typer.Option(min=1, max=100, help="Most cases to show of each dataset.")] = 12,
    show_ids: Annotated[bool, typer.Option("--show-ids", help="Write file names under the images.")] = False,
) -> None:
    """Draw a contact sheet: for some cases of each dataset the slice that shows most of the masks, with outlines.

    The sheet shows images of patients: keep it where they are. Exit status 1 if a case cannot be read; the others are
    drawn.
    """
    from fedfms.results.preview import draw_preview

    problems = draw_preview(site, out, cases=cases, show_ids=show_ids)
    for line in map(str, problems) if show_ids else _nameless(problems):
        print(line, file=sys.stderr)
    if problems and not show_ids:
        print(_WHICH_FILES, file=sys.stderr)
    print(f"written: {out}")
    if problems:
        raise typer.Exit(1)


def _nameless(problems: Sequence[Problem]) -> list[str]:
    from fedfms.data.volume.remedies import nameless_remedy

    counts = Counter((problem.kind, nameless_remedy(problem)) for problem in problems)
    return [f"{kind.id} {kind.title} ({count}x) -> {remedy}" for (kind, remedy), count in counts.items()]


@data_app.command("schema")
def data_schema() -> None:
    """Print the JSON schema of site.yaml, which editors use to complete and check keys."""
    from fedfms.data.description.site import site_schema

    print_json(site_schema())


@data_app.command("sites")
def data_sites(
    root: Annotated[Path, typer.Argument(help="Folder with one sub-folder per hospital, each with images/.")],
    structure: Annotated[list[str], typer.Option(help="NAME=FOLDER of its masks; repeat for more structures.")],
    out: Annotated[Path, typer.Option(help="Folder for the files; use it as FEDFMS_SITES.")],
    patient_column: Annotated[
        str | None,
        typer.Option(help="Column of manifest.csv with the patient."),
    ] = None,
    patient_expression: Annotated[
        str | None,
        typer.Option(
            help="Regular expression on image names; its group is the patient. With neither option each image counts as"
            " a patient."
        ),
    ] = None,
    task: Annotated[str | None, typer.Option(help="Name by which jobs ask for the data.")] = None,
) -> None:
    """Write one site.yaml per hospital folder below ROOT.

    Example: `fedfms data sites DATA --structure tumour=masks --patient-column patient --out sites`, then
    `FEDFMS_SITES=sites nvflare simulator JOB -c hospital_a,hospital_b`.
    """
    from pydantic import TypeAdapter, ValidationError

    from fedfms.configuration import TaskName, plain
    from fedfms.data.authoring.sites_from_folders import DEFAULT_TASK, parse_structures, write_sites
    from fedfms.data.description.site import PatientFromName

    try:
        structures = parse_structures(structure)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--structure") from None
    if patient_expression is not None:
        if patient_column is not None:
            raise typer.BadParameter("name a column or an expression", param_hint="--patient-expression")
        try:
            PatientFromName(rule="name", expression=patient_expression)
        except ValidationError as error:
            raise typer.BadParameter(plain(error.errors()[0]), param_hint="--patient-expression") from None
    name = DEFAULT_TASK if task is None else task
    try:
        TypeAdapter(TaskName).validate_python(name)
    except ValidationError as error:
        raise typer.BadParameter(f"{plain(error.errors()[0])} (found '{name}')", param_hint="--task") from None
    report = write_sites(
        root, structures, out=out, patient_column=patient_column, patient_expression=patient_expression, task=name
    )
    for warning in report.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    for file in report.files:
        print(file)
    names = ",".join(file.stem for file in report.files)
    print(f"use them with: FEDFMS_SITES={out.resolve()} nvflare simulator JOB -c {names}", file=sys.stderr)


@data_app.command("prepare")
def data_prepare(
    name: Annotated[str, typer.Argument(metavar="SET", help="prostate, brain, nuclei or fundus.")],
    source: Annotated[Path, typer.Option(help="Folder of the unpacked archives; docs/datasets.md shows their trees.")],
    out: Annotated[Path, typer.Option(help="Folder to write; use it as FEDFMS_SITES.")],
    only: Annotated[
        list[str] | None,
        typer.Option(help="Archive to prepare, such as REFUGE; repeat for more. Default: all archives of the set."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what an earlier call wrote.")] = False,
) -> None:
    """Turn a public benchmark set, as it is distributed, into one folder and site.yaml per institution."""
    from fedfms.datasets.recipes.prepare import RECIPES, prepare

    if name not in RECIPES:
        raise typer.BadParameter(f"write one of {', '.join(RECIPES)}", param_hint="SET")
    parts = [part.name for part in RECIPES[name].parts]
    if unknown := set(only or ()) - set(parts):
        raise typer.BadParameter(f"no {', '.join(sorted(unknown))}; write {', '.join(parts)}", param_hint="--only")
    with Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task("images", total=None)
        report = prepare(
            RECIPES[name],
            source,
            out,
            only=only or (),
            overwrite=overwrite,
            on_case=lambda done, total: progress.update(bar, completed=done, total=total),
        )
    for warning in report.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    for institution, images in report.images.items():
        print(f"{out / institution}.yaml: {images} images")
    # One image cannot both train and validate; the warnings name these.
    names = ",".join(institution for institution, images in report.images.items() if images > 1)
    print(f"use them with: FEDFMS_SITES={out.resolve()} nvflare simulator JOB -c {names}", file=sys.stderr)
