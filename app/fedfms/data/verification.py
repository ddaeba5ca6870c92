"""Read every file of the cases once and say everything that is wrong with them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedfms.data import itk
from fedfms.data.discovery import CaseFiles
from fedfms.data.geometry import Plane
from fedfms.data.intensity import intensity_bounds
from fedfms.data.pixels import read_case
from fedfms.data.preprocessing import Intensity
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


def verify_case(files: CaseFiles, plane: Plane, structures: Collection[str], intensity: Intensity | None) -> CaseFacts:
    """Read a case completely.

    Args:
        files: The case.
        plane: How volumes are cut.
        structures: Only masks that name one of these are read.
        intensity: The job's rule, to see whether it can be applied; None without a job.

    Raises:
        FedfmsError: everything that is wrong with the case.
    """
    pixels = read_case(files, plane, structures)
    if intensity is not None:
        intensity_bounds(pixels.values[:1, :1, :1], intensity, str(files.image))
    filled = {name: int(mask.any(axis=(1, 2)).sum()) for name, mask in pixels.masks.items()}
    shape = pixels.values.shape
    return CaseFacts(shape[0], (shape[1], shape[2]), pixels.spacing, filled)


def verify_cases(
    cases: Sequence[CaseFiles],
    plane: Plane,
    structures: Collection[str],
    intensity: Intensity | None,
    on_case: OnCase | None = None,
) -> tuple[list[CaseFacts | None], list[Problem]]:
    """Read all cases, one at a time; None stands for a case with problems."""
    facts: list[CaseFacts | None] = []
    problems: list[Problem] = []
    for position, files in enumerate(cases):
        try:
            facts.append(verify_case(files, plane, structures, intensity))
        except FedfmsError as error:
            facts.append(None)
            problems += error.problems
        if on_case is not None:
            on_case(position + 1, len(cases))
    return facts, problems


def files_mark(cases: Sequence[CaseFiles], structures: Collection[str]) -> str:
    """SHA-256 over name, size and time of change of every file that the cases are read from, or that it is missing."""
    entries: list[list[str | int]] = []
    for files in cases:
        masks = [
            path
            for source, path in zip(files.dataset.masks, files.masks, strict=True)
            if path is not None and not source.labels.keys().isdisjoint(structures)
        ]
        for path in [files.image, *masks]:
            try:
                for item in sorted(path.iterdir()) if path.is_dir() else _files_of(path):
                    status = item.stat()
                    entries.append([str(item), status.st_size, status.st_mtime_ns])
            except OSError as error:
                entries.append([str(path), type(error).__name__])
    return sha256_json(entries)


def content_mark(image: Path, files: str) -> str:
    """SHA-256 over the first 64 KiB of an image (of its voxels, where they have a file), or of a series' first file.

    Raises:
        FedfmsError: FMS-D004 when it cannot be read.
    """
    try:
        path = min(item for item in image.glob(files) if item.is_file()) if image.is_dir() else _files_of(image)[-1]
        with path.open("rb") as file:
            return hashlib.sha256(file.read(_MARK_BYTES)).hexdigest()
    except (OSError, ValueError) as error:
        raise fail(IMAGE_UNREADABLE, image, f"{type(error).__name__}: {error}") from error


def _files_of(path: Path) -> list[Path]:
    return itk.files_of(path) if path.name.lower().endswith(itk.SUFFIXES) else [path]
