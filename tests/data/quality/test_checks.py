"""Each quality check: silent on good data, and heard when its fault is made."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedfms.data.description.site import load_site
from fedfms.data.dicom.image import read_dicom_volume
from fedfms.data.quality.check import check_site
from fedfms.data.quality.mirror import fits_better_mirrored
from fedfms.data.slices.facts import intensity
from fedfms.data.slices.opening import DataRequest, open_dataset
from fedfms.files import sha256_json
from tests.command import Command
from tests.data.quality.sites import CASES, dicom_site, picture, raster_site, volume_site, write_volume
from tests.generators import preprocessing, raster_dataset, write_nifti, write_yaml


def found(site: Path) -> dict[str, tuple[str, int]]:
    """Id -> severity and count."""
    return {item.kind.id: (item.severity, item.count) for item in check_site(site).findings}


def edit_mask(folder: Path, number: int, mask: np.ndarray) -> None:
    Image.fromarray(mask.astype(np.uint8)).save(folder / "masks" / f"c{number:02d}_0.png")


def edit_image(folder: Path, number: int, values: np.ndarray) -> None:
    Image.fromarray(values.astype(np.uint8)).save(folder / "images" / f"c{number:02d}_0.png")


@pytest.mark.parametrize("write", [raster_site, volume_site, dicom_site])
def test_nothing_is_found_in_good_data(tmp_path: Path, write: object) -> None:
    report = check_site(write(tmp_path))  # type: ignore[operator]
    assert report.findings == ()
    assert report.rows[0].cases == CASES


def test_empty_masks(tmp_path: Path) -> None:
    site = raster_site(tmp_path)
    for number in (2, 5):
        edit_mask(tmp_path, number, np.zeros((48, 64)))
    assert found(site) == {"FMS-Q001": ("WARN", 2)}


def test_every_mask_empty(tmp_path: Path) -> None:
    site = raster_site(tmp_path)
    for number in range(CASES):
        edit_mask(tmp_path, number, np.zeros((48, 64)))
    (finding,) = check_site(site).findings
    assert finding.detail == "organ: every mask without a pixel"


def test_full_masks(tmp_path: Path) -> None:
    site = raster_site(tmp_path)
    edit_mask(tmp_path, 3, np.ones((48, 64)))
    assert found(site) == {"FMS-Q002": ("WARN", 1)}


def test_a_mask_flipped_against_its_image(tmp_path: Path) -> None:
    site = raster_site(tmp_path)
    edit_mask(tmp_path, 4, picture(4)[1][:, ::-1])
    assert found(site) == {"FMS-Q003": ("WARN", 1)}
    (finding,) = check_site(site).findings
    assert [Path(name).name for name in finding.named] == ["c04_0.png"]


def test_a_volume_flipped_as_a_whole(tmp_path: Path) -> None:
    site = volume_site(tmp_path)
    write_volume(tmp_path, 6, flipped=True)
    (finding,) = check_site(site).findings
    assert (finding.kind.id, finding.count) == ("FMS-Q003", 1)
    assert finding.detail == "organ: at the image's right side, in 14 other cases at the opposite one"


def test_structures_without_a_usual_side_are_not_suspected(tmp_path: Path) -> None:
    site = volume_site(tmp_path)
    for number in range(0, CASES, 2):
        write_volume(tmp_path, number, flipped=True)
    assert found(site) == {}


@pytest.mark.parametrize(
    ("name", "least"), [("brain_lgg_flair/TCGA-CS_ThomasJefferson", 0.7), ("nuclei_he/DSB2018_BBBC038", 0.9)]
)
@pytest.mark.shared_data
def test_flips_of_real_masks_are_told_from_masks_as_they_are(shared_data: Path, name: str, least: float) -> None:
    seen, suspected, missed = 0, 0, 0
    for path in sorted((shared_data / name / "images").iterdir())[::3]:
        values = np.asarray(Image.open(path))[None]
        mask = (np.asarray(Image.open(shared_data / name / "masks" / path.name)) > 0).astype(np.uint8)[None]
        suspected += fits_better_mirrored(values, mask)
        if 4 * (mask & mask[:, :, ::-1]).sum() <= mask.sum():
            seen += 1
            missed += not fits_better_mirrored(values, mask[:, :, ::-1])
    assert suspected == 0
    assert seen > 10 and 1 - missed / seen >= least


def test_spacing_outliers(tmp_path: Path) -> None:
    site = volume_site(tmp_path)
    write_volume(tmp_path, 1, spacing=1.5)
    assert found(site) == {}
    write_volume(tmp_path, 1, spacing=2.0)  # as when every second slice lacks
    assert found(site) == {"FMS-Q004": ("WARN", 1)}
    write_volume(tmp_path, 1, spacing=10.0)
    assert found(site) == {"FMS-Q004": ("WARN", 1)}


def test_intensity_outliers(tmp_path: Path) -> None:
    site = raster_site(tmp_path)
    edit_image(tmp_path, 1, 255 - picture(1)[0])
    edit_image(tmp_path, 2, np.full((48, 64), 50))
    findings = check_site(site).findings
    assert [(item.kind.id, item.count, [Path(name).stem for name in item.named]) for item in findings] == [
        ("FMS-Q005", 1, ["c02_0"]),
        ("FMS-Q005", 1, ["c01_0"]),
    ]


@pytest.mark.parametrize("side", [300, 900, 1000])
def test_the_intensity_of_a_colour_image_is_that_of_all_colours(side: int) -> None:
    values = np.empty((1, side, side, 3), np.uint8)
    values[...] = (200, 10, 20)
    found = intensity(values)
    assert (found.low, found.median, found.high) == (10, 20, 200)
    assert found.mean == pytest.approx(230 / 3)


def split_of(site: Path) -> dict[str, str]:
    description = load_site(site)
    request = DataRequest("organ-lesion", ("organ",), missing_structure="error", preprocessing=preprocessing())
    data = open_dataset(description, request)
    return {Path(case.identity).stem: case.split for case in data.cases("all")}


@pytest.mark.parametrize(("same", "severity"), [(True, "WARN"), (False, "FAIL")])
def test_copies_in_one_split_and_in_two(tmp_path: Path, same: bool, severity: str) -> None:
    site = raster_site(tmp_path)
    splits = split_of(site)
    first = next(name for name, split in splits.items() if split == "train")
    other = next(name for name, split in splits.items() if name != first and (split == "train") is same)
    for folder in ("images", "masks"):
        pixels = Image.open(tmp_path / folder / f"{first}.png")
        pixels.save(tmp_path / folder / f"{other}.png", compress_level=1)  # other bytes, same pixels
    report = check_site(site)
    assert [(item.kind.id, item.severity, item.count) for item in report.findings] == [("FMS-Q006", severity, 2)]
    assert report.ok is same


def test_copies_in_two_datasets(tmp_path: Path) -> None:
    site = raster_site(tmp_path / "a")
    shutil.copytree(tmp_path / "a" / "images", tmp_path / "b" / "images")
    shutil.copytree(tmp_path / "a" / "masks", tmp_path / "b" / "masks")
    first = {**raster_dataset(), **load_yaml(site)["datasets"][0], "root": "a"}
    datasets = [first, {**first, "name": "again", "root": "b", "task": "other"}]
    assert found(write_yaml(tmp_path / "site.yaml", {"datasets": datasets})) == {"FMS-Q006": ("WARN", 2 * CASES)}
    # In one task the patients of both are divided alike, so nothing leaks.
    datasets[1]["task"] = first["task"]
    assert found(write_yaml(tmp_path / "site.yaml", {"datasets": datasets})) == {"FMS-Q006": ("WARN", 2 * CASES)}


def test_a_dicom_series_and_its_nifti_copy_are_the_same_image(tmp_path: Path) -> None:
    site = dicom_site(tmp_path / "dicom")
    (tmp_path / "nifti").mkdir()
    shutil.copytree(tmp_path / "dicom" / "masks", tmp_path / "nifti" / "masks")
    volume = read_dicom_volume(tmp_path / "dicom" / "images" / "c03")
    write_nifti(tmp_path / "nifti" / "c03.nii.gz", volume.voxels.astype(np.int16), volume.grid.affine)
    first = {**load_yaml(site)["datasets"][0], "root": "dicom"}
    converted = {"format": "nifti", "root": "nifti", "images": {"pattern": "{case}.nii.gz"}}
    second = {**first, **converted, "name": "nifti", "task": "other", "patient": {"rule": "each_image"}}
    assert found(write_yaml(tmp_path / "site.yaml", {"datasets": [first, second]}))["FMS-Q006"] == ("WARN", 2)


def load_yaml(path: Path) -> dict[str, list[dict[str, object]]]:
    import yaml

    content: dict[str, list[dict[str, object]]] = yaml.safe_load(path.read_text())
    return content


def test_few_cases(tmp_path: Path) -> None:
    site = raster_site(tmp_path)
    for number in range(8):
        (tmp_path / "images" / f"c{number:02d}_0.png").unlink()
    (finding,) = check_site(site).findings
    assert (finding.kind.id, finding.severity) == ("FMS-Q007", "WARN")
    assert finding.detail == "5 for train (few below 10), 2 for validation (few below 3)"


def test_burned_in_annotation(tmp_path: Path) -> None:
    assert found(dicom_site(tmp_path / "yes", BurnedInAnnotation="YES")) == {"FMS-Q008": ("WARN", 1)}
    assert found(dicom_site(tmp_path / "no", BurnedInAnnotation="NO")) == {}


def test_rare_structures(tmp_path: Path) -> None:
    labels = {"organ": 1, "spot": 2}
    site = raster_site(tmp_path, masks=[{"pattern": "masks/{case}.png", "labels": labels}])
    for number in range(CASES):
        mask = picture(number)[1]
        mask[2:4, 2:4] = 2
        edit_mask(tmp_path, number, mask)
    assert found(site) == {}
    train = [name for name, split in split_of(site).items() if split == "train"]
    for number in range(CASES):
        mask = picture(number)[1]
        mask[2:4, 2:4] = 2 * (f"c{number:02d}_0" in train)
        edit_mask(tmp_path, number, mask)
    report = check_site(site)
    assert ("FMS-Q009", "in none of the 4 cases for validation: spot") in [
        (item.kind.id, item.detail) for item in report.findings
    ]
    for number in range(CASES):
        mask = picture(number)[1]
        mask[2, 2] = 2 * (number == 0)
        edit_mask(tmp_path, number, mask)
    details = [item.detail for item in check_site(site).findings if item.kind.id == "FMS-Q009"]
    assert "spot: in 1 of 15 slices, 2.2e-05 of the pixels" in details


def test_patient_rule_and_missing_masks(tmp_path: Path) -> None:
    masks = [
        {"pattern": "masks/{case}.png", "labels": {"organ": 1}},
        {"pattern": "none/{case}.png", "labels": {"nerve": 1}, "required": False},
    ]
    site = raster_site(tmp_path, masks=masks, patient={"rule": "each_image"})
    assert found(site) == {"FMS-Q010": ("WARN", CASES), "FMS-Q011": ("WARN", CASES)}
    (finding,) = [item for item in check_site(site).findings if item.kind.id == "FMS-Q011"]
    assert finding.detail == f"nerve: {CASES} of {CASES} cases"
    plain = raster_site(tmp_path / "plain", masks=[])
    (finding,) = check_site(plain).findings
    assert finding.detail.startswith("no masks at all")


# --- the fingerprint ------------------------------------------------------------------------------------


def test_the_fingerprint_sums_up_without_names(fedfms: Command, tmp_path: Path) -> None:
    site = volume_site(tmp_path / "data")
    write_volume(tmp_path / "data", 1, spacing=3.0)
    result = fedfms("data", "check", site, "--fingerprint", tmp_path / "print.json")
    assert result.code == 0
    content = json.loads((tmp_path / "print.json").read_text())
    (task,) = content["tasks"].values()
    (dataset,) = task["datasets"]
    assert dataset["cases"] == {"train": 11, "validation": 4, "test": 0}
    assert dataset["spacing_mm"]["rows"] == {"smallest": 1.0, "median": 1.0, "largest": 3.0}
    assert dataset["spacing_mm"]["slices"]["median"] == 2.0
    assert dataset["structures"]["organ"]["annotated_cases"] == CASES
    assert dataset["structures"]["organ"]["share_of_pixels"] == pytest.approx(picture(0)[1].mean(), rel=0.01)
    assert 100 < dataset["intensity"]["percentile_99"]["median"] < 180
    assert content["findings"] == {"FMS-Q004": 1}
    text = json.dumps(content)
    assert "c01_" not in text and ".nii" not in text and "photographs" not in text and str(tmp_path) not in text
    assert content.pop("sha256") == sha256_json(content)


def test_no_fingerprint_of_a_site_file_that_cannot_be_read(fedfms: Command, tmp_path: Path) -> None:
    (tmp_path / "site.yaml").write_text("datasets: [")
    result = fedfms("data", "check", tmp_path / "site.yaml", "--fingerprint", tmp_path / "print.json")
    assert result.code == 1 and "print.json is not written" in result.err
    assert not (tmp_path / "print.json").exists()


def test_a_job_and_the_check_find_the_same_fingerprint(tmp_path: Path) -> None:
    site = raster_site(tmp_path)
    data = open_dataset(
        load_site(site),
        DataRequest(
            task="organ-lesion", structures=("organ",), missing_structure="error", preprocessing=preprocessing()
        ),
    )
    fingerprint = check_site(site).fingerprint
    assert fingerprint is not None and data.fingerprint is not None
    assert fingerprint["tasks"] == {"organ-lesion": data.fingerprint}
    assert data.fingerprint["split_sha256"] == data.split_sha256
    edit_image(tmp_path, 0, picture(0)[0] + 1)
    changed = check_site(site).fingerprint
    assert changed is not None and changed["tasks"]["organ-lesion"]["sha256"] != data.fingerprint["sha256"]
