"""Predict on every case of an input, one after the other; a case that cannot be read does not stop the others."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from fedfms import __version__
from fedfms.errors import (
    CASE_AMBIGUOUS,
    FILE_UNWRITABLE,
    IMAGE_UNREADABLE,
    JOB_NOT_FOR_SITE,
    OUT_OF_MEMORY,
    OUTPUT_EXISTS,
    PROMPT_INVALID,
    SERIES_IRREGULAR,
    FedfmsError,
    Problem,
    fail,
    reason_of,
)
from fedfms.prediction.capture import write_captures
from fedfms.prediction.dicom_output import Algorithm, write_seg
from fedfms.prediction.images import CaseImage, load_image
from fedfms.prediction.inputs import InputCase, Inputs
from fedfms.prediction.predictor import Predictor
from fedfms.prediction.prompts import NO_PROMPTS, Prompts
from fedfms.prediction.results import FULL_PROBABILITY, Prediction, file_of, write_results
from fedfms.training.evaluation import RESEARCH_NOTICE
from fedfms.training.hardware import is_lack_of_memory

# The readers' own remedies are about site.yaml and the job, which a prediction does not have.
_REMEDIES = {
    CASE_AMBIGUOUS: "Choose one value with --dimension, such as '--dimension AcquisitionNumber=1', or export each"
    " stack, echo, b-value or point in time as a series of its own.",
    JOB_NOT_FOR_SITE: "Use a model that was trained on such images.",
    SERIES_IRREGULAR: "A localiser is not a volume. Of any other series, export all slices again; if slices are left"
    " out on purpose, evenly, add --skips-slices.",
}
_TWO_AFFINES = "Find out which of the two is right, and choose it with '--affine sform' or '--affine qform'."
# A fault of a series as a whole does not matter when the user did not mean that series.
_OF_SERIES = (CASE_AMBIGUOUS, IMAGE_UNREADABLE, SERIES_IRREGULAR)

#: Most bytes in the name of a result: file systems allow 255, and a file has a longer name while it is written.
_LONGEST_NAME = 220
#: Pictures that are scaled down more than this often get a hint at windows.
_MUCH_LARGER = 4


@dataclass(frozen=True)
class PredictOptions:
    """What to write, and the prompts.

    Attributes:
        out: The output folder.
        prompts: Box and points, for an input of one case.
        probabilities: Probability maps beside the masks.
        capture: Secondary captures beside each DICOM SEG.
        overwrite: Replace files that exist.
    """

    out: Path
    prompts: Prompts = NO_PROMPTS
    probabilities: bool = False
    capture: bool = False
    overwrite: bool = False


@dataclass(frozen=True)
class Report:
    """The outcome for all cases.

    Attributes:
        written: Files and capture folders.
        problems: Of the cases that failed.
        failed: Number of cases that failed, unreadable files included.
        scaled_down: Number of pictures that are much larger than the model's input and were not read in windows.
    """

    written: tuple[Path, ...]
    problems: tuple[Problem, ...]
    failed: int
    scaled_down: int


def check_options(inputs: Inputs, options: PredictOptions, structures: Sequence[str]) -> None:
    """Validate options and inputs before anything is computed.

    Raises:
        FedfmsError: FMS-P001 for each output that exists or that two inputs would share; FMS-D011 for one whose name
            would be too long; FMS-P003 for prompts with several images.
    """
    problems = []
    if options.prompts and len(inputs.cases) != 1:
        detail = f"a box or points belong to one image, the input holds {len(inputs.cases)}"
        problems.append(Problem(PROMPT_INVALID, "--input", detail, "Name one image or one series."))
    owners: defaultdict[Path, list[str]] = defaultdict(list)
    for case in inputs.cases:
        for path in _outputs(case, options, structures):
            owners[options.out / path].append(str(case.path))
    for path, sources in owners.items():
        if len(sources) > 1:
            detail = f"would be written for {len(sources)} inputs: {', '.join(sources)}"
            problems.append(Problem(OUTPUT_EXISTS, str(path), detail, "Give each a folder or a name of its own."))
        elif len(os.fsencode(path.name)) > _LONGEST_NAME:
            detail = f"the name is longer than {_LONGEST_NAME} bytes"
            problems.append(
                Problem(FILE_UNWRITABLE, str(path), detail, "Give the input, or the structure, a shorter name.")
            )
        elif path.exists() and not options.overwrite:
            problems.append(Problem(OUTPUT_EXISTS, str(path), "exists already"))
    if problems:
        raise FedfmsError(problems)


def predict(
    predictor: Predictor,
    inputs: Inputs,
    options: PredictOptions,
    on_case: Callable[[int, int], None] = lambda done, total: None,
    on_slice: Callable[[int, int], None] = lambda done, total: None,
) -> Report:
    """Predict every case and write its results.

    Args:
        predictor: The model.
        inputs: From ``find_inputs``; ``check_options`` has passed.
        options: What to write.
        on_case: Called after each case with (done, all).
        on_slice: Called within a case with (done, all), first with 0 done.
    """
    written: list[Path] = []
    problems = list(inputs.problems)
    failed = len(problems)
    scaled_down = 0
    for done, case in enumerate(inputs.cases):
        try:
            paths, is_scaled_down = _one_case(predictor, case, options, on_slice)
            written += paths
            scaled_down += is_scaled_down
        except FedfmsError as error:
            problems += [_advised(item, case, alone=len(inputs.cases) == 1) for item in error.problems]
            failed += 1
        on_case(done + 1, len(inputs.cases))
    return Report(tuple(written), tuple(problems), failed, scaled_down)


def _advised(problem: Problem, case: InputCase, *, alone: bool) -> Problem:
    remedy = _REMEDIES.get(problem.kind, problem.remedy)
    if problem.kind is CASE_AMBIGUOUS and case.kind == "nifti":
        remedy = _TWO_AFFINES
    if problem.kind in _OF_SERIES and case.kind == "dicom" and not alone:
        remedy = f"{remedy or problem.kind.remedy} If it is not meant, leave it out with --series."
    return replace(problem, remedy=remedy)


@contextmanager
def _lack_of_memory(case: InputCase) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if not is_lack_of_memory(error):
            raise
        remedy = "Lower --batch, or use a machine with more memory."
        raise fail(OUT_OF_MEMORY, case.path, reason_of(error), remedy) from error


def _outputs(case: InputCase, options: PredictOptions, structures: Sequence[str]) -> list[Path]:
    if case.kind == "dicom":
        names = ["seg", *(["probability"] if options.probabilities else [])]
        captures = [_capture_folder(case)] if options.capture else []
        return [*(file_of(case, name) for name in names), *captures]
    kinds = ["", *(["_probability"] if options.probabilities else [])]
    return [file_of(case, structure + kind) for structure in structures for kind in kinds]


def _capture_folder(case: InputCase) -> Path:
    return case.name.with_name(f"{case.name.name}_capture")


def _one_case(
    predictor: Predictor, case: InputCase, options: PredictOptions, on_slice: Callable[[int, int], None]
) -> tuple[list[Path], bool]:
    """Predict and write one case, so that nothing of it stays in memory.

    Returns:
        The files, and whether a picture was scaled down much."""
    with _lack_of_memory(case):
        image = load_image(case, predictor.header.preprocessing.slice_axis)
        _rehearse(predictor, case, image, options)
        is_scaled_down = len(image.values) == 1 and predictor.scales_down(image.slices_shape[1:], _MUCH_LARGER)
        prediction = _predict_case(predictor, case, image, options, on_slice)
        return _write(predictor, case, image, prediction, options), is_scaled_down


def _rehearse(predictor: Predictor, case: InputCase, image: CaseImage, options: PredictOptions) -> None:
    """Write results of one voxel somewhere else: what makes them impossible is found before the model runs."""
    masks = {name: np.zeros(image.shape, dtype=np.uint8) for name in predictor.structures}
    for mask in masks.values():
        mask.flat[0] = 1
    with TemporaryDirectory() as folder:
        prediction = Prediction(masks, masks if options.probabilities else None)
        _write(predictor, case, image, prediction, replace(options, out=Path(folder)))


def _predict_case(
    predictor: Predictor,
    case: InputCase,
    image: CaseImage,
    options: PredictOptions,
    on_slice: Callable[[int, int], None],
) -> Prediction:
    prompts, where = options.prompts, str(case.path)
    indices: Sequence[int] = range(len(image.values))
    if prompts:
        prompts.check(where, image.slices_shape)
        indices = [prompts.slice or 0]
    masks = {name: np.zeros(image.shape, dtype=np.uint8) for name in predictor.structures}
    maps = {name: np.zeros_like(mask) for name, mask in masks.items()} if options.probabilities else None
    on_slice(0, len(indices))
    for done, (index, logits) in enumerate(predictor.slices(image.values, indices, prompts, where)):
        for name, answer in zip(predictor.structures, logits, strict=True):
            image.cut(masks[name])[index] = (answer > 0).numpy()
            if maps is not None:
                image.cut(maps[name])[index] = (answer.sigmoid() * FULL_PROBABILITY).round().byte().numpy()
        on_slice(done + 1, len(indices))
    return Prediction(masks, maps)


def _write(
    predictor: Predictor, case: InputCase, image: CaseImage, prediction: Prediction, options: PredictOptions
) -> list[Path]:
    if case.kind != "dicom" or image.origin is None:
        notice = f"{RESEARCH_NOTICE}; fedfms {__version__}, model {predictor.sha256}"
        return write_results(case, prediction, options.out, notice)
    algorithm = Algorithm(predictor.header.task, predictor.sha256, prompted=bool(options.prompts))
    written = [options.out / file_of(case, "seg")]
    write_seg(written[0], case.path, image.origin, prediction.masks, algorithm, probabilities=False)
    if prediction.probabilities is not None:
        written.append(options.out / file_of(case, "probability"))
        write_seg(written[-1], case.path, image.origin, prediction.probabilities, algorithm, probabilities=True)
    if options.capture:
        written.append(options.out / _capture_folder(case))
        rule = predictor.header.preprocessing.intensity
        write_captures(written[-1], case.path, image.origin, prediction.masks, rule, algorithm)
    return written
