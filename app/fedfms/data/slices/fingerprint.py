"""The fingerprint: a summary of the data without names, to compare sites and to see whether data have changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedfms.data.description.site import SPLITS, DatasetDescription, SplitName
from fedfms.data.slices.discovery import CaseFiles
from fedfms.data.slices.facts import CaseFacts
from fedfms.files import sha256_json


@dataclass(frozen=True)
class Measured:
    """A case that was read, with its split and facts."""

    files: CaseFiles
    split: SplitName
    facts: CaseFacts


def task_fingerprint(
    datasets: Sequence[DatasetDescription],
    cases: Sequence[Measured],
    structures: Sequence[str],
    split_sha256: str | None,
) -> dict[str, Any]:
    """Summarise the data of a task in numbers, with a digest of the summary.

    The digest cannot be guessed from the numbers, because it includes that of the split, which depends on the images.

    Args:
        datasets: Datasets of the task, in the order of ``site.yaml``.
        cases: Their cases.
        structures: Structures whose masks were read.
        split_sha256: Digest of which case is in which split; None when a case cannot be read.
    """
    content = {
        "version": 1,
        "datasets": [
            _dataset(dataset, [case for case in cases if case.files.dataset is dataset], structures)
            for dataset in datasets
        ],
        "split_sha256": split_sha256,
    }
    return {**content, "sha256": sha256_json(content)}


def site_fingerprint(tasks: Mapping[str, dict[str, Any]], findings: Mapping[str, int]) -> dict[str, Any]:
    """Summarise all tasks of a ``site.yaml``, with the number of findings by id and a digest of the summary."""
    content = {"version": 1, "tasks": dict(tasks), "findings": dict(findings)}
    return {**content, "sha256": sha256_json(content)}


def _dataset(dataset: DatasetDescription, cases: Sequence[Measured], structures: Sequence[str]) -> dict[str, Any]:
    found = [case.facts for case in cases]
    sides = [item.sides for item in found if item.sides is not None]
    levels = [(item.intensity.low, item.intensity.median, item.intensity.high, item.intensity.mean) for item in found]
    return {
        "format": dataset.format,
        "cases": {split: sum(case.split == split for case in cases) for split in SPLITS},
        "patients": len({case.files.patient for case in cases}),
        "slices": sum(item.slices for item in found),
        "rows_columns": _spread([item.size for item in found], ("rows", "columns")),
        "spacing_mm": _spread(sides, ("rows", "columns", "slices")),
        "intensity": _spread(levels, ("percentile_1", "median", "percentile_99", "mean")),
        "structures": {
            name: {
                "annotated_cases": sum(name in item.filled for item in found),
                "slices_with_it": sum(item.filled.get(name, 0) for item in found),
                "share_of_pixels": _mean([item.share[name] for item in found if name in item.share]),
            }
            for name in dataset.structures
            if name in structures
        },
    }


def _spread(rows: Sequence[Sequence[float]], names: Sequence[str]) -> dict[str, dict[str, float]] | None:
    if not rows:
        return None
    values = np.array(rows, dtype=np.float64)
    return {
        name: {"smallest": float(column.min()), "median": float(np.median(column)), "largest": float(column.max())}
        for name, column in zip(names, values.T, strict=True)
    }


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
