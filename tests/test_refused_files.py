"""Files and folders that the account may not read, wherever the package reads: FMS-D019, never 'missing'."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from fedfms.data.authoring.first_site.write import write_first_site
from fedfms.data.description.site import load_site
from fedfms.data.quality.check import check_site
from fedfms.data.slices.discovery import find_cases
from fedfms.data.slices.opening import DataRequest, open_dataset
from fedfms.errors import FILE_REFUSED, FedfmsError
from fedfms.prediction.inputs import find_inputs
from fedfms.sam.backbones import FOLDER_VARIABLE, load_weights, published_sha256
from fedfms.site.job_location import find_kit
from fedfms.site.policy import site_policy
from fedfms.site.records import append_line, last_digest, read_lines
from fedfms.site.review import PENDING_FOLDER, pending_jobs
from tests.accounts import shut
from tests.command import Command
from tests.data.quality.sites import dicom_site, raster_site, volume_site
from tests.generators import preprocessing, write_yaml


def lenient(site: Path) -> Path:
    """As forgiving as a description can be: bad cases are left out, masks are optional."""
    content = yaml.safe_load(site.read_text())
    for source in content["datasets"][0]["masks"]:
        source["required"] = False
    return write_yaml(site, {**content, "strict": False})


RASTER = ["images", "masks", "images/c03_0.png", "masks/c03_0.png"]


@pytest.mark.parametrize("mode", [0o000, 0o600, 0o100])
@pytest.mark.parametrize("name", RASTER)
def test_no_case_or_mask_is_left_out_because_it_may_not_be_read(
    name: str, mode: int, tmp_path: Path, fedfms: Command
) -> None:
    site = lenient(raster_site(tmp_path))
    if (tmp_path / name).is_file() and mode != 0:
        pytest.skip("a mode of folders")
    request = DataRequest(load_site(site).datasets[0].task, ("organ",), "mask", preprocessing())
    with shut(tmp_path / name, mode):
        report = check_site(site)
        with pytest.raises(FedfmsError) as caught:
            open_dataset(load_site(site), request)
        shown = fedfms("data", "check", site, "--show-ids")
    assert not report.ok and not report.left_out
    assert {problem.kind for problem in report.problems} == {FILE_REFUSED}, report.problems
    assert caught.value.ids == ("FMS-D019",)
    assert shown.code == 1 and str(tmp_path / name) in shown.out and f"mode {mode:04o}" in shown.out
    assert "remove" not in shown.out.lower() and "required: false" not in shown.out


def test_without_permission_to_see_them_names_stay_hidden(tmp_path: Path, fedfms: Command) -> None:
    site = lenient(raster_site(tmp_path))
    with shut(tmp_path / "masks"):
        shown = fedfms("data", "check", site)
    assert shown.code == 1 and "FMS-D019" in shown.out and str(tmp_path / "masks") not in shown.out


def test_the_root_and_the_description(tmp_path: Path, fedfms: Command) -> None:
    site = raster_site(tmp_path / "data")
    site = Path(shutil.move(site, tmp_path / "site.yaml"))
    content = yaml.safe_load(site.read_text())
    content["datasets"][0]["root"] = str(tmp_path / "data")
    write_yaml(site, content)
    with shut(tmp_path / "data"):
        assert {problem.kind for problem in check_site(site).problems} == {FILE_REFUSED}
    with shut(site):
        assert "may not read it" in fedfms("data", "preview", site, "--out", tmp_path / "x.png").failed_with("FMS-D019")
        assert {problem.kind for problem in check_site(site).problems} == {FILE_REFUSED}


@pytest.mark.parametrize("name", ["manifest.csv", "images", "masks", "images/c03_0.png", "masks/c03_0.png"])
def test_a_manifest_and_what_it_names(name: str, tmp_path: Path) -> None:
    images = {"manifest": "manifest.csv", "column": "image"}
    masks = [{"column": "mask", "labels": {"organ": 1}}]
    site = raster_site(tmp_path, images=images, masks=masks)
    rows = [f"images/{path.name},masks/{path.name}" for path in sorted((tmp_path / "images").iterdir())]
    (tmp_path / "manifest.csv").write_text("\n".join(["image,mask", *rows]))
    lenient(site)
    assert check_site(site).ok
    with shut(tmp_path / name):
        report = check_site(site)
    assert {problem.kind for problem in report.problems} == {FILE_REFUSED} and not report.left_out


@pytest.mark.parametrize("name", ["c03_0.nii.gz", "c03_0_mask.nii.gz"])
def test_a_volume(name: str, tmp_path: Path) -> None:
    site = lenient(volume_site(tmp_path))
    with shut(tmp_path / name):
        report = check_site(site)
    assert {problem.kind for problem in report.problems} == {FILE_REFUSED} and not report.left_out


@pytest.mark.parametrize("mode", [0o000, 0o600, 0o100])
@pytest.mark.parametrize("file", [True, False])
def test_a_series_of_dicom(file: bool, mode: int, tmp_path: Path) -> None:
    site = lenient(dicom_site(tmp_path))
    series = find_cases(load_site(site).datasets[0]).cases[3].image
    with shut(sorted(series.iterdir())[0] if file else series, 0 if file else mode):
        report = check_site(site)
    assert {problem.kind for problem in report.problems} == {FILE_REFUSED} and not report.left_out


@pytest.mark.parametrize("suffix", [".nrrd", ".nhdr"])
@pytest.mark.parametrize("which", ["header", "voxels"])
def test_a_volume_in_two_files(suffix: str, which: str, tmp_path: Path) -> None:
    import SimpleITK

    from fedfms.data.readers import itk

    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(np.zeros((3, 4, 5), np.uint8)), str(tmp_path / f"a{suffix}"))
    path = tmp_path / f"a{suffix}"
    closed = path if which == "header" else itk.files_of(path)[-1]
    with shut(closed), pytest.raises(FedfmsError) as caught:
        itk.read_volume(path)
    assert caught.value.ids == ("FMS-D019",) and str(closed) in str(caught.value)


@pytest.mark.parametrize("name", RASTER)
def test_a_first_description_leaves_nothing_out(name: str, tmp_path: Path) -> None:
    raster_site(tmp_path / "data")
    out = tmp_path / "new.yaml"
    with shut(tmp_path / "data" / name), pytest.raises(FedfmsError) as caught:
        write_first_site(tmp_path / "data", out)
    assert caught.value.ids == ("FMS-D019",) and str(tmp_path / "data" / name) in str(caught.value) and not out.exists()


def test_inputs_of_a_prediction(tmp_path: Path) -> None:
    for name in ("a/x.png", "b/y.png", "z"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8)).save(tmp_path / "in" / name, "png")
    with shut(tmp_path / "in" / "b"):
        inputs = find_inputs(tmp_path / "in", tmp_path / "out")
    assert [case.path.name for case in inputs.cases] == ["x.png"]
    assert [(item.kind, item.where) for item in inputs.problems] == [(FILE_REFUSED, str(tmp_path / "in" / "b"))]
    with shut(tmp_path / "in" / "z"):
        inputs = find_inputs(tmp_path / "in", tmp_path / "out")
    assert [(item.kind, item.where) for item in inputs.problems] == [(FILE_REFUSED, str(tmp_path / "in" / "z"))]
    with shut(tmp_path / "in"), pytest.raises(FedfmsError, match="FMS-D019"):
        find_inputs(tmp_path / "in" / "a" / "x.png", tmp_path / "out")


def test_a_folder_of_backbones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    file = folder / "sam_vit_b.pth"
    file.touch()
    monkeypatch.setenv(FOLDER_VARIABLE, str(folder))
    for closed in (file, folder):
        with shut(closed), pytest.raises(FedfmsError) as caught:
            load_weights("vit_b", published_sha256("vit_b"))
        assert caught.value.ids == ("FMS-D019",) and f"{closed}: " in str(caught.value)


def test_the_files_of_a_kit(tmp_path: Path) -> None:
    kit = tmp_path / "kit"
    append_line(kit / "review" / "decisions.jsonl", {"line": 1})
    (kit / PENDING_FOLDER).mkdir()
    (kit / "local").mkdir()
    (kit / "local" / "policy.yaml").touch()
    record = kit / "review" / "decisions.jsonl"
    for closed, call in (
        (kit, lambda: find_kit(kit)),
        (kit / "local", lambda: site_policy(kit)),
        (kit / "local", lambda: site_policy(kit, simulated=True)),
        (kit / "local" / "policy.yaml", lambda: site_policy(kit)),
        (kit / PENDING_FOLDER, lambda: pending_jobs(kit)),
        (kit / "review", lambda: read_lines(record)),
        (record, lambda: read_lines(record)),
        (record, lambda: last_digest(record)),
    ):
        with shut(closed), pytest.raises(FedfmsError) as caught:
            call()
        assert caught.value.ids == ("FMS-D019",) and f"{closed}" in str(caught.value), closed


def test_a_place_that_was_forgotten_still_says_what_refuses(tmp_path: Path, fedfms: Command) -> None:
    (tmp_path / "closed").mkdir()
    with shut(tmp_path / "closed"):
        source = tmp_path / "closed" / "source"
        prepared = fedfms("data", "prepare", "nuclei", "--source", source, "--out", tmp_path / "out")
        text = prepared.failed_with("FMS-D019")
        fedfms("inspect", tmp_path / "closed" / "model.safetensors").failed_with("FMS-D019")
    assert f"may not enter {tmp_path / 'closed'}" in text
