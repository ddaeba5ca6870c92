"""What a job sees of a site: slices with their masks, by split."""

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


def _check_split(split: str) -> None:
    if split != "all" and split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)} or all, found {split!r}")
