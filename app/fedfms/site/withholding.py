"""Scores that a site will never report, because it has too few validation slices for what its policy asks."""

from __future__ import annotations

from collections.abc import Mapping

from fedfms.data.description.site import SiteDescription
from fedfms.data.quality.check import CheckReport
from fedfms.data.slices.case_pixels import read_case
from fedfms.data.slices.discovery import find_cases
from fedfms.data.slices.split import assign_splits
from fedfms.data.slices.verification import partition_bad_cases
from fedfms.errors import FedfmsError, Problem
from fedfms.job.training import TrainingJob
from fedfms.site.policy import SitePolicy

_SCORES = {"dice": "Dice", "iou": "IoU"}


def withheld_structures(policy: SitePolicy, validation_slices: Mapping[str, int]) -> dict[str, str]:
    """Structures whose scores the policy withholds in every round, since the validation slices are always the same.

    Args:
        policy: The site's policy.
        validation_slices: For each structure the number of validation slices that show it.

    Returns:
        For each such structure one sentence with the numbers; none for a policy that reports no scores at all, and
        none for a structure without any slice, which has no score to withhold.
    """
    names = " and ".join(word for figure, word in _SCORES.items() if figure in policy.metrics.allowed)
    if not names:
        return {}
    least = policy.metrics.min_slices
    return {
        name: f"{count} validation slice{'s' * (count != 1)} of {name}, policy min_slices is {least}: its {names} will"
        " never be reported"
        for name, count in validation_slices.items()
        if policy.is_too_small(count)
    }


def validation_slices_by_task(report: CheckReport) -> dict[str, dict[str, int]]:
    """For each task and structure the number of validation slices that show it, as a check of the data found.

    A task with a dataset of which no case could be read is left out.
    """
    counts: dict[str, dict[str, int]] = {}
    unknown = {row.task for row in report.rows if any(item.validation_slices is None for item in row.structures)}
    for row in report.rows:
        for item in row.structures if row.task not in unknown else ():
            of_task = counts.setdefault(row.task, {})
            of_task[item.name] = of_task.get(item.name, 0) + (item.validation_slices or 0)
    return counts


def count_validation_slices(site: SiteDescription, job: TrainingJob, most: int) -> dict[str, int]:
    """For each of the job's structures that the site has, the number of validation slices that show it.

    Only validation cases are read, and no more of them than are needed to count up to ``most`` of each structure.

    Args:
        site: The site's description.
        job: The job.
        most: Where counting may end.

    Raises:
        FedfmsError: what would stop the job, of the cases that were read.
    """
    datasets = [dataset for dataset in site.datasets if dataset.task == job.task]
    has = {name for dataset in datasets for name in dataset.structures}
    counts = {name: 0 for name in job.structures if name in has}
    listed = [find_cases(dataset) for dataset in datasets]
    if problems := [problem for found in listed for problem in found.problems]:
        raise FedfmsError(problems)
    _require_usable(site, [case for found in listed for case in found.bad])
    cases = [case for found in listed for case in found.cases]
    for files, split in zip(cases, assign_splits(cases)[0], strict=True):
        wanted = {name for name in files.dataset.structures if counts.get(name, most) < most}
        if split != "validation" or not wanted:
            continue
        try:
            masks = read_case(files, job.preprocessing.slice_axis, wanted).masks
        except FedfmsError as error:
            _require_usable(site, [error.problems])
            continue
        for name, mask in masks.items():
            counts[name] += int(mask.any(axis=(1, 2)).sum()) if name in wanted else 0
    return counts


def _require_usable(site: SiteDescription, bad: list[tuple[Problem, ...]]) -> None:
    stopping, _ = partition_bad_cases(bad, site.strict)
    if stopping:
        raise FedfmsError(problem for case in stopping for problem in case)
