"""``fedfms predict``: masks for images that have none."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fedfms.errors import FedfmsError

if TYPE_CHECKING:
    from fedfms.data.description.series import SeriesChoice
    from fedfms.data.description.site import NiftiAffine
    from fedfms.prediction.cases import Report
    from fedfms.prediction.predictor import Window
    from fedfms.prediction.prompts import Prompts

_NUMBER = r"\s*(-?\d+(?:\.\d+)?)\s*"


def predict(
    model: Annotated[Path, typer.Option(help="A checkpoint written by fedfms.")],
    input_: Annotated[
        Path,
        typer.Option(
            "--input", help="A DICOM file, series or study; a NIfTI, NRRD or MetaImage volume; a picture; a folder."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the results, laid out as the input.")],
    series: Annotated[
        str | None,
        typer.Option(metavar="EXPRESSION", help="Only DICOM series whose description matches this regular expression."),
    ] = None,
    dimension: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="Which images of a DICOM series of several acquisitions, echoes, b-values, points in time or stacks,"
            " such as EchoTime=4.6, or '*' as the value to join them; the message lists names and values. May be"
            " repeated.",
        ),
    ] = None,
    skips_slices: Annotated[
        bool,
        typer.Option("--skips-slices", help="DICOM slices that seem to be missing evenly are left out on purpose."),
    ] = False,
    affine: Annotated[
        str | None,
        typer.Option(metavar="sform|qform", help="Which affine counts in NIfTI files whose two affines disagree."),
    ] = None,
    probabilities: Annotated[bool, typer.Option("--probabilities", help="Also write probability maps.")] = False,
    capture: Annotated[
        bool, typer.Option("--capture", help="Also write DICOM secondary captures with the outlines drawn.")
    ] = False,
    box: Annotated[
        str | None,
        typer.Option(metavar="X0,Y0,X1,Y1", help="Box around the structure, in pixels; the input must be one image."),
    ] = None,
    points: Annotated[
        list[str] | None,
        typer.Option(metavar="X,Y,LABEL", help="A point in (label 1) or outside (0) the structure; may be repeated."),
    ] = None,
    slice_: Annotated[
        int | None,
        typer.Option("--slice", min=0, help="Slice of a volume that box and points belong to, counted from 0."),
    ] = None,
    window: Annotated[
        str,
        typer.Option(
            help="off: scale each image to the model's input size, as training does. auto: predict larger images in"
            " overlapping windows of the model's input size. A number: in windows of that many pixels. For models"
            " that were trained on tiles."
        ),
    ] = "off",
    batch: Annotated[int, typer.Option(min=1, help="Slices or windows in one forward pass.")] = 4,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace results that exist.")] = False,
) -> None:
    """Segment images with a model. Masks keep the format, resolution and position of each image.

    DICOM images get DICOM SEG, NIfTI, NRRD and MetaImage volumes their own format, pictures PNG. Images that
    cannot be read are listed at the end, and the exit code is then 1. For research use, not for diagnosis.
    """
    prompts = _prompts(box, points or [], slice_)
    windows = _window(window)
    if prompts and windows != "off":
        raise typer.BadParameter("a box or points need the whole image, not windows", param_hint="--window")
    if input_.is_dir() and input_.resolve() == out.resolve():
        raise typer.BadParameter("the input's own folder: the next run would read the results", param_hint="--out")
    from fedfms.prediction.cases import PredictOptions, check_options
    from fedfms.prediction.cases import predict as run
    from fedfms.prediction.inputs import find_inputs
    from fedfms.prediction.predictor import load_predictor

    inputs = find_inputs(input_, out, _choice(series, dimension or [], skips_slices), _affine(affine))
    if capture and not any(case.kind == "dicom" for case in inputs.cases):
        raise typer.BadParameter("the input holds no DICOM image to draw on", param_hint="--capture")
    predictor = load_predictor(model, batch, windows)
    options = PredictOptions(out, prompts, probabilities=probabilities, capture=capture, overwrite=overwrite)
    check_options(inputs, options, predictor.structures)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        cases, slices = progress.add_task("images", total=len(inputs.cases)), progress.add_task("slices", total=None)
        report = run(
            predictor,
            inputs,
            options,
            lambda done, total: progress.update(cases, completed=done, total=total),
            lambda done, total: progress.update(slices, completed=done, total=total),
        )
    if inputs.ignored:
        other = ", or of other series," if series is not None else ""
        _note(f"{inputs.ignored} file(s) are not images{other} and were skipped")
    _tell(report)


def _tell(report: Report) -> None:
    """Print the files written; notes and problems go to stderr."""
    from fedfms.training.evaluation import RESEARCH_NOTICE

    for path in report.written:
        print(path)
    if report.scaled_down:
        _note(
            f"{report.scaled_down} picture(s) are several times larger than the model's input and were scaled down;"
            " for a model that was trained on tiles, use --window"
        )
    _note(f"{len(report.written)} result(s), {RESEARCH_NOTICE}")
    if report.problems:
        _note(f"{report.failed} input(s) could not be predicted on")
        raise FedfmsError(report.problems)


def _note(text: str) -> None:
    Console(stderr=True, soft_wrap=True).print(text)


def _prompts(box: str | None, points: list[str], slice_: int | None) -> Prompts:
    from fedfms.prediction.prompts import Prompts

    corners = re.fullmatch(",".join([_NUMBER] * 4), box) if box is not None else None
    if box is not None and corners is None:
        raise typer.BadParameter(f"'{box}': write x0,y0,x1,y1", param_hint="--box")
    marks = []
    for point in points:
        found = re.fullmatch(rf"{_NUMBER},{_NUMBER},\s*([01])\s*", point)
        if found is None:
            raise typer.BadParameter(f"'{point}': write x,y,1 (inside) or x,y,0 (outside)", param_hint="--points")
        marks.append((float(found[1]), float(found[2]), int(found[3])))
    if slice_ is not None and corners is None and not marks:
        raise typer.BadParameter("only together with --box or --points", param_hint="--slice")
    numbers = tuple(float(text) for text in corners.groups()) if corners else None
    return Prompts((numbers[0], numbers[1], numbers[2], numbers[3]) if numbers else None, tuple(marks), slice_)


def _choice(expression: str | None, dimensions: list[str], skips_slices: bool) -> SeriesChoice | None:
    from fedfms.data.description.series import SeriesChoice

    chosen: dict[str, str] = {}
    for text in dimensions:
        name, _, value = (part.strip() for part in text.partition("="))
        if not name or not value:
            raise typer.BadParameter(f"'{text}': write NAME=VALUE", param_hint="--dimension")
        if chosen.setdefault(name, value) != value:
            raise typer.BadParameter(f"two values for {name}: choose one", param_hint="--dimension")
    given = {"description": expression, "dimensions": chosen or None, "skips_slices": skips_slices or None}
    given = {key: value for key, value in given.items() if value is not None}
    try:
        return SeriesChoice.model_validate(given) if given else None
    except ValueError:
        raise typer.BadParameter(f"'{expression}': not a regular expression", param_hint="--series") from None


def _affine(text: str | None) -> NiftiAffine | None:
    if text not in (None, "sform", "qform"):
        raise typer.BadParameter(f"'{text}': write sform or qform", param_hint="--affine")
    return text  # type: ignore[return-value]


def _window(text: str) -> Window:
    if text == "auto":
        return "auto"
    if text == "off":
        return "off"
    if not text.isdecimal() or int(text) < 1:
        raise typer.BadParameter(f"'{text}': write off, auto or a number of pixels", param_hint="--window")
    return int(text)
