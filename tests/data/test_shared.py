"""The readers and commands on real data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK
from highdicom.legacy import LegacyConvertedEnhancedMRImage

from fedfms.data.authoring.sites_from_folders import parse_structures, write_sites
from fedfms.data.description.site import load_site
from fedfms.data.dicom.image import read_dicom_volume
from fedfms.data.dicom.series import scan
from fedfms.data.quality.check import check_site
from fedfms.data.slices.opening import DataRequest, open_dataset
from fedfms.data.volume.geometry import LPS_TO_RAS, slice_plan
from fedfms.errors import FedfmsError
from tests.generators import preprocessing, raster_dataset, write_yaml

pytestmark = pytest.mark.shared_data


def test_brain_has_four_hospitals_with_disjoint_patients(shared_data: Path, tmp_path: Path) -> None:
    root = shared_data / "brain_lgg_flair"
    report = write_sites(root, parse_structures(["tumour=masks"]), out=tmp_path, patient_column="patient")
    rows = []
    for path in report.files:
        checked = check_site(path)
        assert checked.ok, checked.problems
        rows += checked.rows
    assert [row.cases for row in rows] == [58, 88, 58, 86]
    assert sum(row.patients for row in rows) == 51
    for row in rows:
        assert row.structures[0].filled_slices == row.cases
        assert 0.1 < row.cases_per_split["validation"] / row.cases < 0.3
    data = open_dataset(
        load_site(report.files[0]),
        DataRequest(
            task="segmentation",
            structures=("tumour",),
            missing_structure="error",
            preprocessing=preprocessing({"rule": "percentile", "low": 1, "high": 99}, 256),
        ),
        verify=False,
    )
    train = {case.patient for case in data.cases("train")}
    assert train.isdisjoint(case.patient for case in data.cases("validation"))
    sample = data.load(data.slices("train")[0])
    assert sample.image.shape == (3, 256, 256)
    assert sample.masks.sum() >= 150


def test_fundus_one_hospital_lacks_the_cup(shared_data: Path, tmp_path: Path) -> None:
    root = shared_data / "fundus_disc_cup"
    report = write_sites(root, parse_structures(["disc=masks", "cup=masks_cup"]), out=tmp_path, task="disc-cup")
    assert "IDRiD_Nanded-IN: no masks_cup/, so the site lacks structure cup" in report.warnings
    sites = {path.stem: load_site(path) for path in report.files}
    assert sites["IDRiD_Nanded-IN"].datasets[0].structures == ("disc",)
    strict = DataRequest("disc-cup", ("disc", "cup"), missing_structure="error", preprocessing=preprocessing(size=256))
    for name, count in (("DrishtiGS_Aravind-IN", 44), ("REFUGE_Zhongshan-CN", 54)):
        data = open_dataset(sites[name], strict)
        assert data.cases_per_structure("all") == {"disc": count, "cup": count}
        sample = data.load(data.slices("train")[0])
        assert sample.masks[1].sum() < sample.masks[0].sum()
        assert (sample.masks[1] & ~sample.masks[0]).sum() < 0.02 * sample.masks[1].sum()
    idrid = sites["IDRiD_Nanded-IN"]
    with pytest.raises(FedfmsError) as caught:
        open_dataset(idrid, strict, verify=False)
    assert caught.value.ids == ("FMS-D010",)
    data = open_dataset(idrid, replace(strict, missing_structure="mask"), verify=False)
    assert data.cases_per_structure("all") == {"disc": 14, "cup": 0}
    sample = data.load(data.slices("train")[0])
    assert sample.image.shape == (3, 2848, 4288)
    assert sample.annotated.tolist() == [True, False]


def test_nuclei_tiles_of_one_patient_stay_together(shared_data: Path, tmp_path: Path) -> None:
    """Two quadrants of each TCGA tile; only the names give the patients."""
    root = shared_data / "nuclei_he"
    expression = "^(TCGA-[^-]+-[^-]+|[0-9a-f]+$)"
    report = write_sites(root, parse_structures(["nuclei=masks"]), out=tmp_path, patient_expression=expression)
    rows = {}
    for path in report.files:
        checked = check_site(path)
        assert checked.ok, checked.problems
        rows[path.stem] = (checked.rows[0].cases, checked.rows[0].patients)
    assert rows == {
        "DSB2018_BBBC038": (56, 56),
        "TCGA-21_FoxChase": (4, 2),
        "TCGA-A7_Christiana": (4, 2),
        "TCGA-AR_Mayo": (4, 2),
        "TCGA-B0-50_UPittsburgh": (8, 4),
        "TCGA-G9-E2_RoswellPark": (14, 7),
        "TCGA-HE_OICR": (6, 3),
    }


def test_prostate_series_is_ordered_by_position(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "dicom_samples" / "mr_prostate3t"
    volume = read_dicom_volume(folder)
    assert volume.grid.shape == (384, 384, 19)
    assert volume.grid.spacing == pytest.approx((0.5, 0.5, 3.0), abs=1e-4)
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    other = SimpleITK.GetArrayFromImage(reader.Execute())
    assert np.array_equal(other, volume.voxels.transpose(2, 1, 0))
    assert np.array_equal(slice_plan(volume.grid, "axial").cut(volume.voxels), other)
    dataset = raster_dataset(
        format="dicom",
        root=str(folder.parent),
        images={"pattern": "mr_{case}"},
        masks=[],
        patient={"rule": "dicom_patient_id"},
    )
    report = check_site(write_yaml(tmp_path / "site.yaml", {"datasets": [dataset]}))
    assert not report.problems  # one patient cannot validate, but without masks need not
    assert report.rows[0].slices_per_split["train"] == 19
    assert report.rows[0].largest == (384, 384)


def test_every_sample_folder_is_one_image_series_whatever_lies_beside_it(shared_data: Path) -> None:
    samples = shared_data / "dicom_samples"
    expected = {
        "ct_liver_seg_dcmqi": ((512, 512, 3), "0*.dcm", ["image", "seg", "seg"]),
        "ct_rtstruct_rt-utils": ((512, 512, 2), "ct_*.dcm", ["image", "rtstruct"]),
        "ct_seg_highdicom": ((128, 128, 1), "ct_*.dcm", ["image", "seg"]),
        "mr_prostate3t": ((384, 384, 19), "*.dcm", ["image"]),
    }
    for name, (shape, files, kinds) in expected.items():
        found, problems = scan(samples / name)
        assert sorted(item.kind for item in found) == kinds
        assert not problems
        volume = read_dicom_volume(samples / name)
        assert volume.grid.shape == shape
        assert volume.frame_of_reference
        paths = [source.path for source in volume.sources]
        assert sorted(paths) == sorted((samples / name).glob(files))
        for index, path in enumerate(paths):
            other = SimpleITK.ReadImage(str(path))
            values = SimpleITK.GetArrayFromImage(other)[0]
            # Padding (PixelPaddingValue -2000 before rescaling), which SimpleITK takes for values.
            values[values == -3024] = volume.voxels.min()
            assert np.array_equal(values, volume.voxels[:, :, index].T)
            here = LPS_TO_RAS @ volume.grid.affine @ [5, 9, index, 1]
            assert np.allclose(here[:3], other.TransformIndexToPhysicalPoint((5, 9, 0)), atol=1e-3)
    assert read_dicom_volume(samples / "ct_rtstruct_rt-utils").voxels.min() < -500  # Hounsfield units


def test_the_legacy_converted_prostate_series_reads_like_its_original(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "dicom_samples" / "mr_prostate3t"
    originals = [pydicom.dcmread(path) for path in sorted(folder.iterdir())]
    for original in originals:
        original.PatientName = "A^B"
    converted = LegacyConvertedEnhancedMRImage(originals, "1.2.3", 9, "1.2.4", 1)
    converted.save_as(tmp_path / "one.dcm")
    ours, original = read_dicom_volume(tmp_path / "one.dcm"), read_dicom_volume(folder)
    assert np.array_equal(ours.voxels, original.voxels)
    assert np.allclose(ours.grid.affine, original.grid.affine, atol=1e-5)
    assert ours.frame_of_reference == original.frame_of_reference
    assert sorted(source.frame for source in ours.sources) == list(range(19))
