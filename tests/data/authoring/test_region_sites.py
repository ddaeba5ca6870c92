"""Sites whose masks are DICOM SEG and RTSTRUCT, from site.yaml to slices; and the real samples."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK
from highdicom.seg import SegmentationTypeValues
from pydicom.uid import RLELossless

from fedfms.data.description.site import MaskSource, load_site
from fedfms.data.dicom.image import read_dicom_volume
from fedfms.data.quality.check import check_site
from fedfms.data.readers.masks import annotated, volume_masks
from fedfms.data.slices.dataset import SiteDataset
from fedfms.data.slices.opening import DataRequest, open_dataset
from fedfms.errors import FedfmsError
from tests.data.dicom.test_rtstruct import box, write_rtstruct
from tests.data.dicom.test_seg import series_in, two_segments, write_seg
from tests.data.readers.test_itk import write as write_itk
from tests.generators import preprocessing, raster_dataset, write_yaml

MASKS: list[dict[str, Any]] = [
    {"pattern": "{case}/seg*.dcm", "labels": {"organ": "Liver", "lesion": ["Cyst", "Zyste"]}},
    {"pattern": "{case}/rt.dcm", "labels": {"heart": ["Heart", "COR"]}, "required": False},
]


def region_site(folder: Path, masks: list[dict[str, Any]] | None = None, files: str = "*") -> Path:
    """Three series with a SEG beside the images; ``a`` has an RTSTRUCT with a heart, ``b`` one without."""
    for case in ("a", "b", "c"):
        write_seg(folder / case / "seg_1.dcm", series_in(folder / case), two_segments())
    for case, name in (("a", "COR"), ("b", "Lung")):
        image = read_dicom_volume(folder / case)
        rois = {name: [box((1, 1), (4, 6), 2)]}
        write_rtstruct(folder / case / "rt.dcm", image, rois, frame=str(image.frame_of_reference))
    dataset = raster_dataset(
        format="dicom",
        images={"pattern": "{case}", "files": files},
        masks=masks or MASKS,
        patient={"rule": "each_image"},
        split={"rule": "by_patient", "validation": 0.34},
    )
    return write_yaml(folder / "site.yaml", {"datasets": [dataset]})


def opened(path: Path, *structures: str, **options: Any) -> SiteDataset:
    return open_dataset(
        load_site(path),
        DataRequest(
            task="organ-lesion",
            structures=structures,
            missing_structure="mask",
            preprocessing=preprocessing({"rule": "percentile", "low": 1, "high": 99}),
        ),
        **options,
    )


@pytest.mark.parametrize("verify", [True, False])
def test_structures_overlap_and_their_annotation_is_known_from_headers(tmp_path: Path, verify: bool) -> None:
    data = opened(region_site(tmp_path), "heart", "lesion", "organ", verify=verify)
    assert data.cases_per_structure("all") == {"heart": 1, "lesion": 3, "organ": 3}
    expected = two_segments()
    for reference in data.slices("all"):
        sample = data.load(reference)
        has_heart = reference.case.identity.endswith("/a")
        assert reference.case.structures == {"organ", "lesion"} | ({"heart"} if has_heart else set())
        assert sample.annotated.tolist() == [has_heart, True, True]
        # An axial series is shown as it is stored.
        assert np.array_equal(sample.masks[1], expected[:, :, reference.index, 1].T)
        assert np.array_equal(sample.masks[2], expected[:, :, reference.index, 0].T)
        assert sample.masks[0].sum() == (4 * 6 if has_heart and reference.index == 2 else 0)
    assert (expected.all(axis=3)).any()


def test_the_check_counts_annotated_cases(tmp_path: Path) -> None:
    report = check_site(region_site(tmp_path))
    assert not report.problems
    counts = {item.name: (item.annotated_cases, item.filled_slices) for item in report.rows[0].structures}
    assert counts == {"organ": (3, 12), "lesion": (3, 9), "heart": (1, 1)}
    found = {(item.kind.id, item.count, item.detail) for item in report.findings}
    assert ("FMS-Q011", 2, "heart: 2 of 3 cases") in found
    assert "FMS-Q012" not in {item[0] for item in found}, "words for the same thing"


@pytest.mark.parametrize(
    ("drawn", "lacking"),
    [
        # In order of the cases: parts, one of which lacks twice.
        ((["L", "R"], ["L"], ["R"]), ["b", "c"]),
        # Words for the same thing, and both sets of words for the same two parts.
        ((["L"], ["R"], ["left"]), []),
        ((["L", "R"], ["left", "right"], ["L", "R"]), []),
        ((["L", "R"], ["left", "right"], ["left"]), ["c"]),
    ],
)
def test_a_part_lacks_when_it_stands_beside_the_others_elsewhere(
    tmp_path: Path, drawn: tuple[list[str], ...], lacking: list[str]
) -> None:
    labels = {"kidney": ["L", "R", "left", "right"]}
    site = region_site(tmp_path, [{"pattern": "{case}/rt.dcm", "labels": labels}], files="0*.dcm")
    for case, names in zip("abc", drawn, strict=True):
        image = read_dicom_volume(tmp_path / case, "0*.dcm")
        rois = {name: [box((1, 1 + 3 * where), (3, 3 + 3 * where), 2)] for where, name in enumerate(names)}
        write_rtstruct(tmp_path / case / "rt.dcm", image, rois, frame=str(image.frame_of_reference))
    found = [item for item in check_site(site).findings if item.kind.id == "FMS-Q012"]
    assert [Path(name).name for item in found for name in item.named] == lacking
    assert [item.detail for item in found] == ([f"kidney: {len(lacking)} of 3 cases"] if lacking else [])


def test_all_missing_segments_of_all_cases_come_in_one_message(tmp_path: Path) -> None:
    masks = [{"pattern": "{case}/seg*.dcm", "labels": {"organ": "Spleen", "lesion": "Cyst"}}]
    with pytest.raises(FedfmsError) as caught:
        opened(region_site(tmp_path, masks), "organ", "lesion")
    assert [problem.kind.id for problem in caught.value.problems] == ["FMS-D016"] * 3
    assert caught.value.public.endswith("(3x)") and "Spleen" not in caught.value.public
    # A structure that the job does not ask for may be missing.
    assert opened(tmp_path / "site.yaml", "lesion").cases_per_structure("all") == {"lesion": 3}


def test_an_unreadable_optional_mask_is_named_once(tmp_path: Path) -> None:
    site = region_site(tmp_path, files="0*.dcm")
    path = tmp_path / "b" / "rt.dcm"
    path.write_bytes(path.read_bytes()[:200])
    for verify in (True, False):
        with pytest.raises(FedfmsError) as caught:
            opened(site, "heart", "organ", verify=verify)
        assert [problem.kind.id for problem in caught.value.problems] == ["FMS-D004"]
        assert str(path) in str(caught.value)


def test_several_segmentations_for_one_series_are_d014(tmp_path: Path) -> None:
    site = region_site(tmp_path)
    shutil.copy(tmp_path / "a" / "seg_1.dcm", tmp_path / "a" / "seg_2.dcm")
    with pytest.raises(FedfmsError) as caught:
        opened(site, "organ")
    assert caught.value.ids == ("FMS-D014",)


def test_a_mask_of_unknown_kind_is_d004_and_a_volume_takes_no_png(tmp_path: Path) -> None:
    series_in(tmp_path / "ct")
    image = read_dicom_volume(tmp_path / "ct")
    source = MaskSource(pattern="{case}.x", labels={"organ": 1})
    (tmp_path / "mask.vtk").write_text("hello")
    for name, identifier in (("mask.vtk", "FMS-D004"), ("mask.png", "FMS-D005"), ("absent.seg", "FMS-D003")):
        with pytest.raises(FedfmsError) as caught:
            volume_masks(tmp_path / name, source, ["organ"], image, "the image")
        assert caught.value.ids == (identifier,)


@pytest.mark.parametrize("kind", ["binary", "rle", "rtstruct", "nrrd", "mha"])
def test_damaged_masks_end_in_a_typed_error_or_a_mask(tmp_path: Path, kind: str) -> None:
    images = series_in(tmp_path / "ct")
    image = read_dicom_volume(tmp_path / "ct")
    masks = two_segments()
    path = tmp_path / f"mask{'.dcm' if kind in ('binary', 'rle', 'rtstruct') else '.' + kind}"
    if kind == "binary":
        write_seg(path, images, masks)
    elif kind == "rle":
        write_seg(path, images, masks.astype(float), SegmentationTypeValues.FRACTIONAL, RLELossless)
    elif kind == "rtstruct":
        write_rtstruct(path, image, {"x": [box((1, 1), (5, 5), 2)]}, frame=str(image.frame_of_reference))
    else:
        write_itk(path, masks[..., 0].astype(np.uint8), image.grid.affine)
    whole = path.read_bytes()
    source = MaskSource(pattern="{case}", labels={"organ": "nonzero"}, required=False)
    rng = np.random.default_rng(0)
    ends = set()
    for number in range(150):
        content = bytearray(whole)
        if number % 3 == 0:
            for position in rng.integers(0, len(content), 6):
                content[position] ^= 1 << int(rng.integers(0, 8))
        elif number % 3 == 1:
            content = content[: int(rng.integers(0, len(content)))]
        else:
            start, end = sorted(rng.integers(0, len(content), 2))
            content[start:end] = content[start:end][::-1]
        path.write_bytes(bytes(content))
        try:
            annotated(source, path)
            found = volume_masks(path, source, ["organ"], image, "the image")
            assert all(mask.shape == image.grid.shape and mask.max() <= 1 for mask in found.values())
            ends.add("mask")
        except FedfmsError:
            ends.add("error")
    assert "error" in ends


# --- real samples ----------------------------------------------------------------------------------------------


def real(path: Path, image: Any, **labels: object) -> dict[str, np.ndarray]:
    source = MaskSource.model_validate({"pattern": "{case}.dcm", "labels": labels})
    return volume_masks(path, source, list(labels), image, "the image")


@pytest.mark.shared_data
def test_real_segmentations_lie_on_their_ct(shared_data: Path) -> None:
    folder = shared_data / "dicom_samples" / "ct_liver_seg_dcmqi"
    image = read_dicom_volume(folder)
    # The file names the liver by SNOMED-RT.
    liver = real(folder / "liver.dcm", image, liver={"scheme": "SCT", "code": 10200004})["liver"]
    other = SimpleITK.ReadImage(str(folder / "liver.dcm"))
    theirs = SimpleITK.GetArrayFromImage(other).transpose(2, 1, 0)
    assert np.allclose(np.array(other.GetOrigin()) * (-1, -1, 1), image.grid.affine[:3, 3], atol=1e-3)
    assert np.array_equal(liver, theirs > 0)
    assert 20 < image.voxels[liver > 0].mean() < 80  # Hounsfield units of a liver
    found = real(folder / "partial_overlaps.dcm", image, a="GREEN", b="ORANGE", c="Capillary", d=4, e="Vein")
    assert {name: int(mask.sum()) for name, mask in found.items()} == {
        "a": 9602,
        "b": 11888,
        "c": 117 + 117 + 10509,
        "d": 6693,
        "e": 4713,
    }
    assert sum(found.values()).max() > 1  # they overlap
    assert [bool(found["a"][:, :, index].any()) for index in range(3)] == [False, True, False]


@pytest.mark.shared_data
def test_a_real_segmentation_of_one_frame_marks_bone(shared_data: Path) -> None:
    folder = shared_data / "dicom_samples" / "ct_seg_highdicom"
    image = read_dicom_volume(folder)
    bone = real(folder / "seg_image_ct_binary_single_frame.dcm", image, bone="Bone")["bone"]
    assert bone.sum() == 1832
    assert image.voxels[bone > 0].mean() > image.voxels[bone == 0].mean() + 500


@pytest.mark.shared_data
def test_a_real_structure_set_with_a_hole_and_an_invented_frame_of_reference(shared_data: Path) -> None:
    folder = shared_data / "dicom_samples" / "ct_rtstruct_rt-utils"
    image = read_dicom_volume(folder)
    structures = pydicom.dcmread(folder / "rt.dcm")
    assert structures.ReferencedFrameOfReferenceSequence[0].FrameOfReferenceUID != image.frame_of_reference
    mask = real(folder / "rt.dcm", image, roi="ROI-1")["roi"]
    # A square of 24 mm in the lower slice, with one of 15 mm less a corner of half a square millimetre cut out.
    outer, inner = 24**2, 15**2 - 0.5
    pixel = image.grid.spacing[0] * image.grid.spacing[1]
    assert mask[:, :, 0].sum() == mask.sum() == pytest.approx((outer - inner) / pixel, rel=0.025)
    points = np.argwhere(mask) @ image.grid.affine[:3, :3].T + image.grid.affine[:3, 3]
    assert points.min(axis=0) == pytest.approx((27, 27, 60), abs=0.5)  # RAS; the file says -51 to -27 in LPS
    assert points.max(axis=0) == pytest.approx((51, 51, 60), abs=0.5)
