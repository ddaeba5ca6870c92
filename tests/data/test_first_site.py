"""``fedfms data init``: what it writes for the usual orders of files is valid and finds every case and mask."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from PIL import Image

from fedfms.data.check import check_site
from fedfms.data.discovery import find_cases
from fedfms.data.first_site.write import write_first_site
from fedfms.data.site import DatasetDescription, load_site
from fedfms.errors import FedfmsError
from tests.command import Command
from tests.generators import write_nifti, write_series

MASK = np.zeros((8, 8), np.uint8)
MASK[2:5, 2:4] = 1


def picture(path: Path, values: np.ndarray | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(len(str(path))).permutation(64).reshape(8, 8).astype(np.uint8)
    Image.fromarray(noise if values is None else values).save(path)


def volume(path: Path, mask: np.ndarray | None = None) -> None:
    values = np.arange(8 * 8 * 2).reshape(8, 8, 2).astype(np.int16)
    write_nifti(path, values if mask is None else np.stack([mask, mask], axis=2), np.diag([-1.0, -1.0, 1.0, 1.0]))


def described(root: Path, out: Path) -> DatasetDescription:
    """The dataset that was written; every case is found, and nothing is wrong with the list."""
    report = write_first_site(root, out)
    (dataset,) = load_site(out).datasets
    found = find_cases(dataset)
    assert not found.problems and not found.bad
    assert len(found.cases) == report.cases
    assert report.guesses
    return dataset


def shown(dataset: DatasetDescription) -> tuple[str | None, list[tuple[str | None, dict[str, object], bool]]]:
    return dataset.images.pattern, [(mask.pattern, dict(mask.labels), mask.required) for mask in dataset.masks]


def test_folders_of_images_and_masks(tmp_path: Path) -> None:
    for number in range(4):
        picture(tmp_path / "data" / "images" / f"{number}.png")
        picture(tmp_path / "data" / "masks_disc" / f"{number}.png", MASK * 255)
        if number:
            picture(tmp_path / "data" / "masks_cup" / f"{number}.tif", MASK + 2 * np.roll(MASK, 4))
    dataset = described(tmp_path / "data", tmp_path / "site.yaml")
    assert (dataset.format, dataset.patient.rule) == ("raster", "each_image")
    assert shown(dataset) == (
        "images/{case}.png",
        [
            ("masks_disc/{case}.png", {"disc": (255,)}, True),
            ("masks_cup/{case}.tif", {"cup_1": (1,), "cup_2": (2,)}, False),
        ],
    )
    text = (tmp_path / "site.yaml").read_text()
    assert "# guess: 1 images have no such file: not annotated" in text
    assert not check_site(tmp_path / "site.yaml").problems


def test_masks_that_no_name_tells(tmp_path: Path) -> None:
    for number in range(4):
        picture(tmp_path / "data" / "photo" / f"a{number}.png")
        picture(tmp_path / "data" / "nerve" / f"a{number}.png", MASK)
    dataset = described(tmp_path / "data", tmp_path / "site.yaml")
    assert shown(dataset) == ("photo/{case}.png", [("nerve/{case}.png", {"nerve": (1,)}, True)])
    assert "few values" in (tmp_path / "site.yaml").read_text()


def test_volumes_with_masks_beside_them_and_patients_in_names(tmp_path: Path) -> None:
    for patient in range(4):
        for visit in range(2):
            volume(tmp_path / "data" / f"p{patient}_{visit}.nii.gz")
            volume(tmp_path / "data" / f"p{patient}_{visit}_seg.nii.gz", MASK)
    dataset = described(tmp_path / "data", tmp_path / "site.yaml")
    assert shown(dataset) == ("{case}.nii.gz", [("{case}_seg.nii.gz", {"structure": (1,)}, True)])
    assert len({case.patient for case in find_cases(dataset).cases}) == 4


def test_nnunet(tmp_path: Path) -> None:
    for number in range(3):
        volume(tmp_path / "data" / "imagesTr" / f"liver_{number}_0000.nii.gz")
        volume(tmp_path / "data" / "labelsTr" / f"liver_{number}.nii.gz", MASK)
    dataset = described(tmp_path / "data", tmp_path / "site.yaml")
    assert shown(dataset)[0] == "imagesTr/{case}_0000.nii.gz"
    assert dataset.masks[0].pattern == "labelsTr/{case}.nii.gz"


def test_a_folder_per_patient_with_several_images(tmp_path: Path) -> None:
    for number in range(3):
        for name in ("flair", "t1"):
            volume(tmp_path / "data" / f"BraTS{number}" / f"BraTS{number}_{name}.nii.gz")
        volume(tmp_path / "data" / f"BraTS{number}" / f"BraTS{number}_seg.nii.gz", MASK)
    dataset = described(tmp_path / "data", tmp_path / "site.yaml")
    assert shown(dataset)[0] == "{case}/{case}_flair.nii.gz"
    assert dataset.masks[0].pattern == "{case}/{case}_seg.nii.gz"
    assert "the others are: {case}_t1.nii.gz" in (tmp_path / "site.yaml").read_text()


def test_patients_with_equal_names_of_images_in_folders(tmp_path: Path) -> None:
    for patient in ("anna", "bert", "carl"):
        for number in range(2 + (patient == "anna")):
            name = f"{number}{'abc'[number]}{patient[0]}" if number == 2 else str(number)
            picture(tmp_path / "data" / patient / f"{name}.png")
            picture(tmp_path / "data" / patient / f"{name}_mask.png", MASK)
    # As many names as folders: the folder is not the case.
    picture(tmp_path / "data" / "anna" / "9.png")
    picture(tmp_path / "data" / "anna" / "9_mask.png", MASK)
    dataset = described(tmp_path / "data", tmp_path / "site.yaml")
    assert shown(dataset)[0] == "{patient}/{case}.png"
    assert dataset.masks[0].pattern == "{patient}/{case}_mask.png"
    assert {case.patient for case in find_cases(dataset).cases} == {"anna", "bert", "carl"}


def test_nrrd(tmp_path: Path) -> None:
    image = SimpleITK.GetImageFromArray(np.arange(128, dtype=np.int16).reshape(2, 8, 8))
    (tmp_path / "data").mkdir()
    for number in range(2):
        SimpleITK.WriteImage(image, tmp_path / "data" / f"case{number}.nrrd")
        SimpleITK.WriteImage(
            SimpleITK.Cast(image > 100, SimpleITK.sitkUInt8), tmp_path / "data" / f"case{number}-label.nrrd"
        )
    dataset = described(tmp_path / "data", tmp_path / "site.yaml")
    assert dataset.format == "itk"
    assert shown(dataset) == ("{case}.nrrd", [("{case}-label.nrrd", {"structure": (1,)}, True)])


def test_dicom_folders_with_two_series_and_label_maps(tmp_path: Path) -> None:
    voxels = np.arange(8 * 8 * 2, dtype=np.uint16).reshape(8, 8, 2)
    for number in range(3):
        folder = tmp_path / "data" / "export" / f"case{number}"
        names = [f"b{index}.dcm" for index in range(2)]
        write_series(folder, voxels, np.eye(4), patient=f"P{number}", SeriesDescription="t2 (tra)")
        write_series(
            folder, voxels[:, :, :1], np.eye(4), names=names[:1], patient=f"P{number}", SeriesDescription="scout"
        )
        path = tmp_path / "data" / "labels" / f"case{number}.nii.gz"
        write_nifti(path, np.stack([MASK, MASK], axis=2), np.diag([-1.0, -1.0, 1.0, 1.0]))
    dataset = described(tmp_path / "data", tmp_path / "site.yaml")
    assert shown(dataset) == ("export/{case}", [("labels/{case}.nii.gz", {"structure": (1,)}, True)])
    assert dataset.patient.rule == "dicom_patient_id"
    assert "MR 'scout'; MR 't2 (tra)'" in (tmp_path / "site.yaml").read_text()
    assert {item.kind.id for item in check_site(tmp_path / "site.yaml").problems} == set()


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("folder", "mask", "labels"),
    [
        ("ct_liver_seg_dcmqi", "liver.dcm", {"liver": ("Liver",)}),
        ("ct_rtstruct_rt-utils", "rt.dcm", {"roi_1": ("ROI-1",)}),
    ],
)
def test_real_seg_and_rtstruct(
    shared_data: Path, tmp_path: Path, folder: str, mask: str, labels: dict[str, tuple[str, ...]]
) -> None:
    """As one folder that is the case itself, and as one of two."""
    source = shared_data / "dicom_samples" / folder
    dataset = described(source, tmp_path / "one.yaml")
    assert {name: values for entry in dataset.masks for name, values in entry.labels.items()}.items() >= labels.items()
    assert {item.kind.id for item in check_site(tmp_path / "one.yaml").problems} == {"FMS-D008"}  # one case only
    for name in ("a", "b"):
        shutil.copytree(source, tmp_path / "two" / name)
    dataset = described(tmp_path / "two", tmp_path / "two.yaml")
    assert dataset.images.pattern == "{case}"
    assert f"{{case}}/{mask}" in [entry.pattern for entry in dataset.masks]
    report = check_site(tmp_path / "two.yaml")
    assert {item.kind.id for item in report.problems} == {"FMS-D008"}  # one patient only
    assert all(item.annotated_cases == 2 and item.filled_slices for item in report.rows[0].structures)


def test_a_folder_that_is_the_case_does_not_take_its_neighbours(tmp_path: Path) -> None:
    voxels = np.arange(8 * 8 * 2, dtype=np.uint16).reshape(8, 8, 2)
    for name in ("p11", "p12", "p21"):
        write_series(tmp_path / "data" / name, voxels, np.eye(4), patient=name)
    dataset = described(tmp_path / "data" / "p11", tmp_path / "one.yaml")
    assert [case.name for case in find_cases(dataset).cases] == ["p11"]
    assert "beside it" not in (tmp_path / "one.yaml").read_text()


def test_neighbours_that_any_pattern_takes_are_told(tmp_path: Path) -> None:
    voxels = np.arange(8 * 8 * 2, dtype=np.uint16).reshape(8, 8, 2)
    for name in ("a", "b", "c"):
        write_series(tmp_path / "data" / name, voxels, np.eye(4), patient=name)
    write_first_site(tmp_path / "data" / "b", tmp_path / "one.yaml")
    assert "# guess: 2 other folders beside it fit as well" in (tmp_path / "one.yaml").read_text()


@pytest.mark.shared_data
@pytest.mark.parametrize("patients", [False, True])
def test_segmentations_that_are_named_after_their_series(shared_data: Path, tmp_path: Path, patients: bool) -> None:
    """As ``fedfms predict`` writes them."""
    source = shared_data / "dicom_samples" / "ct_liver_seg_dcmqi"
    for patient, case in (("p1", "a_1"), ("p2", "a_1"), ("p2", "a_2")) if patients else (("", "a_1"), ("", "a_10")):
        shutil.copytree(
            source, tmp_path / "data" / "images" / patient / case, ignore=shutil.ignore_patterns("p*", "liver*")
        )
        (tmp_path / "data" / "predicted" / patient).mkdir(parents=True, exist_ok=True)
        shutil.copy(source / "liver.dcm", tmp_path / "data" / "predicted" / patient / f"{case}_seg.dcm")
    dataset = described(tmp_path / "data", tmp_path / "site.yaml")
    folder = "predicted/{patient}" if patients else "predicted"
    assert shown(dataset)[1] == [(f"{folder}/{{case}}_seg.dcm", {"liver": ("Liver",)}, True)]
    assert "could not be tied" not in (tmp_path / "site.yaml").read_text()


@pytest.mark.shared_data
def test_objects_whose_names_differ_get_a_star(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "dicom_samples" / "ct_liver_seg_dcmqi"
    for number, name in enumerate(("a", "b", "c")):
        shutil.copytree(source, tmp_path / "data" / name, ignore=shutil.ignore_patterns("partial*", "liver*"))
        shutil.copy(source / "liver.dcm", tmp_path / "data" / name / f"SEG_{number}.dcm")
    dataset = described(tmp_path / "data", tmp_path / "site.yaml")
    assert [entry.pattern for entry in dataset.masks] == ["{case}/SEG_*.dcm"]
    assert dataset.masks[0].required


def test_the_command_keeps_an_existing_file_and_names_what_is_missing(fedfms: Command, tmp_path: Path) -> None:
    picture(tmp_path / "data" / "images" / "a.png")
    out = tmp_path / "site.yaml"
    assert fedfms("data", "init", tmp_path / "data", "--out", out).out.startswith(
        f"{out}: raster, 1 images, masks: none"
    )
    before = out.read_bytes()
    fedfms("data", "init", tmp_path / "data", "--out", out).failed_with("FMS-P001")
    assert out.read_bytes() == before
    assert fedfms("data", "init", tmp_path / "data", "--out", out, "--overwrite").code == 0
    (tmp_path / "empty").mkdir()
    fedfms("data", "init", tmp_path / "empty", "--out", tmp_path / "b.yaml").failed_with("FMS-D008", "no image below")
    fedfms("data", "init", tmp_path / "none", "--out", tmp_path / "b.yaml").failed_with("FMS-D008", "no such folder")
    assert not (tmp_path / "b.yaml").exists()


def test_damaged_masks_are_guessed_around(tmp_path: Path) -> None:
    for number in range(3):
        picture(tmp_path / "images" / f"{number}.png")
        picture(tmp_path / "masks" / f"{number}.png", MASK)
    (tmp_path / "masks" / "1.png").write_bytes(b"x")
    out = tmp_path / "site.yaml"
    with pytest.raises(FedfmsError):
        write_first_site(tmp_path / "none", out)
    described(tmp_path, out)
    assert "# guess: 1 files could not be read" in out.read_text()
