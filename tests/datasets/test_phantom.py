from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK

from fedfms.data.description.site import load_site
from fedfms.data.quality.check import check_site
from fedfms.data.slices.dataset import SiteDataset
from fedfms.data.slices.opening import DataRequest, open_dataset
from fedfms.datasets import phantom
from fedfms.datasets.phantom import scanner_of, write_demo_site
from fedfms.datasets.phantom_anatomy import SCANNERS
from tests.generators import preprocessing


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("sites")
    return {name: write_demo_site(root / name, name) for name in ("site-1", "site-2", "site-3")}


def opened(site: Path) -> SiteDataset:
    return open_dataset(
        load_site(site),
        DataRequest(
            task="segmentation",
            structures=("organ", "lesion"),
            missing_structure="error",
            preprocessing=preprocessing({"rule": "percentile", "low": 0.5, "high": 99.5}, 256),
        ),
    )


def digest(folder: Path) -> str:
    result = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            result.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return result.hexdigest()


def test_the_trailing_number_chooses_the_scanner() -> None:
    assert [scanner_of(f"site-{number}") for number in (1, 2, 3, 4)] == [*SCANNERS, SCANNERS[0]]
    assert scanner_of("hospital_a") is scanner_of("hospital_a")
    assert {scanner_of(name).name for name in "abcdefghij"} == {scanner.name for scanner in SCANNERS}


def test_sites_are_whole_and_pass_the_check(sites: dict[str, Path]) -> None:
    for site in sites.values():
        assert "SYNTHETIC" in site.read_text(encoding="utf-8").splitlines()[0]
        report = check_site(site)
        assert report.ok, report.problems
        assert report.findings == ()
        (row,) = report.rows
        assert (row.cases, row.patients) == (20, 20)
        assert row.slices_per_split == {"train": 48, "validation": 12, "test": 0}
        assert [item.annotated_cases for item in row.structures] == [20, 20]
        assert row.structures[0].filled_slices == 60
        assert row.structures[1].filled_slices >= 50


def test_the_lesion_is_in_the_organ_and_both_have_a_fair_size(sites: dict[str, Path]) -> None:
    for site in sites.values():
        data = opened(site)
        shares = []
        for reference in data.slices("all"):
            organ, lesion = data.load(reference).masks
            assert not (lesion & ~organ).any()
            assert 0.02 < organ.mean() < 0.4
            shares.append(lesion.sum() / organ.sum())
        assert 0.02 < np.mean(shares) < 0.3


def test_scanners_are_clearly_different(sites: dict[str, Path]) -> None:
    contrast, shapes, scales, spacings = [], set(), [], set()
    for site in sites.values():
        data = opened(site)
        sample = data.load(data.slices("train")[0])
        shapes.add(sample.image.shape)
        spacings.add(sample.spacing)
        differences = []
        for reference in data.slices("train"):
            item = data.load(reference)
            organ, lesion = item.masks.astype(bool)
            if lesion.any():
                differences.append(item.image[0][lesion].mean() - item.image[0][organ & ~lesion].mean())
        contrast.append(np.mean(differences))
        header = pydicom.dcmread(next((site.parent / "images" / "case01").iterdir()))
        scales.append(float(np.percentile(header.pixel_array.astype(float), 99)))
    assert len(shapes) == len(spacings) == 3
    assert contrast[0] < -15
    assert contrast[1] > 15
    assert contrast[2] > 15
    assert max(scales) > 4 * min(scales)


def test_the_same_name_gives_the_same_bytes_and_another_name_other_patients(
    tmp_path: Path, sites: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert digest(write_demo_site(tmp_path / "again", "site-1").parent) == digest(sites["site-1"].parent)
    monkeypatch.setattr(phantom, "PATIENTS", 1)
    other = write_demo_site(tmp_path / "other", "site-4")
    mask = "labels/case01.nii.gz"
    assert (other.parent / mask).read_bytes() != (sites["site-1"].parent / mask).read_bytes()


def test_a_whole_site_is_kept_and_a_partial_one_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(phantom, "PATIENTS", 1)
    site = write_demo_site(tmp_path / "x", "site-2")
    image = next((tmp_path / "x" / "images" / "case01").iterdir())
    image.write_bytes(b"")
    assert write_demo_site(tmp_path / "x", "site-2") == site
    assert image.stat().st_size == 0
    site.unlink()
    write_demo_site(tmp_path / "x", "site-2")
    assert image.stat().st_size > 1000


@pytest.mark.parametrize("name", ["site-1", "site-2", "site-3"])
def test_files_are_valid_mr_images_for_other_readers(sites: dict[str, Path], name: str) -> None:
    folder = sites[name].parent
    files = sorted((folder / "images" / "case02").iterdir())
    headers = [pydicom.dcmread(path) for path in files]
    first = headers[0]
    # Type 1 elements of the MR Image IOD's mandatory modules (PS3.3 A.4.3), and type 2 ones that must be present.
    for keyword in [
        "ImageType",
        "SOPClassUID",
        "SOPInstanceUID",
        "StudyInstanceUID",
        "SeriesInstanceUID",
        "FrameOfReferenceUID",
        "Modality",
        "SamplesPerPixel",
        "PhotometricInterpretation",
        "Rows",
        "Columns",
        "BitsAllocated",
        "BitsStored",
        "HighBit",
        "PixelRepresentation",
        "PixelSpacing",
        "ImageOrientationPatient",
        "ImagePositionPatient",
        "ScanningSequence",
        "SequenceVariant",
    ]:
        assert first[keyword].value not in (None, ""), keyword
    for keyword in [
        "PatientName",
        "PatientID",
        "PatientBirthDate",
        "PatientSex",
        "StudyDate",
        "StudyTime",
        "ReferringPhysicianName",
        "StudyID",
        "AccessionNumber",
        "SeriesNumber",
        "PositionReferenceIndicator",
        "Manufacturer",
        "InstanceNumber",
        "SliceThickness",
        "ScanOptions",
        "MRAcquisitionType",
        "EchoTime",
        "EchoTrainLength",
        "RepetitionTime",
    ]:
        assert keyword in first, keyword
    assert len({header.SOPInstanceUID for header in headers}) == 3
    assert len({header.SeriesInstanceUID for header in headers}) == 1
    assert all(pydicom.uid.UID(header.SOPInstanceUID).is_valid for header in headers)
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(files[0].parent)))
    image = reader.Execute()
    mask = SimpleITK.ReadImage(str(folder / "labels" / "case02.nii.gz"))
    placed = SimpleITK.Resample(mask, image, SimpleITK.Transform(), SimpleITK.sitkNearestNeighbor)
    labels = SimpleITK.GetArrayFromImage(placed)
    data = opened(sites[name])
    references = [item for item in data.slices("all") if item.case.identity.endswith("case02")]
    for reference in references:
        organ, lesion = data.load(reference).masks
        assert np.array_equal(labels[reference.index] > 0, organ > 0)
        assert np.array_equal(labels[reference.index] == 2, lesion > 0)
