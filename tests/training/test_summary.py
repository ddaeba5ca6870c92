"""Means with bootstrap intervals and the counts beside them."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from fedfms.training.scores import Scores
from fedfms.training.summary import mean_with_interval, summarise


def test_two_patients_span_the_interval() -> None:
    """The three possible means of two draws from {0, 1} are 0, 1/2 and 1, with chances 1/4, 1/2, 1/4."""
    assert mean_with_interval([("a", 0.0), ("b", 1.0)]) == {"mean": 0.5, "low": 0.0, "high": 1.0, "n": 2}


def test_whole_patients_are_drawn() -> None:
    """Fifty images of each patient are no more than one: drawn singly they would give about 0.4 to 0.6."""
    values = [(patient, value) for patient, value in (("a", 0.0), ("b", 1.0)) for _ in range(50)]
    assert mean_with_interval(values) == {"mean": 0.5, "low": 0.0, "high": 1.0, "n": 100}


def test_each_case_counts_once_in_the_mean() -> None:
    found = mean_with_interval([("a", 1.0), ("b", 0.0), ("a", 1.0), ("a", 0.5)])
    assert found["mean"] == pytest.approx(2.5 / 4) and found["n"] == 4
    assert (found["low"], found["high"]) == (0.0, pytest.approx(2.5 / 3))


def test_agrees_with_scipy_on_patients_of_different_size() -> None:
    generator = np.random.default_rng(3)
    values = [
        (f"p{patient}", value)
        for patient in range(40)
        for value in generator.normal(0.7 + 0.1 * generator.normal(), 0.05, 1 + patient % 4)
    ]
    sums = [sum(value for name, value in values if name == f"p{patient}") for patient in range(40)]
    counts = [1 + patient % 4 for patient in range(40)]
    expected = scipy.stats.bootstrap(
        (sums, counts),
        lambda total, number, axis: total.sum(axis=axis) / number.sum(axis=axis),
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=20_000,
        random_state=7,
    ).confidence_interval
    found = mean_with_interval(values)
    width = expected.high - expected.low
    assert found["low"] == pytest.approx(expected.low, abs=0.06 * width)
    assert found["high"] == pytest.approx(expected.high, abs=0.06 * width)
    assert mean_with_interval(values) == found, "seeded"


def test_no_interval_of_one_patient_and_no_mean_of_none() -> None:
    assert mean_with_interval([("a", 0.5), ("a", 0.7)]) == {"mean": 0.6, "low": None, "high": None, "n": 2}
    assert mean_with_interval([]) == {"mean": None, "low": None, "high": None, "n": 0}


def test_a_miss_counts_in_the_overlap_and_is_counted_beside_the_distances() -> None:
    summary = summarise(
        [
            ("a", Scores("found", 0.8, 0.6, 4.0, 1.0)),
            ("a", Scores("missed", 0.0, 0.0)),
            ("b", Scores("found", 0.6, 0.4, 8.0, 3.0)),
            ("b", Scores("found", 0.6, 0.4)),
            ("c", Scores("absent")),
            ("d", Scores("false_alarm")),
        ]
    )
    assert {metric: (summary[metric]["mean"], summary[metric]["n"]) for metric in summary if metric != "support"} == {
        "dice": (pytest.approx(0.5), 4),
        "iou": (pytest.approx(0.35), 4),
        "hd95_mm": (pytest.approx(6.0), 2),
        "assd_mm": (pytest.approx(2.0), 2),
    }
    support = {"annotated": 6, "estimable": 4, "patients": 2, "missed": 1, "false_alarms": 1, "without_spacing": 1}
    assert summary["support"] == support
