"""Checks across datasets: copies anywhere at the site, and the splits of a task."""

from __future__ import annotations

from collections.abc import Sequence

from fedfms.data.description.site import SplitName
from fedfms.data.quality.finding import Finding, Severity, warning
from fedfms.data.quality.measures import Surveyed
from fedfms.errors import DUPLICATE_IMAGE, FEW_CASES, RARE_STRUCTURE

#: With fewer cases than this in a split, FMS-Q007 is reported.
FEW: dict[SplitName, int] = {"train": 10, "validation": 3}


def duplicates(cases: Sequence[Surveyed]) -> list[Finding]:
    """FMS-Q006: images with the same pixels; ``FAIL`` when they are in two splits of one task.

    Args:
        cases: All cases of the site.
    """
    groups: dict[str, list[Surveyed]] = {}
    for case in cases:
        if not case.measures.facts.intensity.constant:  # constant images are FMS-Q005, not copies
            groups.setdefault(case.measures.sha256, []).append(case)
    copies = [group for group in groups.values() if len(group) > 1]
    leaks = [group for group in copies if _in_two_splits(group)]
    others = [group for group in copies if not _in_two_splits(group)]
    return [
        *_copies(leaks, "FAIL", "in two splits of a task"),
        *_copies(others, "WARN", "in one split or in several tasks"),
    ]


def _copies(groups: Sequence[Sequence[Surveyed]], severity: Severity, where: str) -> list[Finding]:
    if not groups:
        return []
    datasets = dict.fromkeys(case.files.dataset.name for group in groups for case in group)
    where = f"dataset{'s' if len(datasets) > 1 else ''} {', '.join(datasets)}"
    named = tuple(" = ".join(str(case.files.image) for case in group) for group in groups)
    detail = f"{len(groups)} different images, {where}"
    count = sum(len(group) for group in groups)
    return [Finding(DUPLICATE_IMAGE, severity, where, count, detail, DUPLICATE_IMAGE.remedy, named)]


def _in_two_splits(group: Sequence[Surveyed]) -> bool:
    splits: dict[str, set[SplitName]] = {}
    for case in group:
        splits.setdefault(case.files.dataset.task, set()).add(case.split)
    return any(len(found) > 1 for found in splits.values())


def few_cases(task: str, cases: Sequence[Surveyed]) -> list[Finding]:
    """FMS-Q007 for a task; a split without any case is FMS-D008."""
    counts = {split: sum(case.split == split for case in cases) for split in FEW}
    few = {split: count for split, count in counts.items() if 0 < count < FEW[split]}
    detail = ", ".join(f"{count} for {split} (few below {FEW[split]})" for split, count in few.items())
    return [warning(FEW_CASES, f"task {task}", sum(few.values()), detail)] if few else []


def lacking_in_split(task: str, cases: Sequence[Surveyed]) -> list[Finding]:
    """FMS-Q009: structures that are in some case of the task, but in none for training or none for validation."""
    shown = {
        name: {case.split for case in cases if case.measures.facts.filled.get(name)}
        for name in dict.fromkeys(name for case in cases for name in case.files.dataset.structures)
    }
    result = []
    for split in FEW:
        members = sum(case.split == split for case in cases)
        lacking = [name for name, splits in shown.items() if splits and split not in splits]
        if members and lacking:
            detail = f"in none of the {members} cases for {split}: {', '.join(lacking)}"
            result.append(warning(RARE_STRUCTURE, f"task {task}", members, detail))
    return result
