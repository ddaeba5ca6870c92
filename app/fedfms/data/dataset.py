"""What a job sees of a site: slices with their masks, by split."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from fedfms.data.discovery import CaseFiles, find_cases
from fedfms.data.geometry import Array
from fedfms.data.intensity import intensity_bounds, slice_values, to_model_range
from fedfms.data.pixels import CasePixels, case_slices, read_case, structure_mask
from fedfms.data.preprocessing import Preprocessing
from fedfms.data.site import SPLITS, DatasetDescription, SiteDescription, SplitName
from fedfms.data.split import assign_splits, split_digest
from fedfms.data.verification import OnCase, content_mark, files_mark, needed_sources, verify_cases
from fedfms.errors import JOB_NOT_FOR_SITE, NO_CASES, STRUCTURE_MISSING, FedfmsError, Problem

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
            is the job's rule (``fedfms.data.intensity.slice_values``).
        masks: uint8 (C, H, W) in 0/1, in the order of the job's structures; 0 where not annotated.
        annotated: bool (C,).
        spacing: Distance of rows and of columns in mm; None for raster images.
    """

    image: npt.NDArray[np.float32]
    masks: npt.NDArray[np.uint8]
    annotated: npt.NDArray[np.bool_]
    spacing: tuple[float, float] | None


class SiteDataset:
    """The cases of one task at one site. Made by ``open_dataset``.

    Attributes:
        structures: The job's, in the order of the mask channels.
        split_sha256: Digest of which case is in which split.
        files_sha256: Changes with the name, size or time of change of any file that is read.
    """

    def __init__(
        self,
        entries: list[tuple[Case, CaseFiles, int]],
        structures: tuple[str, ...],
        preprocessing: Preprocessing,
        split_sha256: str,
        files_sha256: str,
    ) -> None:
        self.structures = structures
        self.split_sha256 = split_sha256
        self.files_sha256 = files_sha256
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
        for source, labels in zip(files.dataset.masks, pixels.labels, strict=True):
            for position, name in enumerate(self.structures):
                if labels is not None and name in source.labels:
                    masks[position] = structure_mask(labels[reference.index], source, name)
                    annotated[position] = True
        image = to_model_range(values, self._case_bounds(case, files, pixels))
        return Sample(image, masks, annotated, pixels.spacing)

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
        sources = needed_sources(files, self.structures)
        pixels = read_case(files, self._preprocessing.slice_axis, sources)
        self._pixels[case.identity] = pixels
        while len(self._pixels) > 1 and sum(item.nbytes for item in self._pixels.values()) > MEMORY_BYTES:
            self._pixels.popitem(last=False)
        return pixels

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
    on_case: OnCase | None = None,
) -> SiteDataset:
    """Join what the site has with what the job asks for.

    Args:
        site: The site's description.
        task: The job's task; datasets of other tasks are not touched.
        structures: The job's structures; one mask channel each, in this order.
        missing_structure: ``error``: a structure without any annotated training case is an error.
            ``mask``: it is not, as long as the site has another one.
        preprocessing: The job's.
        needed_splits: Splits that must hold a case. An evaluation asks for the ones it reads.
        verify: Read every file and check it. False only for files that are known to be unchanged since they
            were checked (``SiteDataset.files_sha256``); headers are read in either case.
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
    for dataset in datasets:
        found, faults = find_cases(dataset)
        cases += found
        problems += faults
    list_is_whole = not problems
    splits, faults = assign_splits(cases)
    problems += faults
    # Before the files are read: one that changes meanwhile must count as not checked.
    files_sha256 = files_mark(cases, structures)
    if verify:
        _, faults = verify_cases(cases, preprocessing.slice_axis, structures, preprocessing, on_case)
        problems += faults
    if datasets and list_is_whole:
        problems += split_problems(splits, needed_splits, f"task {task}")
    entries = _entries(cases, splits, structures)
    if datasets and cases and (missing_structure == "error" or not _annotated(entries)):
        problems += _structure_problems(entries, structures, needed_splits)
    if problems:
        raise FedfmsError(problems)
    counted, marks = _counted(entries, preprocessing)
    return SiteDataset(counted, structures, preprocessing, split_digest(marks), files_sha256)


def split_problems(splits: list[SplitName], needed: tuple[SplitName, ...], place: str) -> list[Problem]:
    """FMS-D008 for each needed split without a case."""
    counts = ", ".join(f"{splits.count(name)} {name}" for name in SPLITS)
    return [Problem(NO_CASES, place, f"no case for {name} (cases: {counts})") for name in needed if name not in splits]


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
    cases: list[CaseFiles], splits: list[SplitName], structures: tuple[str, ...]
) -> list[tuple[Case, CaseFiles]]:
    entries = []
    for files, split in zip(cases, splits, strict=True):
        annotated = {
            name
            for source, path in zip(files.dataset.masks, files.masks, strict=True)
            if path is not None
            for name in source.labels
        }
        case = Case(
            identity=f"{files.dataset.name}/{files.name}",
            patient=files.patient,
            split=split,
            dataset=files.dataset.name,
            structures=frozenset(annotated & set(structures)),
        )
        entries.append((case, files))
    return entries


def _annotated(entries: list[tuple[Case, CaseFiles]]) -> bool:
    return any(case.structures for case, _ in entries)


def _structure_problems(
    entries: list[tuple[Case, CaseFiles]], structures: tuple[str, ...], needed: tuple[SplitName, ...]
) -> list[Problem]:
    # Without training the question is whether the structure can be scored at all.
    split = "train" if "train" in needed else "all"
    kind = "training case" if split == "train" else "case"
    has = {name for case, _ in entries if split in ("all", case.split) for name in case.structures}
    return [
        Problem(STRUCTURE_MISSING, f"structure {name}", f"no annotated {kind} at this site")
        for name in structures
        if name not in has
    ]


def _counted(
    entries: list[tuple[Case, CaseFiles]], preprocessing: Preprocessing
) -> tuple[list[tuple[Case, CaseFiles, int]], list[tuple[str, str, str]]]:
    problems: list[Problem] = []
    counted: list[tuple[Case, CaseFiles, int]] = []
    marks: list[tuple[str, str, str]] = []
    for case, files in entries:
        try:
            counted.append((case, files, case_slices(files, preprocessing.slice_axis)))
            mark = content_mark(files.image, files.dataset.images.files or "*")
            marks.append((case.identity, case.split, mark))
        except FedfmsError as error:
            problems += error.problems
    if problems:
        raise FedfmsError(problems)
    return counted, marks


def _check_split(split: str) -> None:
    if split != "all" and split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)} or all, found {split!r}")
