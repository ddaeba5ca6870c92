"""``fedfms data check``: everything that can be checked about a ``site.yaml`` without a job."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fedfms.data.description.site import SPLITS, DatasetDescription, SiteDescription, SplitName, load_site
from fedfms.data.quality.across import duplicates, few_cases, lacking_in_split
from fedfms.data.quality.checks import check_dataset
from fedfms.data.quality.finding import Finding, plain, summed
from fedfms.data.quality.measures import CaseMeasures, Surveyed, survey
from fedfms.data.slices.discovery import BadCase, CaseFiles, find_cases
from fedfms.data.slices.fingerprint import Measured, site_fingerprint, task_fingerprint
from fedfms.data.slices.palettes import palette_problems
from fedfms.data.slices.split import assign_splits, split_problems
from fedfms.data.slices.verification import OnCase, partition_bad_cases, split_sha256
from fedfms.data.volume.geometry import Plane
from fedfms.errors import IMAGE_MISSING, FedfmsError, Problem


@dataclass(frozen=True)
class StructureCount:
    """Numbers of one structure.

    Attributes:
        name: As in ``site.yaml``.
        annotated_cases: Cases with a mask for it.
        filled_slices: Slices in which that mask is not empty; None when no case could be read.
        validation_slices: Those of them that are in the validation split.
    """

    name: str
    annotated_cases: int
    filled_slices: int | None
    validation_slices: int | None


@dataclass(frozen=True)
class DatasetRow:
    """Numbers of one dataset; no identifiers.

    Attributes:
        dataset, task, format: As in ``site.yaml``.
        cases: Number of images or volumes found, without those that are left out.
        cases_left_out: Number of cases with bad files, when ``site.yaml`` says ``strict: false``.
        cases_read: Number of ``cases`` that could be read; slices, sizes and spacing are those of these cases.
        patients: Number of distinct patients in ``cases``.
        cases_per_split: Number of cases by ``train``, ``validation``, ``test``.
        slices_per_split: Number of slices likewise; None when no case could be read.
        structures: Numbers of each structure, in the order of ``site.yaml``.
        smallest, largest: (rows, columns) of the slice with the fewest and the most pixels; None without any.
        spacing: Smallest and largest distance of pixels in mm; None for raster images.
    """

    dataset: str
    task: str
    format: str
    cases: int
    cases_left_out: int
    cases_read: int
    patients: int
    cases_per_split: dict[str, int]
    slices_per_split: dict[str, int] | None
    structures: tuple[StructureCount, ...]
    smallest: tuple[int, int] | None
    largest: tuple[int, int] | None
    spacing: tuple[float, float] | None


@dataclass(frozen=True)
class CheckReport:
    """Result of ``check_site``.

    Attributes:
        rows: One per dataset; empty when ``site.yaml`` itself is wrong.
        problems: What stops a task. The texts name files and must not leave this machine.
        left_out: What is wrong with the cases that are left out; must not leave this machine either.
        findings: Everything that was found, with the problems of these two; it shows names only when asked to.
        fingerprint: Summary of the data in numbers, without names; None when ``site.yaml`` itself is wrong.
    """

    rows: tuple[DatasetRow, ...]
    problems: tuple[Problem, ...]
    left_out: tuple[Problem, ...]
    findings: tuple[Finding, ...]
    fingerprint: dict[str, Any] | None

    @property
    def ok(self) -> bool:
        """Whether the data can be used as they are."""
        return all(finding.severity != "FAIL" for finding in self.findings)

    def as_json(self, *, show_ids: bool = False) -> dict[str, Any]:
        """The report as JSON values; ``show_ids`` adds the files concerned."""
        return {
            "ok": self.ok,
            "datasets": [asdict(row) for row in self.rows],
            "findings": [finding.as_json(show_ids=show_ids) for finding in self.findings],
            "fingerprint": self.fingerprint,
        }


def check_site(path: Path, *, plane: Plane = "axial", on_case: OnCase | None = None) -> CheckReport:
    """Read a ``site.yaml`` and every file it names.

    Args:
        path: The ``site.yaml``.
        plane: Plane in which volumes are cut into slices; a job may ask for another.
        on_case: Called after each case, with the numbers of the task that is being read.
    """
    try:
        site = load_site(path)
    except FedfmsError as error:
        return CheckReport((), error.problems, (), tuple(plain(error.problems)), None)
    whole = _Whole()
    for task in dict.fromkeys(dataset.task for dataset in site.datasets):
        _check_task(site, task, plane, on_case, whole)
    whole.findings += duplicates(whole.surveyed)
    findings = tuple(sorted(whole.findings, key=lambda finding: finding.severity))
    counts: Counter[str] = Counter()
    for finding in findings:
        counts[finding.kind.id] += finding.count
    fingerprint = site_fingerprint(whole.fingerprints, counts)
    return CheckReport(tuple(whole.rows), tuple(whole.problems), tuple(whole.left_out), findings, fingerprint)


@dataclass(frozen=True)
class _Examined:
    """A case, its split, and what was measured or is wrong with it."""

    files: CaseFiles
    split: SplitName
    result: CaseMeasures | BadCase

    @property
    def measures(self) -> CaseMeasures | None:
        """None when the case could not be read."""
        return self.result if isinstance(self.result, CaseMeasures) else None

    @property
    def annotated(self) -> Iterable[str]:
        """The structures for which there is a mask."""
        if self.measures:
            return self.measures.facts.filled.keys()
        pairs = zip(self.files.dataset.masks, self.files.masks, strict=True)
        return {name for source, mask in pairs if mask is not None for name in source.labels}


@dataclass
class _Whole:
    """The results of all tasks of a site."""

    rows: list[DatasetRow] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    left_out: list[Problem] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    surveyed: list[Surveyed] = field(default_factory=list)
    fingerprints: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, stopping: Sequence[BadCase], left_out: Sequence[BadCase], where: str) -> None:
        """Add what is wrong with cases; the texts name files."""
        self.problems += (problem for case in stopping for problem in case)
        self.left_out += (problem for case in left_out for problem in case)
        self.findings += [*summed(stopping, "FAIL", where), *summed(left_out, "WARN", f"{where}: left out")]


def _check_task(site: SiteDescription, task: str, plane: Plane, on_case: OnCase | None, whole: _Whole) -> None:
    datasets = [dataset for dataset in site.datasets if dataset.task == task]
    listed = [find_cases(dataset) for dataset in datasets]
    cases = [case for found in listed for case in found.cases]
    splits, faults = assign_splits(cases)
    structures = {name for dataset in datasets for name in dataset.structures}
    measured = survey(cases, plane, structures, on_case)
    palettes = palette_problems(cases, structures)
    whole.problems += palettes
    whole.findings += plain(palettes)
    surveyed: list[Surveyed] = []
    usable: list[SplitName] = []
    left_out = 0
    examined = [_Examined(*item) for item in zip(cases, splits, measured, strict=True)]
    for dataset, found in zip(datasets, listed, strict=True):
        own = [item for item in examined if item.files.dataset is dataset]
        bad = [*found.bad, *(item.result for item in own if isinstance(item.result, tuple))]
        stopping, without = partition_bad_cases(bad, site.strict)
        whole.problems += found.problems
        whole.findings += plain(found.problems)
        whole.add(stopping, without, f"dataset {dataset.name}")
        if found.skipped:
            named = map(str, found.skipped)
            whole.findings.append(_no_cases(f"dataset {dataset.name}: images", len(found.skipped), named))
        known = [Surveyed(item.files, item.split, item.result) for item in own if isinstance(item.result, CaseMeasures)]
        kept = set(map(id, without))
        members = [item for item in own if id(item.result) not in kept]
        whole.rows.append(_row(dataset, members, len(without)))
        whole.findings += check_dataset(dataset, known)
        surveyed += known
        usable += (item.split for item in members)
        left_out += len(without)
    whole.add([(fault,) for fault in faults], (), f"task {task}")
    # Images without any masks are for prediction only: no job trains on them, and FMS-Q011 says so.
    trains = any(dataset.masks for dataset in datasets)
    if trains and (cases or left_out):
        missing = split_problems(usable, ("train", "validation"), f"task {task}", left_out)
        whole.problems += missing
        whole.findings += plain(missing)
    whole.findings += [*(few_cases(task, surveyed) if trains else ()), *lacking_in_split(task, surveyed)]
    whole.surveyed += surveyed
    # With an unreadable case no task can run, and there is no split to report.
    split = split_sha256((case.files, case.split) for case in surveyed) if len(surveyed) == len(usable) else None
    whole.fingerprints[task] = task_fingerprint(
        datasets,
        [Measured(case.files, case.split, case.measures.facts) for case in surveyed],
        [name for dataset in datasets for name in dataset.structures],
        split,
    )


def _no_cases(where: str, count: int, named: Iterable[str]) -> Finding:
    detail = "folders that fit the pattern hold segmentations, structure sets or reports, and no image: not cases"
    remedy = "Right for folders of results; otherwise restore the images."
    return Finding(IMAGE_MISSING, "WARN", where, count, detail, remedy, tuple(named))


def _row(dataset: DatasetDescription, members: Sequence[_Examined], left_out: int) -> DatasetRow:
    read = [(item.split, item.measures.facts) for item in members if item.measures]
    facts = [item for _, item in read]
    sizes = sorted((item.size for item in facts), key=lambda size: (size[0] * size[1], size))
    spacings = [value for item in facts if item.sides is not None for value in item.sides[:2]]
    return DatasetRow(
        dataset=dataset.name,
        task=dataset.task,
        format=dataset.format,
        cases=len(members),
        cases_left_out=left_out,
        cases_read=len(facts),
        patients=len({item.files.patient for item in members}),
        cases_per_split={name: sum(item.split == name for item in members) for name in SPLITS},
        slices_per_split=(
            {name: sum(item.slices for split, item in read if split == name) for name in SPLITS} if read else None
        ),
        structures=tuple(
            StructureCount(
                name,
                sum(name in item.annotated for item in members),
                sum(item.filled.get(name, 0) for item in facts) if read else None,
                sum(item.filled.get(name, 0) for split, item in read if split == "validation") if read else None,
            )
            for name in dataset.structures
        ),
        smallest=sizes[0] if sizes else None,
        largest=sizes[-1] if sizes else None,
        spacing=(min(spacings), max(spacings)) if spacings else None,
    )
