"""What a job sees of a site: slices with their masks, by split."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from fedfms.data.description.site import SPLITS, DatasetDescription, SiteDescription, SplitName
from fedfms.data.slices.case_pixels import CasePixels, read_case
from fedfms.data.slices.discovery import BadCase, CaseFiles, find_cases
from fedfms.data.slices.facts import CaseFacts
from fedfms.data.slices.fingerprint import Measured, task_fingerprint
from fedfms.data.slices.intensity import intensity_bounds, slice_values, to_model_range
from fedfms.data.slices.split import assign_splits
from fedfms.data.slices.verification import (
    CaseFindings,
    Findings,
    OnCase,
    case_key,
    check_cases,
    check_headers,
    partition_bad_cases,
    split_sha256,
)
from fedfms.data.volume.geometry import Array
from fedfms.errors import JOB_NOT_FOR_SITE, NO_CASES, STRUCTURE_MISSING, FedfmsError, Problem
from fedfms.preprocessing import Preprocessing

#: Volumes and images kept in memory; the last one is kept whatever its size.
MEMORY_BYTES = 512 * 2**20


@dataclass(frozen=True)
class Case:
    """One image file or one volume: the unit of counting and weighting.

    Attributes:
        identity: Dataset and path; local only.
        patient: Unit of splitting; local only.
        split: ``train``, ``validation`` or ``test``.
        dataset: Name of the dataset in ``site.yaml``.
        structures: The job's structures that are annotated in this case.
    """

    identity: str = field(repr=False)
    patient: str = field(repr=False)
    split: SplitName
    dataset: str
    structures: frozenset[str]


@dataclass(frozen=True)
class SliceReference:
    """One 2-D input: a case and the index along the slice axis (0 for raster images)."""

    case: Case
    index: int


@dataclass(frozen=True)
class Sample:
    """A slice as the model's preparation gets it.

    Attributes:
        image: float32 (3, H, W), 0..255 after the intensity rule, native resolution; what the three channels are
            is the job's rule (``fedfms.data.slices.intensity.slice_values``).
        masks: uint8 (C, H, W) in 0/1, in the order of the job's structures; 0 where not annotated.
        annotated: bool (C,).
        spacing: Distance of rows and of columns in mm; None for raster images.
        slice_distance: Distance of the case's slices in mm; None for raster images.
    """

    image: npt.NDArray[np.float32]
    masks: npt.NDArray[np.uint8]
    annotated: npt.NDArray[np.bool_]
    spacing: tuple[float, float] | None
    slice_distance: float | None = None


class SiteDataset:
    """The cases of one task at one site. Made by ``open_dataset``.

    Attributes:
        structures: The job's, in the order of the mask channels.
        split_sha256: Digest of which case is in which split.
        findings: What is known of the cases since their files were read; None when they were not.
        left_out: The bad cases that ``strict: false`` leaves out; without their problems those that an earlier
            opening found.
        fingerprint: The data in numbers, without names (``fedfms.data.slices.fingerprint``); None when the files
            were not read.
    """

    def __init__(
        self,
        entries: list[tuple[Case, CaseFiles, int]],
        structures: tuple[str, ...],
        preprocessing: Preprocessing,
        split_sha256: str,
        findings: Findings | None,
        left_out: tuple[BadCase, ...],
        fingerprint: dict[str, Any] | None,
    ) -> None:
        self.structures = structures
        self.split_sha256 = split_sha256
        self.findings = findings
        self.left_out = left_out
        self.fingerprint = fingerprint
        self._preprocessing = preprocessing
        self._entries = entries
        self._by_identity = {case.identity: (case, files) for case, files, _ in entries}
        self._pixels: OrderedDict[str, CasePixels] = OrderedDict()
        self._bounds: dict[str, tuple[float, float]] = {}
        self._digests: dict[tuple[str, int], str] = {}

    def cases(self, split: str) -> list[Case]:
        """Cases of a split, or of every split for ``all``, in a fixed order."""
        _check_split(split)
        return [case for case, _, _ in self._entries if split in ("all", case.split)]

    def slices(self, split: str) -> list[SliceReference]:
        """Slices of a split, or of every split for ``all``, in a fixed order; empty ones included."""
        _check_split(split)
        return [
            SliceReference(case, index)
            for case, _, count in self._entries
            if split in ("all", case.split)
            for index in range(count)
        ]

    def is_empty(self, reference: SliceReference) -> bool:
        """Whether every annotated mask of the slice is empty, without reading it; False without annotation."""
        if self.findings is None:
            raise ValueError("the files have not been read")
        _, files = self._by_identity[reference.case.identity]
        return reference.index in self.findings.cases[case_key(files)].empty

    def cases_per_structure(self, split: str) -> dict[str, int]:
        """Annotated cases of each of the job's structures; 0 for one that the site lacks."""
        cases = self.cases(split)
        return {name: sum(name in case.structures for case in cases) for name in self.structures}

    def load(self, reference: SliceReference) -> Sample:
        """Read a slice. A volume stays in memory for its other slices, within ``MEMORY_BYTES``.

        Raises:
            FedfmsError: when the files have changed since the dataset was opened.
        """
        case, files = self._by_identity[reference.case.identity]
        pixels = self._case_pixels(case, files)
        values = self._slice_values(reference, files, pixels)
        masks = np.zeros((len(self.structures), *values.shape[:2]), dtype=np.uint8)
        annotated = np.zeros(len(self.structures), dtype=np.bool_)
        for position, name in enumerate(self.structures):
            if name in pixels.masks:
                masks[position] = pixels.masks[name][reference.index]
                annotated[position] = True
        image = to_model_range(values, self._case_bounds(case, files, pixels))
        return Sample(image, masks, annotated, pixels.spacing, pixels.slice_distance)

    def digest(self, reference: SliceReference) -> str:
        """SHA-256 of everything in the files that decides ``load(reference).image``.

        That is the stored pixels of the slice (with ``channels: neighbours`` also of its neighbours), and the
        bounds of the intensity rule, which depend on the other slices of the volume.
        """
        key = (reference.case.identity, reference.index)
        if key not in self._digests:
            case, files = self._by_identity[reference.case.identity]
            pixels = self._case_pixels(case, files)
            values = np.ascontiguousarray(self._slice_values(reference, files, pixels))
            bounds = self._case_bounds(case, files, pixels)
            digest = hashlib.sha256(f"{values.shape} {values.dtype.str} {bounds!r}\n".encode())
            digest.update(values.data)
            self._digests[key] = digest.hexdigest()
        return self._digests[key]

    def _slice_values(self, reference: SliceReference, files: CaseFiles, pixels: CasePixels) -> Array:
        return slice_values(pixels.values, reference.index, self._preprocessing.channels, str(files.image))

    def _case_pixels(self, case: Case, files: CaseFiles) -> CasePixels:
        if case.identity in self._pixels:
            self._pixels.move_to_end(case.identity)
            return self._pixels[case.identity]
        # Before it is read, on the guess that it is as large as the last one: two volumes may be too much.
        self._make_room(next(reversed(self._pixels.values())).nbytes if self._pixels else 0)
        pixels = read_case(files, self._preprocessing.slice_axis, self.structures)
        self._make_room(pixels.nbytes)
        self._pixels[case.identity] = pixels
        return pixels

    def _make_room(self, size: int) -> None:
        while self._pixels and size + sum(item.nbytes for item in self._pixels.values()) > MEMORY_BYTES:
            self._pixels.popitem(last=False)

    def _case_bounds(self, case: Case, files: CaseFiles, pixels: CasePixels) -> tuple[float, float]:
        if case.identity not in self._bounds:
            self._bounds[case.identity] = intensity_bounds(
                pixels.values, self._preprocessing.intensity, str(files.image)
            )
        return self._bounds[case.identity]


def open_dataset(
    site: SiteDescription,
    *,
    task: str,
    structures: tuple[str, ...],
    missing_structure: str,
    preprocessing: Preprocessing,
    needed_splits: tuple[SplitName, ...] = ("train", "validation"),
    verify: bool = True,
    known: Findings | None = None,
    on_case: OnCase | None = None,
) -> SiteDataset:
    """Join what the site has with what the job asks for.

    With ``strict: false`` in ``site.yaml``, a case with bad files is left out; the others' splits do not depend on it.

    Args:
        site: The site's description.
        task: The job's task; datasets of other tasks are not touched.
        structures: The job's structures; one mask channel each, in this order.
        missing_structure: ``error``: a structure without any annotated training case is an error.
            ``mask``: it is not, as long as the site has training cases of another one.
        preprocessing: The job's.
        needed_splits: Splits that must hold a case. An evaluation asks for the ones it reads.
        verify: Read every file and check it. Without it only headers are read.
        known: ``SiteDataset.findings`` of an earlier opening for the same job. Files that have not changed since are
            not read again.
        on_case: Told after each verified case.

    Raises:
        FedfmsError: all differences and all bad files together: FMS-J003 (no such task, no structure in
            common, intensity rule), FMS-D010 (structure), FMS-D008 (no case), FMS-D007 (splits) and the ids
            of ``find_cases`` and ``read_case``.
    """
    if missing_structure not in ("error", "mask"):
        raise ValueError(f"missing_structure must be error or mask, found {missing_structure!r}")
    datasets = [dataset for dataset in site.datasets if dataset.task == task]
    problems = _join_problems(site, datasets, task, structures)
    cases: list[CaseFiles] = []
    bad: list[BadCase] = []
    for dataset in datasets:
        found = find_cases(dataset)
        cases += found.cases
        bad += found.bad
        problems += found.problems
    stopping, left_out = partition_bad_cases(bad, site.strict)
    problems += (problem for case in stopping for problem in case)
    list_is_whole = not problems
    splits, faults = assign_splits(cases)
    problems += faults
    findings: Findings | None = None
    facts: Mapping[str, CaseFacts] = {}
    if verify:
        checked = check_cases(site, cases, structures, preprocessing, known, on_case)
        findings, bad, facts = checked.findings, checked.bad, checked.facts
        found_in = findings.cases
    else:
        found_in, bad = check_headers(cases, preprocessing.slice_axis)
    stopping, without = partition_bad_cases(bad, site.strict)
    problems += (problem for case in stopping for problem in case)
    left_out += without
    if not stopping:
        usable = [position for position, files in enumerate(cases) if case_key(files) in found_in]
        cases, splits = [cases[position] for position in usable], [splits[position] for position in usable]
    if datasets and list_is_whole:
        problems += split_problems(splits, needed_splits, f"task {task}", len(left_out))
    entries = _entries(cases, splits, structures, found_in)
    if datasets and cases and (missing_structure == "error" or not _annotated(entries, needed_splits)):
        problems += _structure_problems(entries, structures, needed_splits)
    if problems:
        raise FedfmsError([*problems, *(problem for case in left_out for problem in case)])
    counted = [(case, files, found_in[case_key(files)].slices) for case, files in entries]
    split = split_sha256((files, case.split) for case, files in entries)
    measured = [Measured(files, case.split, facts[case_key(files)]) for case, files in entries if facts]
    return SiteDataset(
        counted,
        structures,
        preprocessing,
        split,
        findings,
        tuple(left_out),
        task_fingerprint(datasets, measured, structures, split) if measured else None,
    )


def split_problems(
    splits: list[SplitName], needed: tuple[SplitName, ...], where: str, left_out: int = 0
) -> list[Problem]:
    """FMS-D008 for each needed split without a case, or when no case is left at all."""
    counts = ", ".join(f"{splits.count(name)} {name}" for name in SPLITS)
    counts += f"; {left_out} left out because of bad files" if left_out else ""
    if left_out and not splits:
        return [Problem(NO_CASES, where, f"no case is left (cases: {counts})")]
    return [Problem(NO_CASES, where, f"no case for {name} (cases: {counts})") for name in needed if name not in splits]


def _join_problems(
    site: SiteDescription, datasets: list[DatasetDescription], task: str, structures: tuple[str, ...]
) -> list[Problem]:
    if not datasets:
        offered = ", ".join(sorted({dataset.task for dataset in site.datasets}))
        return [Problem(JOB_NOT_FOR_SITE, f"task {task}", f"site.yaml offers: {offered}")]
    has = sorted({name for dataset in datasets for name in dataset.structures})
    if not any(name in has for name in structures):
        detail = f"the job trains {', '.join(structures)}; the site has {', '.join(has) or 'none'}"
        return [Problem(JOB_NOT_FOR_SITE, f"task {task}: structures", detail)]
    return []


def _entries(
    cases: list[CaseFiles],
    splits: list[SplitName],
    structures: tuple[str, ...],
    found_in: Mapping[str, CaseFindings],
) -> list[tuple[Case, CaseFiles]]:
    entries = []
    for files, split in zip(cases, splits, strict=True):
        found = found_in.get(case_key(files))
        # A bad case counts as what it should be, so that a structure is not called missing on top of it.
        annotated = found.structures if found is not None else files.dataset.structures
        case = Case(
            identity=files.identity,
            patient=files.patient,
            split=split,
            dataset=files.dataset.name,
            structures=frozenset(annotated) & set(structures),
        )
        entries.append((case, files))
    return entries


def _deciding_split(needed: tuple[SplitName, ...]) -> str:
    # Without training the question is whether a structure can be scored at all.
    return "train" if "train" in needed else "all"


def _annotated(entries: list[tuple[Case, CaseFiles]], needed: tuple[SplitName, ...]) -> bool:
    split = _deciding_split(needed)
    return any(case.structures for case, _ in entries if split in ("all", case.split))


def _structure_problems(
    entries: list[tuple[Case, CaseFiles]], structures: tuple[str, ...], needed: tuple[SplitName, ...]
) -> list[Problem]:
    split = _deciding_split(needed)
    kind = "training case" if split == "train" else "case"
    has = {name for case, _ in entries if split in ("all", case.split) for name in case.structures}
    described = dict.fromkeys(name for _, files in entries for name in files.dataset.structures)
    names = f"no annotated {kind} at this site; its site.yaml has: {', '.join(described) or 'no structure'}"
    return [Problem(STRUCTURE_MISSING, f"structure {name}", names) for name in structures if name not in has]


def _check_split(split: str) -> None:
    if split != "all" and split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)} or all, found {split!r}")
