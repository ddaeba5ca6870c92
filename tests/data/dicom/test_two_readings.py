"""DICOM series and objects that can be read in two ways: read as the standard says, or refused with what varies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.uid import EnhancedMRImageStorage, SecondaryCaptureImageStorage, generate_uid

from fedfms.data.description.series import SeriesChoice
from fedfms.data.dicom.image import read_dicom_grid, read_dicom_image, read_dicom_volume
from fedfms.errors import FedfmsError
from tests.generators import write_enhanced, write_series

AFFINE = np.diag([1.0, 1.0, 2.5, 1.0])
VOXELS = np.random.default_rng(0).integers(0, 1000, (9, 8, 12)).astype(np.int16)


def refused(call: Any, *arguments: Any) -> FedfmsError:
    with pytest.raises(FedfmsError) as caught:
        call(*arguments)
    return caught.value


def change(folder: Path, edit: Any) -> Path:
    """Call ``edit`` with each file's data set and its number, in the order of the slices."""
    for number, path in enumerate(sorted(folder.iterdir())):
        dataset = pydicom.dcmread(path)
        edit(dataset, number)
        dataset.save_as(path)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_series(tmp_path / "series", VOXELS, AFFINE)
    return tmp_path / "series"


# --- several images of one place -----------------------------------------------------------------------------


VARIANTS: dict[str, tuple[Any, Any]] = {
    "AcquisitionNumber": (1, 2),
    "ContrastBolusAgent": ("none", "Iodine"),
    "EchoTime": (4.6, 9.2),
    "EchoNumbers": (1, 2),
    "DiffusionBValue": (0.0, 800.0),
    "TemporalPositionIdentifier": (1, 2),
    "ImageType": (["ORIGINAL", "PRIMARY", "M"], ["ORIGINAL", "PRIMARY", "P"]),
    "AcquisitionTime": ("100000", "100030"),
    "AcquisitionDateTime": ("20200101100000", "20200101100030"),
    "TriggerTime": (100.0, 400.0),
    "InversionTime": (200.0, 2400.0),
    "RepetitionTime": (500.0, 2500.0),
    "FrameReferenceTime": (0.0, 60000.0),
    "NominalPercentageOfCardiacPhase": (30.0, 70.0),
    "FlipAngle": (5.0, 26.0),
    "KVP": (80.0, 140.0),
    "ConvolutionKernel": ("B30f", "B70f"),
    "SequenceName": ("ep_b0", "ep_b800#1"),
    "ProtocolName": ("arterial", "venous"),
    "SeriesDescription": ("in phase", "opposed phase"),
    "ImageComments": ("arterial", "venous"),
    "ComplexImageComponent": ("MAGNITUDE", "PHASE"),
}


@pytest.mark.parametrize("element", ["TriggerTime", "RepetitionTime"])
def test_several_times_in_one_image_tell_images_apart_like_a_word(folder: Path, element: str) -> None:
    change(folder, lambda dataset, number: setattr(dataset, element, [100.0 + 200 * (number % 2), 200.0]))
    error = refused(read_dicom_volume, folder)
    assert error.ids == ("FMS-D014",) and f"{element}: 100.0/200.0 (6 frames), 300.0/200.0 (6 frames)" in str(error)


@pytest.mark.parametrize("same_place", [False, True])
@pytest.mark.parametrize("name", VARIANTS)
def test_two_kinds_of_images_in_one_series_are_named_and_can_be_chosen(
    folder: Path, name: str, same_place: bool
) -> None:
    def edit(dataset: Any, number: int) -> None:
        setattr(dataset, name, VARIANTS[name][number % 2])
        if same_place:
            dataset.ImagePositionPatient = [0, 0, 5.0 * (number // 2)]

    change(folder, edit)
    for read in (read_dicom_grid, read_dicom_volume):
        error = refused(read, folder)
        assert error.ids == ("FMS-D014",)
        assert name in str(error) and "(6 frames)" in str(error) and "images.series.dimensions" in str(error)
    shown = {"ImageType": "ORIGINAL/PRIMARY/P"}.get(name, VARIANTS[name][1])
    second = read_dicom_volume(folder, "*", SeriesChoice(dimensions={name: shown}))
    assert np.array_equal(second.voxels, VOXELS[:, :, 1::2])
    if not same_place:
        joined = read_dicom_volume(folder, "*", SeriesChoice(dimensions={name: "*"}))
        assert np.array_equal(joined.voxels, VOXELS)


def test_acquisitions_one_behind_the_other_are_one_volume(folder: Path) -> None:
    change(folder, lambda dataset, number: setattr(dataset, "AcquisitionNumber", 1 + number // 4))
    assert np.array_equal(read_dicom_volume(folder).voxels, VOXELS)


def test_trigger_times_of_a_gated_stack_are_no_phases(folder: Path) -> None:
    change(folder, lambda dataset, number: setattr(dataset, "TriggerTime", 500 + number % 3))
    assert np.array_equal(read_dicom_volume(folder).voxels, VOXELS)


def test_an_element_that_only_some_images_have_is_chosen_by_a_dash(folder: Path) -> None:
    def edit(dataset: Any, number: int) -> None:
        if number % 2:
            dataset.ContrastBolusAgent = "Iodine"

    assert "ContrastBolusAgent: - (6 frames), Iodine (6 frames)" in str(refused(read_dicom_grid, change(folder, edit)))
    for value, first in (("-", 0), ("Iodine", 1)):
        chosen = read_dicom_volume(folder, "*", SeriesChoice(dimensions={"ContrastBolusAgent": value}))
        assert np.array_equal(chosen.voxels, VOXELS[:, :, first::2])


def test_times_that_each_pair_of_slices_shares_are_no_phases(folder: Path) -> None:
    """A missing slice is then not explained by phases."""
    change(folder, lambda dataset, number: setattr(dataset, "AcquisitionTime", f"1000{number // 2:02d}"))
    assert np.array_equal(read_dicom_volume(folder).voxels, VOXELS)
    for number in (4, 5):
        (folder / f"{number:03d}.dcm").unlink()
    assert refused(read_dicom_volume, folder).ids == ("FMS-D015",)


GROUPS: dict[str, tuple[str, Any, Any]] = {
    "FrameAcquisitionNumber": ("FrameContentSequence", 1, 2),
    "FrameAcquisitionDateTime": ("FrameContentSequence", "20200101100000", "20200101100030"),
    "TemporalPositionIndex": ("FrameContentSequence", 1, 2),
    "NominalPercentageOfCardiacPhase": ("CardiacSynchronizationSequence", 30.0, 70.0),
    "NominalCardiacTriggerDelayTime": ("CardiacSynchronizationSequence", 100.0, 500.0),
    "EffectiveEchoTime": ("MREchoSequence", 4.6, 9.2),
    "FlipAngle": ("MRTimingAndRelatedParametersSequence", 5.0, 26.0),
    "DiffusionBValue": ("MRDiffusionSequence", 0.0, 800.0),
    "ComplexImageComponent": ("MRImageFrameTypeSequence", "MAGNITUDE", "PHASE"),
    "KVP": ("CTXRayDetailsSequence", 80.0, 140.0),
    "ConvolutionKernel": ("CTReconstructionSequence", "B30f", "B70f"),
}


@pytest.mark.parametrize("name", GROUPS)
def test_two_kinds_of_frames_in_one_file_are_named_and_can_be_chosen(tmp_path: Path, name: str) -> None:
    write_enhanced(tmp_path / "x.dcm", VOXELS, AFFINE)
    dataset = pydicom.dcmread(tmp_path / "x.dcm")
    sequence, *values = GROUPS[name]
    for number, group in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        item = group[sequence][0] if sequence in group else pydicom.Dataset()
        setattr(item, name, values[number % 2])
        setattr(group, sequence, [item])
    dataset.save_as(tmp_path / "x.dcm")
    error = refused(read_dicom_volume, tmp_path / "x.dcm")
    assert error.ids == ("FMS-D014",) and f"{name}: " in str(error)
    assert all(f"{value} (6 frames)" in str(error) for value in values)
    second = read_dicom_volume(tmp_path / "x.dcm", "*", SeriesChoice(dimensions={name: values[1]}))
    assert np.array_equal(second.voxels, VOXELS[:, :, 1::2])


def test_images_that_nothing_tells_apart_are_counted(folder: Path) -> None:
    change(folder, lambda dataset, number: setattr(dataset, "ImagePositionPatient", [0, 0, 5.0 * (number // 3)]))
    error = refused(read_dicom_volume, folder)
    assert "3 images at each of 4 positions" in str(error)
    assert "as a series of its own" in " ".join(str(error).split())


#: Creator, group, element and type; values as a vendor writes them for b = 0 and b = 800.
PRIVATE_B: dict[str, tuple[str, int, int, str, Any, Any]] = {
    "Siemens": ("SIEMENS MR HEADER", 0x0019, 0x0C, "IS", "0", "800"),
    "Siemens, undecoded": ("SIEMENS MR HEADER", 0x0019, 0x0C, "UN", b"0 ", b"800 "),
    "GE": ("GEMS_PARM_01", 0x0043, 0x39, "IS", [1000000000, 8, 0, 0], [1000000800, 8, 0, 0]),
    "GE, undecoded": ("GEMS_PARM_01", 0x0043, 0x39, "UN", b"0\\8\\0\\0 ", b"800\\8\\0\\0 "),
    "Philips": ("Philips Imaging DD 001", 0x2001, 0x03, "FL", 0.0, 800.0),
}


@pytest.mark.parametrize("block", [0x10, 0x12])
@pytest.mark.parametrize("vendor", PRIVATE_B)
def test_private_b_values_tell_apart_too(folder: Path, vendor: str, block: int) -> None:
    creator, group, element, kind, *values = PRIVATE_B[vendor]

    def edit(dataset: Any, number: int) -> None:
        dataset.add_new((group, block), "LO", creator)
        dataset.add_new((group, block << 8 | element), kind, values[number % 2])

    change(folder, edit)
    zero = "0.0" if vendor == "Philips" else "0"
    expected = f"DiffusionBValue: {zero} (6 frames), {zero.replace('0', '800', 1)} (6 frames)"
    assert expected in str(refused(read_dicom_volume, folder))
    chosen = read_dicom_volume(folder, "*", SeriesChoice(dimensions={"DiffusionBValue": 800}))
    assert np.array_equal(chosen.voxels, VOXELS[:, :, 1::2])


def test_private_elements_of_others_mean_nothing(folder: Path) -> None:
    def edit(dataset: Any, number: int) -> None:
        dataset.add_new((0x0019, 0x10), "LO", "GEMS_ACQU_01")
        dataset.add_new((0x0019, 0x100C), "IS", str(number % 2))
        dataset.add_new((0x0019, 0x100A), "US", 16)

    assert np.array_equal(read_dicom_volume(change(folder, edit)).voxels, VOXELS)


def test_a_mosaic_is_refused(folder: Path) -> None:
    def edit(dataset: Any, number: int) -> None:
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]

    assert "Siemens mosaic" in str(refused(read_dicom_volume, change(folder, edit)))


def test_a_mosaic_is_refused_whatever_its_class_says(folder: Path, tmp_path: Path) -> None:
    def edit(dataset: Any, number: int) -> None:
        dataset.SOPClassUID = SecondaryCaptureImageStorage
        dataset.ImageType = ["DERIVED", "PRIMARY", "M", "ND", "mosaic"]
        del dataset.ImagePositionPatient

    assert "Siemens mosaic" in str(refused(read_dicom_image, sorted(change(folder, edit).iterdir())[0]))
    write_enhanced(tmp_path / "x.dcm", VOXELS, AFFINE)
    dataset = pydicom.dcmread(tmp_path / "x.dcm")
    kind = pydicom.Dataset()
    kind.FrameType = ["ORIGINAL", "PRIMARY", "DIFFUSION", "MOSAIC"]
    dataset.SharedFunctionalGroupsSequence[0].MRImageFrameTypeSequence = [kind]
    dataset.save_as(tmp_path / "x.dcm")
    assert "Siemens mosaic" in str(refused(read_dicom_image, tmp_path / "x.dcm"))


def test_a_mosaic_of_united_imaging_is_refused(folder: Path) -> None:
    def edit(dataset: Any, number: int) -> None:
        dataset.private_block(0x0065, "Image Private Header", create=True).add_new(0x50, "DS", "16")

    assert "United Imaging mosaic: 16 slices" in str(refused(read_dicom_volume, change(folder, edit)))


def test_a_mosaic_is_recognised_by_its_number_of_tiles(folder: Path) -> None:
    def edit(dataset: Any, number: int) -> None:
        dataset.private_block(0x0019, "SIEMENS MR HEADER", create=True).add_new(0x0A, "US", 16)

    assert "16 slices" in str(refused(read_dicom_volume, change(folder, edit)))


# --- missing slices ------------------------------------------------------------------------------------------


def test_slices_that_are_missing_evenly_are_d015(folder: Path) -> None:
    for path in sorted(folder.iterdir())[::2]:
        path.unlink()
    error = refused(read_dicom_grid, folder)
    assert error.ids == ("FMS-D015",) and "in steps of 2" in str(error) and "skips_slices" in str(error)
    kept = read_dicom_volume(folder, "*", SeriesChoice(skips_slices=True))
    assert np.array_equal(kept.voxels, VOXELS[:, :, 1::2])


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_fewer_slices_than_were_acquired_are_d015(folder: Path, factor: int) -> None:
    """Numbered anew, so that only the number of acquired images tells."""
    change(folder, lambda dataset, number: setattr(dataset, "ImagesInAcquisition", 12))
    assert read_dicom_volume(folder).voxels.shape == VOXELS.shape
    for number, path in enumerate(sorted(folder.iterdir())):
        if number % factor:
            path.unlink()
    change(folder, lambda dataset, number: setattr(dataset, "InstanceNumber", number + 1))
    error = refused(read_dicom_grid, folder)
    assert error.ids == ("FMS-D015",)
    assert f"ImagesInAcquisition is 12, and there are {12 // factor} slices" in str(error)
    assert "skips_slices" in str(error)
    kept = read_dicom_volume(folder, "*", SeriesChoice(skips_slices=True))
    assert np.array_equal(kept.voxels, VOXELS[:, :, ::factor])


def test_images_of_several_acquisitions_are_counted_together(folder: Path) -> None:
    def edit(dataset: Any, number: int) -> None:
        dataset.AcquisitionNumber, dataset.ImagesInAcquisition = 1 + number // 4, acquired

    acquired = 4
    assert read_dicom_volume(change(folder, edit)).voxels.shape == VOXELS.shape
    acquired = 8
    assert "ImagesInAcquisition is 24" in str(refused(read_dicom_volume, change(folder, edit)))


def test_frames_that_are_missing_evenly_are_d015(tmp_path: Path) -> None:
    write_enhanced(tmp_path / "x.dcm", VOXELS, AFFINE)
    dataset = pydicom.dcmread(tmp_path / "x.dcm")
    for number, group in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        group.FrameContentSequence[0].InStackPositionNumber = 2 * number + 1
    dataset.save_as(tmp_path / "x.dcm")
    assert "InStackPositionNumber counts in steps of 2" in str(refused(read_dicom_grid, tmp_path / "x.dcm"))


def test_slices_further_apart_than_their_header_says_are_d015(folder: Path) -> None:
    def edit(dataset: Any, number: int) -> None:
        dataset.SpacingBetweenSlices, dataset.InstanceNumber, dataset.SliceThickness = 1.25, number + 1, thickness

    thickness = 1.25
    error = refused(read_dicom_grid, change(folder, edit))
    assert error.ids == ("FMS-D015",) and "SpacingBetweenSlices is 1.25 mm" in str(error)
    thickness = 2.0  # then it may be the gap between slices
    assert read_dicom_volume(change(folder, edit)).voxels.shape == VOXELS.shape


def test_slices_at_the_distance_that_their_header_says_are_complete(folder: Path) -> None:
    """Whatever else counts twice: series that were split by b-value, reconstructed twice, taken in two passes."""

    def edit(dataset: Any, number: int) -> None:
        dataset.SpacingBetweenSlices, dataset.ImagesInAcquisition, dataset.InstanceNumber = 2.5, 24, 2 * number + 1
        dataset.AcquisitionTime = ("100000", "100030")[number % 2]

    assert read_dicom_volume(change(folder, edit)).voxels.shape == VOXELS.shape
    # One pass alone has twice the distance.
    chosen = SeriesChoice(dimensions={"AcquisitionTime": "100000"})
    error = refused(read_dicom_volume, folder, "*", chosen)
    assert error.ids == ("FMS-D015",) and "the slices are 5 mm apart, SpacingBetweenSlices is 2.5 mm" in str(error)
    assert read_dicom_volume(folder, "*", chosen.model_copy(update={"skips_slices": True})).voxels.shape[2] == 6


def test_two_phases_need_not_have_the_same_number_of_slices(folder: Path) -> None:
    max(folder.iterdir()).unlink()
    change(folder, lambda dataset, number: setattr(dataset, "AcquisitionTime", ("100000", "100030")[number % 2]))
    error = refused(read_dicom_volume, folder)
    assert error.ids == ("FMS-D014",) and "100000 (6 frames), 100030 (5 frames)" in str(error)


def test_orientation_that_differs_in_the_fifth_decimal_is_one_volume(folder: Path) -> None:
    def edit(dataset: Any, number: int) -> None:
        dataset.ImageOrientationPatient = [1, 2e-5 * (number % 2), 0, -2e-5 * (number % 2), 1, 0]

    assert read_dicom_volume(change(folder, edit)).voxels.shape == VOXELS.shape


# --- values --------------------------------------------------------------------------------------------------


def write_multi_frame(path: Path, place: str) -> Path:
    """Six frames with slope 2 and intercept -1024 in the header, shared by all frames, or in each of them."""
    write_series(path.parent / "one", VOXELS[:, :, :1], AFFINE)
    dataset = pydicom.dcmread(next((path.parent / "one").iterdir()))
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = EnhancedMRImageStorage
    dataset.SOPInstanceUID = generate_uid()
    dataset.NumberOfFrames = 6
    dataset.PixelData = np.ascontiguousarray(VOXELS[:, :, :6].transpose(2, 1, 0)).tobytes()

    def item(**values: Any) -> pydicom.Dataset:
        result = pydicom.Dataset()
        for name, value in values.items():
            setattr(result, name, value)
        return result

    pair = {"RescaleSlope": 2, "RescaleIntercept": -1024, "RescaleType": "US"}
    shared = item(
        PlaneOrientationSequence=[item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])],
        PixelMeasuresSequence=[item(PixelSpacing=[1, 1], SliceThickness=2.5)],
    )
    dataset.SharedFunctionalGroupsSequence, dataset.PerFrameFunctionalGroupsSequence = [shared], []
    for number in range(6):
        frame = item(PlanePositionSequence=[item(ImagePositionPatient=[0, 0, 2.5 * number])])
        if place == "frame":
            frame.PixelValueTransformationSequence = [item(**pair)]
        dataset.PerFrameFunctionalGroupsSequence.append(frame)
    if place == "shared":
        shared.PixelValueTransformationSequence = [item(**pair)]
    if place == "header":
        for name, value in pair.items():
            setattr(dataset, name, value)
    dataset.save_as(path)
    return path


@pytest.mark.parametrize("place", ["header", "shared", "frame"])
def test_rescaling_counts_wherever_it_stands(tmp_path: Path, place: str) -> None:
    volume = read_dicom_volume(write_multi_frame(tmp_path / "x.dcm", place))
    assert np.array_equal(volume.voxels, 2.0 * VOXELS[:, :, :6] - 1024)


@pytest.mark.parametrize("name", ["RescaleSlope", "RescaleIntercept"])
def test_half_a_pair_is_d004(folder: Path, name: str) -> None:
    error = refused(read_dicom_grid, change(folder, lambda dataset, number: setattr(dataset, name, 3)))
    assert set(error.ids) == {"FMS-D004"} and f"{name} 3" in str(error) and "no Rescale" in str(error)


def test_a_table_beside_a_pair_is_d004(folder: Path) -> None:
    def edit(dataset: Any, number: int) -> None:
        dataset.RescaleSlope, dataset.RescaleIntercept = 1, 0
        dataset.ModalityLUTSequence = [pydicom.Dataset()]

    assert "only one may be there" in str(refused(read_dicom_grid, change(folder, edit)))


def test_monochrome1_leaves_measurements_as_they_are(folder: Path) -> None:
    def edit(dataset: Any, number: int) -> None:
        dataset.PhotometricInterpretation, dataset.Modality = "MONOCHROME1", "CT"
        dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = 1, -1024, "HU"

    dataset = pydicom.dcmread(sorted(change(folder, edit).iterdir())[3])
    expected = pydicom.pixels.apply_modality_lut(dataset.pixel_array, dataset).T
    found = read_dicom_volume(folder).voxels
    assert np.array_equal(found, VOXELS - 1024.0) and np.array_equal(found[:, :, 3], expected)


def test_monochrome1_with_rescaled_values_of_no_unit_is_d004(folder: Path) -> None:
    def edit(dataset: Any, number: int) -> None:
        dataset.PhotometricInterpretation = "MONOCHROME1"
        dataset.RescaleSlope, dataset.RescaleIntercept = -1, 4095

    assert "MONOCHROME2" in str(refused(read_dicom_volume, change(folder, edit)))


@pytest.mark.parametrize(("kind", "value"), [("SS", -2000), ("US", 0x10000 - 2000)])
def test_padding_is_the_smallest_value_of_the_image(folder: Path, kind: str, value: int) -> None:
    def edit(dataset: Any, number: int) -> None:
        dataset.add_new("PixelPaddingValue", kind, value)
        pixels = dataset.pixel_array.copy()
        pixels[:2] = -2000
        dataset.PixelData = pixels.tobytes()
        dataset.RescaleSlope, dataset.RescaleIntercept = 1, -24

    found = read_dicom_volume(change(folder, edit)).voxels
    assert found.min() == VOXELS[:, 2:].min() - 24 and (found[:, :2] == found.min()).all()
    assert np.array_equal(found[:, 2:], VOXELS[:, 2:] - 24.0)


def test_a_range_of_padding_counts_as_padding(folder: Path) -> None:
    def edit(dataset: Any, number: int) -> None:
        dataset.add_new("PixelPaddingValue", "SS", 0)
        dataset.add_new("PixelPaddingRangeLimit", "SS", 499)

    assert read_dicom_volume(change(folder, edit)).voxels.min() >= 500


# --- encodings -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uid", "name"),
    [
        ("1.2.840.10008.1.2.4.110", "JPEG XL Lossless"),
        ("1.2.840.113619.5.2", "GE's private Implicit VR Big Endian"),
        ("1.2.3.4", "an unknown or private encoding"),
    ],
)
def test_an_encoding_that_is_not_known_is_named(folder: Path, uid: str, name: str) -> None:
    path = sorted(folder.iterdir())[0]
    content = path.read_bytes()
    old = b"1.2.840.10008.1.2.1\0"
    new = uid.encode() + b"\0" * (len(uid) % 2)
    head = content.index(old) - 2
    meta = content[:head] + len(new).to_bytes(2, "little") + new + content[head + 2 + len(old) :]
    size = int.from_bytes(meta[140:144], "little") + len(new) - len(old)
    path.write_bytes(meta[:140] + size.to_bytes(4, "little") + meta[144:])
    error = refused(read_dicom_image, folder)
    assert error.ids == ("FMS-D004",)
    assert f"{name} ({uid})" in str(error) and "uncompressed" in str(error)
