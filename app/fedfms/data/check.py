"""``fedfms data check``: everything that can be said about a ``site.yaml`` without a job."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedfms.data.dataset import split_problems
from fedfms.data.discovery import BadCase, CaseFiles, find_cases
from fedfms.data.geometry import Plane
from fedfms.data.masks import partly_annotated
from fedfms.data.site import SPLITS, DatasetDescription, EachImage, SplitName, load_site
from fedfms.data.split import assign_splits
from fedfms.data.verification import CaseFacts, OnCase, verify_cases, what_stops
from fedfms.errors import FedfmsError, Problem


@dataclass(frozen=True)
class StructureCount:
    """Attributes: name; cases with a mask for it; slices in which that mask is not empty."""

    name: str
    annotated_cases: int
    filled_slices: int


@dataclass(frozen=True)
class DatasetRow:
    """One line of the table; counts only, no identifier.

    Attributes:
        dataset, task, format: As in ``site.yaml``.
        cases: Images or volumes found, without those that are left out.
        cases_left_out: Those with bad files, when ``site.yaml`` says ``strict: false``.
        patients: Different patients among them.
        cases_per_split, slices_per_split: By ``train``, ``validation``, ``test``; unreadable cases have no slice.
        structures: In the order of ``site.yaml``.
        smallest, largest: (rows, columns) of the slice with the fewest and the most pixels; None without any.
        spacing: Smallest and largest distance of pixels in mm; None for raster images.
    """

    dataset: str
    task: str
    format: str
    cases: int
    cases_left_out: int
    patients: int
    cases_per_split: dict[str, int]
    slices_per_split: dict[str, int]
    structures: tuple[StructureCount, ...]
    smallest: tuple[int, int] | None
    largest: tuple[int, int] | None
    spacing: tuple[float, float] | None


@dataclass(frozen=True)
class CheckReport:
    """Result of ``check_site``.

    Attributes:
        rows: One per dataset; empty when ``site.yaml`` itself is wrong.
        problems: What stops a task. Their texts name files and stay on this machine.
        left_out: What is wrong with the cases that are left out; as local as the problems.
        warnings: What does not stop a task but should be known.
    """

    rows: tuple[DatasetRow, ...]
    problems: tuple[Problem, ...]
    left_out: tuple[Problem, ...]
    warnings: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether a task can run."""
        return not self.problems

    def as_json(self) -> dict[str, Any]:
        """The same as JSON values, for a file or a pipe on this machine."""
        return {
            "ok": self.ok,
            "datasets": [asdict(row) for row in self.rows],
            "problems": _as_json(self.problems),
            "left_out": _as_json(self.left_out),
            "warnings": list(self.warnings),
        }


def _as_json(problems: Sequence[Problem]) -> list[dict[str, str]]:
    return [
        {"id": item.kind.id, "place": item.place, "detail": item.detail, "remedy": item.remedy or item.kind.remedy}
        for item in problems
    ]


def check_site(path: Path, *, plane: Plane = "axial", on_case: OnCase | None = None) -> CheckReport:
    """Read a ``site.yaml`` and every file it names.

    Args:
        path: The ``site.yaml``.
        plane: Plane in which volumes are cut into slices; a job may ask for another.
        on_case: Told after each case of a task.
    """
    try:
        site = load_site(path)
    except FedfmsError as error:
        return CheckReport((), error.problems, (), ())
    rows: list[DatasetRow] = []
    problems: list[Problem] = []
    left_out: list[BadCase] = []
    warnings: list[str] = []
    for task in dict.fromkeys(dataset.task for dataset in site.datasets):
        datasets = [dataset for dataset in site.datasets if dataset.task == task]
        listed = [find_cases(dataset) for dataset in datasets]
        cases = [case for found in listed for case in found.cases]
        splits, faults = assign_splits(cases)
        structures = {name for dataset in datasets for name in dataset.structures}
        facts, bad = verify_cases(cases, plane, structures, None, on_case)
        stopping, without = what_stops([*(case for found in listed for case in found.bad), *bad], site.strict)
        problems += [*(problem for found in listed for problem in found.problems), *faults, *stopping]
        left_out += without
        usable = [position for position, item in enumerate(facts) if site.strict or item is not None]
        if cases or without:
            remaining = [splits[position] for position in usable]
            problems += split_problems(remaining, ("train", "validation"), f"task {task}", len(without))
        for dataset, found in zip(datasets, listed, strict=True):
            members = [position for position in usable if cases[position].dataset is dataset]
            unusable = len(what_stops(found.bad, site.strict)[1]) + len(found.cases) - len(members)
            row = _row(
                dataset,
                [cases[position] for position in members],
                [splits[position] for position in members],
                [facts[position] for position in members],
                unusable,
            )
            rows.append(row)
            warnings += _warnings(dataset, row)
            warnings += _partly(dataset, [cases[position] for position in members if facts[position]])
    reasons = tuple(problem for case in left_out for problem in case)
    return CheckReport(tuple(rows), tuple(problems), reasons, tuple(warnings))


def _row(
    dataset: DatasetDescription,
    cases: Sequence[CaseFiles],
    splits: Sequence[SplitName],
    facts: Sequence[CaseFacts | None],
    left_out: int,
) -> DatasetRow:
    known = [item for item in facts if item is not None]
    sizes = sorted((item.size for item in known), key=lambda size: (size[0] * size[1], size))
    spacings = [value for item in known if item.spacing is not None for value in item.spacing]
    annotated = [
        item.filled.keys()
        if item
        else {
            name
            for source, mask in zip(dataset.masks, case.masks, strict=True)
            if mask is not None
            for name in source.labels
        }
        for case, item in zip(cases, facts, strict=True)
    ]
    return DatasetRow(
        dataset=dataset.name,
        task=dataset.task,
        format=dataset.format,
        cases=len(cases),
        cases_left_out=left_out,
        patients=len({case.patient for case in cases}),
        cases_per_split={name: list(splits).count(name) for name in SPLITS},
        slices_per_split={
            name: sum(item.slices for item, split in zip(facts, splits, strict=True) if item and split == name)
            for name in SPLITS
        },
        structures=tuple(
            StructureCount(
                name,
                sum(name in names for names in annotated),
                sum(item.filled.get(name, 0) for item in known),
            )
            for name in dataset.structures
        ),
        smallest=sizes[0] if sizes else None,
        largest=sizes[-1] if sizes else None,
        spacing=(min(spacings), max(spacings)) if spacings else None,
    )


def _warnings(dataset: DatasetDescription, row: DatasetRow) -> list[str]:
    result = []
    if row.cases_left_out:
        result.append(f"dataset {dataset.name}: {row.cases_left_out} cases with bad files are left out (strict: false)")
    if isinstance(dataset.patient, EachImage) and row.cases:
        result.append(
            f"dataset {dataset.name}: each image counts as a patient; if patients have several images, they may"
            " stand in training and in validation at once"
        )
    if not dataset.masks:
        result.append(f"dataset {dataset.name}: no masks; it cannot train or be evaluated")
    for structure in row.structures:
        if structure.annotated_cases < row.cases:
            result.append(
                f"dataset {dataset.name}: {row.cases - structure.annotated_cases} of {row.cases} cases have no mask"
                f" for {structure.name}"
            )
        if structure.annotated_cases and not structure.filled_slices:
            result.append(f"dataset {dataset.name}: every mask for {structure.name} is empty")
    return result


def _partly(dataset: DatasetDescription, cases: Sequence[CaseFiles]) -> list[str]:
    counts = Counter(
        name
        for case in cases
        for source, mask in zip(dataset.masks, case.masks, strict=True)
        for name in partly_annotated(source, mask)
    )
    return [
        f"dataset {dataset.name}: {counts[name]} of {len(cases)} cases have only some of the segments or ROIs listed"
        f" for {name}; that is right for synonyms and wrong for parts"
        for name in dataset.structures
        if counts[name]
    ]
