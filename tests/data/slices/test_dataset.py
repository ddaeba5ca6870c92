from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedfms.data.description.site import load_site
from fedfms.data.readers.masks import present_values
from fedfms.data.slices import dataset as dataset_module
from fedfms.data.slices.dataset import SiteDataset
from fedfms.data.slices.opening import DataRequest, open_dataset
from fedfms.data.volume.geometry import LPS_TO_RAS
from fedfms.errors import FedfmsError
from fedfms.preprocessing import Preprocessing
from tests.generators import (
    preprocessing,
    raster_dataset,
    rotation,
    write_nifti,
    write_raster_site,
    write_series,
    write_yaml,
)


def opened(
    path: Path,
    structures: tuple[str, ...] = ("organ", "lesion"),
    missing: str = "error",
    rules: Preprocessing | None = None,
    task: str = "organ-lesion",
    **options: Any,
) -> SiteDataset:
    needed = options.pop("needed_splits", ("train", "validation"))
    request = DataRequest(task, structures, missing, rules or preprocessing(), needed)  # type: ignore[arg-type]
    return open_dataset(load_site(path), request, **options)


def refused(path: Path, *arguments: Any, **options: Any) -> FedfmsError:
    with pytest.raises(FedfmsError) as caught:
        opened(path, *arguments, **options)
    return caught.value


def paint(path: Path, labels: np.ndarray) -> None:
    Image.fromarray(labels.astype(np.uint8)).save(path)


# --- what a job gets ------------------------------------------------------------------------------------


def test_slices_cases_and_masks_of_a_raster_site(tmp_path: Path) -> None:
    site = write_raster_site(tmp_path / "a", patients=4, images=2)
    data = opened(site)
    assert len(data.cases("all")) == len(data.slices("all")) == 8
    assert len(data.cases("train")) == 6
    assert len(data.cases("validation")) == 2
    assert data.cases("test") == []
    assert data.cases_per_structure("train") == {"organ": 6, "lesion": 6}
    assert {case.patient for case in data.cases("train")}.isdisjoint(case.patient for case in data.cases("validation"))
    for reference in data.slices("all"):
        sample = data.load(reference)
        name = Path(reference.case.identity).name
        labels = np.asarray(Image.open(tmp_path / "a" / "masks" / name))
        values = np.asarray(Image.open(tmp_path / "a" / "images" / name))
        assert sample.image.dtype == np.float32
        assert np.array_equal(sample.image, values.transpose(2, 0, 1))
        assert sample.masks.dtype == np.uint8
        assert np.array_equal(sample.masks[0], labels > 0)
        assert np.array_equal(sample.masks[1], labels == 2)
        assert sample.annotated.tolist() == [True, True]
        assert sample.spacing is None and sample.slice_distance is None


def test_the_order_of_channels_is_the_jobs(tmp_path: Path) -> None:
    data = opened(write_raster_site(tmp_path / "a"), ("lesion", "organ"))
    sample = data.load(data.slices("train")[0])
    assert 0 < sample.masks[0].sum() < sample.masks[1].sum()


def test_two_openings_agree_and_a_copy_elsewhere_has_the_same_split(tmp_path: Path) -> None:
    first = opened(write_raster_site(tmp_path / "a"))
    again = opened(tmp_path / "a" / "site.yaml", verify=False)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    copy = opened(tmp_path / "b" / "site.yaml")
    assert first.slices("all") == again.slices("all") == copy.slices("all")
    assert first.split_sha256 == again.split_sha256 == copy.split_sha256
    assert [first.digest(item) for item in first.slices("all")] == [copy.digest(item) for item in copy.slices("all")]
    assert len({first.digest(item) for item in first.slices("all")}) == 8


def test_a_file_that_changes_while_files_are_checked_counts_as_changed(tmp_path: Path) -> None:
    site = write_raster_site(tmp_path / "a")
    first = min((tmp_path / "a" / "images").iterdir())

    def touch(done: int, cases: int) -> None:
        if done == cases:
            os.utime(first, ns=(1, 1))

    checked = opened(site, on_case=touch).findings
    again = opened(site, known=checked).findings
    assert checked is not None and again is not None and again is not checked
    assert again == opened(site).findings


def test_identifiers_are_not_in_the_printed_form(tmp_path: Path) -> None:
    data = opened(write_raster_site(tmp_path / "a"))
    assert "p0" not in repr(data.slices("all"))


def test_test_fraction_and_needed_splits(tmp_path: Path) -> None:
    split = {"rule": "by_patient", "validation": 0.25, "test": 0.25}
    data = opened(write_raster_site(tmp_path / "a", split=split), needed_splits=("test",))
    assert [len(data.cases(name)) for name in ("train", "validation", "test")] == [4, 2, 2]


def test_percentiles_are_those_of_the_whole_volume(tmp_path: Path) -> None:
    voxels = np.zeros((20, 10, 2), dtype=np.int16)
    voxels[:, :, 0] = np.arange(200).reshape(20, 10)
    voxels[:, :, 1] = 1000 + np.arange(200).reshape(20, 10)
    site = volume_site(tmp_path, voxels)
    rules = preprocessing({"rule": "percentile", "low": 10, "high": 90})
    data = opened(site, ("organ",), rules=rules)
    low, high = np.percentile(voxels, (10, 90))
    sample = data.load(data.slices("validation")[1])
    expected = np.clip((voxels[::1, :, 1].T - low) / (high - low), 0, 1) * 255
    assert np.allclose(sample.image[0], expected, atol=1e-3)
    assert np.array_equal(sample.image[0], sample.image[2])


def test_window_rule_clips_in_stored_units(tmp_path: Path) -> None:
    voxels = np.array([-1000, -160, 40, 240, 3000], dtype=np.int16).reshape(5, 1, 1).repeat(2, axis=1)
    data = opened(
        volume_site(tmp_path, voxels),
        ("organ",),
        rules=preprocessing({"rule": "window", "center": 40, "width": 400}),
    )
    sample = data.load(data.slices("train")[0])
    assert np.allclose(sample.image[0][0], [0, 0, 127.5, 255, 255])


def test_range_rule_scales_16_bit_photographs(tmp_path: Path) -> None:
    site = write_raster_site(tmp_path / "a")
    for path in (tmp_path / "a" / "images").iterdir():
        Image.fromarray(np.full((40, 32), 257 * 3, np.uint16)).save(path)
    sample = opened(site).load(opened(site).slices("train")[0])
    assert np.allclose(sample.image, 3)


def test_the_digest_follows_the_bounds_of_the_whole_volume(tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).integers(0, 900, (8, 8, 3), dtype=np.int16)
    changed = voxels.copy()
    changed[:, :, 2] += 5000
    rules = preprocessing({"rule": "percentile", "low": 1, "high": 99})
    digests = []
    for name, values in (("a", voxels), ("b", changed)):
        data = opened(volume_site(tmp_path / name, values), ("organ",), rules=rules)
        digests.append(data.digest(data.slices("train")[0]))
    assert digests[0] != digests[1]


def test_a_volume_is_read_once_for_its_slices_and_memory_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = volume_site(tmp_path, np.zeros((16, 16, 6), np.int16) + np.arange(6, dtype=np.int16))
    rules = preprocessing({"rule": "percentile", "low": 1, "high": 99})
    data = opened(site, ("organ",), rules=rules)
    reads = []
    original = dataset_module.read_case
    monkeypatch.setattr(dataset_module, "read_case", lambda *a: reads.append(a) or original(*a))
    references = data.slices("all")
    for reference in references:
        data.digest(reference)
        data.load(reference)
    assert len(references) == 12
    assert len(reads) == 2
    monkeypatch.setattr(dataset_module, "MEMORY_BYTES", 1)
    fresh = opened(site, ("organ",), rules=rules)
    reads.clear()
    for reference in (references[0], references[1], references[6], references[0]):
        fresh.load(reference)
    assert len(reads) == 3


# --- volumes --------------------------------------------------------------------------------------------


def volume_site(
    folder: Path, voxels: np.ndarray, *, orient: str = "same", turn: tuple[float, float, float] = (0, 0, 0)
) -> Path:
    """Two DICOM patients with the same voxels (column, row, slice) in LPS; labels = 1 where voxels are odd."""
    import nibabel

    affine = np.eye(4)
    affine[:3, :3] = rotation(turn) @ np.diag([0.7, 0.9, 4.0])
    affine[:3, 3] = (-20, 13, 7)
    for name in ("one", "two"):
        write_series(folder / "dicom" / name, voxels, affine, patient=name)
        labels = (voxels % 2).astype(np.uint8)
        image = nibabel.Nifti1Image(labels, LPS_TO_RAS @ affine)
        if orient == "reordered":
            image = image.as_reoriented(np.array([[2, -1], [0, 1], [1, -1]]))
        write_nifti(folder / "labels" / f"{name}.nii.gz", np.asarray(image.dataobj), image.affine)
    return write_yaml(
        folder / "site.yaml",
        {
            "datasets": [
                {
                    "name": "mr",
                    "task": "organ-lesion",
                    "format": "dicom",
                    "root": ".",
                    "images": {"pattern": "dicom/{case}"},
                    "masks": [{"pattern": "labels/{case}.nii.gz", "labels": {"organ": 1}}],
                    "patient": {"rule": "dicom_patient_id"},
                }
            ]
        },
    )


MR = preprocessing({"rule": "percentile", "low": 0, "high": 100})


@pytest.mark.parametrize("orient", ["same", "reordered"])
@pytest.mark.parametrize("turn", [(0, 0, 0), (25, 10, -8), (90, 0, 0)])
@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_a_nifti_mask_follows_its_dicom_series_in_every_plane(
    tmp_path: Path, orient: str, turn: tuple[float, float, float], plane: str
) -> None:
    voxels = np.random.default_rng(1).integers(0, 2000, (8, 7, 5), dtype=np.int16)
    rules = preprocessing({"rule": "percentile", "low": 0, "high": 100}, slice_axis=plane)
    data = opened(volume_site(tmp_path, voxels, orient=orient, turn=turn), ("organ",), rules=rules)
    scale = 255 / (voxels.max() - voxels.min())
    for reference in data.slices("train"):
        sample = data.load(reference)
        stored = np.rint(sample.image[0] / scale + voxels.min()).astype(int)
        assert np.array_equal(stored % 2, sample.masks[0])
    assert sample.spacing is not None


def test_a_mask_on_another_grid_is_d005_with_both_geometries(tmp_path: Path) -> None:
    site = volume_site(tmp_path, np.ones((8, 7, 5), np.int16))
    write_nifti(tmp_path / "labels" / "one.nii.gz", np.zeros((8, 7, 5), np.uint8), np.diag([0.7, 0.9, 4, 1]))
    error = refused(site, ("organ",), rules=MR)
    assert error.ids == ("FMS-D005",)
    assert "8 x 7 x 5 voxels of 0.7 x 0.9 x 4 mm, first voxel at (0.00, 0.00, 0.00)" in str(error)
    assert "first voxel at (20.00, -13.00, 7.00)" in str(error)


def test_a_nifti_dataset_is_read_along_the_jobs_plane(tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).integers(0, 200, (6, 5, 4), dtype=np.uint8)
    for name in ("a", "b"):
        write_nifti(tmp_path / f"{name}.nii.gz", voxels, np.diag([1.0, 1.5, 2.0, 1.0]))
        write_nifti(tmp_path / f"{name}_mask.nii.gz", (voxels > 100).astype(np.int16), np.diag([1.0, 1.5, 2.0, 1]))
    dataset = raster_dataset(
        format="nifti",
        images={"pattern": "{case}.nii.gz"},  # fits the masks too, which are left out
        masks=[{"pattern": "{case}_mask.nii.gz", "labels": {"organ": 1}}],
        patient={"rule": "each_image"},
    )
    site = write_yaml(tmp_path / "site.yaml", {"datasets": [dataset]})
    data = opened(site, ("organ",), rules=preprocessing(slice_axis="coronal"))
    assert len(data.cases("all")) == 2
    assert len(data.slices("all")) == 10
    sample = data.load(data.slices("train")[0])
    assert np.array_equal(sample.image[0], voxels[::-1, -1, ::-1].T)
    assert np.array_equal(sample.masks[0], sample.image[0] > 100)
    assert sample.spacing == pytest.approx((2.0, 1.0))
    assert sample.slice_distance == pytest.approx(1.5)


def test_a_single_dicom_image_may_have_a_raster_mask_but_a_volume_may_not(tmp_path: Path) -> None:
    for count, names in ((1, ("a", "b")), (2, ("c", "d"))):
        for name in names:
            voxels = np.arange(30 * count, dtype=np.uint16).reshape(6, 5, count)
            write_series(tmp_path / str(count) / "dicom" / name, voxels, np.diag([1.0, 1, 3, 1]))
            (tmp_path / str(count) / "masks").mkdir(exist_ok=True)
            paint(tmp_path / str(count) / "masks" / f"{name}.png", voxels[:, :, 0].T % 2)
        dataset = raster_dataset(
            format="dicom",
            images={"pattern": "dicom/{case}"},
            masks=[{"pattern": "masks/{case}.png", "labels": {"organ": 1}}],
            patient={"rule": "each_image"},
        )
        write_yaml(tmp_path / str(count) / "site.yaml", {"datasets": [dataset]})
    data = opened(tmp_path / "1" / "site.yaml", ("organ",), rules=MR)
    sample = data.load(data.slices("train")[0])
    assert np.array_equal(np.rint(sample.image[0] * 29 / 255) % 2, sample.masks[0])
    assert refused(tmp_path / "2" / "site.yaml", ("organ",), rules=MR).ids == ("FMS-D005",)


# --- faults ---------------------------------------------------------------------------------------------


def test_every_bad_file_is_named_in_one_message(tmp_path: Path) -> None:
    site = write_raster_site(tmp_path / "a")
    images, masks = tmp_path / "a" / "images", tmp_path / "a" / "masks"
    (masks / "p0_0.png").unlink()
    (images / "p0_1.png").write_bytes((images / "p0_1.png").read_bytes()[:700])
    (masks / "p1_0.png").write_bytes(b"no image")
    paint(masks / "p1_1.png", np.zeros((32, 40)))
    paint(masks / "p2_0.png", np.full((40, 32), 7))
    error = refused(site, ("organ", "lesion", "tumour"))
    found = {(problem.kind.id, Path(problem.where).name) for problem in error.problems}
    assert found == {
        ("FMS-D003", "p0_0.png"),
        ("FMS-D004", "p0_1.png"),
        ("FMS-D004", "p1_0.png"),
        ("FMS-D005", "p1_1.png"),
        ("FMS-D006", "p2_0.png"),
        ("FMS-D010", "structure tumour"),
    }
    assert "32 rows x 40 columns" in str(error)
    assert "values 7; site.yaml names 0, 1, 2" in str(error)
    assert "p1" not in error.public
    assert str(tmp_path) not in error.public


def test_a_missing_image_of_a_manifest_is_d003(tmp_path: Path) -> None:
    site = manifest_site(tmp_path, "image,mask,who,split\n" + manifest_rows())
    (tmp_path / "images" / "p1_0.png").unlink()
    error = refused(site)
    assert error.ids == ("FMS-D003",)
    assert "list.csv line 4" in str(error)


def test_several_masks_for_one_image_are_d014(tmp_path: Path) -> None:
    masks = [{"pattern": "masks/{case}.*", "labels": {"organ": [1, 2], "lesion": 2}}]
    site = write_raster_site(tmp_path / "a", masks=masks)
    shutil.copy(tmp_path / "a" / "masks" / "p0_0.png", tmp_path / "a" / "masks" / "p0_0.tif")
    assert refused(site).ids == ("FMS-D014",)


def test_a_missing_root_is_d003_and_an_empty_one_d008(tmp_path: Path) -> None:
    dataset = raster_dataset(root="nowhere")
    site = write_yaml(tmp_path / "site.yaml", {"datasets": [dataset]})
    assert refused(site).ids == ("FMS-D003",)
    (tmp_path / "nowhere").mkdir()
    error = refused(site)
    assert error.ids == ("FMS-D008",)
    assert "no image fits 'images/{case}.png'" in str(error)


def test_one_patient_alone_cannot_validate(tmp_path: Path) -> None:
    site = write_raster_site(tmp_path / "a", patients=1, images=4)
    error = refused(site)
    assert error.ids == ("FMS-D008",)
    assert "no case for validation (cases: 4 train, 0 validation, 0 test)" in str(error)
    assert len(opened(site, needed_splits=()).cases("all")) == 4


def test_a_site_without_the_task_or_any_structure_is_j003(tmp_path: Path) -> None:
    site = write_raster_site(tmp_path / "a")
    error = refused(site, task="disc-cup")
    assert error.ids == ("FMS-J003",)
    assert "site.yaml offers: organ-lesion" in str(error)
    for missing in ("error", "mask"):
        error = refused(site, ("disc",), missing)
        assert error.ids[0] == "FMS-J003"
        assert "the job trains disc; the site has lesion, organ" in str(error)


def test_a_structure_the_site_lacks_is_an_error_or_masked(tmp_path: Path) -> None:
    site = write_raster_site(tmp_path / "a")
    error = refused(site, ("organ", "vessel"), "error")
    assert error.ids == ("FMS-D010",)
    assert "structure vessel" in str(error)
    data = opened(site, ("vessel", "organ"), "mask")
    assert data.cases_per_structure("train") == {"vessel": 0, "organ": 6}
    sample = data.load(data.slices("train")[0])
    assert sample.annotated.tolist() == [False, True]
    assert not sample.masks[0].any()
    assert sample.masks[1].any()


def test_an_optional_mask_may_be_missing_for_some_cases(tmp_path: Path) -> None:
    masks = [
        {"pattern": "masks/{case}.png", "labels": {"organ": [1, 2]}, "ignore_values": [2]},
        {"pattern": "lesions/{case}.png", "labels": {"lesion": "nonzero"}, "required": False},
    ]
    site = write_raster_site(tmp_path / "a", masks=masks)
    (tmp_path / "a" / "lesions").mkdir()
    assert refused(site).ids == ("FMS-D010",)
    for patient in range(4):
        paint(tmp_path / "a" / "lesions" / f"p{patient}_0.png", np.eye(40, 32) * 200)
    data = opened(site)
    assert data.cases_per_structure("all") == {"organ": 8, "lesion": 4}
    by_name = {Path(item.case.identity).name: data.load(item) for item in data.slices("all")}
    assert by_name["p0_0.png"].annotated.tolist() == [True, True]
    assert by_name["p0_0.png"].masks[1].sum() == 32
    assert by_name["p0_1.png"].annotated.tolist() == [True, False]


def test_masks_in_validation_alone_cannot_train(tmp_path: Path) -> None:
    masks = [
        {"pattern": "masks/{case}.png", "labels": {"organ": [1, 2]}, "ignore_values": [2], "required": False},
        {"pattern": "lesions/{case}.png", "labels": {"lesion": "nonzero"}, "required": False},
    ]
    site = write_raster_site(tmp_path / "a", masks=masks)
    validation = {Path(case.identity).name for case in opened(site, missing="mask").cases("validation")}
    for path in (tmp_path / "a" / "masks").iterdir():
        if path.name not in validation:
            path.unlink()
    error = refused(site, missing="mask")
    assert error.ids == ("FMS-D010",) and len(error.problems) == 2
    assert "its site.yaml has: organ" in str(error)
    assert opened(site, missing="mask", needed_splits=("validation",)).cases_per_structure("validation")["organ"] > 0


def test_range_rule_refuses_medical_values(tmp_path: Path) -> None:
    site = volume_site(tmp_path, np.ones((4, 4, 3), np.int16))
    error = refused(site, ("organ",))
    assert error.ids == ("FMS-J003",)
    assert "needs unsigned 8- or 16-bit values, found float32" in str(error)


def test_files_that_vanish_after_opening_are_an_error(tmp_path: Path) -> None:
    data = opened(write_raster_site(tmp_path / "a"))
    (tmp_path / "a" / "images" / "p0_0.png").unlink()
    reference = next(item for item in data.slices("all") if item.case.identity.endswith("p0_0.png"))
    with pytest.raises(FedfmsError, match="FMS-D003"):
        data.load(reference)


# --- manifests and splits -------------------------------------------------------------------------------


def manifest_rows(splits: tuple[str, ...] = ("train", "train", "val", "test")) -> str:
    return "".join(
        f"images/p{patient}_{number}.png,masks/p{patient}_{number}.png,patient {patient},{split}\n"
        for patient, split in enumerate(splits)
        for number in range(2)
    )


def manifest_site(folder: Path, text: str, **changes: Any) -> Path:
    site = write_raster_site(folder / "made")
    for name in ("images", "masks"):
        shutil.move(folder / "made" / name, folder / name)
    site.unlink()
    (folder / "list.csv").write_text(text, encoding="utf-8")
    dataset = raster_dataset(
        images={"manifest": "list.csv", "column": "image"},
        masks=[{"column": "mask", "labels": {"organ": [1, 2], "lesion": 2}}],
        patient={"rule": "column", "column": "who"},
        split={"rule": "column", "column": "split"},
    )
    return write_yaml(folder / "site.yaml", {"datasets": [{**dataset, **changes}]})


HEAD = "image,mask,who,split\n"


def test_a_split_column_is_followed(tmp_path: Path) -> None:
    data = opened(manifest_site(tmp_path, HEAD + manifest_rows()))
    assert {case.patient for case in data.cases("validation")} == {"patient 2"}
    assert {case.patient for case in data.cases("test")} == {"patient 3"}
    assert len(data.cases("train")) == 4


def test_a_patient_in_two_splits_is_d007_without_the_identifier(tmp_path: Path) -> None:
    rows = manifest_rows().replace("p1_1.png,patient 1,train", "p1_1.png,patient 1,val")
    rows = rows.replace("p2_1.png,patient 2,val", "p2_1.png,patient 2,test")
    error = refused(manifest_site(tmp_path, HEAD + rows))
    assert error.ids == ("FMS-D007",)
    assert len(error.problems) == 2
    assert "patient 1" not in str(error)
    assert "p1_0.png is train" in str(error)


def test_validation_from_train_draws_patients_and_keeps_test(tmp_path: Path) -> None:
    split = {"rule": "column", "column": "split", "validation_from_train": 0.4}
    site = manifest_site(tmp_path, HEAD + manifest_rows(("train", "train", "train", "test")), split=split)
    data = opened(site)
    assert [len(data.cases(name)) for name in ("train", "validation", "test")] == [4, 2, 2]
    assert {case.patient for case in data.cases("test")} == {"patient 3"}
    (tmp_path / "list.csv").write_text(HEAD + manifest_rows(), encoding="utf-8")
    error = refused(site)
    assert error.ids == ("FMS-D002",)
    assert "validation rows already" in str(error)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("image,mask,patient\nimages/p0_0.png,masks/p0_0.png,a\n", "list.csv: who: no such column"),
        (HEAD + "images/p0_0.png,masks/p0_0.png,a,maybe\n", "holds 'maybe', expected one of: train"),
        (HEAD + "images/p0_0.png,masks/p0_0.png,,train\n", "the cell who (patient) is empty"),
        (HEAD + ",masks/p0_0.png,a,train\n", "the cell image is empty"),
        (HEAD + 2 * "images/p0_0.png,masks/p0_0.png,a,train\n", "the image is also in"),
        (HEAD + "images/p0_0.png,masks/p0_0.png,a,train,extra\n", "more cells than the header"),
    ],
)
def test_a_manifest_that_does_not_fit_is_d002(tmp_path: Path, text: str, sentence: str) -> None:
    error = refused(manifest_site(tmp_path, text))
    assert "FMS-D002" in error.ids
    assert sentence in str(error)


def test_a_mask_cell_that_is_empty_or_names_no_file_is_d003(tmp_path: Path) -> None:
    rows = manifest_rows().replace("masks/p0_0.png", "").replace("masks/p0_1.png", "masks/no.png")
    error = refused(manifest_site(tmp_path, HEAD + rows))
    assert error.ids == ("FMS-D003",)
    assert len(error.problems) == 2
    # Optional masks may be left empty, but not point to nothing.
    masks = [{"column": "mask", "labels": {"organ": [1, 2], "lesion": 2}, "required": False}]
    (tmp_path / "again").mkdir()
    assert len(refused(manifest_site(tmp_path / "again", HEAD + rows, masks=masks)).problems) == 1


def test_a_name_that_the_patient_expression_does_not_fit_is_d002(tmp_path: Path) -> None:
    site = write_raster_site(tmp_path / "a", patient={"rule": "name", "expression": "^x(.+)"})
    error = refused(site)
    assert error.ids == ("FMS-D002",)
    assert len(error.problems) == 8


def test_a_patient_in_two_datasets_of_a_task_gets_one_split(tmp_path: Path) -> None:
    write_raster_site(tmp_path / "a", patients=6)
    write_raster_site(tmp_path / "b", patients=6)
    both = [raster_dataset(name=name, root=name) for name in ("a", "b")]
    data = opened(write_yaml(tmp_path / "site.yaml", {"datasets": both}))
    splits: dict[str, set[str]] = {}
    for case in data.cases("all"):
        splits.setdefault(case.patient, set()).add(case.split)
    assert len(splits) == 6
    assert all(len(found) == 1 for found in splits.values())
    # With different rules the two draws are separate, and a clash is found.
    both[1]["split"] = {"rule": "by_patient", "validation": 0.34, "seed": 3}
    assert refused(write_yaml(tmp_path / "site.yaml", {"datasets": both})).ids == ("FMS-D007",)


def test_large_values_in_label_maps(tmp_path: Path) -> None:
    labels = np.array([[0, 70000], [-3, 1]], dtype=np.int32)
    assert present_values(labels) == [-3, 0, 1, 70000]
    assert present_values(labels * 7000) == [-21000, 0, 7000, 490000000]
    assert present_values(labels.clip(0, 9).astype(np.uint8)) == [0, 1, 9]


def test_ignored_values_are_known_but_belong_to_nothing(tmp_path: Path) -> None:
    mask = {"pattern": "masks/{case}.png", "labels": {"organ": 1}}
    site = write_raster_site(tmp_path / "a", masks=[mask])
    assert refused(site, ("organ",)).ids == ("FMS-D006",)
    site = write_raster_site(tmp_path / "b", masks=[{**mask, "ignore_values": [2]}])
    data = opened(site, ("organ",))
    reference = data.slices("train")[0]
    labels = np.asarray(Image.open(tmp_path / "b" / "masks" / Path(reference.case.identity).name))
    assert np.array_equal(data.load(reference).masks[0], labels == 1)


def test_the_split_digest_cannot_be_made_without_the_images(tmp_path: Path) -> None:
    site = write_raster_site(tmp_path / "a")
    before = opened(site)
    image = tmp_path / "a" / "images" / "p0_0.png"
    Image.fromarray(255 - np.asarray(Image.open(image))).save(image)
    after = opened(site)
    assert before.slices("all") == after.slices("all")
    assert before.split_sha256 != after.split_sha256
