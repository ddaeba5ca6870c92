"""DICOM images: series as volumes, and pictures without a position in the patient.

What is read: single-frame series and enhanced multi-frame objects of any modality, grey, up to 16 bit, signed or
unsigned; photographs, secondary captures and projections, grey or colour. Pixels are uncompressed or in a transfer
syntax that ``fedfms.data.dicom.codecs`` decodes.

All functions take the same three arguments:

- ``source``: a folder, one file, or several files;
- ``files``: in a folder, the pattern of file names (names that begin with a dot are never read);
- ``choice``: which series is meant when there are several.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fedfms.access import is_file
from fedfms.data.description.series import SeriesChoice
from fedfms.data.dicom.frames import Frame, frames_of
from fedfms.data.dicom.modality import fill_padding
from fedfms.data.dicom.pixels import frame_values, picture_values
from fedfms.data.dicom.series import Found, choose, collect, no_fit, paths_in
from fedfms.data.dicom.stack import stack_frames
from fedfms.data.volume.geometry import Grid, Picture, SourceFrame, SourceSeries, Volume
from fedfms.data.volume.remedies import GeneralRemedy
from fedfms.errors import CASE_AMBIGUOUS, IMAGE_UNREADABLE, SERIES_IRREGULAR, FedfmsError, Problem, fail, first_of

#: A folder, one file, or the files of one case.
Source = Path | Sequence[Path]


def read_dicom_image(source: Source, files: str = "*", choice: SeriesChoice | None = None) -> Volume | Picture:
    """Read the one image series of a source.

    Slices are ordered by their position along the normal of the image plane (ImagePositionPatient, PS3.3
    C.7.6.2.1.1), never by instance number or file name. Objects that are not images (segmentations, structure sets,
    reports, dose) are skipped.

    Args:
        source: A folder, one file, or several files.
        files: In a folder, the pattern of file names; names that begin with a dot are never read.
        choice: Which series is meant, when there are several.

    Returns:
        A volume, float32 voxels (column, row, slice) after the modality transform with their grid in RAS; or a
        picture for an image that has no position in the patient.

    Raises:
        FedfmsError: FMS-D003 when there is no file or no image; FMS-D004 for each file that is not readable, not
            DICOM, or of a kind not listed above; FMS-D014 when several series, stacks or pictures fit; FMS-D015
            when slices are missing, repeated or unevenly spaced.
    """
    where, found, frames = _frames(source, files, choice)
    if not frames:
        path = found.series.files[0]
        return Picture(picture_values(path), SourceFrame(path, None, found.texts[0]["SOPInstanceUID"]))
    ordered, grid = stack_frames(where, frames, choice)
    columns, rows, count = grid.shape
    by_file: dict[Path, list[Frame]] = {}
    for frame in ordered:
        by_file.setdefault(frame.source.path, []).append(frame)
    slices = {id(frame): index for index, frame in enumerate(ordered)}
    voxels = np.empty((count, rows, columns), dtype=np.float32)
    problems: list[Problem] = []
    for path, members in by_file.items():
        try:
            for frame, values in frame_values(path, members):
                voxels[slices[id(frame)]] = values
        except FedfmsError as error:
            problems += error.problems
    if problems:
        raise FedfmsError(problems)
    fill_padding(voxels)
    reference = found.texts[0]["FrameOfReferenceUID"] or None
    series = SourceSeries(found.series.uid, str(found.series))
    return Volume(voxels.transpose(2, 1, 0), grid, reference, tuple(frame.source for frame in ordered), series)


def read_dicom_volume(source: Source, files: str = "*", choice: SeriesChoice | None = None) -> Volume:
    """Read a volume.

    Returns:
        As ``read_dicom_image``, but never a picture.

    Raises:
        FedfmsError: as ``read_dicom_image``; also FMS-D004 for a picture.
    """
    image = read_dicom_image(source, files, choice)
    if isinstance(image, Picture):
        raise fail(IMAGE_UNREADABLE, image.source.path, "the image has no position in the patient")
    return image


def read_dicom_grid(source: Source, files: str = "*", choice: SeriesChoice | None = None) -> Grid | None:
    """Read the grid of a volume from the headers, without pixels.

    Returns:
        Shape (column, row, slice) and affine to millimetres in RAS; None for a picture.

    Raises:
        FedfmsError: as ``read_dicom_image``, except for what only the pixels show.
    """
    where, _, frames = _frames(source, files, choice)
    return stack_frames(where, frames, choice)[1] if frames else None


def read_patient_id(source: Source, files: str = "*", choice: SeriesChoice | None = None) -> str:
    """Read PatientID (0010,0020) from the first file of the image series. It must not be printed or sent.

    Raises:
        FedfmsError: FMS-D003 when there is no image; FMS-D004 when a file is not readable, or the element is empty;
            FMS-D014 when no series fits.
    """
    where, paths = _paths(source, files)
    others: list[Found] = []
    for path in paths:
        # One file at a time: this runs for every case before anything else is read.
        found, problems = collect([path])
        if problems:
            raise FedfmsError(problems)
        if found[0].series.kind == "image" and (choice is None or choice.fits(found[0].series)):
            value = found[0].texts[0]["PatientID"]
            if not value:
                raise fail(
                    IMAGE_UNREADABLE,
                    path,
                    "PatientID is empty",
                    GeneralRemedy("Use another patient rule in site.yaml."),
                )
            return value
        others += found
    raise no_fit(where, others)


def count_burned_in(source: Source, files: str = "*", choice: SeriesChoice | None = None) -> int:
    """Count the files of the image series whose BurnedInAnnotation (0028,0301) is YES: text may be in the pixels.

    Raises:
        FedfmsError: FMS-D003 when there is no image; FMS-D014 when not exactly one series fits.
    """
    where, paths = _paths(source, files)
    found, _ = collect(paths)
    return sum(texts["BurnedInAnnotation"].upper() == "YES" for texts in choose(where, found, choice).texts)


def _paths(source: Source, files: str) -> tuple[object, list[Path]]:
    if not isinstance(source, Path):
        return os.path.commonpath([path.parent for path in source]), list(source)
    return source, [source] if is_file(source) else paths_in(source, files)


def _frames(source: Source, files: str, choice: SeriesChoice | None) -> tuple[object, Found, list[Frame]]:
    """Name for messages, the series, and its frames (none for a picture); all bad files in one error."""
    where, paths = _paths(source, files)
    found, problems = collect(paths)
    if not found:
        raise FedfmsError(problems)
    try:
        chosen = choose(where, found, choice)
    except FedfmsError as error:
        raise FedfmsError([*problems, *error.problems]) from None
    # A folder may hold several series: the message names the one that is wrong.
    where = f"{where}, {chosen.series}"
    frames: list[Frame] = []
    pictures = []
    for header, texts in zip(chosen.headers, chosen.texts, strict=True):
        try:
            own = frames_of(header, texts["SOPInstanceUID"])
            frames += own
            pictures += [] if own else [header.path.name]
        except FedfmsError as error:
            problems += error.problems
    problems += _differences(where, chosen, frames, pictures)
    if problems:
        raise FedfmsError(problems)
    return where, chosen, frames


def _differences(where: object, found: Found, frames: list[Frame], pictures: list[str]) -> list[Problem]:
    """What keeps the files of a series from being one case."""
    result = []
    for tag in ("PatientID", "FrameOfReferenceUID"):
        if len({texts[tag] for texts in found.texts}) > 1:
            result.append(Problem(SERIES_IRREGULAR, str(where), f"the files of the series differ in {tag}"))
    if frames and pictures:
        detail = f"images without a position among {len(frames)} slices: {first_of(pictures, 10)}"
        result.append(Problem(SERIES_IRREGULAR, str(where), detail))
    elif len(pictures) > 1:
        detail = f"{len(pictures)} pictures without a position in one series: {first_of(pictures, 10)}"
        remedy = GeneralRemedy("Each is a case of its own: name the files in images.pattern, such as '{case}.dcm'.")
        result.append(Problem(CASE_AMBIGUOUS, str(where), detail, remedy))
    return result
