from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from fedfms.data.check import check_site
from fedfms.data.phantom import PATIENTS
from tests.generators import raster_dataset, write_raster_site, write_yaml


def test_counts_of_a_good_site(tmp_path: Path) -> None:
    site = write_raster_site(tmp_path, patients=4, images=2)
    Image.fromarray(np.zeros((50, 60, 3), np.uint8)).save(tmp_path / "images" / "p0_0.png")
    Image.fromarray(np.zeros((50, 60), np.uint8)).save(tmp_path / "masks" / "p0_0.png")
    calls: list[tuple[int, int]] = []
    report = check_site(site, on_case=lambda done, count: calls.append((done, count)))
    assert report.ok
    assert calls == [(number, 8) for number in range(1, 9)]
    (row,) = report.rows
    assert (row.dataset, row.task, row.format, row.cases, row.patients) == (
        "photographs",
        "organ-lesion",
        "raster",
        8,
        4,
    )
    assert row.cases_per_split == row.slices_per_split == {"train": 6, "validation": 2, "test": 0}
    assert [(item.name, item.annotated_cases, item.filled_slices) for item in row.structures] == [
        ("organ", 8, 7),
        ("lesion", 8, 7),
    ]
    assert (row.smallest, row.largest, row.spacing) == ((40, 32), (50, 60), None)
    assert json.loads(json.dumps(report.as_json()))["datasets"][0]["patients"] == 4


def test_spacing_of_volumes(demo_site: Path) -> None:
    (row,) = check_site(demo_site).rows
    assert row.cases == PATIENTS
    assert row.spacing is not None
    assert np.allclose(row.spacing, (2.0, 2.0), atol=1e-4)


def test_all_problems_of_all_datasets_are_listed_and_counted_out(tmp_path: Path) -> None:
    write_raster_site(tmp_path / "a")
    write_raster_site(tmp_path / "b")
    (tmp_path / "a" / "images" / "p0_0.png").write_bytes(b"x")
    Image.fromarray(np.full((40, 32), 9, np.uint8)).save(tmp_path / "b" / "masks" / "p1_1.png")
    datasets = [
        raster_dataset(name="a", root="a"),
        raster_dataset(name="b", root="b", task="other"),
        raster_dataset(name="c", root="c", task="third"),
    ]
    report = check_site(write_yaml(tmp_path / "site.yaml", {"datasets": datasets}))
    assert not report.ok
    assert [item.kind.id for item in report.problems] == ["FMS-D004", "FMS-D006", "FMS-D003"]
    assert [row.cases for row in report.rows] == [8, 8, 0]
    assert sum(report.rows[0].slices_per_split.values()) == 7
    assert report.as_json()["problems"][0]["remedy"]


def test_a_wrong_file_is_reported_not_raised(tmp_path: Path) -> None:
    report = check_site(write_yaml(tmp_path / "site.yaml", {"data": []}))
    assert [item.kind.id for item in report.problems] == ["FMS-D002", "FMS-D002"]
    assert report.rows == ()


def test_no_patient_for_validation_is_a_problem(tmp_path: Path) -> None:
    report = check_site(write_raster_site(tmp_path, patients=1))
    assert [item.kind.id for item in report.problems] == ["FMS-D008"]


def test_warnings(tmp_path: Path) -> None:
    masks = [
        {"pattern": "masks/{case}.png", "labels": {"organ": [1, 2], "vessel": 5}},
        {"pattern": "none/{case}.png", "labels": {"nerve": 1}, "required": False},
    ]
    write_raster_site(tmp_path / "a")
    datasets = [
        raster_dataset(name="a", root="a", masks=masks, patient={"rule": "each_image"}),
        raster_dataset(name="b", root="a", masks=[], task="plain"),
    ]
    warnings = " | ".join(check_site(write_yaml(tmp_path / "site.yaml", {"datasets": datasets})).warnings)
    assert "dataset a: each image counts as a patient" in warnings
    assert "dataset a: 8 of 8 cases have no mask for nerve" in warnings
    assert "dataset a: every mask for vessel is empty" in warnings
    assert "dataset b: no masks" in warnings
    assert "dataset b: each image" not in warnings


def test_the_report_holds_no_identifier(tmp_path: Path) -> None:
    site = write_raster_site(tmp_path, patient={"rule": "name", "expression": "^(p[0-9])_"})
    text = json.dumps(check_site(site).as_json())
    assert "p0" not in text
    assert "p3" not in text
