"""A summary of the data that holds no name: to compare sites, and to see whether data have changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fedfms.data.discovery import CaseFiles
from fedfms.data.quality.finding import Finding
from fedfms.data.quality.measures import Surveyed
from fedfms.data.site import SPLITS, DatasetDescription
from fedfms.data.split import split_digest
from fedfms.data.verification import content_mark
from fedfms.files import sha256_json


def dataset_fingerprint(dataset: DatasetDescription, cases: Sequence[Surveyed]) -> dict[str, Any]:
    """Counts, sizes, spacings and intensities of a dataset; its name and paths stay out."""
    found = [case.measures for case in cases]
    sides = [item.sides for item in found if item.sides is not None]
    levels = [(item.intensity.low, item.intensity.median, item.intensity.high, item.intensity.mean) for item in found]
    return {
        "task": dataset.task,
        "format": dataset.format,
        "cases": {split: sum(case.split == split for case in cases) for split in SPLITS},
        "patients": len({case.files.patient for case in cases}),
        "slices": sum(item.facts.slices for item in found),
        "rows_columns": _spread([item.facts.size for item in found], ("rows", "columns")),
        "spacing_mm": _spread(sides, ("rows", "columns", "slices")),
        "intensity": _spread(levels, ("percentile_1", "median", "percentile_99", "mean")),
        "structures": {
            name: {
                "annotated_cases": sum(name in item.facts.filled for item in found),
                "slices_with_it": sum(item.facts.filled.get(name, 0) for item in found),
                "share_of_pixels": _mean([item.share[name] for item in found if name in item.share]),
            }
            for name in dataset.structures
        },
    }


def site_fingerprint(
    datasets: Sequence[dict[str, Any]], splits: dict[str, str], findings: Sequence[Finding]
) -> dict[str, Any]:
    """The whole file's content, with its own digest.

    Args:
        datasets: In the order of ``site.yaml``.
        splits: Task -> digest of its split.
        findings: Only their ids and counts are used.
    """
    counts: dict[str, int] = {}
    for finding in findings:
        counts[finding.kind.id] = counts.get(finding.kind.id, 0) + finding.count
    content = {"version": 1, "datasets": list(datasets), "split_sha256": splits, "findings": counts}
    return {**content, "sha256": sha256_json(content)}


def split_sha256(cases: Sequence[CaseFiles], splits: Sequence[str]) -> str:
    """The digest of a task's split that a training task records, too.

    Raises:
        FedfmsError: FMS-D004 when an image cannot be read.
    """
    return split_digest(
        (files.identity, split, content_mark(files.image, files.dataset.images.files or "*"))
        for files, split in zip(cases, splits, strict=True)
    )


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
