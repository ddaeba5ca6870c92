"""What counts as an image, and what its results are called."""

from __future__ import annotations

import os
import shutil
import weakref
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedfms.data.description.series import SeriesChoice
from fedfms.data.dicom import series as dicom_files
from fedfms.errors import FedfmsError
from fedfms.prediction.inputs import find_inputs
from tests.generators import write_nifti, write_series

AFFINE = np.diag([1.0, 1, 3, 1])


def series(folder: Path, **tags: object) -> None:
    write_series(folder, np.full((8, 6, 3), 100, dtype=np.uint16), AFFINE, **tags)


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8)).save(path)


def found(path: Path, out: Path = Path("nowhere")) -> dict[str, tuple[str, int]]:
    return {str(case.name): (case.kind, len(case.files)) for case in find_inputs(path, out).cases}


def test_a_folder_of_everything(tmp_path: Path) -> None:
    series(tmp_path / "study" / "ct")
    picture(tmp_path / "photos" / "a.b.png")
    picture(tmp_path / "photos" / "c.JPG")
    write_nifti(tmp_path / "brain" / "t1.nii.gz", np.zeros((4, 4, 4), dtype=np.uint8), AFFINE)
    write_nifti(tmp_path / "brain" / "t2.nii", np.zeros((4, 4, 4), dtype=np.uint8), AFFINE)
    (tmp_path / "volume.mha").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("no image")
    picture(tmp_path / ".hidden" / "d.png")
    picture(tmp_path / ".e.png")
    picture(tmp_path / "out" / "earlier.png")
    inputs = find_inputs(tmp_path, tmp_path / "out")
    assert {str(case.name): (case.kind, len(case.files)) for case in inputs.cases} == {
        "brain/t1": ("nifti", 1),
        "brain/t2": ("nifti", 1),
        "photos/a.b": ("raster", 1),
        "photos/c": ("raster", 1),
        "study/ct": ("dicom", 3),
        "volume": ("itk", 1),
    }
    assert inputs.ignored == 1 and not inputs.problems


def test_single_files(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png")
    series(tmp_path / "ct")
    assert found(tmp_path / "a.png") == {"a": ("raster", 1)}
    assert found(tmp_path / "ct" / "001.dcm") == {"001": ("dicom", 1)}
    assert found(tmp_path / "ct") == {"ct": ("dicom", 3)}


def test_dicom_is_told_by_its_mark(tmp_path: Path) -> None:
    write_series(tmp_path / "x", np.zeros((8, 6, 2), dtype=np.uint16), AFFINE, names=["IM1", "IM2"])
    assert found(tmp_path / "x") == {"x": ("dicom", 2)}
    (tmp_path / "x" / "broken.dcm").write_text("not DICOM")
    inputs = find_inputs(tmp_path / "x", tmp_path / "out")
    assert [problem.kind.id for problem in inputs.problems] == ["FMS-D004"]
    assert "broken.dcm" in inputs.problems[0].where and len(inputs.cases) == 1


def test_series_in_one_folder_are_told_apart_by_number(tmp_path: Path) -> None:
    for number, name in (("2", "a"), ("3", "b"), ("3", "c")):
        series(tmp_path / name, SeriesNumber=number)
        for path in (tmp_path / name).iterdir():
            (tmp_path / "all").mkdir(exist_ok=True)
            shutil.copy(path, tmp_path / "all" / f"{name}{path.name}")
    kinds = {"all_series2": ("dicom", 3), "all_series3-1": ("dicom", 3), "all_series3-2": ("dicom", 3)}
    assert found(tmp_path / "all") == kinds


def test_a_series_over_several_folders_is_one_case(tmp_path: Path) -> None:
    series(tmp_path / "study" / "ct")
    (tmp_path / "study" / "ct" / "more").mkdir()
    (tmp_path / "study" / "ct" / "001.dcm").rename(tmp_path / "study" / "ct" / "more" / "001.dcm")
    assert found(tmp_path) == {"study/ct": ("dicom", 3)}


def test_photographs_of_one_series_are_cases_of_their_own(tmp_path: Path) -> None:
    photograph = "1.2.840.10008.5.1.4.1.1.77.1.5.1"
    without = {"ImagePositionPatient": None, "ImageOrientationPatient": None, "SOPClassUID": photograph}
    series(tmp_path / "eye", **without)
    assert found(tmp_path) == {f"eye/{number:03d}": ("dicom", 1) for number in range(3)}


def test_a_bad_picture_among_photographs_is_the_only_one_that_fails(tmp_path: Path) -> None:
    photograph = "1.2.840.10008.5.1.4.1.1.77.1.5.1"
    without = {"ImagePositionPatient": None, "ImageOrientationPatient": None, "SOPClassUID": photograph}
    series(tmp_path / "eye", **without)
    bad = tmp_path / "eye" / "001.dcm"
    bad.write_bytes(bad.read_bytes()[:-20])
    assert found(tmp_path) == {f"eye/{number:03d}": ("dicom", 1) for number in range(3)}


def test_a_bad_slice_of_a_volume_stays_a_part_of_it(tmp_path: Path) -> None:
    series(tmp_path / "ct")
    bad = tmp_path / "ct" / "001.dcm"
    bad.write_bytes(bad.read_bytes()[:-20])
    assert found(tmp_path) == {"ct": ("dicom", 3)}


def test_a_name_that_is_not_utf_8_is_a_problem_of_that_file(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/M\xfcller.png")).write_bytes((tmp_path / "a.png").read_bytes())
    inputs = find_inputs(tmp_path, tmp_path / "out")
    assert [str(case.name) for case in inputs.cases] == ["a"]
    assert [problem.kind.id for problem in inputs.problems] == ["FMS-D004"]
    assert "M\\xfcller.png" in str(inputs.problems[0]) and str(inputs.problems[0]).encode()


def test_series_are_chosen_by_their_description(tmp_path: Path) -> None:
    series(tmp_path / "study" / "loc", SeriesDescription="LOCALIZER")
    series(tmp_path / "study" / "tra", SeriesDescription="t2_tse_tra")
    picture(tmp_path / "a.png")
    inputs = find_inputs(tmp_path, tmp_path / "out", SeriesChoice(description="T2.*TRA"))
    assert [str(case.name) for case in inputs.cases] == ["a", "study/tra"]
    assert inputs.ignored == 3 and not inputs.problems
    with pytest.raises(FedfmsError) as caught:
        find_inputs(tmp_path / "study", tmp_path / "out", SeriesChoice(description="adc"))
    assert caught.value.ids == ("FMS-P002",) and "series that fits" in str(caught.value)


def test_a_link_to_nothing_is_an_image_that_is_missing(tmp_path: Path) -> None:
    (tmp_path / "a.dcm").symlink_to(tmp_path / "gone")
    (tmp_path / "b.png").symlink_to(tmp_path / "gone")
    inputs = find_inputs(tmp_path, tmp_path / "out")
    assert [problem.kind.id for problem in inputs.problems] == ["FMS-D003"]
    assert [case.name.name for case in inputs.cases] == ["b"], "its reader says that it is missing"


def test_headers_do_not_pile_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(4):
        series(tmp_path / str(number))
    headers: list[weakref.ref[object]] = []
    alive: list[int] = []

    def read_header(path: Path) -> object:
        header = dicom_files._read(path, stop_before_pixels=True)
        headers.append(weakref.ref(header))
        alive.append(sum(item() is not None for item in headers))
        return header

    monkeypatch.setattr(dicom_files, "read_header", read_header)
    assert len(find_inputs(tmp_path, tmp_path / "out").cases) == 4
    assert len(alive) == 12 and max(alive) <= 2, alive


def test_nothing_to_predict(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(FedfmsError, match="FMS-P002.*1 files"):
        find_inputs(tmp_path, tmp_path / "out")
    with pytest.raises(FedfmsError, match="FMS-D003"):
        find_inputs(tmp_path / "none", tmp_path / "out")
