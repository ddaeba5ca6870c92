from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedfms.data.description.site import load_site
from fedfms.data.quality.check import check_site
from fedfms.data.quality.finding import summed
from fedfms.data.slices.opening import DataRequest, open_dataset
from fedfms.data.volume.remedies import SEE_NAMES
from fedfms.datasets.phantom import PATIENTS
from fedfms.errors import IMAGE_UNREADABLE, FedfmsError, Problem
from tests.command import Command
from tests.generators import preprocessing, raster_dataset, write_raster_site, write_yaml


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
    fails = [item for item in report.findings if item.severity == "FAIL"]
    assert [(item.kind.id, item.where, item.count) for item in fails] == [
        ("FMS-D004", "dataset a", 1),
        ("FMS-D006", "dataset b", 1),
        ("FMS-D003", "dataset c: root", 1),
    ]


def test_a_wrong_file_is_reported_not_raised(tmp_path: Path) -> None:
    report = check_site(write_yaml(tmp_path / "site.yaml", {"data": []}))
    assert [item.kind.id for item in report.problems] == ["FMS-D002", "FMS-D002"]
    assert report.rows == ()


def test_no_patient_for_validation_is_a_problem(tmp_path: Path) -> None:
    report = check_site(write_raster_site(tmp_path, patients=1))
    assert [item.kind.id for item in report.problems] == ["FMS-D008"]


def test_images_without_masks_need_no_split_but_cannot_train(tmp_path: Path) -> None:
    site = write_raster_site(tmp_path, patients=1, masks=[])
    report = check_site(site)
    assert report.ok and [item.kind.id for item in report.findings] == ["FMS-Q011"]
    with pytest.raises(FedfmsError) as caught:
        open_dataset(
            load_site(site),
            DataRequest(
                task="organ-lesion", structures=("organ",), missing_structure="mask", preprocessing=preprocessing()
            ),
        )
    assert "FMS-J003" in caught.value.ids


def test_what_no_case_tells_is_unknown(fedfms: Command, tmp_path: Path) -> None:
    site = write_raster_site(tmp_path)
    for path in (tmp_path / "images").iterdir():
        path.write_bytes(b"x")
    (row,) = check_site(site).rows
    assert (row.cases, row.cases_read, row.slices_per_split) == (8, 0, None)
    assert [(item.annotated_cases, item.filled_slices) for item in row.structures] == [(8, None), (8, None)]
    shown = fedfms("data", "check", site).out
    assert "unknown, no case could be read" in shown and "train 0" not in shown and "no spacing" not in shown
    (line,) = [line for line in shown.splitlines() if "lesion" in line and "task" not in line]
    assert "unknown" in line


def test_of_which_cases_the_slices_are(fedfms: Command, tmp_path: Path) -> None:
    site = write_raster_site(tmp_path)
    (tmp_path / "images" / "p0_0.png").write_bytes(b"x")
    assert "(of 7 cases that could be read)" in fedfms("data", "check", site).out


def test_files_with_the_same_problem_are_named_together_and_in_full_as_json(fedfms: Command, tmp_path: Path) -> None:
    site = write_raster_site(tmp_path)
    for name in ("p0_0", "p1_1", "p2_0"):
        Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "masks" / f"{name}.png")
    Image.fromarray(np.zeros((7, 7), np.uint8)).save(tmp_path / "masks" / "p3_0.png")
    shown = fedfms("data", "check", site, "--show-ids").out
    lines = [line for line in shown.splitlines() if line.startswith("FMS-D005")]
    assert len(lines) == 2 and shown.count("FMS-D005") == 3  # and once in the table
    assert lines[0].startswith(
        f"FMS-D005 3 files or folders, such as {tmp_path / 'masks' / 'p0_0.png'}: the mask has 9"
    )
    assert lines[1].startswith(f"FMS-D005 {tmp_path / 'masks' / 'p3_0.png'}: the mask has 7 rows")
    assert "--json" in shown
    (finding,) = [
        item
        for item in fedfms("data", "check", site, "--show-ids", "--json").json()["findings"]
        if item["severity"] == "FAIL"
    ]
    assert finding["count"] == 4
    assert [text.partition(":")[0][-8:] for text in finding["files"]] == [
        "p0_0.png",
        "p1_1.png",
        "p2_0.png",
        "p3_0.png",
    ]


def test_the_summary_gives_the_remedy_of_the_problem_unless_it_may_name_something(tmp_path: Path) -> None:
    site = write_raster_site(tmp_path)
    rgb = np.random.default_rng(0).integers(0, 9, (40, 32, 3), dtype=np.uint8)
    Image.fromarray(rgb).save(tmp_path / "masks" / "p0_0.png")
    (tmp_path / "masks" / "p1_0.png").write_bytes(b"x")
    found = {(item.kind.id, item.count, item.remedy) for item in check_site(site).findings if item.severity == "FAIL"}
    assert found == {
        ("FMS-D004", 1, "Save one value per structure, in grey."),
        ("FMS-D004", 1, "Export it again, as PNG or TIFF in grey or RGB with 8 or 16 bits."),
    }
    local = Problem(IMAGE_UNREADABLE, "x", "y", "Delete /data/Meyer.dcm.")
    (finding,) = summed([(local,)], "FAIL", "dataset a")
    assert finding.remedy == SEE_NAMES and "Meyer" not in json.dumps(finding.as_json(show_ids=False))
    assert finding.files == ("x: y -> Delete /data/Meyer.dcm.",)


def test_a_case_counts_once_whatever_is_wrong_with_it() -> None:
    first, other = (Problem(IMAGE_UNREADABLE, "a", text) for text in ("b", "c"))
    (finding,) = summed([(first, first, other), (other,)], "FAIL", "dataset a")
    assert finding.count == 2
    assert finding.files_in_short == [
        f"a: b -> {IMAGE_UNREADABLE.remedy}",
        f"a: c -> {IMAGE_UNREADABLE.remedy}",
    ]


def test_the_report_holds_names_only_when_asked(tmp_path: Path) -> None:
    site = write_raster_site(tmp_path, patient={"rule": "name", "expression": "^(p[0-9])_"}, images=1)
    (tmp_path / "images" / "p0_0.png").write_bytes(b"x")
    Image.fromarray(np.full((40, 32), 9, np.uint8)).save(tmp_path / "masks" / "p1_0.png")
    (tmp_path / "masks" / "p2_0.png").write_bytes((tmp_path / "masks" / "p3_0.png").read_bytes())
    (tmp_path / "images" / "p2_0.png").write_bytes((tmp_path / "images" / "p3_0.png").read_bytes())
    report = check_site(site)
    assert {"FMS-D004", "FMS-D006", "FMS-Q006"} <= {item.kind.id for item in report.findings}
    text = json.dumps(report.as_json())
    assert re.search("p[0-3]_0", text) is None and str(tmp_path / "images") not in text
    named = json.dumps(report.as_json(show_ids=True))
    assert all(f"p{number}_0.png" in named for number in range(4))


def test_splits_of_a_manifest_that_divide_a_patient_are_named_only_when_asked(tmp_path: Path) -> None:
    rows = "image,who,split\nimages/p0_0.png,Meyer,train\nimages/p0_1.png,Meyer,val\n"
    split, patient = {"rule": "column", "column": "split"}, {"rule": "column", "column": "who"}
    images = {"manifest": "list.csv", "column": "image"}
    site = write_raster_site(tmp_path, images=2, patients=1, split=split, patient=patient)
    (tmp_path / "list.csv").write_text(rows)
    write_yaml(site, {"datasets": [raster_dataset(split=split, patient=patient, images=images)]})
    report = check_site(site)
    (found,) = [item for item in report.findings if item.severity == "FAIL"]
    assert (found.kind.id, found.where) == ("FMS-D007", "task organ-lesion")
    assert "p0_" not in json.dumps(report.as_json()) and "Meyer" not in json.dumps(report.as_json(show_ids=True))
