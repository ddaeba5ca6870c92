"""The data of one task at a site: slices with their masks, by split."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from fedfms.data.description.site import SPLITS, SplitName
from fedfms.data.slices.case_pixels import CasePixels, read_case
from fedfms.data.slices.discovery import BadCase, CaseFiles
from fedfms.data.slices.intensity import intensity_bounds, slice_values, to_model_range
from fedfms.data.slices.verification import Findings, case_key
from fedfms.data.volume.geometry import Array
from fedfms.preprocessing import Preprocessing

#: Most bytes of volumes and images kept in memory; the last one is kept whatever its size.
MEMORY_BYTES = 512 * 2**20


@dataclass(frozen=True)
class Case:
    """One image file or one volume: the unit by which cases are counted and weighted.

    Attributes:
        identity: Dataset and path; must not be sent.
        patient: The patient, by which cases are split; must not be sent.
        split: ``train``, ``validation`` or ``test``.
        dataset: Name of the dataset in ``site.yaml``.
        structures: Those of the job's structures that are annotated in this case.
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
    """A slice at its stored resolution, before scaling and augmentation.

    Attributes:
        image: float32 (3, rows, columns), 0..255 after the job's intensity rule. The three channels follow the job's
            channel rule (``fedfms.data.slices.intensity.slice_values``).
        masks: uint8 (C, rows, columns), 0 or 1, one per structure in the order of the job; 0 where not annotated.
        annotated: bool (C,): whether the case is annotated for each structure.
        spacing: Distance of rows and of columns in mm; None for images without spacing.
        slice_distance: Distance of the slices of the case in mm; None for images without spacing.
    """

    image: npt.NDArray[np.float32]
    masks: npt.NDArray[np.uint8]
    annotated: npt.NDArray[np.bool_]
    spacing: tuple[float, float] | None
    slice_distance: float | None = None


class SiteDataset:
    """The cases of one task at one site. Made by ``fedfms.data.slices.opening.open_dataset``.

    Attributes:
        structures: The job's structures, in the order of the mask channels.
        split_sha256: Digest of which case is in which split.
        findings: What reading the files found, for the next opening; None when only headers were read.
        left_out: The bad cases that ``strict: false`` leaves out. Cases that an earlier opening found have no
            problems here.
        fingerprint: Summary of the data in numbers, without names (``fedfms.data.slices.fingerprint``); None when
            the files were not read now.
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
        """Cases of a split (``train``, ``validation``, ``test`` or ``all``), in a fixed order."""
        _check_split(split)
        return [case for case, _, _ in self._entries if split in ("all", case.split)]

    def slices(self, split: str) -> list[SliceReference]:
        """Slices of a split (``train``, ``validation``, ``test`` or ``all``), in a fixed order, with empty ones."""
        _check_split(split)
        return [
            SliceReference(case, index)
            for case, _, count in self._entries
            if split in ("all", case.split)
            for index in range(count)
        ]

    def is_empty(self, reference: SliceReference) -> bool:
        """Whether every annotated mask of a slice is empty, without reading it; False for a case without masks.

        Raises:
            ValueError: when the dataset was opened without reading the files.
        """
        if self.findings is None:
            raise ValueError("the files have not been read")
        _, files = self._by_identity[reference.case.identity]
        return reference.index in self.findings.cases[case_key(files)].empty

    def cases_per_structure(self, split: str) -> dict[str, int]:
        """Number of annotated cases for each of the job's structures; 0 when the site has none."""
        cases = self.cases(split)
        return {name: sum(name in case.structures for case in cases) for name in self.structures}

    def load(self, reference: SliceReference) -> Sample:
        """Read a slice. Its volume is kept in memory for the other slices, up to ``MEMORY_BYTES``.

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
        """SHA-256 of everything in the files that ``load(reference).image`` depends on.

        These are the stored pixels of the slice (with ``channels: neighbours`` also of its neighbours), and the
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
        # Before reading, assuming that it is as large as the last one: two volumes at once may be too much.
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


def _check_split(split: str) -> None:
    if split != "all" and split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)} or all, found {split!r}")
