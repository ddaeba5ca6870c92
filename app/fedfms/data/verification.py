"""Read every file of the cases once and say everything that is wrong with them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedfms.data.discovery import CaseFiles
from fedfms.data.geometry import Plane
from fedfms.data.intensity import intensity_bounds, slice_values
from fedfms.data.pixels import read_case, structure_mask
from fedfms.data.preprocessing import Preprocessing
from fedfms.errors import IMAGE_UNREADABLE, FedfmsError, Problem, fail
from fedfms.files import sha256_json

#: Called with the number of cases done and the number of all cases.
OnCase = Callable[[int, int], None]

_MARK_BYTES = 1 << 16


@dataclass(frozen=True)
class CaseFacts:
    """What reading a case found.

    Attributes:
        slices: Number of slices.
        size: (rows, columns) of a slice.
        spacing: Distance of rows and of columns in mm; None for raster images.
        filled: Structure -> number of slices in which its mask is not empty; annotated structures only.
    """

    slices: int
    size: tuple[int, int]
    spacing: tuple[float, float] | None
    filled: dict[str, int]


def verify_case(
    files: CaseFiles, plane: Plane, structures: Collection[str], preprocessing: Preprocessing | None
) -> CaseFacts:
    """Read a case completely.

    Args:
        files: The case.
        plane: How volumes are cut.
        structures: Only masks that name one of these are read.
        preprocessing: The job's, to see whether its rules can be applied; None without a job.

    Raises:
        FedfmsError: everything that is wrong with the case.
    """
    sources = needed_sources(files, structures)
    pixels = read_case(files, plane, sources)
    if preprocessing is not None:
        intensity_bounds(pixels.values[:1, :1, :1], preprocessing.intensity, str(files.image))
        slice_values(pixels.values, 0, preprocessing.channels, str(files.image))
    filled = {}
    for source, labels in zip(files.dataset.masks, pixels.labels, strict=True):
        if labels is not None:
            for name in source.labels:
                if name in structures:
                    filled[name] = int(structure_mask(labels, source, name).any(axis=(1, 2)).sum())
    shape = pixels.values.shape
    return CaseFacts(shape[0], (shape[1], shape[2]), pixels.spacing, filled)


def verify_cases(
    cases: Sequence[CaseFiles],
    plane: Plane,
    structures: Collection[str],
    preprocessing: Preprocessing | None,
    on_case: OnCase | None = None,
) -> tuple[list[CaseFacts | None], list[Problem]]:
    """Read all cases, one at a time; None stands for a case with problems."""
    facts: list[CaseFacts | None] = []
    problems: list[Problem] = []
    for position, files in enumerate(cases):
        try:
            facts.append(verify_case(files, plane, structures, preprocessing))
        except FedfmsError as error:
            facts.append(None)
            problems += error.problems
        if on_case is not None:
            on_case(position + 1, len(cases))
    return facts, problems


def needed_sources(files: CaseFiles, structures: Collection[str]) -> frozenset[int]:
    """Positions of the mask sources that name one of the structures."""
    return frozenset(
        position
        for position, source in enumerate(files.dataset.masks)
        if any(name in structures for name in source.labels)
    )


def files_mark(cases: Sequence[CaseFiles], structures: Collection[str]) -> str:
    """SHA-256 over name, size and time of change of every file that the cases are read from, or that it is missing."""
    entries: list[list[str | int]] = []
    for files in cases:
        masks = [files.masks[position] for position in sorted(needed_sources(files, structures))]
        for path in [files.image, *(mask for mask in masks if mask is not None)]:
            try:
                for item in sorted(path.iterdir()) if path.is_dir() else [path]:
                    status = item.stat()
                    entries.append([str(item), status.st_size, status.st_mtime_ns])
            except OSError as error:
                entries.append([str(path), type(error).__name__])
    return sha256_json(entries)


def content_mark(image: Path, files: str) -> str:
    """SHA-256 over the first 64 KiB of an image, or of the first file of a series.

    Raises:
        FedfmsError: FMS-D004 when it cannot be read.
    """
    try:
        path = min(item for item in image.glob(files) if item.is_file()) if image.is_dir() else image
        with path.open("rb") as file:
            return hashlib.sha256(file.read(_MARK_BYTES)).hexdigest()
    except (OSError, ValueError) as error:
        raise fail(IMAGE_UNREADABLE, image, f"{type(error).__name__}: {error}") from error
