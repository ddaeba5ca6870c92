"""``strict: false``: bad cases are left out and counted; and what was found of a site's files is not read twice."""

from __future__ import annotations

import json
import os
import tracemalloc
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from fedfms.data.description.site import load_site
from fedfms.data.quality.check import check_site
from fedfms.data.slices import dataset as dataset_module
from fedfms.data.slices import verification
from fedfms.data.slices.dataset import SiteDataset
from fedfms.data.slices.opening import DataRequest, open_dataset
from fedfms.errors import FedfmsError
from tests.generators import preprocessing, raster_dataset, write_nifti, write_raster_site, write_yaml

BAD = {"p0_0.png", "p1_1.png", "p2_0.png", "p2_1.png"}


def opened(path: Path, **options: Any) -> SiteDataset:
    request = DataRequest("organ-lesion", ("organ", "lesion"), missing_structure="error", preprocessing=preprocessing())
    asked = {field.name: options.pop(field.name) for field in fields(DataRequest) if field.name in options}
    return open_dataset(load_site(path), replace(request, **asked), **options)


def refused(path: Path, **options: Any) -> FedfmsError:
    with pytest.raises(FedfmsError) as caught:
        opened(path, **options)
    return caught.value


def lenient_site(folder: Path, patients: int = 6, **changes: Any) -> Path:
    site = write_raster_site(folder, patients=patients, **changes)
    return write_yaml(site, {**yaml.safe_load(site.read_text()), "strict": False})


def spoil(folder: Path) -> None:
    """A missing mask, a cut image, a mask of another size, and one with an unknown value: the files of ``BAD``."""
    (folder / "masks" / "p0_0.png").unlink()
    image = folder / "images" / "p1_1.png"
    image.write_bytes(image.read_bytes()[:300])
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / "masks" / "p2_0.png")
    Image.fromarray(np.full((40, 32), 9, np.uint8)).save(folder / "masks" / "p2_1.png")


def names(data: SiteDataset, split: str) -> set[str]:
    return {Path(item.case.identity).name for item in data.slices(split)}


def test_bad_cases_are_left_out_and_the_others_keep_their_splits(tmp_path: Path) -> None:
    site = lenient_site(tmp_path)
    whole = opened(site)
    assert whole.left_out == ()
    spoil(tmp_path)
    rest = opened(site)
    for split in ("train", "validation"):
        assert names(rest, split) == names(whole, split) - BAD
    assert [case[0].kind.id for case in rest.left_out] == ["FMS-D003", "FMS-D004", "FMS-D005", "FMS-D006"]
    assert {Path(case[0].where).name for case in rest.left_out} == BAD
    assert sum(rest.cases_per_structure("all").values()) == 2 * (12 - 4)
    for reference in rest.slices("all"):
        rest.load(reference)


def test_strict_is_the_default_and_stops_with_every_bad_file(tmp_path: Path) -> None:
    site = write_raster_site(tmp_path, patients=6)
    spoil(tmp_path)
    assert len(refused(site).problems) == 4


def test_too_few_remaining_cases_are_an_error_that_says_why(tmp_path: Path) -> None:
    site = lenient_site(tmp_path)
    validation = names(opened(site), "validation")
    for name in validation:
        (tmp_path / "images" / name).write_bytes(b"")
    error = refused(site)
    assert error.ids == ("FMS-D008", "FMS-D004")
    assert f"no case for validation (cases: 8 train, 0 validation, 0 test; {len(validation)} left out" in str(error)
    assert all(name in str(error) for name in validation)


@pytest.mark.parametrize("needed", [("train", "validation"), ()])
@pytest.mark.parametrize("folder", ["images", "masks"])
def test_all_cases_bad_is_an_error(tmp_path: Path, folder: str, needed: tuple[str, ...]) -> None:
    site = lenient_site(tmp_path)
    for path in (tmp_path / folder).iterdir():
        path.unlink() if folder == "masks" else path.write_bytes(b"")
    error = refused(site, needed_splits=needed)
    assert error.ids == ("FMS-D008", "FMS-D003" if folder == "masks" else "FMS-D004")
    assert "no case is left" in str(error) and len(error.problems) == 13
    assert not check_site(site).ok


def test_a_structure_that_only_bad_cases_have_is_missing(tmp_path: Path) -> None:
    lesion = {"pattern": "lesions/{case}.png", "labels": {"lesion": "nonzero"}, "required": False}
    organ = {"pattern": "masks/{case}.png", "labels": {"organ": [1, 2]}}
    site = lenient_site(tmp_path, masks=[organ, lesion])
    (tmp_path / "lesions").mkdir()
    name = min(names(opened(site, structures=("organ",)), "train"))
    Image.fromarray(np.ones((40, 32), np.uint8)).save(tmp_path / "lesions" / name)
    assert opened(site).cases_per_structure("train")["lesion"] == 1
    (tmp_path / "images" / name).write_bytes(b"")
    assert refused(site).ids == ("FMS-D010", "FMS-D004")


def test_faults_of_the_description_or_the_job_stop_whatever_strict_says(tmp_path: Path) -> None:
    site = lenient_site(tmp_path / "a", patient={"rule": "name", "expression": "^(p[0-4])_"})
    error = refused(site)
    assert error.ids == ("FMS-D002",) and len(error.problems) == 2
    site = lenient_site(tmp_path / "b")
    Image.new("L", (32, 40)).save(tmp_path / "b" / "images" / "p0_0.png")
    assert refused(site, preprocessing=preprocessing(channels="neighbours")).ids == ("FMS-J003",)


def test_a_missing_image_of_a_manifest_is_left_out_but_a_wrong_row_is_not(tmp_path: Path) -> None:
    site = lenient_site(tmp_path)
    dataset = raster_dataset(
        images={"manifest": "list.csv", "column": "image"},
        masks=[{"column": "mask", "labels": {"organ": [1, 2], "lesion": 2}}],
        patient={"rule": "column", "column": "who"},
    )
    write_yaml(site, {"strict": False, "datasets": [dataset]})
    rows = [f"images/p{i}_{k}.png,masks/p{i}_{k}.png,{i}" for i in range(6) for k in range(2)]
    (tmp_path / "list.csv").write_text("\n".join(["image,mask,who", *rows, "images/no.png,,7"]))
    data = opened(site)
    assert len(data.slices("all")) == 12 and len(data.left_out) == 1
    (tmp_path / "list.csv").write_text("\n".join(["image,mask,who", *rows, rows[0]]))
    assert refused(site).ids == ("FMS-D002",)


# --- the check ------------------------------------------------------------------------------------------


def test_the_check_passes_counts_and_lists_them(tmp_path: Path) -> None:
    site = lenient_site(tmp_path)
    spoil(tmp_path)
    report = check_site(site)
    assert report.ok
    (row,) = report.rows
    assert (row.cases, row.cases_left_out, sum(row.cases_per_split.values())) == (8, 4, 8)
    assert row.structures[0].annotated_cases == 8
    lost = [item for item in report.findings if item.where == "dataset photographs: left out"]
    assert [(item.kind.id, item.severity, item.count) for item in lost] == [
        (name, "WARN", 1) for name in ("FMS-D003", "FMS-D004", "FMS-D005", "FMS-D006")
    ]
    assert not report.problems and json.loads(json.dumps(report.as_json()))["ok"]


# --- what is kept between tasks -------------------------------------------------------------------------


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the cases that were read to be checked."""
    done: list[str] = []
    original = verification.read_case

    def read_case(files: Any, *rest: Any) -> Any:
        done.append(files.name)
        return original(files, *rest)

    monkeypatch.setattr(verification, "read_case", read_case)
    return done


def test_known_files_are_not_read_again_and_bad_ones_stay_out(tmp_path: Path, reads: list[str]) -> None:
    site = lenient_site(tmp_path)
    spoil(tmp_path)
    first = opened(site)
    assert first.findings is not None and len(reads) == 11, "the case without a mask is known to be bad"
    assert "p0" not in first.findings.model_dump_json()
    known = type(first.findings).model_validate_json(first.findings.model_dump_json())
    reads.clear()
    again = opened(site, known=known)
    assert reads == []
    assert again.slices("all") == first.slices("all") and again.split_sha256 == first.split_sha256
    assert len(again.left_out) == len(first.left_out) == 4
    Image.fromarray(np.zeros((40, 32), np.uint8)).save(tmp_path / "masks" / "p2_0.png")
    assert len(opened(site, known=known).left_out) == 3
    assert len(reads) == 11


@pytest.mark.parametrize("change", ["file", "labels", "strict"])
def test_changes_of_files_and_description_are_noticed(tmp_path: Path, reads: list[str], change: str) -> None:
    site = lenient_site(tmp_path)
    known = opened(site).findings
    reads.clear()
    content = yaml.safe_load(site.read_text())
    if change == "file":
        os.utime(tmp_path / "masks" / "p3_0.png")
    elif change == "labels":
        content["datasets"][0]["masks"][0]["labels"]["lesion"] = [1, 2]
    else:
        content["strict"] = True
    write_yaml(site, content)
    assert opened(site, known=known).findings != known
    assert len(reads) == 12
    content["compute"] = {"threads": 2}
    assert opened(write_yaml(site, content), known=opened(site).findings).findings == opened(site).findings


def test_which_slices_are_empty_is_known_from_reading_and_per_structure(tmp_path: Path) -> None:
    masks = [
        {"pattern": "{case}_organ.nii.gz", "labels": {"organ": 1}},
        {"pattern": "{case}_lesion.nii.gz", "labels": {"lesion": 1}, "required": False},
    ]
    images = {"pattern": "{case}_image.nii.gz"}
    dataset = raster_dataset(format="nifti", images=images, masks=masks, patient={"rule": "each_image"})
    affine = np.diag([1.0, 1.0, 3.0, 1.0])
    organ, lesion = np.zeros((2, 4, 4, 5), np.uint8)
    organ[1:3, 1:3, 1:3] = lesion[2, 2, 3] = 1
    for name in ("a", "b", "c"):
        write_nifti(tmp_path / f"{name}_image.nii.gz", np.arange(80, dtype=np.uint8).reshape(4, 4, 5), affine)
        write_nifti(tmp_path / f"{name}_organ.nii.gz", organ, affine)
    write_nifti(tmp_path / "a_lesion.nii.gz", lesion, affine)
    site = write_yaml(tmp_path / "site.yaml", {"datasets": [dataset]})

    def empty(case: str, *structures: str) -> list[int]:
        data = opened(site, structures=structures, missing_structure="mask", needed_splits=())
        found = [item for item in data.slices("all") if case in item.case.identity]
        assert len(found) == 5
        return [item.index for item in found if data.is_empty(item)]

    assert empty("a_image", "organ", "lesion") == [0, 4]
    assert empty("b_image", "organ", "lesion") == [0, 3, 4]
    assert empty("a_image", "lesion") == [0, 1, 2, 4]
    assert empty("b_image", "lesion", "organ") == [0, 3, 4]
    assert empty("b_image", "lesion") == [], "what is not annotated is not known to be empty"
    with pytest.raises(ValueError, match="not been read"):
        data = opened(site, structures=("organ",), verify=False)
        data.is_empty(data.slices("all")[0])


# --- memory ---------------------------------------------------------------------------------------------

VOLUME = 64 * 64 * 40  # bytes of one image, and of one mask


def volumes(folder: Path, cases: int) -> Path:
    # Compressed: plain files would be mapped, not read.
    voxels = np.random.default_rng(0).integers(0, 200, (64, 64, 40), dtype=np.uint8)
    for number in range(cases):
        write_nifti(folder / f"{number}.nii.gz", voxels, np.diag([1.0, 1.0, 3.0, 1.0]))
        write_nifti(folder / f"{number}_mask.nii.gz", (voxels > 100).astype(np.uint8), np.diag([1.0, 1.0, 3.0, 1.0]))
    dataset = raster_dataset(
        format="nifti",
        images={"pattern": "{case}.nii.gz"},
        masks=[{"pattern": "{case}_mask.nii.gz", "labels": {"organ": 1}}],
        patient={"rule": "each_image"},
    )
    return write_yaml(folder / "site.yaml", {"datasets": [dataset]})


def test_memory_stays_flat_with_the_number_of_cases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset_module, "MEMORY_BYTES", 5 * VOLUME)

    def peak(cases: int) -> int:
        site = volumes(tmp_path / str(cases), cases)
        tracemalloc.start()
        try:
            data = opened(site, structures=("organ",))
            for reference in data.slices("all")[::10]:
                data.load(reference)
                data.digest(reference)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(2)  # imports and caches of the first time
    assert peak(16) - peak(4) < VOLUME


def test_room_is_made_before_a_volume_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset_module, "MEMORY_BYTES", 5 * VOLUME)
    data = opened(volumes(tmp_path, 5), structures=("organ",))
    held: list[int] = []
    original = dataset_module.read_case

    def read_case(*arguments: Any) -> Any:
        held.append(sum(item.nbytes for item in data._pixels.values()) // VOLUME)
        return original(*arguments)

    monkeypatch.setattr(dataset_module, "read_case", read_case)
    for reference in data.slices("all"):
        data.load(reference)
    assert held == [0, 2, 2, 2, 2]
