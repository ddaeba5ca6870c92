"""Masks that name the series they were drawn on, beside another series of the same patient."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from fedfms.data.dicom.image import read_dicom_volume
from fedfms.data.quality.check import CheckReport, check_site
from fedfms.data.quality.finding import Finding
from tests.data.dicom.test_rtstruct import box, write_rtstruct
from tests.data.dicom.test_seg import SHAPE, lps_affine, series_in, two_segments, write_seg
from tests.generators import raster_dataset, write_nifti, write_series, write_yaml

KINDS = ["seg", "rtstruct"]


def checked(
    folder: Path, kind: str, shift: float, segmented: str = "T1", cases: str = "ab", hole: bool = False
) -> CheckReport:
    """Two series per case, T1 and T2, ``shift`` mm apart along the slices; the mask is drawn on ``segmented``.

    ``site.yaml`` names the T2.
    """
    for case in cases:
        t1 = series_in(folder / case / "t1")
        frame = {"StudyInstanceUID": t1[0].StudyInstanceUID, "FrameOfReferenceUID": t1[0].FrameOfReferenceUID}
        affine = lps_affine()
        affine[2, 3] += shift
        voxels = np.random.default_rng(ord(case)).integers(0, 4000, SHAPE, dtype=np.uint16)
        tags: dict[str, Any] = {"SeriesDescription": "T2", "SeriesNumber": 7, "PatientName": "", **frame}
        write_series(folder / case / "t2", voxels, affine, **tags)
        source = folder / case / segmented.lower()
        if kind == "seg":
            images = [pydicom.dcmread(path) for path in sorted(source.glob("*.dcm"), reverse=True)]
            for image in images:
                for tag in ("PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID", "AccessionNumber"):
                    setattr(image, tag, t1[0].get(tag))
                image.ReferringPhysicianName = ""
            write_seg(folder / case / "mask.dcm", images, two_segments())
        else:
            image = read_dicom_volume(source)
            assert image.series is not None
            rois = {"Leber": [box((1, 1), (5, 6), 2), *([box((2, 2), (4, 5), 2)] if hole else [])]}
            where = {"frame": str(image.frame_of_reference), "series_uid": image.series.uid}
            write_rtstruct(folder / case / "mask.dcm", image, rois, **where)
    dataset = raster_dataset(
        format="dicom",
        images={"pattern": "{case}", "files": "t[12]/*.dcm", "series": {"description": "^T2$"}},
        masks=[{"pattern": "{case}/mask.dcm", "labels": {"organ": "Leber"}}],
        patient={"rule": "each_image"},
    )
    return check_site(write_yaml(folder / "site.yaml", {"datasets": [dataset]}))


def only(report: CheckReport, identifier: str) -> Finding:
    (finding,) = [item for item in report.findings if item.kind.id == identifier]
    return finding


@pytest.mark.parametrize("kind", KINDS)
def test_a_mask_that_does_not_fit_says_what_it_was_drawn_on(tmp_path: Path, kind: str) -> None:
    finding = only(checked(tmp_path, kind, shift=1.5), "FMS-D005")
    assert finding.count == 2
    assert "another series" in finding.remedy and "images.series" in finding.remedy
    assert "resample" not in "".join(finding.files)
    uids = [read_dicom_volume(tmp_path / "a" / name).series for name in ("t1", "t2")]
    for series in uids:
        assert series is not None and series.uid in finding.files[0]
        assert series.uid not in str(finding.as_json(show_ids=False))
    assert f"{tmp_path / 'a'}, MR 'T2' (series number 7, 6 files)" in finding.files[0]
    assert len(finding.files_in_short) == 1, "both cases have the same problem"


@pytest.mark.parametrize("kind", KINDS)
def test_a_mask_that_fits_another_series_is_a_warning(tmp_path: Path, kind: str) -> None:
    report = checked(tmp_path, kind, shift=0)
    finding = only(report, "FMS-Q013")
    assert report.ok and (finding.severity, finding.count, finding.detail) == ("WARN", 2, "2 of 2 cases")
    series = read_dicom_volume(tmp_path / "a" / "t1").series
    assert series is not None and series.uid in finding.named[0]
    assert series.uid not in str(finding.as_json(show_ids=False))


@pytest.mark.parametrize("hole", [False, True])
def test_contours_that_are_read_as_holes_are_told(tmp_path: Path, hole: bool) -> None:
    report = checked(tmp_path, "rtstruct", shift=1.5, segmented="T2", hole=hole)
    assert report.ok and ("FMS-Q014" in {item.kind.id for item in report.findings}) == hole
    if hole:
        finding = only(report, "FMS-Q014")
        assert (finding.severity, finding.count, finding.detail) == ("WARN", 2, "2 contours in 2 of 2 cases")
        assert "1 contours are within another" in finding.named[0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_mask_of_the_series_itself_is_right(tmp_path: Path, kind: str) -> None:
    report = checked(tmp_path, kind, shift=1.5, segmented="T2")
    assert report.ok and "FMS-Q013" not in {item.kind.id for item in report.findings}


@pytest.mark.parametrize("kind", KINDS)
def test_a_mask_that_names_no_series_or_the_right_one_gets_another_remedy(tmp_path: Path, kind: str) -> None:
    report = checked(tmp_path, kind, shift=0)
    for case in "ab":
        path = tmp_path / case / "mask.dcm"
        dataset = pydicom.dcmread(path)
        for tag in ("ReferencedSeriesSequence", "ReferencedFrameOfReferenceSequence"):
            if tag in dataset:
                delattr(dataset, tag)
        dataset.save_as(path)
    assert "FMS-Q013" in {item.kind.id for item in report.findings}
    again = check_site(tmp_path / "site.yaml")
    assert again.ok and "FMS-Q013" not in {item.kind.id for item in again.findings}


def test_a_label_map_with_more_slices_than_the_image_needs_no_resampling(tmp_path: Path) -> None:
    affine = np.diag([-1.0, -1.0, 2.0, 1.0])
    for case in "ab":
        voxels = np.random.default_rng(ord(case)).integers(0, 99, (6, 5, 4)).astype(np.int16)
        write_nifti(tmp_path / f"{case}.nii.gz", voxels, affine)
        write_nifti(tmp_path / f"{case}_mask.nii.gz", np.ones((6, 5, 5), np.uint8), affine)
    dataset = raster_dataset(
        format="nifti",
        images={"pattern": "{case}.nii.gz"},
        masks=[{"pattern": "{case}_mask.nii.gz", "labels": {"organ": 1}}],
        patient={"rule": "each_image"},
    )
    finding = only(check_site(write_yaml(tmp_path / "site.yaml", {"datasets": [dataset]})), "FMS-D005")
    assert "share their voxels" in finding.remedy and "resample" not in finding.remedy
