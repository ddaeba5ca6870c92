"""Read every file of the cases once, and find everything that is wrong with them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from fedfms.access import unreadable
from fedfms.configuration import Sha256, Strict, StructureName
from fedfms.data.description.site import SiteDescription, SplitName
from fedfms.data.readers import itk
from fedfms.data.slices.case_pixels import annotated_structures, case_slices, read_case
from fedfms.data.slices.discovery import BadCase, CaseFiles
from fedfms.data.slices.facts import CaseFacts, facts_of
from fedfms.data.slices.intensity import intensity_bounds, slice_values
from fedfms.data.slices.palettes import palette_problems
from fedfms.data.slices.split import split_digest
from fedfms.data.volume.geometry import Plane
from fedfms.errors import (
    FILE_REFUSED,
    IMAGE_UNREADABLE,
    JOB_NOT_FOR_SITE,
    PALETTES_DIFFER,
    SITE_INVALID,
    FedfmsError,
)
from fedfms.files import sha256_json
from fedfms.preprocessing import Preprocessing

#: Called with the number of cases done and the number of all cases.
OnCase = Callable[[int, int], None]

Result = TypeVar("Result")

_MARK_BYTES = 1 << 16

# Faults of a description, of many files together or of rights: they stop a task also with ``strict: false``. A file
# that may not be read is as good as the others, and whoever can is meant to let the account read it.
_ALWAYS_STOP = frozenset({SITE_INVALID, JOB_NOT_FOR_SITE, PALETTES_DIFFER, FILE_REFUSED})


class CaseFindings(Strict):
    """The facts of a case that a later task needs without reading it again; see ``CaseFacts``.

    Attributes:
        slices: Number of slices.
        structures: The annotated structures.
        empty: Indices of the slices in which every annotated mask is empty.
    """

    slices: int
    structures: tuple[StructureName, ...]
    empty: tuple[int, ...]


class Findings(Strict):
    """What reading and checking the files of a job's cases found. It is kept between tasks and contains no names.

    Attributes:
        files_sha256: ``files_mark`` before the files were read, so that a file that changes meanwhile is read again.
        cases: Every case without a fault, by ``case_key``.
    """

    files_sha256: Sha256
    cases: dict[Sha256, CaseFindings]


@dataclass(frozen=True)
class Checked:
    """Result of ``check_cases`` and ``check_headers``.

    Attributes:
        cases: Every case without a fault, by ``case_key``.
        bad: The cases with faults; without their problems when they come from an earlier check.
        facts: What was measured on each case, by ``case_key``; empty when no pixels were read now.
        findings: What a later task needs to know; None after ``check_headers``.
    """

    cases: dict[str, CaseFindings]
    bad: list[BadCase]
    facts: dict[str, CaseFacts] = field(default_factory=dict)
    findings: Findings | None = None


def verify_case(files: CaseFiles, plane: Plane, structures: Collection[str], preprocessing: Preprocessing) -> CaseFacts:
    """Read a case completely, and check that the job's rules can be applied to it.

    Args:
        files: The case.
        plane: The plane in which volumes are cut into slices.
        structures: Only masks that have one of these are read.
        preprocessing: The job's rules.

    Raises:
        FedfmsError: everything that is wrong with the case.
    """
    pixels = read_case(files, plane, structures)
    intensity_bounds(pixels.values[:1, :1, :1], preprocessing.intensity, str(files.image))
    slice_values(pixels.values, 0, preprocessing.channels, str(files.image))
    return facts_of(pixels)


def verify_cases(
    cases: Sequence[CaseFiles],
    plane: Plane,
    structures: Collection[str],
    preprocessing: Preprocessing,
    on_case: OnCase | None = None,
) -> tuple[list[CaseFacts | None], list[BadCase]]:
    """Read all cases, one at a time.

    Returns:
        Facts of each case, None for a bad one; and the bad cases.
    """
    read = each_case(cases, lambda files: verify_case(files, plane, structures, preprocessing), on_case)
    return [None if isinstance(item, tuple) else item for item in read], [
        item for item in read if isinstance(item, tuple)
    ]


def each_case(
    cases: Sequence[CaseFiles], look: Callable[[CaseFiles], Result], on_case: OnCase | None
) -> list[Result | BadCase]:
    """Call ``look`` for each case, one at a time.

    Args:
        cases: The cases.
        look: Called with each case.
        on_case: Called after each case.

    Returns:
        What ``look`` returned for each case, or the problems that it raised.
    """
    results: list[Result | BadCase] = []
    for position, files in enumerate(cases):
        try:
            results.append(look(files))
        except FedfmsError as error:
            results.append(error.problems)
        if on_case is not None:
            on_case(position + 1, len(cases))
    return results


def check_cases(
    site: SiteDescription,
    cases: Sequence[CaseFiles],
    structures: Collection[str],
    preprocessing: Preprocessing,
    known: Findings | None,
    on_case: OnCase | None,
) -> Checked:
    """Read and check the cases for a job, unless that was done and nothing has changed since.

    Args:
        site: The site's description.
        cases: The cases of the task.
        structures: The job's structures.
        preprocessing: The job's rules.
        known: What an earlier check for the same job found.
        on_case: Called after each case that was read.
    """
    files_sha256 = files_mark(site, cases, structures)
    if known is not None and known.files_sha256 == files_sha256:
        bad: list[BadCase] = [() for files in cases if case_key(files) not in known.cases]
        return Checked(known.cases, bad, findings=known)
    read, bad = verify_cases(cases, preprocessing.slice_axis, structures, preprocessing, on_case)
    bad += [(problem,) for problem in palette_problems(cases, structures)]
    facts = {case_key(files): item for files, item in zip(cases, read, strict=True) if item is not None}
    found = {
        key: CaseFindings(slices=item.slices, structures=tuple(item.filled), empty=item.empty)
        for key, item in facts.items()
    }
    return Checked(found, bad, facts, Findings(files_sha256=files_sha256, cases=found))


def check_headers(cases: Sequence[CaseFiles], plane: Plane) -> Checked:
    """Find the slices and structures of each case from the headers alone.

    Which slices are empty is not known then: ``CaseFindings.empty`` lists none.
    """

    def look(files: CaseFiles) -> CaseFindings:
        return CaseFindings(slices=case_slices(files, plane), structures=tuple(annotated_structures(files)), empty=())

    found: dict[str, CaseFindings] = {}
    bad: list[BadCase] = []
    for files, item in zip(cases, each_case(cases, look, None), strict=True):
        if isinstance(item, tuple):
            bad.append(item)
        else:
            found[case_key(files)] = item
    return Checked(found, bad)


def case_key(files: CaseFiles) -> str:
    """Key of a case where its name must not appear: SHA-256 of its identity."""
    return hashlib.sha256(files.identity.encode()).hexdigest()


def partition_bad_cases(bad: Iterable[BadCase], strict: bool) -> tuple[list[BadCase], list[BadCase]]:
    """Divide bad cases into those that stop a task and those that are left out.

    Args:
        bad: The cases.
        strict: ``strict`` of ``site.yaml``.

    Returns:
        The problems that stop a task, by case: with ``strict`` all, else only faults of a description and FMS-D019; and
        the cases that are left out.
    """
    stops: list[BadCase] = []
    left_out: list[BadCase] = []
    for case in bad:
        stopping = tuple(item for item in case if strict or item.kind in _ALWAYS_STOP)
        if stopping:
            stops.append(stopping)
        else:
            left_out.append(case)
    return stops, left_out


def files_mark(site: SiteDescription, cases: Sequence[CaseFiles], structures: Collection[str]) -> str:
    """SHA-256 over the site's description of its data and every file that the cases are read from.

    Of each file, name, size and time of change are included, or that it is missing.
    """
    entries: list[list[str | int]] = [[site.model_dump_json(exclude={"compute"}, warnings=False)]]
    for files in cases:
        masks = [
            path
            for source, path in zip(files.dataset.masks, files.masks, strict=True)
            if path is not None and not source.labels.keys().isdisjoint(structures)
        ]
        for path in [files.image, *masks]:
            try:
                for item in sorted(path.rglob("*")) if path.is_dir() else _files_of(path):
                    status = item.stat()
                    entries.append([str(item), status.st_size, status.st_mtime_ns])
            except OSError as error:
                entries.append([str(path), type(error).__name__])
    return sha256_json(entries)


def split_sha256(cases: Iterable[tuple[CaseFiles, SplitName]]) -> str:
    """The digest of which case is in which split.

    Raises:
        FedfmsError: FMS-D004 when an image cannot be read.
    """
    return split_digest(
        (files.identity, split, content_mark(files.image, files.dataset.images.files or "*")) for files, split in cases
    )


def content_mark(image: Path, files: str) -> str:
    """SHA-256 over the first 64 KiB of an image file, or of the first file of a DICOM series.

    Where the voxels have a file of their own, it is over that file.

    Raises:
        FedfmsError: FMS-D004 when it cannot be read.
    """
    try:
        path = min(item for item in image.glob(files) if item.is_file()) if image.is_dir() else _files_of(image)[-1]
        with path.open("rb") as file:
            return hashlib.sha256(file.read(_MARK_BYTES)).hexdigest()
    except (OSError, ValueError) as error:
        raise unreadable(IMAGE_UNREADABLE, image, error) from error


def _files_of(path: Path) -> list[Path]:
    return itk.files_of(path) if path.name.lower().endswith(itk.SUFFIXES) else [path]
