"""DICOM beyond plain single-frame series: multi-frame, several series, compression, pictures."""

from __future__ import annotations

import logging
import struct
from pathlib import Path
from typing import Any

import numpy as np
import openjpeg
import pydicom
import pytest
import SimpleITK
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    HTJ2KLossless,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
    UltrasoundImageStorage,
    UltrasoundMultiFrameImageStorage,
)

from fedfms.data.description.series import SeriesChoice
from fedfms.data.description.site import load_site
from fedfms.data.dicom.codecs import stream_size
from fedfms.data.dicom.image import read_dicom_grid, read_dicom_image, read_dicom_volume, read_patient_id
from fedfms.data.dicom.series import WithinFile, scan
from fedfms.data.quality.check import check_site
from fedfms.data.slices.opening import DataRequest, open_dataset
from fedfms.data.volume.geometry import LPS_TO_RAS, Picture
from fedfms.errors import FedfmsError
from tests.generators import (
    preprocessing,
    raster_dataset,
    rotation,
    write_enhanced,
    write_picture,
    write_series,
    write_yaml,
)


def affine(turn: tuple[float, float, float] = (0, 0, 0), step: float = 4.0) -> np.ndarray:
    result = np.eye(4)
    result[:3, :3] = rotation(turn) @ np.diag([0.7, 0.9, step])
    result[:3, 3] = (-20, 13, 7)
    return result


@pytest.fixture()
def voxels() -> np.ndarray:
    return np.random.default_rng(0).integers(-2000, 2000, (9, 8, 6), dtype=np.int16)


def error_of(call: Any, *arguments: Any, **named: Any) -> FedfmsError:
    with pytest.raises(FedfmsError) as caught:
        call(*arguments, **named)
    return caught.value


# --- multi-frame ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("turn", [(0, 0, 0), (20, -10, 5), (90, 0, 0)])
@pytest.mark.parametrize("step", [4.0, -4.0])
def test_an_enhanced_object_reads_like_the_series_of_its_frames(
    tmp_path: Path, voxels: np.ndarray, turn: tuple[float, float, float], step: float
) -> None:
    write_series(tmp_path / "single", voxels, affine(turn, step))
    order = [3, 0, 5, 1, 4, 2]
    write_enhanced(tmp_path / "enhanced.dcm", voxels, affine(turn, step), order=order)
    single, enhanced = read_dicom_volume(tmp_path / "single"), read_dicom_volume(tmp_path / "enhanced.dcm")
    assert np.array_equal(enhanced.voxels, single.voxels)
    assert np.allclose(enhanced.grid.affine, single.grid.affine)
    slices = range(6) if step > 0 else range(5, -1, -1)
    assert [source.frame for source in enhanced.sources] == [order.index(number) for number in slices]
    assert {source.path for source in enhanced.sources} == {tmp_path / "enhanced.dcm"}
    assert [(source.path.name, source.frame) for source in single.sources] == [(f"{n:03d}.dcm", None) for n in slices]
    for source in (*single.sources, *enhanced.sources):
        assert source.sop_instance_uid == pydicom.dcmread(source.path).SOPInstanceUID
    assert enhanced.frame_of_reference == "1.2.9"


def test_an_enhanced_object_agrees_with_simpleitk(tmp_path: Path, voxels: np.ndarray) -> None:
    write_enhanced(tmp_path / "x.dcm", voxels, affine((20, -10, 5)))
    ours, other = read_dicom_volume(tmp_path / "x.dcm"), SimpleITK.ReadImage(str(tmp_path / "x.dcm"))
    assert np.array_equal(SimpleITK.GetArrayFromImage(other).transpose(2, 1, 0), ours.voxels)
    for index in [(0, 0, 0), (8, 0, 0), (3, 7, 5)]:
        here = LPS_TO_RAS @ ours.grid.affine @ [*index, 1]
        assert np.allclose(here[:3], other.TransformIndexToPhysicalPoint(index), atol=1e-3)


def test_each_frame_has_its_own_rescale(tmp_path: Path, voxels: np.ndarray) -> None:
    scales = [(0.5 + number, -100.0 * number) for number in range(6)]
    # A rescale outside the functional groups does not count for an enhanced object.
    write_enhanced(tmp_path / "x.dcm", voxels, affine(), rescale=scales, RescaleSlope=9, RescaleIntercept=9)
    read = read_dicom_volume(tmp_path / "x.dcm").voxels
    for number, (slope, intercept) in enumerate(scales):
        assert np.allclose(read[:, :, number], voxels[:, :, number] * slope + intercept)


def test_a_concatenation_is_one_volume(tmp_path: Path, voxels: np.ndarray) -> None:
    write_enhanced(tmp_path / "a.dcm", voxels, affine(), order=[0, 1, 5])
    write_enhanced(tmp_path / "b.dcm", voxels, affine(), order=[4, 3, 2])
    volume = read_dicom_volume(tmp_path)
    assert np.array_equal(volume.voxels, voxels)
    assert [(source.path.name, source.frame) for source in volume.sources] == [
        ("a.dcm", 0),
        ("a.dcm", 1),
        ("b.dcm", 2),
        ("b.dcm", 1),
        ("b.dcm", 0),
        ("a.dcm", 2),
    ]


@pytest.mark.parametrize("name", ["TemporalPositionIndex", "EffectiveEchoTime", "StackID"])
def test_frames_at_the_same_place_are_listed_and_chosen_by_dimension(
    tmp_path: Path, voxels: np.ndarray, name: str
) -> None:
    doubled = np.concatenate([voxels[:, :, :3], voxels[:, :, 3:]], axis=2)
    matrix = affine()
    order = [0, 1, 2, 0, 1, 2]
    write_enhanced(tmp_path / "x.dcm", doubled, matrix, order=order, dimensions={name: [1, 1, 1, 2, 2, 2]})
    error = error_of(read_dicom_volume, tmp_path / "x.dcm")
    assert error.ids == ("FMS-D014",)
    assert f"they differ in {name}: 1 (3 frames), 2 (3 frames)" in str(error)
    assert error_of(read_dicom_grid, tmp_path / "x.dcm").ids == ("FMS-D014",)
    volume = read_dicom_volume(tmp_path / "x.dcm", choice=SeriesChoice(dimensions={name: 2}))
    assert [source.frame for source in volume.sources] == [3, 4, 5]
    absent = error_of(read_dicom_volume, tmp_path / "x.dcm", choice=SeriesChoice(dimensions={name: 3}))
    assert "no frame fits images.series.dimensions" in str(absent)


def test_a_gap_between_frames_is_d015_although_a_dimension_counts_them(tmp_path: Path, voxels: np.ndarray) -> None:
    dimensions = {"FrameAcquisitionNumber": [1, 2, 3, 4, 5]}
    write_enhanced(tmp_path / "x.dcm", voxels, affine(), order=[0, 1, 3, 4, 5], dimensions=dimensions)
    error = error_of(read_dicom_volume, tmp_path / "x.dcm")
    assert error.ids == ("FMS-D015",)
    assert "8 mm before x.dcm frame 3" in str(error)


def test_bad_multi_frame_objects_are_d004(tmp_path: Path, voxels: np.ndarray) -> None:
    def enhanced(change: Any) -> Path:
        path = tmp_path / "x.dcm"
        write_enhanced(path, voxels, affine())
        header = pydicom.dcmread(path)
        change(header)
        header.save_as(path)
        return path

    def too_few(header: Any) -> None:
        header.PerFrameFunctionalGroupsSequence = header.PerFrameFunctionalGroupsSequence[:4]

    def nowhere(header: Any) -> None:
        del header.PerFrameFunctionalGroupsSequence[2].PlanePositionSequence

    def film(header: Any) -> None:
        del header.PerFrameFunctionalGroupsSequence
        del header.SharedFunctionalGroupsSequence
        header.SOPClassUID = UltrasoundMultiFrameImageStorage

    def short(header: Any) -> None:
        header.PixelData = header.PixelData[:-100]

    def flat(header: Any) -> None:
        header.PerFrameFunctionalGroupsSequence[1].PlanePositionSequence[0].ImagePositionPatient = [1, 2]

    def lost(header: Any) -> None:
        film(header)
        header.NumberOfFrames, header.PixelData = 1, header.PixelData[:144]
        header.SOPClassUID = pydicom.uid.EnhancedMRImageStorage

    for change, sentence in [
        (lost, "Enhanced MR Image Storage without ImagePositionPatient"),
        (too_few, "6 frames, but 4 items"),
        (nowhere, "frame 3 has no ImagePositionPatient"),
        (film, "Ultrasound Multi-frame Image Storage of 6 frames without positions"),
        (short, "less than expected"),
        (flat, "is not possible"),
    ]:
        error = error_of(read_dicom_volume, enhanced(change))
        assert error.ids == ("FMS-D004",)
        assert sentence in str(error), error


def test_a_compressed_multi_frame_object(tmp_path: Path, voxels: np.ndarray) -> None:
    write_enhanced(tmp_path / "x.dcm", voxels, affine(), order=[2, 1, 0, 5, 4, 3])
    header = pydicom.dcmread(tmp_path / "x.dcm")
    header.compress(RLELossless, generate_instance_uid=False)
    header.save_as(tmp_path / "x.dcm")
    assert np.array_equal(read_dicom_volume(tmp_path / "x.dcm").voxels, voxels)
    header.NumberOfFrames = 7
    header.PerFrameFunctionalGroupsSequence.append(header.PerFrameFunctionalGroupsSequence[0])
    header.save_as(tmp_path / "x.dcm")
    assert error_of(read_dicom_volume, tmp_path / "x.dcm").ids == ("FMS-D015",)


# --- which series ---------------------------------------------------------------------------------------


@pytest.fixture()
def study(tmp_path: Path, voxels: np.ndarray) -> Path:
    """Two MR series, a CT and a report in one folder."""
    folder = tmp_path / "study"
    write_series(
        folder, voxels, affine(), names=[f"a{n}" for n in range(6)], SeriesDescription="T2 tra", SeriesNumber=2
    )
    write_series(folder, voxels[:, :, :4], affine(), names=[f"b{n}" for n in range(4)], SeriesDescription="T2 sag")
    other = {"SeriesDescription": "T2 tra", "Modality": "CT", "SeriesInstanceUID": "1.2.3.99", "PatientID": "P1"}
    write_series(folder, voxels[:, :, :3], affine(), names=[f"c{n}" for n in range(3)], **other)
    report = pydicom.dcmread(folder / "a0")
    report.SOPClassUID, report.Modality = pydicom.uid.BasicTextSRStorage, "SR"
    report.SeriesInstanceUID = "1.2.3.100"
    for tag in ("Rows", "Columns", "PixelData"):
        delattr(report, tag)
    report.save_as(folder / "report")
    return folder


def test_a_study_is_listed_by_series(study: Path) -> None:
    series, problems = scan(study)
    assert not problems
    assert [(item.kind, item.modality, item.description, item.number, len(item.files)) for item in series] == [
        ("image", "MR", "T2 tra", "2", 6),
        ("image", "MR", "T2 sag", "", 4),
        ("image", "CT", "T2 tra", "", 3),
        ("other", "SR", "T2 tra", "2", 1),
    ]
    assert "1.2.3.99" not in repr(series[2])
    assert len({item.study_uid for item in series[:2]}) == 2
    (study / "deeper").mkdir()
    (study / "a0").rename(study / "deeper" / "a0")
    (study / "deeper" / "note.txt").write_text("x")
    assert len(scan(study)[0][0].files) == 5
    series, problems = scan(study, recursive=True)
    assert len(series[0].files) == 6
    assert [Path(problem.where).name for problem in problems] == ["note.txt"]


@pytest.mark.parametrize(
    ("choice", "slices"),
    [
        ({"description": "SAG"}, 4),
        ({"modality": "CT"}, 3),
        ({"uid": "1.2.3.*"}, 3),
        ({"description": "^t2 tra$", "modality": "MR"}, 6),
    ],
)
def test_a_series_is_chosen(study: Path, choice: dict[str, str], slices: int) -> None:
    volume = read_dicom_volume(study, choice=SeriesChoice(**choice))
    assert volume.grid.shape[2] == slices
    grid = read_dicom_grid(study, choice=SeriesChoice(**choice))
    assert grid is not None
    assert grid.shape[2] == slices


def test_candidates_are_listed_when_none_or_several_fit(study: Path) -> None:
    tra = "MR 'T2 tra' (series number 2, 6 files) from a0"
    ct = "CT 'T2 tra' (series number -, 3 files) from c0"
    several = error_of(read_dicom_volume, study, choice=SeriesChoice(description="tra"))
    assert several.ids == ("FMS-D014",)
    assert f"there are: {tra}; {ct} ->" in str(several)
    assert error_of(read_dicom_grid, study).ids == ("FMS-D014",)
    none = error_of(read_dicom_volume, study, choice=SeriesChoice(modality="PT"))
    assert none.ids == ("FMS-D014",)
    assert tra in str(none)
    assert "T2 sag" in str(none)
    assert error_of(read_patient_id, study, choice=SeriesChoice(modality="PT")).ids == ("FMS-D014",)


def test_the_patient_is_that_of_the_chosen_series(study: Path, voxels: np.ndarray) -> None:
    write_series(study, voxels, affine(), names=[f"0{n}" for n in range(6)], patient="P2", Modality="PT")
    assert read_patient_id(study, choice=SeriesChoice(modality="CT")) == "P1"
    assert read_patient_id(study, choice=SeriesChoice(modality="PT")) == "P2"


def test_files_are_given_one_by_one(study: Path) -> None:
    series, _ = scan(study)
    assert read_dicom_volume(series[2].files).grid.shape[2] == 3
    assert read_dicom_volume(study / "c1").grid.shape[2] == 1


def test_a_folder_without_an_image_is_d003(study: Path) -> None:
    error = error_of(read_dicom_volume, study / "report")
    assert error.ids == ("FMS-D003",)
    assert "no image, only: SR" in str(error)
    assert error_of(read_patient_id, study / "report").ids == ("FMS-D003",)


@pytest.mark.parametrize("tag", ["PatientID", "FrameOfReferenceUID"])
def test_one_series_of_two_patients_or_frames_of_reference_is_d015(
    tmp_path: Path, voxels: np.ndarray, tag: str
) -> None:
    write_series(tmp_path, voxels, affine())
    header = pydicom.dcmread(tmp_path / "003.dcm")
    setattr(header, tag, "1.2.77")
    header.save_as(tmp_path / "003.dcm")
    error = error_of(read_dicom_volume, tmp_path)
    assert error.ids == ("FMS-D015",)
    assert f"differ in {tag}" in str(error)
    assert "1.2.77" not in str(error)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"PhotometricInterpretation": None}, "an image without PhotometricInterpretation"),
        ({"Rows": 0, "BitsAllocated": None}, "an image without Rows, BitsAllocated"),
        ({"BitsAllocated": 32}, "1 samples of 32 bits per pixel"),
        ({"SamplesPerPixel": 4}, "4 samples of 16 bits per pixel"),
        ({"NumberOfFrames": -1}, "an image of 8 x 9 pixels, -1 frames"),
        ({"Rows": 800}, "1 frames of 800 x 9 pixels cannot be in a file of"),
        ({"TransferSyntaxUID": "1.2.3"}, "an unknown or private encoding (1.2.3)"),
        ({"SOPClassUID": UltrasoundImageStorage, "PixelSpacing": None}, "with a position, but without PixelSpacing"),
        ({"PixelSpacing": [0.7, -0.9]}, "ImageOrientationPatient or PixelSpacing is not possible"),
        ({"PixelSpacing": [0.7]}, "ImageOrientationPatient or PixelSpacing is not possible"),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "ImageOrientationPatient or PixelSpacing is not possible"),
        ({"HighBit": 14}, "pixels are not aligned to the lowest bit (HighBit)"),
    ],
)
def test_a_header_that_cannot_be_right_is_d004(
    tmp_path: Path, voxels: np.ndarray, changes: dict[str, Any], sentence: str
) -> None:
    write_series(tmp_path, voxels[:, :, :1], affine())
    header = pydicom.dcmread(tmp_path / "000.dcm")
    for name, value in changes.items():
        setattr(header.file_meta if name == "TransferSyntaxUID" else header, name, value)
    header.save_as(tmp_path / "000.dcm", implicit_vr=False, little_endian=True)
    error = error_of(read_dicom_volume, tmp_path)
    assert error.ids == ("FMS-D004",) and sentence in str(error), error


def test_a_slice_that_lost_its_size_is_missed(tmp_path: Path, voxels: np.ndarray) -> None:
    write_series(tmp_path, voxels, affine())
    header = pydicom.dcmread(tmp_path / "005.dcm")
    del header.Rows
    header.save_as(tmp_path / "005.dcm")
    error = error_of(read_dicom_volume, tmp_path)
    assert error.ids == ("FMS-D004",)
    assert "no Rows" in str(error)


def test_a_file_cut_before_its_sop_class_is_not_taken_for_another_object(tmp_path: Path, voxels: np.ndarray) -> None:
    write_series(tmp_path, voxels, affine())
    directory = pydicom.Dataset()
    directory.file_meta = pydicom.dataset.FileMetaDataset()
    directory.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    directory.file_meta.MediaStorageSOPClassUID = pydicom.uid.MediaStorageDirectoryStorage
    directory.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    directory.FileSetID = "CD"
    directory.save_as(tmp_path / "DICOMDIR", enforce_file_format=True)
    assert read_dicom_volume(tmp_path).grid.shape == (9, 8, 6)
    whole = (tmp_path / "005.dcm").read_bytes()
    header = pydicom.dcmread(tmp_path / "005.dcm")
    # Within and after the elements that tell one series from another.
    for keyword, sentence in [
        ("SOPClassUID", "no SeriesInstanceUID"),
        ("SeriesInstanceUID", "no Rows"),
        ("ImagePositionPatient", "no Rows"),
    ]:
        tag = header[keyword].tag
        position = whole.rindex(struct.pack("<HH", tag.group, tag.element), 0, whole.index(header.PixelData))
        (tmp_path / "005.dcm").write_bytes(whole[: position + 12])  # four bytes of its value
        error = error_of(read_dicom_volume, tmp_path, choice=SeriesChoice(uid=header.SeriesInstanceUID))
        assert error.ids == ("FMS-D004",)
        assert sentence in str(error)


def test_a_site_chooses_a_series_per_folder(tmp_path: Path, study: Path) -> None:
    study.rename(tmp_path / "one")
    dataset = raster_dataset(
        format="dicom", masks=[], patient={"rule": "dicom_patient_id"}, images={"pattern": "{case}"}
    )
    report = check_site(write_yaml(tmp_path / "site.yaml", {"datasets": [dataset]}))
    assert "FMS-D014" in [problem.kind.id for problem in report.problems]
    dataset["images"]["series"] = {"description": "sag"}
    report = check_site(write_yaml(tmp_path / "site.yaml", {"datasets": [dataset]}))
    assert report.rows[0].slices_per_split["train"] == 4


def test_wrong_choices_are_d002(tmp_path: Path) -> None:
    for images, sentence in [
        ({"pattern": "{case}", "series": {}}, "give at least one of description, modality"),
        ({"pattern": "{case}", "series": {"description": "("}}, "not a regular expression"),
        ({"pattern": "{case}.dcm", "files": "a*"}, "files is for a pattern that names folders"),
    ]:
        path = write_yaml(tmp_path / "site.yaml", {"datasets": [raster_dataset(format="dicom", images=images)]})
        error = error_of(load_site, path)
        assert error.ids == ("FMS-D002",)
        assert sentence in str(error)
    images = {"pattern": "{case}", "series": {"modality": "CT"}}
    path = write_yaml(tmp_path / "site.yaml", {"datasets": [raster_dataset(images=images)]})
    assert "images.series is for format dicom" in str(error_of(load_site, path))


# --- compression ----------------------------------------------------------------------------------------


def encoded(path: Path, syntax: str, frame: bytes, **tags: Any) -> None:
    """Replace the pixels of a file by one compressed frame."""
    header = pydicom.dcmread(path)
    header.file_meta.TransferSyntaxUID = syntax
    header.PixelData = pydicom.encaps.encapsulate([frame])
    header["PixelData"].is_undefined_length = True
    for tag, value in tags.items():
        setattr(header, tag, value)
    header.save_as(path)


def jpeg_2000(pixels: np.ndarray, bits: int) -> bytes:
    colour = 1 if pixels.ndim == 3 else 2
    return bytes(openjpeg.utils.encode_array(pixels, bits_stored=bits, photometric_interpretation=colour))


@pytest.mark.parametrize("kind", ["uint8", "int8", "uint12", "int12", "uint16", "int16"])
@pytest.mark.parametrize("codec", ["rle", "jpeg-ls", "jpeg 2000", "ht jpeg 2000", "jpeg", "deflated", "big endian"])
def test_lossless_codecs_keep_every_bit(tmp_path: Path, kind: str, codec: str) -> None:
    bits = int(kind.lstrip("uint"))
    low, high = (0, 1 << bits) if kind.startswith("u") else (-(1 << bits - 1), 1 << bits - 1)
    dtype = kind.replace("12", "16")
    values = np.random.default_rng(0).integers(low, high, (48, 40, 1), dtype=dtype)
    values[:2, 0, 0] = low, high - 1
    write_series(tmp_path, values, affine(), BitsStored=bits, HighBit=bits - 1)
    path = tmp_path / "000.dcm"
    pixels = np.ascontiguousarray(values[:, :, 0].T)
    if codec == "rle":
        header = pydicom.dcmread(path)
        header.compress(RLELossless, generate_instance_uid=False)
        header.save_as(path)
    elif codec == "jpeg-ls":
        header = pydicom.dcmread(path)
        header.compress(JPEGLSLossless, generate_instance_uid=False)
        header.save_as(path)
    elif "jpeg 2000" in codec:
        # A high-throughput stream is told from a plain one by the decoder, which decodes both.
        encoded(path, HTJ2KLossless if codec.startswith("ht") else JPEG2000Lossless, jpeg_2000(pixels, bits))
    elif codec == "jpeg":
        writer = SimpleITK.ImageFileWriter()
        writer.SetImageIO("GDCMImageIO")
        writer.SetUseCompression(True)
        writer.SetCompressor("JPEG")
        writer.SetFileName(str(tmp_path / "jpeg.dcm"))
        writer.Execute(SimpleITK.GetImageFromArray(pixels))
        source = pydicom.dcmread(tmp_path / "jpeg.dcm")
        (tmp_path / "jpeg.dcm").unlink()
        assert source.file_meta.TransferSyntaxUID.name.startswith("JPEG Lossless")
        stream = pydicom.encaps.get_frame(source.PixelData, 0, number_of_frames=1)
        encoded(path, source.file_meta.TransferSyntaxUID, stream)
    else:
        header = pydicom.dcmread(path)
        syntax = DeflatedExplicitVRLittleEndian if codec == "deflated" else ExplicitVRBigEndian
        header.file_meta.TransferSyntaxUID = syntax
        if codec == "big endian":
            header.PixelData = pixels.astype(pixels.dtype.newbyteorder(">")).tobytes()
            header["PixelData"].VR = "OW" if bits > 8 else "OB"
            swapped = pydicom.Dataset(header)
            swapped.file_meta = header.file_meta
            swapped.save_as(path, implicit_vr=False, little_endian=False, enforce_file_format=True)
        else:
            header.save_as(path)
    assert np.array_equal(read_dicom_volume(path).voxels, values)


def test_12_bit_jpeg_is_read() -> None:
    # A file of pydicom's tests whose pixels at these places other decoders agree on.
    picture = read_dicom_image(Path(get_testdata_file("JPGExtended.dcm", download=False)))
    assert isinstance(picture, Picture)
    assert picture.values.shape == (1024, 256)
    assert (picture.values[420, 140], picture.values[230, 120]) == (244, 95)


def test_a_stream_of_another_size_than_the_header_says_is_d004(tmp_path: Path) -> None:
    write_series(tmp_path, np.zeros((40, 40, 1), np.uint16), affine())
    stream = jpeg_2000(np.zeros((40, 48), np.uint16), 16)
    encoded(tmp_path / "000.dcm", JPEG2000Lossless, stream)
    error = error_of(read_dicom_volume, tmp_path)
    assert error.ids == ("FMS-D004",)
    assert "(40, 48, 1), the header (40, 40, 1)" in str(error)


@pytest.mark.parametrize("form", ["JPEG", "JPEG2000"])
def test_the_size_of_a_stream_is_read_from_its_header(tmp_path: Path, form: str) -> None:
    for shape in ((33, 65), (65, 33, 3)):
        file = tmp_path / ("x.jp2" if form == "JPEG2000" else "x.jpg")
        Image.fromarray(np.zeros(shape, np.uint8)).save(file, form)
        assert stream_size(file.read_bytes()) == (*shape[:2], 3 if len(shape) == 3 else 1)
    assert stream_size(b"\xff\xd8\xff") is None
    assert stream_size(b"") is None


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("tags", [{"Rows": 60000, "Columns": 60000}, {"NumberOfFrames": 2**31 - 1}])
def test_a_size_that_cannot_be_in_the_file_is_d004(
    tmp_path: Path, voxels: np.ndarray, tags: dict[str, int], compressed: bool
) -> None:
    write_series(tmp_path, voxels, affine())
    header = pydicom.dcmread(tmp_path / "002.dcm")
    if compressed:
        header.compress(RLELossless, generate_instance_uid=False)
    for tag, value in tags.items():
        setattr(header, tag, value)
    header.save_as(tmp_path / "002.dcm")
    error = error_of(read_dicom_grid, tmp_path)
    assert error.ids == ("FMS-D004",)
    assert "cannot be in a file of" in str(error)


def test_an_element_that_claims_more_than_the_file_sets_no_memory_aside(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    with WithinFile(tmp_path / "x") as file:
        assert file.read(2**60) == b"abc"  # Python's own file raises MemoryError


def test_a_rescale_slope_of_0_is_d004(tmp_path: Path, voxels: np.ndarray) -> None:
    write_series(tmp_path / "a", voxels, affine(), RescaleSlope=0, RescaleIntercept=3)
    assert error_of(read_dicom_volume, tmp_path / "a").ids == ("FMS-D004",)
    write_enhanced(tmp_path / "x.dcm", voxels, affine(), rescale=[(0, 1)] * 6)
    assert error_of(read_dicom_volume, tmp_path / "x.dcm").ids == ("FMS-D004",)


def test_nothing_that_pydicom_logs_or_warns_of_gets_out(
    tmp_path: Path, voxels: np.ndarray, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    with pydicom.config.disable_value_validation():
        write_series(tmp_path, voxels, affine(), patient="SECRET" + "x" * 80, SeriesInstanceUID="SECRET.1")
    recwarn.clear()
    caplog.clear()
    level = logging.getLogger("pydicom").level
    read_dicom_volume(tmp_path)
    read_patient_id(tmp_path)
    (tmp_path / "000.dcm").write_bytes((tmp_path / "000.dcm").read_bytes()[:-9])
    error_of(read_dicom_volume, tmp_path)
    # An error that quotes kilobytes of the file is cut short.
    pixels = (tmp_path / "001.dcm").read_bytes()
    position = pixels.index(b"\x28\x00\x02\x01US") + 6  # the length of HighBit
    (tmp_path / "001.dcm").write_bytes(pixels[:position] + b"\x77\x00" + pixels[position + 2 :])
    assert all(len(problem.detail) < 500 for problem in error_of(read_dicom_volume, tmp_path).problems)
    assert not caplog.records
    assert not recwarn.list
    assert logging.getLogger("pydicom").level == level


# --- pictures -------------------------------------------------------------------------------------------


def picture(path: Path) -> np.ndarray:
    result = read_dicom_image(path)
    assert isinstance(result, Picture)
    assert result.source.path == (path if path.is_file() else next(path.iterdir()))
    assert read_dicom_grid(path) is None
    return result.values


@pytest.mark.parametrize("shape", [(20, 30), (20, 30, 3)])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_photographs_keep_every_bit(tmp_path: Path, shape: tuple[int, ...], dtype: str) -> None:
    pixels = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype=dtype)
    write_picture(tmp_path / "x" / "x.dcm", pixels)
    values = picture(tmp_path / "x")
    assert values.dtype == dtype
    assert np.array_equal(values, pixels)
    grouped = {"SharedFunctionalGroupsSequence": [pydicom.Dataset()], "NumberOfFrames": 1}
    write_picture(tmp_path / "g.dcm", pixels, **grouped)
    assert np.array_equal(picture(tmp_path / "g.dcm"), pixels)
    if len(shape) == 3:
        planes = np.ascontiguousarray(pixels.transpose(2, 0, 1)).tobytes()
        write_picture(tmp_path / "y.dcm", pixels, PlanarConfiguration=1, PixelData=planes)
        assert np.array_equal(picture(tmp_path / "y.dcm"), pixels)


def test_a_grey_picture_goes_through_its_modality_transform(tmp_path: Path) -> None:
    pixels = np.arange(6, dtype=np.uint8).reshape(2, 3)
    write_picture(tmp_path / "a.dcm", pixels, PhotometricInterpretation="MONOCHROME1")
    assert np.array_equal(picture(tmp_path / "a.dcm"), 255 - pixels)
    write_picture(tmp_path / "b.dcm", pixels, RescaleSlope=2, RescaleIntercept=-1)
    assert np.array_equal(picture(tmp_path / "b.dcm"), pixels * 2.0 - 1)
    write_picture(tmp_path / "c.dcm", pixels.astype(np.int8) - 3)
    assert np.array_equal(picture(tmp_path / "c.dcm"), pixels.astype(np.float32) - 3)


def test_jpeg_photographs(tmp_path: Path) -> None:
    pixels = np.zeros((32, 48, 3), np.uint8)
    pixels[:, :16], pixels[:, 16:32] = (200, 40, 40), (40, 160, 90)
    write_picture(tmp_path / "x.dcm", pixels)
    Image.fromarray(pixels).save(tmp_path / "x.jpg", quality=95)
    stream = (tmp_path / "x.jpg").read_bytes()
    encoded(tmp_path / "x.dcm", JPEGBaseline8Bit, stream, PhotometricInterpretation="YBR_FULL_422")
    assert np.abs(picture(tmp_path / "x.dcm").astype(int) - pixels).mean() < 2
    write_picture(tmp_path / "y.dcm", pixels)
    colours = {"PhotometricInterpretation": "YBR_RCT"}
    encoded(tmp_path / "y.dcm", JPEG2000Lossless, jpeg_2000(pixels, 8), **colours)
    assert np.array_equal(picture(tmp_path / "y.dcm"), pixels)
    write_picture(tmp_path / "w.dcm", pixels)
    header = pydicom.dcmread(tmp_path / "w.dcm")
    header.compress(JPEGLSLossless, generate_instance_uid=False)
    header.save_as(tmp_path / "w.dcm")
    assert np.array_equal(picture(tmp_path / "w.dcm"), pixels)
    deep = pixels.astype(np.uint16) * 257
    write_picture(tmp_path / "z.dcm", deep)
    encoded(tmp_path / "z.dcm", JPEG2000Lossless, jpeg_2000(deep, 16), **colours)
    assert np.array_equal(picture(tmp_path / "z.dcm"), deep)  # Pillow would cut it down to 8 bit


@pytest.mark.parametrize(
    "name",
    [
        "SC_rgb_jpeg_gdcm.dcm",
        "SC_rgb_jpeg_lossy_gdcm.dcm",
        "SC_rgb_jpeg_dcmtk.dcm",
        "SC_rgb_dcmtk_+eb+cr.dcm",
        "SC_rgb_dcmtk_+eb+cy+np.dcm",
        "SC_rgb_rle.dcm",
        "SC_rgb_gdcm_KY.dcm",
        "SC_ybr_full_422_uncompressed.dcm",
        "SC_rgb_rle_16bit.dcm",
    ],
)
def test_secondary_captures_of_other_programs_show_the_same_bars(name: str) -> None:
    values = picture(Path(get_testdata_file(name, download=False)))
    bars = [(255, 0, 0), (255, 128, 128), (0, 255, 0), (128, 255, 128), (0, 0, 255), (128, 128, 255)]
    bars += [(0, 0, 0), (64, 64, 64), (192, 192, 192), (255, 255, 255)]
    assert values.shape == (100, 100, 3)
    scale = 257 if values.dtype == np.uint16 else 1
    assert np.abs(values[5::10, 50].astype(int) / scale - bars).max() < 6


def test_palette_colours_become_rgb() -> None:
    values = picture(Path(get_testdata_file("examples_palette.dcm", download=False)))
    header = pydicom.dcmread(get_testdata_file("examples_palette.dcm", download=False))
    stored = np.frombuffer(header.PixelData, np.uint8).reshape(header.Rows, header.Columns)
    red = np.frombuffer(
        header.RedPaletteColorLookupTableData, f"u{2 if header.RedPaletteColorLookupTableDescriptor[2] == 16 else 1}"
    )
    assert values.shape == (*stored.shape, 3)
    assert np.array_equal(values[..., 0], red[stored])


def test_a_picture_is_not_a_series_and_a_damaged_slice_is_not_a_picture(tmp_path: Path, voxels: np.ndarray) -> None:
    write_picture(tmp_path / "x.dcm", np.zeros((4, 5, 3), np.uint8))
    assert error_of(read_dicom_volume, tmp_path / "x.dcm").ids == ("FMS-D004",)
    write_series(tmp_path / "one", voxels[:, :, :1], affine(), ImagePositionPatient=None)
    error = error_of(read_dicom_image, tmp_path / "one")
    assert error.ids == ("FMS-D004",)
    assert "MR Image Storage without ImagePositionPatient" in str(error)


def test_colour_with_a_position_is_a_picture_when_alone_and_an_error_in_a_volume(tmp_path: Path) -> None:
    write_series(tmp_path, np.zeros((4, 5, 2), np.uint8), affine())
    tags = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}
    for path in tmp_path.iterdir():
        header = pydicom.dcmread(path)
        header.PixelData = bytes(range(60))
        for tag, value in tags.items():
            setattr(header, tag, value)
        header.save_as(path)
    assert picture(tmp_path / "000.dcm").shape == (5, 4, 3)
    assert error_of(read_dicom_image, tmp_path).ids == ("FMS-D014",)


def test_several_pictures_in_a_folder_are_cases_when_the_pattern_names_files(tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 255, (20, 30, 3), dtype=np.uint8)
        write_picture(tmp_path / "images" / f"p{number}.DCM", pixels, PatientID=f"P{number}")
        Image.fromarray((pixels[..., 0] > 99).astype(np.uint8)).save(tmp_path / "masks" / f"p{number}.png")
    error = error_of(read_dicom_image, tmp_path / "images")
    assert error.ids == ("FMS-D015", "FMS-D014")  # four patients and four pictures
    assert "4 pictures without a position in one series: p0.DCM" in str(error)
    dataset = raster_dataset(
        format="dicom",
        images={"pattern": "images/{case}.DCM"},
        masks=[{"pattern": "masks/{case}.png", "labels": {"organ": 1}}],
        patient={"rule": "dicom_patient_id"},
    )
    path = write_yaml(tmp_path / "site.yaml", {"datasets": [dataset]})
    report = check_site(path)
    assert report.ok, report.problems
    folders = write_yaml(
        tmp_path / "other.yaml", {"datasets": [{**dataset, "images": {"pattern": "images/{case}"}, "masks": []}]}
    )
    assert "fits files, but no folder" in str(check_site(folders).problems[0])
    assert (report.rows[0].cases, report.rows[0].patients, report.rows[0].spacing) == (4, 4, None)
    data = open_dataset(
        load_site(path),
        DataRequest(
            task=dataset["task"], structures=("organ",), missing_structure="error", preprocessing=preprocessing()
        ),
    )
    sample = data.load(data.slices("train")[0])
    assert np.array_equal(sample.image[0] > 99, sample.masks[0])
    assert sample.spacing is None
