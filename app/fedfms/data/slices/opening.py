"""From a site's description and a job's request to the dataset: join the two, verify the files, assemble."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fedfms.data.description.site import DatasetDescription, SiteDescription, SplitName
from fedfms.data.slices.dataset import Case, SiteDataset
from fedfms.data.slices.discovery import BadCase, CaseFiles, find_cases
from fedfms.data.slices.fingerprint import Measured, task_fingerprint
from fedfms.data.slices.split import assign_splits, split_problems
from fedfms.data.slices.verification import (
    CaseFindings,
    Checked,
    Findings,
    OnCase,
    case_key,
    check_cases,
    check_headers,
    partition_bad_cases,
    split_sha256,
)
from fedfms.errors import JOB_NOT_FOR_SITE, STRUCTURE_MISSING, FedfmsError, Problem
from fedfms.preprocessing import Preprocessing


@dataclass(frozen=True)
class DataRequest:
    """What a job, or a model that is evaluated, asks of a site's data.

    Attributes:
        task: Name of the task; datasets of other tasks are not used.
        structures: One mask channel each, in this order.
        missing_structure: ``error``: a structure without any annotated training case is an error. ``mask``: it is
            not an error as long as the site has an annotated training case of another structure.
        preprocessing: How slices become model inputs.
        needed_splits: Splits that must have at least one case. Training needs the default; an evaluation needs the
            splits that it reads.
    """

    task: str
    structures: tuple[str, ...]
    missing_structure: Literal["error", "mask"]
    preprocessing: Preprocessing
    needed_splits: tuple[SplitName, ...] = ("train", "validation")

    def __post_init__(self) -> None:
        if self.missing_structure not in ("error", "mask"):
            raise ValueError(f"missing_structure must be error or mask, found {self.missing_structure!r}")

    @property
    def decisive_split(self) -> str:
        """The split in which a structure must be annotated: ``train``, or ``all`` when no training is asked for."""
        return "train" if "train" in self.needed_splits else "all"


def open_dataset(
    site: SiteDescription,
    request: DataRequest,
    *,
    verify: bool = True,
    known: Findings | None = None,
    on_case: OnCase | None = None,
) -> SiteDataset:
    """Open the data of one task at a site.

    With ``strict: false`` in ``site.yaml``, a case with bad files is left out; the splits of the other cases do not
    depend on it.

    Args:
        site: The site's description.
        request: What the job asks for.
        verify: Read and check every file. Without it only headers are read.
        known: ``SiteDataset.findings`` of an earlier opening for the same job. Files that have not changed since are
            not read again.
        on_case: Called after each case that was read.

    Raises:
        FedfmsError: every difference between site and job and every bad file, in one error: FMS-J003 (no dataset has
            the task, no structure in common, or the intensity rule cannot be applied), FMS-D010 (a structure is
            missing), FMS-D008 (a needed split has no case), FMS-D007 (a patient in two splits), and the ids of
            ``find_cases`` and ``read_case``.
    """
    joined = _join(site, request)
    if verify:
        checked = check_cases(site, joined.cases, request.structures, request.preprocessing, known, on_case)
    else:
        checked = check_headers(joined.cases, request.preprocessing.slice_axis)
    return _assemble(site, request, joined, checked)


@dataclass(frozen=True)
class _Joined:
    """The cases of a task, before their files are read.

    Attributes:
        datasets: Descriptions of the datasets that have the task.
        cases: The cases of these datasets.
        splits: Split of each case.
        left_out: Bad cases that ``strict: false`` leaves out.
        problems: Differences between site and job, and what is wrong with the list of cases.
        complete: Whether nothing was wrong while the cases were listed; only then is an empty split worth a problem.
    """

    datasets: list[DatasetDescription]
    cases: list[CaseFiles]
    splits: list[SplitName]
    left_out: list[BadCase]
    problems: list[Problem]
    complete: bool


def _join(site: SiteDescription, request: DataRequest) -> _Joined:
    datasets = [dataset for dataset in site.datasets if dataset.task == request.task]
    problems = _job_problems(site, datasets, request)
    found = [find_cases(dataset) for dataset in datasets]
    problems += [problem for item in found for problem in item.problems]
    stopping, left_out = partition_bad_cases((case for item in found for case in item.bad), site.strict)
    problems += _all_problems(stopping)
    complete = not problems
    cases = [case for item in found for case in item.cases]
    splits, split_faults = assign_splits(cases)
    return _Joined(datasets, cases, splits, left_out, problems + split_faults, complete)


def _job_problems(site: SiteDescription, datasets: Sequence[DatasetDescription], request: DataRequest) -> list[Problem]:
    where = f"task {request.task}"
    if not datasets:
        offered = ", ".join(sorted({dataset.task for dataset in site.datasets}))
        return [Problem(JOB_NOT_FOR_SITE, where, f"site.yaml offers: {offered}")]
    has = sorted({name for dataset in datasets for name in dataset.structures})
    if not any(name in has for name in request.structures):
        detail = f"the job trains {', '.join(request.structures)}; the site has {', '.join(has) or 'none'}"
        return [Problem(JOB_NOT_FOR_SITE, f"{where}: structures", detail)]
    return []


def _assemble(site: SiteDescription, request: DataRequest, joined: _Joined, checked: Checked) -> SiteDataset:
    stopping, bad_files = partition_bad_cases(checked.bad, site.strict)
    left_out = [*joined.left_out, *bad_files]
    entries = _entries(request, joined, checked.cases, keep_bad=bool(stopping))
    problems = [*joined.problems, *_all_problems(stopping)]
    problems += _coverage_problems(request, joined, entries, len(left_out))
    if problems:
        raise FedfmsError([*problems, *_all_problems(left_out)])
    split = split_sha256((files, case.split) for case, files in entries)
    return SiteDataset(
        [(case, files, checked.cases[case_key(files)].slices) for case, files in entries],
        request.structures,
        request.preprocessing,
        split,
        checked.findings,
        tuple(left_out),
        _fingerprint(request, joined, checked, entries, split),
    )


def _all_problems(cases: Iterable[BadCase]) -> list[Problem]:
    return [problem for case in cases for problem in case]


def _entries(
    request: DataRequest, joined: _Joined, found: Mapping[str, CaseFindings], *, keep_bad: bool
) -> list[tuple[Case, CaseFiles]]:
    """Each case with its files; bad cases only with ``keep_bad``.

    A bad case that stops the task counts as what it should be, so that its structures are not called missing too.
    """
    entries = []
    for files, split in zip(joined.cases, joined.splits, strict=True):
        known = found.get(case_key(files))
        if known is None and not keep_bad:
            continue
        case = Case(
            identity=files.identity,
            patient=files.patient,
            split=split,
            dataset=files.dataset.name,
            structures=frozenset(known.structures if known else files.dataset.structures) & set(request.structures),
        )
        entries.append((case, files))
    return entries


def _coverage_problems(
    request: DataRequest, joined: _Joined, entries: Sequence[tuple[Case, CaseFiles]], left_out: int
) -> list[Problem]:
    """Needed splits without a case, and structures of the job that no case has."""
    problems = []
    if joined.datasets and joined.complete:
        splits = [case.split for case, _ in entries]
        problems += split_problems(splits, request.needed_splits, f"task {request.task}", left_out)
    decisive = [case for case, _ in entries if request.decisive_split in ("all", case.split)]
    annotated = {name for case in decisive for name in case.structures}
    if entries and (request.missing_structure == "error" or not annotated):
        kind = "training case" if request.decisive_split == "train" else "case"
        described = dict.fromkeys(name for _, files in entries for name in files.dataset.structures)
        detail = f"no annotated {kind} at this site; its site.yaml has: {', '.join(described) or 'no structure'}"
        problems += [
            Problem(STRUCTURE_MISSING, f"structure {name}", detail)
            for name in request.structures
            if name not in annotated
        ]
    return problems


def _fingerprint(
    request: DataRequest, joined: _Joined, checked: Checked, entries: Sequence[tuple[Case, CaseFiles]], split: str
) -> dict[str, Any] | None:
    """None when the files were not read."""
    if not checked.facts:
        return None
    measured = [Measured(files, case.split, checked.facts[case_key(files)]) for case, files in entries]
    return task_fingerprint(joined.datasets, measured, request.structures, split) if measured else None
