"""``fedfms data init``: what it writes for the usual orders of files is valid and finds every case and mask."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK
from PIL import Image
from pydicom.uid import generate_uid

from fedfms.data.authoring.first_site.write import write_first_site
from fedfms.data.description.site import DatasetDescription, load_site
from fedfms.data.quality.check import check_site
from fedfms.data.slices.discovery import find_cases
from fedfms.data.slices.verification import files_mark
from fedfms.errors import FedfmsError
from tests.command import Command
from tests.data.dicom.test_seg import series_in, two_segments, write_seg
from tests.generators import raster_dataset, write_nifti, write_series, write_yaml

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


def test_lists_in_the_comments_say_how_many_were_left_out(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for number in range(9):
        for name in "abcdefgh":
            volume(data / f"BraTS{number}" / f"BraTS{number}_{name}.nii.gz")
    for name in "abcde":
        (data / f"{name}.csv").write_text("image,patient\n")
    described(data, tmp_path / "site.yaml")
    text = " ".join((tmp_path / "site.yaml").read_text().replace("\n#", " ").split())
    assert "the others are: {case}_b.nii.gz, {case}_c.nii.gz" in text and "{case}_g.nii.gz and 1 more" in text
    assert "a.csv, b.csv, c.csv and 2 more" in text


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


def names(number: int) -> tuple[str, str]:
    return f"hospital{number % 2}", f"patient{number}"


@pytest.mark.parametrize(
    ("image", "images", "mask"),
    [
        ("img/scan.png", "{patient}/{case}/img/scan.png", "{patient}/{case}/gt/scan.png"),
        ("img/{visit}.png", "*/{patient}/img/{case}.png", "*/{patient}/gt/{case}.png"),
        ("{visit}/img/t1.png", "*/{patient}/{case}/img/t1.png", "*/{patient}/{case}/gt/t1.png"),
    ],
)
def test_no_image_gets_the_mask_of_another_with_the_same_name(
    tmp_path: Path, image: str, images: str, mask: str
) -> None:
    for number, visit in ((number, visit) for number in range(4) for visit in range(2)):
        path = tmp_path / "data" / "/".join([*names(number), image.format(visit=visit)])
        picture(path)
        picture(Path(str(path).replace("/img/", "/gt/")), np.roll(MASK, number))
    dataset = described(tmp_path / "data", tmp_path / "site.yaml")
    assert dataset.images.pattern == images
    (source,) = dataset.masks
    assert source.pattern == mask and source.required and "patient" not in "".join(source.labels)
    for case in find_cases(dataset).cases:
        assert str(case.image).replace("/img/", "/gt/") == str(case.masks[0])


def test_segmentations_of_patients_whose_cases_have_the_same_names(tmp_path: Path) -> None:
    for number, visit in ((number, visit) for number in range(2) for visit in ("first", "second")):
        images = series_in(tmp_path / "data" / "ct" / f"patient{number}" / visit)
        write_seg(tmp_path / "data" / "seg" / f"patient{number}" / f"{visit}.dcm", images, two_segments())
    dataset = described(tmp_path / "data", tmp_path / "site.yaml")
    assert dataset.images.pattern == "ct/{patient}/{case}"
    assert [mask.pattern for mask in dataset.masks] == ["seg/{patient}/{case}.dcm"]


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


def test_label_maps_named_after_dicom_folders_without_a_word_for_mask(tmp_path: Path) -> None:
    voxels = np.arange(8 * 8 * 2, dtype=np.uint16).reshape(8, 8, 2)
    for number in range(3):
        write_series(tmp_path / "data" / f"case{number}", voxels, np.eye(4), patient=f"P{number}")
        path = tmp_path / "data" / f"case{number}.nii.gz"
        write_nifti(path, np.stack([MASK, MASK], axis=2), np.diag([-1.0, -1.0, 1.0, 1.0]))
    dataset = described(tmp_path / "data", tmp_path / "site.yaml")
    assert dataset.format == "dicom"
    assert shown(dataset) == ("{case}", [("{case}.nii.gz", {"structure": (1,)}, True)])
    assert "recognised by their few values" in (tmp_path / "site.yaml").read_text()
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
    assert [case.name for case in find_cases(dataset).cases] == ["data/p11"]
    assert "of such a name" not in (tmp_path / "one.yaml").read_text()


def test_neighbours_that_any_pattern_takes_are_told(tmp_path: Path) -> None:
    voxels = np.arange(8 * 8 * 2, dtype=np.uint16).reshape(8, 8, 2)
    for name in ("a", "b", "c"):
        write_series(tmp_path / "data" / name / "ct", voxels, np.eye(4), patient=name)
    write_first_site(tmp_path / "data" / "b" / "ct", tmp_path / "one.yaml")
    assert "# guess: 2 other folders of such a name fit as well" in (tmp_path / "one.yaml").read_text()


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


@pytest.mark.parametrize("name", ["000.dcm", "SEG.{uid}.dcm"], ids=["named-like-an-image", "named-by-uid"])
@pytest.mark.parametrize("folder", ["{uid}", "SEG"])
def test_exports_with_one_folder_per_series(tmp_path: Path, folder: str, name: str) -> None:
    """As archives and PACS write them: patient, study, series; the segmentation is a series of its own."""
    for number in range(3):
        study = tmp_path / "data" / f"patient{number}" / generate_uid()
        images = series_in(study / ("CT" if folder == "SEG" else generate_uid()))
        seg = study / folder.format(uid=generate_uid()) / name.format(uid=generate_uid())
        write_seg(seg, images, two_segments())
        for path in study.rglob("*.dcm"):
            header = pydicom.dcmread(path)
            header.PatientID = f"P{number}"
            header.save_as(path)
    dataset = described(tmp_path / "data", tmp_path / "site.yaml")
    expected = ("{patient}/{case}/CT", None) if folder == "SEG" else ("{patient}/{case}", "*/*")
    assert (dataset.images.pattern, dataset.images.files) == expected
    (mask,) = dataset.masks
    assert mask.pattern == "/".join(["{patient}/{case}", folder, name]).replace("{uid}", "*")
    assert mask.required and dict(mask.labels) == {"leber": ("Leber",), "zyste_1": ("Zyste 1",)}
    report = check_site(tmp_path / "site.yaml")
    assert report.problems == ()
    assert [item.annotated_cases for item in report.rows[0].structures] == [3, 3]
    # A slice that changes in a folder of the case is noticed.
    site, cases = load_site(tmp_path / "site.yaml"), find_cases(dataset).cases
    before = files_mark(site, cases, ["leber"])
    os.utime(sorted((tmp_path / "data").rglob("005.dcm"))[0], (1, 1))
    assert files_mark(site, cases, ["leber"]) != before


def test_a_segmentation_of_images_that_are_not_described_is_none_of_the_others(tmp_path: Path) -> None:
    for patient in ("anna", "bert", "carl"):
        for phase in ("arterial", "venous"):
            folder = tmp_path / "data" / patient / phase
            write_seg(folder / "seg.dcm", series_in(folder), two_segments())
    dataset = described(tmp_path / "data", tmp_path / "site.yaml")
    assert dataset.images.pattern == "{case}/arterial"
    assert [mask.pattern for mask in dataset.masks] == ["{case}/arterial/seg.dcm"]
    text = (tmp_path / "site.yaml").read_text()
    assert "the others are: venous" in text and "3 SEG or RTSTRUCT files could not be tied to images" in text


def test_an_image_is_not_a_mask_though_its_name_fits(tmp_path: Path) -> None:
    for number in range(2):
        images = series_in(tmp_path / f"c{number}" / "ct")
        if number:
            write_seg(tmp_path / f"c{number}" / "seg" / "000.dcm", images, two_segments())
    mask = {"pattern": "{case}/*/000.dcm", "labels": {"liver": "Leber"}, "required": False}
    content = raster_dataset(format="dicom", images={"pattern": "{case}/ct"}, masks=[mask], root=".")
    del content["split"]
    content["patient"] = {"rule": "each_image"}
    (dataset,) = load_site(write_yaml(tmp_path / "site.yaml", {"datasets": [content]})).datasets
    assert [case.masks for case in find_cases(dataset).cases] == [(None,), (tmp_path / "c1" / "seg" / "000.dcm",)]
    mask["required"] = True
    (dataset,) = load_site(write_yaml(tmp_path / "site.yaml", {"datasets": [content]})).datasets
    ((problem,),) = find_cases(dataset).bad
    assert problem.kind.id == "FMS-D003" and "only 1 DICOM image(s)" in str(problem)


def test_the_command_keeps_an_existing_file_and_names_what_is_missing(fedfms: Command, tmp_path: Path) -> None:
    picture(tmp_path / "data" / "images" / "a.png")
    out = tmp_path / "site.yaml"
    assert fedfms("data", "init", tmp_path / "data", "--out", out).out.startswith(
        f"{out}: raster, 1 images, masks: none"
    )
    before = out.read_bytes()
    fedfms("data", "init", tmp_path / "data", "--out", out).failed_with("FMS-P001")
    assert out.read_bytes() == before
    out.chmod(0o644)
    assert fedfms("data", "init", tmp_path / "data", "--out", out, "--overwrite").code == 0
    assert out.stat().st_mode & 0o777 == 0o600, "as all of a kit's files: the doctor looks at that"
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
