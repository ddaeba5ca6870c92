"""From single scores to a summary: means with intervals, and the counts behind them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fedfms.training.scores import METRICS, Scores

#: Share of the resampled means inside an interval.
LEVEL = 0.95
RESAMPLES = 2000
SEED = 0


def summarise(scores: Sequence[tuple[str, Scores]]) -> dict[str, Any]:
    """Summarise one structure's scores.

    Args:
        scores: Patient and scores of each case or slice that is annotated.

    Returns:
        Each of ``METRICS`` as from ``mean_with_interval``, and ``support``: ``annotated`` (references), ``estimable``
        (references that are not empty), ``patients`` (of the estimable), ``missed`` and ``false_alarms`` (see
        ``Scores.outcome``), ``without_spacing`` (found, but there are no distances in mm).
    """
    result: dict[str, Any] = {}
    for metric in METRICS:
        values = [(patient, getattr(item, metric)) for patient, item in scores]
        result[metric] = mean_with_interval([(patient, value) for patient, value in values if value is not None])
    outcomes = [item.outcome for _, item in scores]
    estimable = [patient for patient, item in scores if item.dice is not None]
    result["support"] = {
        "annotated": len(scores),
        "estimable": len(estimable),
        "patients": len(set(estimable)),
        "missed": outcomes.count("missed"),
        "false_alarms": outcomes.count("false_alarm"),
        "without_spacing": sum(item.outcome == "found" and item.hd95_mm is None for _, item in scores),
    }
    return result


def mean_with_interval(values: Sequence[tuple[str, float]]) -> dict[str, float | int | None]:
    """Mean with its bootstrap interval.

    Whole patients are drawn with replacement, because the cases of one patient resemble each other; the interval
    contains the middle ``LEVEL`` of the means (Davison and Hinkley, *Bootstrap Methods*, sections 3.8 and 5.3.1).

    Args:
        values: Patient and value of each case or slice.

    Returns:
        ``mean``, ``low``, ``high``, ``n`` (number of values). ``mean`` is None without a value, ``low`` and ``high``
        are None with fewer than two patients.
    """
    if not values:
        return {"mean": None, "low": None, "high": None, "n": 0}
    by_patient: dict[str, list[float]] = {}
    for patient, value in values:
        by_patient.setdefault(patient, []).append(value)
    sums = np.array([sum(own) for own in by_patient.values()])
    counts = np.array([len(own) for own in by_patient.values()])
    low = high = None
    if len(by_patient) > 1:
        # A generator of its own for each interval: one more structure does not move the others.
        generator = np.random.default_rng(SEED)
        means = np.empty(RESAMPLES)
        for index in range(RESAMPLES):
            drawn = generator.integers(len(sums), size=len(sums))
            means[index] = sums[drawn].sum() / counts[drawn].sum()
        low, high = (float(value) for value in np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
    return {"mean": float(sums.sum() / counts.sum()), "low": low, "high": high, "n": len(values)}
