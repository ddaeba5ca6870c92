"""DICOM SEG, written and read back by highdicom."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import highdicom
import nibabel
import numpy as np
import pydicom
import pytest
from highdicom.seg import SegmentationTypeValues, SegmentDescription
from highdicom.sr import CodedConcept
from pydicom.uid import ExplicitVRLittleEndian, JPEGLSLossless, RLELossless

from fedfms.data.description.site import MaskSource
from fedfms.data.dicom.image import read_dicom_grid, read_dicom_volume
from fedfms.data.readers.masks import annotated, region_facts, volume_masks
from fedfms.data.volume.geometry import Grid, Volume
from fedfms.errors import FedfmsError
from tests.generators import rotation, write_nifti, write_series

SHAPE = (11, 9, 6)  # columns, rows, slices
LIVER = CodedConcept("10200004", "SCT", "Liver")
CYST = CodedConcept("103552005", "SCT", "Cyst")
STUDY = {
    **{"PatientName": "", "PatientBirthDate": "", "PatientSex": "", "ReferringPhysicianName": ""},
    **{"StudyDate": "20200101", "StudyTime": "101010", "StudyID": "1", "AccessionNumber": ""},
}


def lps_affine(turn: tuple[float, float, float] = (0, 0, 0), flip_slices: bool = False) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = rotation(turn) @ np.diag([0.7, 0.9, -4.0 if flip_slices else 4.0])
    affine[:3, 3] = (-30, 20, 100)
    return affine


def series_in(
    folder: Path, affine: np.ndarray | None = None, shape: tuple[int, int, int] = SHAPE
) -> list[pydicom.Dataset]:
    """Write a series and return its files, last slice first."""
    voxels = np.random.default_rng(1).integers(0, 4000, shape, dtype=np.uint16)
    write_series(folder, voxels, lps_affine() if affine is None else affine, **STUDY)
    return [pydicom.dcmread(path) for path in sorted(folder.glob("*.dcm"), reverse=True)]


def two_segments() -> np.ndarray:
    """Boolean (column, row, slice, segment): 1 fills slices 1 to 4, 2 overlaps it and slice 0."""
    masks = np.zeros((*SHAPE, 2), bool)
    masks[2:9, 1:7, 1:5, 0] = True
    masks[2, 6, 1:5, 0] = False  # nothing is symmetric
    masks[7:10, 3:8, 0:3, 1] = True
    masks[9, 3, 1, 1] = False
    return masks


def write_seg(
    path: Path,
    images: Sequence[pydicom.Dataset],
    masks: np.ndarray,
    kind: SegmentationTypeValues = SegmentationTypeValues.BINARY,
    syntax: str = ExplicitVRLittleEndian,
    **options: Any,
) -> Path:
    """Write masks (column, row, slice, segment), values 0 to 1, of a series from ``series_in``."""
    descriptions = [
        SegmentDescription(
            number,
            label,
            CodedConcept("85756007", "SCT", "Tissue"),
            code,
            highdicom.seg.SegmentAlgorithmTypeValues.MANUAL,
        )
        for number, (label, code) in enumerate([("Leber", LIVER), ("Zyste 1", CYST)], start=1)
    ]
    by_image = np.ascontiguousarray(masks.transpose(2, 1, 0, 3)[::-1])
    if kind is SegmentationTypeValues.LABELMAP:
        by_image = np.where(by_image[..., 1], 2, by_image[..., 0]).astype(np.uint8)
    seg = highdicom.seg.Segmentation(
        images,
        by_image.astype(np.uint8) if by_image.dtype == bool else by_image,
        kind,
        descriptions,
        highdicom.UID(),
        1,
        highdicom.UID(),
        1,
        *("M", "M", "1", "1"),
        transfer_syntax_uid=syntax,
        **options,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    seg.save_as(path)
    return path


def source(required: bool = True, **labels: object) -> MaskSource:
    return MaskSource.model_validate({"pattern": "{case}.dcm", "labels": labels, "required": required})


def read(path: Path, image: Volume, required: bool = True, **labels: object) -> dict[str, np.ndarray]:
    return volume_masks(path, source(required, **labels), list(labels), image, "the image")


def failure(path: Path, image: Volume, **labels: object) -> FedfmsError:
    with pytest.raises(FedfmsError) as caught:
        read(path, image, **labels)
    return caught.value


def change(path: Path, edit: Any) -> Path:
    dataset = pydicom.dcmread(path)
    edit(dataset)
    dataset.save_as(path)
    return path


# --- round trips ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("turn", "flip_slices"),
    [((0, 0, 0), False), ((0, 0, 0), True), ((90, 0, 90), False), ((90, 0, 0), True), ((12, -25, 40), False)],
    ids=["axial", "flipped", "sagittal", "coronal", "oblique"],
)
def test_segments_lie_where_highdicom_put_them(
    tmp_path: Path, turn: tuple[float, float, float], flip_slices: bool
) -> None:
    affine = lps_affine(turn, flip_slices)
    masks = two_segments()
    images = series_in(tmp_path / "ct", affine)
    path = write_seg(tmp_path / "seg.dcm", images, masks)
    image = read_dicom_volume(tmp_path / "ct")
    found = read(path, image, liver=1, cyst=2)
    expected = masks[:, :, ::-1] if flip_slices else masks  # the reader orders slices along the normal
    assert np.array_equal(found["liver"], expected[..., 0])
    assert np.array_equal(found["cyst"], expected[..., 1])
    # The same points of the patient by highdicom's own geometry.
    other = highdicom.seg.segread(path).get_volume(combine_segments=False)
    for number, name in enumerate(("liver", "cyst")):
        there = np.argwhere(other.array[..., number])
        theirs = there @ other.affine[:3, :3].T + other.affine[:3, 3]
        ours = np.argwhere(found[name]) @ image.grid.affine[:3, :3].T + image.grid.affine[:3, 3]
        ours = ours * (-1, -1, 1)  # RAS to LPS
        assert len(ours) == len(theirs) > 20
        order = [np.lexsort(np.round(points, 2).T) for points in (ours, theirs)]
        assert np.allclose(ours[order[0]], theirs[order[1]], atol=1e-3)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless, JPEGLSLossless])
def test_fractional_segments_are_cut_at_one_half_of_their_own_maximum(tmp_path: Path, syntax: str) -> None:
    shape = (80, 64, 3)  # encoders refuse smaller ones
    images = series_in(tmp_path / "ct", shape=shape)
    fractions = np.random.default_rng(0).integers(0, 201, (*shape, 2)) / 200
    fractions[:, 8:] = 1  # noise alone does not become smaller, and an encoder refuses that too
    fractions[0, :4, 2, 0] = (0.49, 0.5, 0.51, 1)
    path = write_seg(
        tmp_path / "seg.dcm",
        images,
        fractions,
        SegmentationTypeValues.FRACTIONAL,
        syntax,
        max_fractional_value=200,
    )
    found = read(path, read_dicom_volume(tmp_path / "ct"), liver=1, cyst=2)
    assert found["liver"][0, :4, 2].tolist() == [0, 1, 1, 1]
    assert np.array_equal(found["liver"], fractions[..., 0] >= 0.5)
    assert np.array_equal(found["cyst"], fractions[..., 1] >= 0.5)


def test_label_map_segmentations(tmp_path: Path) -> None:
    masks = two_segments()
    path = write_seg(tmp_path / "seg.dcm", series_in(tmp_path / "ct"), masks, SegmentationTypeValues.LABELMAP)
    found = read(path, read_dicom_volume(tmp_path / "ct"), liver="Leber", cyst=CYST_CODE, both="nonzero")
    assert np.array_equal(found["cyst"], masks[..., 1])
    assert np.array_equal(found["liver"], masks[..., 0] & ~masks[..., 1])
    assert np.array_equal(found["both"], masks.any(axis=3))


CYST_CODE = {"scheme": "SCT", "code": 103552005}


def test_an_image_in_any_axis_order_gets_the_same_voxels(tmp_path: Path) -> None:
    """A SEG beside a NIfTI image that was converted from the series."""
    masks = two_segments()
    path = write_seg(tmp_path / "seg.dcm", series_in(tmp_path / "ct", lps_affine((12, -25, 40))), masks)
    grid = read_dicom_grid(tmp_path / "ct")
    reference = nibabel.Nifti1Image(masks[..., 1].astype(np.uint8), grid.affine)
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            turned = reference.as_reoriented(np.array(list(zip(order, signs, strict=True))))
            image = Volume(np.asarray(turned.dataobj), Grid(turned.shape, turned.affine))
            assert np.array_equal(read(path, image, cyst=2)["cyst"], image.voxels)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd"])
def test_a_label_map_in_all_48_orientations_lands_on_dicom_and_nifti_images(tmp_path: Path, suffix: str) -> None:
    from tests.data.readers.test_itk import write as write_itk

    masks = two_segments()[..., 1].astype(np.uint8)
    series_in(tmp_path / "ct", lps_affine((12, -25, 40)))
    image = read_dicom_volume(tmp_path / "ct")
    reference = nibabel.Nifti1Image(masks, image.grid.affine)
    images = [image, Volume(image.voxels, image.grid)]
    seen = set()
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            turned = reference.as_reoriented(np.array(list(zip(order, signs, strict=True))))
            write = write_nifti if suffix == ".nii.gz" else write_itk
            path = write(tmp_path / f"mask{suffix}", np.asarray(turned.dataobj), turned.affine)
            seen.add((order, signs))
            for target in images:
                assert np.array_equal(read(path, target, cyst=1)["cyst"], masks)
    assert len(seen) == 48


# --- frames and slices -----------------------------------------------------------------------------------------


def test_frames_are_placed_by_position_not_by_number(tmp_path: Path) -> None:
    masks = two_segments()
    path = write_seg(tmp_path / "seg.dcm", series_in(tmp_path / "ct"), masks)

    def shuffle(dataset: pydicom.Dataset) -> None:
        order = np.random.default_rng(0).permutation(int(dataset.NumberOfFrames))
        groups = list(dataset.PerFrameFunctionalGroupsSequence)
        dataset.PerFrameFunctionalGroupsSequence = [groups[index] for index in order]
        bits = np.packbits(dataset.pixel_array[order].ravel(), bitorder="little").tobytes()
        dataset.PixelData = bits + b"\0" * (len(bits) % 2)

    found = read(change(path, shuffle), read_dicom_volume(tmp_path / "ct"), liver=1, cyst=2)
    assert np.array_equal(found["liver"], masks[..., 0])
    assert np.array_equal(found["cyst"], masks[..., 1])


def test_slices_without_a_frame_are_empty_and_a_segment_without_any_is_annotated(tmp_path: Path) -> None:
    masks = two_segments()
    masks[..., 1] = False
    path = write_seg(tmp_path / "seg.dcm", series_in(tmp_path / "ct"), masks)
    assert pydicom.dcmread(path).NumberOfFrames == 4
    found = read(path, read_dicom_volume(tmp_path / "ct"), liver=1, cyst=2)
    assert np.array_equal(found["liver"], masks[..., 0])
    assert found["cyst"].shape == SHAPE and not found["cyst"].any()


def test_a_segment_that_goes_beyond_the_images_slices_is_d005_but_empty_frames_are_not(tmp_path: Path) -> None:
    images = series_in(tmp_path / "ct")
    path = write_seg(tmp_path / "seg.dcm", images, two_segments(), omit_empty_frames=False)
    for name in ("000.dcm", "005.dcm"):  # slice 5 has no segment, slice 0 has segment 2
        (tmp_path / "ct" / name).unlink()
    image = read_dicom_volume(tmp_path / "ct")
    assert np.array_equal(read(path, image, liver=1)["liver"], two_segments()[:, :, 1:5, 0])
    error = failure(path, image, cyst=2)
    assert error.ids == ("FMS-D005",)
    assert "segment 2 extends beyond the slices of the image" in str(error)


def test_two_frames_of_a_segment_at_one_place_are_d014(tmp_path: Path) -> None:
    path = write_seg(tmp_path / "seg.dcm", series_in(tmp_path / "ct"), two_segments())

    def repeat(dataset: pydicom.Dataset) -> None:
        groups = dataset.PerFrameFunctionalGroupsSequence
        groups[1].PlanePositionSequence = groups[0].PlanePositionSequence

    error = failure(change(path, repeat), read_dicom_volume(tmp_path / "ct"), liver=1)
    assert error.ids == ("FMS-D014",)
    assert "1 frames are at the position of another frame of the same segment: 2" in str(error)


# --- what does not fit -----------------------------------------------------------------------------------------


def test_another_frame_of_reference_is_d005_with_both_even_on_the_same_grid(tmp_path: Path) -> None:
    path = write_seg(tmp_path / "seg.dcm", series_in(tmp_path / "ct"), two_segments())
    own = read_dicom_volume(tmp_path / "ct")
    other = Volume(own.voxels, own.grid, "1.2.3.4")
    error = failure(path, other, liver=1)
    assert error.ids == ("FMS-D005",)
    assert "1.2.3.4" in str(error) and str(own.frame_of_reference) in str(error)
    assert "1.2.3" not in error.public
    assert read(path, Volume(own.voxels, own.grid), liver=1)["liver"].any()  # NIfTI has none: the grid decides


@pytest.mark.parametrize("what", ["shifted", "turned", "finer", "larger"])
def test_another_grid_of_the_same_size_is_d005_with_both_sides(tmp_path: Path, what: str) -> None:
    path = write_seg(tmp_path / "seg.dcm", series_in(tmp_path / "ct"), two_segments())
    own = read_dicom_volume(tmp_path / "ct")
    affine, shape = own.grid.affine.copy(), own.grid.shape
    if what == "shifted":
        affine[:3, 3] += 0.5 * affine[:3, 0]
    elif what == "turned":
        affine[:3, :3] = rotation((0, 0, 5)) @ affine[:3, :3]
    elif what == "finer":
        affine[:3, 1] *= 0.9
    else:
        shape = (shape[0] - 1, shape[1], shape[2])
    image = Volume(np.zeros(shape), Grid(shape, affine), own.frame_of_reference)
    error = failure(path, image, liver=1)
    assert error.ids == ("FMS-D005",)
    assert "4 of 4 frames, such as: 11 x 9 x 1 voxels of 0.7 x 0.9" in str(error) and str(image.grid) in str(error)


def test_a_slice_a_little_off_its_place_still_fits_its_frame(tmp_path: Path) -> None:
    """Series whose slices are up to a twentieth off are read; a SEG has the same positions."""
    images = series_in(tmp_path / "ct")
    for image in images:
        if image.ImagePositionPatient[2] == 108:
            image.ImagePositionPatient[2] = 108.18
            image.save_as(tmp_path / "ct" / "002.dcm")
    masks = two_segments()
    path = write_seg(tmp_path / "seg.dcm", images, masks)
    assert np.array_equal(read(path, read_dicom_volume(tmp_path / "ct"), liver=1)["liver"], masks[..., 0])


def _position(dataset: pydicom.Dataset, values: Sequence[str]) -> None:
    item = dataset.PerFrameFunctionalGroupsSequence[1].PlanePositionSequence[0]
    item.ImagePositionPatient = [pydicom.valuerep.DSfloat(value) for value in values]


def _measures(dataset: pydicom.Dataset) -> pydicom.Dataset:
    return dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (lambda dataset: dataset.PerFrameFunctionalGroupsSequence.pop(), "items of per-frame functional groups"),
        (lambda dataset: delattr(dataset, "PerFrameFunctionalGroupsSequence"), "but 0 items of per-frame"),
        (lambda dataset: delattr(dataset, "NumberOfFrames"), "no NumberOfFrames"),
        (
            lambda dataset: delattr(dataset.SharedFunctionalGroupsSequence[0], "PixelMeasuresSequence"),
            "a frame without PixelMeasuresSequence",
        ),
        (
            lambda dataset: dataset.SharedFunctionalGroupsSequence.append(pydicom.Dataset()),
            "items of per-frame functional groups",
        ),
        (lambda dataset: setattr(_measures(dataset), "PixelSpacing", None), "frame 1: its position, orientation or"),
        (lambda dataset: _position(dataset, ["1", "2"]), "frame 2: its position, orientation or pixel spacing"),
        (lambda dataset: _position(dataset, ["1", "2", "1e400"]), "frame 2: its position, orientation or pixel"),
        (lambda dataset: setattr(dataset, "PixelData", dataset.PixelData[:20]), "there are no pixels for frame 2"),
        (lambda dataset: delattr(dataset, "PixelData"), "no PixelData"),
        (lambda dataset: setattr(dataset, "Rows", 0), "frames of 0 x 11 pixels"),
        (lambda dataset: setattr(dataset, "Columns", 0), "frames of 9 x 0 pixels"),
        (lambda dataset: setattr(dataset, "SegmentationType", "SURFACE"), "of type SURFACE is not supported"),
        (lambda dataset: delattr(dataset, "SegmentSequence"), "no SegmentSequence"),
        (lambda dataset: delattr(dataset.SegmentSequence[0], "SegmentNumber"), "no SegmentNumber"),
    ],
)
def test_a_damaged_object_is_d004(tmp_path: Path, edit: Any, sentence: str) -> None:
    path = change(write_seg(tmp_path / "seg.dcm", series_in(tmp_path / "ct"), two_segments()), edit)
    error = failure(path, read_dicom_volume(tmp_path / "ct"), liver=1)
    assert error.ids == ("FMS-D004",) and sentence in str(error), error


def test_a_fractional_object_without_its_maximum_or_in_colour_is_d004(tmp_path: Path) -> None:
    images = series_in(tmp_path / "ct")
    path = write_seg(tmp_path / "seg.dcm", images, two_segments() * 1.0, SegmentationTypeValues.FRACTIONAL)
    image = read_dicom_volume(tmp_path / "ct")

    def colour(dataset: pydicom.Dataset) -> None:
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "RGB", 0
        dataset.PixelData = dataset.PixelData * 3

    in_colour = failure(change(path, colour), image, liver=1)
    assert in_colour.ids == ("FMS-D004",) and "pixels of shape (9, 11, 3)" in str(in_colour)
    path = write_seg(tmp_path / "seg.dcm", images, two_segments() * 1.0, SegmentationTypeValues.FRACTIONAL)
    without = failure(change(path, lambda dataset: delattr(dataset, "MaximumFractionalValue")), image, liver=1)
    assert without.ids == ("FMS-D004",) and "no MaximumFractionalValue" in str(without)


def test_a_dicom_file_that_is_not_a_mask_is_d004(tmp_path: Path) -> None:
    series_in(tmp_path / "ct")
    error = failure(tmp_path / "ct" / "001.dcm", read_dicom_volume(tmp_path / "ct"), liver=1)
    assert error.ids == ("FMS-D004",) and "MR Image Storage" in str(error)


# --- names -----------------------------------------------------------------------------------------------------


def test_segments_are_found_by_number_label_meaning_and_code(tmp_path: Path) -> None:
    masks = two_segments()
    path = write_seg(tmp_path / "seg.dcm", series_in(tmp_path / "ct"), masks)
    image = read_dicom_volume(tmp_path / "ct")
    by_old_code = {"scheme": "SRT", "code": "T-62000"}  # SNOMED-RT's Liver, as older files have it
    for name in (1, "Leber", "Liver", {"scheme": "SCT", "code": 10200004}, by_old_code, [1], ["Leber", "Foie"]):
        assert np.array_equal(read(path, image, x=name)["x"], masks[..., 0]), name
    assert np.array_equal(read(path, image, x=["Liver", "Cyst"])["x"], masks.any(axis=3))
    assert np.array_equal(read(path, image, x="nonzero")["x"], masks.any(axis=3))


def test_a_label_goes_before_a_meaning(tmp_path: Path) -> None:
    path = write_seg(tmp_path / "seg.dcm", series_in(tmp_path / "ct"), two_segments())
    change(path, lambda dataset: setattr(dataset.SegmentSequence[1], "SegmentLabel", "Liver"))
    found = read(path, read_dicom_volume(tmp_path / "ct"), x="Liver")
    assert np.array_equal(found["x"], two_segments()[..., 1])


def test_a_missing_segment_is_d016_with_those_there_are_or_not_annotated(tmp_path: Path) -> None:
    path = write_seg(tmp_path / "seg.dcm", series_in(tmp_path / "ct"), two_segments())
    image = read_dicom_volume(tmp_path / "ct")
    error = failure(path, image, liver="liver", spleen=3, cyst=2)
    assert error.ids == ("FMS-D016",) and len(error.problems) == 2
    assert "no segment fits spleen (3); the file has: 1 'Leber' (Liver, SCT 10200004); 2 'Zyste 1'" in str(error)
    assert read(path, image, required=False, liver="liver", spleen=3, cyst=2).keys() == {"cyst"}
    assert annotated(source(required=False, liver="liver", cyst=2), path) == {"cyst"}
    facts = region_facts(source(liver=["Leber", "liver"], cyst=2, both=[1, 2]), path)
    assert facts is not None
    assert facts.lists == {"liver": ({1}, set()), "both": ({1}, {2})}


def test_only_wanted_structures_are_read(tmp_path: Path) -> None:
    path = write_seg(tmp_path / "seg.dcm", series_in(tmp_path / "ct"), two_segments())
    image = read_dicom_volume(tmp_path / "ct")
    assert volume_masks(path, source(liver=1, spleen=9), ["liver"], image, "x").keys() == {"liver"}


def test_names_do_not_suit_a_label_map(tmp_path: Path) -> None:
    series_in(tmp_path / "ct")
    image = read_dicom_volume(tmp_path / "ct")
    path = write_nifti(tmp_path / "x.nii", np.zeros(SHAPE, np.uint8), image.grid.affine)
    error = failure(path, image, liver="Liver", cyst=CYST_CODE, other=[1, 2])
    assert error.ids == ("FMS-D002",) and len(error.problems) == 2
    assert "labels.liver" in str(error)
