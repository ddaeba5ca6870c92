"""DICOM in, DICOM SEG out: read back by other people's readers, the mask is where the object is."""

from __future__ import annotations

import logging
import shutil
import warnings
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import pytest

from fedfms import __version__
from fedfms.prediction.cases import PredictOptions, Report, predict
from fedfms.prediction.dicom_reference import quiet_dicom
from fedfms.prediction.inputs import find_inputs
from fedfms.prediction.predictor import Predictor
from fedfms.prediction.prompts import Prompts
from tests.generators import rotation, write_enhanced, write_series
from tests.prediction.conformance import conforms, dcmqi_places, errors, highdicom_places
from tests.prediction.model import LESION, ORGAN, SHA256, Bright, object_in, predictor, same_places, world

SIZE = (64, 48, 12)
NOTICE = "for research use, not for diagnosis"


#: What dciodvfy wants to find in a source, empty or not.
CONFORMING: dict[str, Any] = {
    "PatientName": "", "PatientBirthDate": "", "PatientSex": "", "StudyID": "", "StudyDate": "", "StudyTime": "",
    "AccessionNumber": "", "ReferringPhysicianName": "", "SeriesNumber": 1, "Manufacturer": "x",
    "ImageType": ["ORIGINAL", "PRIMARY", "M", "NONE"], "PositionReferenceIndicator": "",
}  # fmt: skip


def run(path: Path, out: Path, made: Predictor | None = None, **options: object) -> Report:
    return predict(made or predictor("thickest"), find_inputs(path, out), PredictOptions(out, **options))  # type: ignore[arg-type]


def stored(name: str) -> np.ndarray:
    """Affine of a series in LPS: where rows, columns and slices run."""
    directions = {
        "axial": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
        "sagittal": [[0, 0, -1], [1, 0, 0], [0, -1, 0]],
        "coronal": [[1, 0, 0], [0, 0, 1], [0, -1, 0]],
        "flipped": [[-1, 0, 0], [0, -1, 0], [0, 0, 1]],
        "mirrored": [[-1, 0, 0], [0, 1, 0], [0, 0, 1]],
        "oblique": rotation((20, -15, 30)).tolist(),
    }
    affine = np.eye(4)
    affine[:3, :3] = np.array(directions[name], dtype=float) * [0.9, 0.7, 3]
    affine[:3, 3] = [-31.5, 12.25, -40]
    return affine


@pytest.mark.parametrize("name", ["axial", "sagittal", "coronal", "flipped", "mirrored", "oblique"])
def test_seg_matches_the_object(tmp_path: Path, name: str) -> None:
    voxels, affine = object_in(SIZE, np.uint16), stored(name)
    write_series(tmp_path / "in", voxels, affine)
    report = run(tmp_path / "in", tmp_path / "out")
    assert report.written == (tmp_path / "out" / "in_seg.dcm",) and not report.problems
    for number, least in ((1, ORGAN), (2, LESION)):
        expected = world(voxels >= least, affine)
        assert same_places(highdicom_places(report.written[0], number), expected)
        assert same_places(dcmqi_places(report.written[0], tmp_path / "itk", number), expected)
    conforms(report.written[0])


@pytest.mark.parametrize("name", ["sagittal", "coronal"])
def test_seg_of_a_series_that_the_model_cuts_otherwise(tmp_path: Path, name: str) -> None:
    """Axial slices through a series acquired in another plane; its axes are chosen so that nothing is scaled."""
    voxels, affine = object_in((64, 12, 48), np.uint16), stored(name)
    affine[:3, :3] /= np.linalg.norm(affine[:3, :3], axis=0)
    write_series(tmp_path / "in", voxels, affine)
    made = predictor("axial")
    (path,) = run(tmp_path / "in", tmp_path / "out", made).written
    assert sum(made.model.batches) == 12
    for number, least in ((1, ORGAN), (2, LESION)):
        assert same_places(highdicom_places(path, number), world(voxels >= least, affine))


def test_seg_refers_to_its_images_and_says_who_made_it(tmp_path: Path) -> None:
    voxels = object_in(SIZE, np.uint16)
    write_series(
        tmp_path / "in",
        voxels,
        stored("axial"),
        SeriesNumber=7,
        PatientName="Müller^Özgür",
        SpecificCharacterSet="ISO_IR 192",
    )
    (path,) = run(tmp_path / "in", tmp_path / "out").written
    seg = pydicom.dcmread(path)
    images = {image.SOPInstanceUID: image for image in map(pydicom.dcmread, (tmp_path / "in").iterdir())}
    first = next(iter(images.values()))
    assert (seg.StudyInstanceUID, seg.FrameOfReferenceUID) == (first.StudyInstanceUID, first.FrameOfReferenceUID)
    assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == first.SeriesInstanceUID
    referenced = seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    assert {item.ReferencedSOPInstanceUID for item in referenced} == set(images)
    for group in seg.PerFrameFunctionalGroupsSequence:
        source = group.DerivationImageSequence[0].SourceImageSequence[0]
        position = images[source.ReferencedSOPInstanceUID].ImagePositionPatient
        assert np.allclose(group.PlanePositionSequence[0].ImagePositionPatient, position, atol=1e-3)
    # Slices without the object are left out: it covers k // 4 up to the last but one.
    assert len({str(group.PlanePositionSequence) for group in seg.PerFrameFunctionalGroupsSequence}) == 8
    assert (seg.SegmentationType, seg.SegmentsOverlap, seg.SeriesNumber) == ("BINARY", "YES", 9007)
    assert NOTICE in seg.SeriesDescription and seg.ContentDescription == NOTICE
    assert str(seg.PatientName) == "Müller^Özgür" and seg.PatientID == "P1"
    assert (seg.Manufacturer, seg.SoftwareVersions, seg.DeviceSerialNumber) == ("FedFMS", __version__, SHA256)
    organ, lesion = seg.SegmentSequence
    assert (organ.SegmentLabel, lesion.SegmentLabel) == ("organ", "lesion")
    assert organ.SegmentedPropertyTypeCodeSequence[0].CodeValue == "91772007"
    assert lesion.SegmentedPropertyCategoryCodeSequence[0].CodeMeaning == "Morphologically Abnormal Structure"
    for item in seg.SegmentSequence:
        algorithm = item.SegmentationAlgorithmIdentificationSequence[0]
        assert item.SegmentAlgorithmType == "AUTOMATIC"
        assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("FedFMS organ-lesion", __version__)
        assert algorithm.AlgorithmParameters == f"model_sha256={SHA256}"


def test_probabilities_become_a_fractional_seg(tmp_path: Path) -> None:
    voxels, affine = object_in(SIZE, np.uint16), stored("oblique")
    write_series(tmp_path / "in", voxels, affine)
    _, path = run(tmp_path / "in", tmp_path / "out", probabilities=True).written
    seg = pydicom.dcmread(path)
    assert (seg.SegmentationType, seg.SegmentationFractionalType, seg.MaximumFractionalValue) == (
        "FRACTIONAL", "PROBABILITY", 255,
    )  # fmt: skip
    volume = highdicom.seg.segread(path).get_volume(segment_numbers=[1], allow_missing_positions=True)
    assert same_places(world(volume.array[..., 0] > 0.5, volume.affine), world(voxels >= ORGAN, affine))
    assert 0.94 < volume.array.max() <= 1 and NOTICE in seg.SeriesDescription
    conforms(path)


def test_the_conformance_tool_finds_what_is_wrong(tmp_path: Path) -> None:
    write_series(tmp_path / "in", object_in(SIZE, np.uint16), stored("axial"))
    (path,) = run(tmp_path / "in", tmp_path / "out").written
    seg = pydicom.dcmread(path)
    del seg.SegmentationType
    seg.save_as(path)
    assert any("SegmentationType" in line for line in errors(path))


def test_an_empty_answer_is_a_seg_too(tmp_path: Path) -> None:
    write_series(tmp_path / "in", np.full(SIZE, 20, dtype=np.uint16), stored("axial"))
    seg_file, capture = run(tmp_path / "in", tmp_path / "out", capture=True).written
    assert not pydicom.dcmread(seg_file).pixel_array.any()
    assert [path.name for path in capture.iterdir()] == ["0007.dcm"]
    conforms(seg_file)


def test_a_prompt_makes_it_semiautomatic(tmp_path: Path) -> None:
    write_series(tmp_path / "in", np.full(SIZE, ORGAN, dtype=np.uint16), stored("axial"))
    (path,) = run(tmp_path / "in", tmp_path / "out", prompts=Prompts(box=(10, 20, 30, 40), slice=3)).written
    seg = pydicom.dcmread(path)
    assert seg.SegmentSequence[0].SegmentAlgorithmType == "SEMIAUTOMATIC"
    expected = np.zeros(SIZE, dtype=bool)
    expected[10:30, 20:40, 3] = True
    assert same_places(highdicom_places(path, 1), world(expected, stored("axial")))
    conforms(path)


def test_an_enhanced_multi_frame_series(tmp_path: Path) -> None:
    """Frames stored in another order than that of their positions: the SEG refers to the right ones."""
    voxels, affine = object_in(SIZE, np.uint16), stored("oblique")
    write_series(tmp_path / "single", voxels, affine, **CONFORMING)
    datasets = [pydicom.dcmread(path) for path in sorted((tmp_path / "single").iterdir())]
    shuffled = [datasets[index] for index in np.random.default_rng(0).permutation(len(datasets))]
    enhanced = highdicom.legacy.LegacyConvertedEnhancedMRImage(
        shuffled, series_instance_uid=highdicom.UID(), series_number=2, sop_instance_uid=highdicom.UID(),
        instance_number=1, transfer_syntax_uid="1.2.840.10008.1.2.1",
    )  # fmt: skip
    (tmp_path / "in").mkdir()
    enhanced.save_as(tmp_path / "in" / "enhanced.dcm")
    seg_file, capture = run(tmp_path / "in", tmp_path / "out", capture=True).written
    for number, least in ((1, ORGAN), (2, LESION)):
        assert same_places(highdicom_places(seg_file, number), world(voxels >= least, affine))
    positions = [
        frame.PlanePositionSequence[0].ImagePositionPatient for frame in enhanced.PerFrameFunctionalGroupsSequence
    ]
    for group in pydicom.dcmread(seg_file).PerFrameFunctionalGroupsSequence:
        source = group.DerivationImageSequence[0].SourceImageSequence[0]
        assert np.allclose(
            group.PlanePositionSequence[0].ImagePositionPatient, positions[source.ReferencedFrameNumber - 1], atol=1e-3
        )
    source = pydicom.dcmread(capture / "0004.dcm").SourceImageSequence[0]
    assert source.ReferencedSOPInstanceUID == enhanced.SOPInstanceUID
    assert np.allclose(positions[source.ReferencedFrameNumber - 1], (affine @ [0, 0, 3, 1])[:3], atol=1e-3)
    conforms(seg_file)


def test_geometry_in_the_groups_of_each_frame(tmp_path: Path) -> None:
    """As Philips and others write it; highdicom looks into the shared groups only."""
    voxels, affine = object_in(SIZE, np.uint16), stored("oblique")
    write_enhanced(tmp_path / "in" / "x.dcm", voxels, affine, **CONFORMING)
    dataset = pydicom.dcmread(tmp_path / "in" / "x.dcm")
    shared = dataset.SharedFunctionalGroupsSequence[0]
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        frame.PlaneOrientationSequence = shared.PlaneOrientationSequence
        frame.PixelMeasuresSequence = shared.PixelMeasuresSequence
    del dataset.SharedFunctionalGroupsSequence
    dataset.save_as(tmp_path / "in" / "x.dcm")
    seg_file, capture = run(tmp_path / "in", tmp_path / "out", capture=True).written
    for number, least in ((1, ORGAN), (2, LESION)):
        assert same_places(highdicom_places(seg_file, number), world(voxels >= least, affine))
    conforms(seg_file)
    assert len(list(capture.iterdir())) > 0


def test_slices_whose_orientation_differs_in_the_last_decimals(tmp_path: Path) -> None:
    voxels, affine = object_in(SIZE, np.uint16), stored("axial")
    write_series(tmp_path / "in", voxels, affine, **CONFORMING)
    for number, path in enumerate(sorted((tmp_path / "in").iterdir())):
        dataset = pydicom.dcmread(path)
        dataset.ImageOrientationPatient = [1, 2e-5 * (number % 2), 0, -2e-5 * (number % 2), 1, 0]
        dataset.PixelSpacing = [float(value) * (1 + 1e-6 * (number % 2)) for value in dataset.PixelSpacing]
        dataset.save_as(path)
    (seg_file,) = run(tmp_path / "in", tmp_path / "out").written
    assert same_places(highdicom_places(seg_file, 1), world(voxels >= ORGAN, affine), 0.05)
    conforms(seg_file)


def test_what_makes_a_result_impossible_is_found_before_the_model_runs(tmp_path: Path) -> None:
    write_series(tmp_path / "in", object_in(SIZE, np.uint16), stored("axial"), FrameOfReferenceUID=None)
    model = Bright()
    report = run(tmp_path / "in", tmp_path / "out", predictor(model=model))
    assert [problem.kind.id for problem in report.problems] == ["FMS-P004"]
    assert not model.batches


def test_two_copies_of_a_series_in_two_folders(tmp_path: Path) -> None:
    """The message names the folder that holds both copies."""
    write_series(tmp_path / "in" / "a", object_in(SIZE, np.uint16), stored("axial"))
    shutil.copytree(tmp_path / "in" / "a", tmp_path / "in" / "b")
    (problem,) = run(tmp_path / "in", tmp_path / "out").problems
    assert problem.kind.id == "FMS-D015" and problem.where.startswith(
        f"{tmp_path / 'in'}, MR '' (series number -, 24 files"
    )


def test_a_multi_frame_file_of_several_stacks(tmp_path: Path) -> None:
    """A prediction has no site.yaml to choose one in, and does not send the user there."""
    (tmp_path / "in").mkdir()
    twice = [*range(SIZE[2])] * 2
    write_enhanced(
        tmp_path / "in" / "echoes.dcm", object_in(SIZE, np.uint16), stored("axial"),
        order=twice, dimensions={"EffectiveEchoTime": [1] * SIZE[2] + [2] * SIZE[2]},
    )  # fmt: skip
    (problem,) = run(tmp_path / "in", tmp_path / "out").problems
    assert problem.kind.id == "FMS-D014" and "EffectiveEchoTime: 1 (12 frames), 2 (12 frames)" in problem.detail
    assert "series of its own" in str(problem) and "site.yaml" not in str(problem)


def test_slices_in_several_multi_frame_files(tmp_path: Path) -> None:
    """They can be read; but a SEG refers to one such file or to single slices."""
    (tmp_path / "in").mkdir()
    for name, order in (("a", range(6)), ("b", range(6, 12))):
        path = tmp_path / "in" / f"{name}.dcm"
        write_enhanced(path, object_in(SIZE, np.uint16), stored("axial"), order=list(order))
    report = run(tmp_path / "in", tmp_path / "out")
    assert not report.written and [problem.kind.id for problem in report.problems] == ["FMS-P004"]
    assert "2 multi-frame files" in str(report.problems[0])


@pytest.mark.filterwarnings("ignore:Invalid value", "ignore:The value length")
def test_what_a_source_lacks_or_has_wrong_does_not_stop_it(tmp_path: Path) -> None:
    wrong = {
        "PatientSex": "UNKNOWN",
        "StudyDate": "last week",
        "SeriesNumber": None,
        "SliceThickness": "3.0000000000000004",
    }
    write_series(tmp_path / "in", object_in(SIZE, np.uint16), stored("axial"), **wrong)
    report = run(tmp_path / "in", tmp_path / "out", capture=True)
    assert not report.problems
    seg = pydicom.dcmread(report.written[0])
    assert seg.PatientSex == ""
    assert str(seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SliceThickness) == "3.00000000000000"
    conforms(report.written[0])
    conforms(next(report.written[1].iterdir()))


def test_nothing_of_the_header_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    write_series(tmp_path / "in", object_in(SIZE, np.uint16), stored("axial"), PatientName="Secret")
    caplog.clear()
    recwarn.clear()
    assert not run(tmp_path / "in", tmp_path / "out", capture=True).failed
    assert "Secret" not in caplog.text and not [item for item in recwarn if "Secret" in str(item.message)]


def test_what_the_libraries_say_about_a_header_is_not_shown(
    caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    with quiet_dicom():
        for name in ("pydicom", "highdicom"):
            logging.getLogger(name).error("Secret")
        warnings.warn("Secret", stacklevel=1)
    assert "Secret" not in caplog.text and not list(recwarn)
    logging.getLogger("pydicom").error("afterwards")
    assert "afterwards" in caplog.text


def test_a_source_that_a_seg_cannot_refer_to(tmp_path: Path) -> None:
    write_series(tmp_path / "in", object_in(SIZE, np.uint16), stored("axial"), FrameOfReferenceUID=None)
    report = run(tmp_path / "in", tmp_path / "out")
    assert not report.written and report.failed == 1
    assert [problem.kind.id for problem in report.problems] == ["FMS-P004"]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "ours",
    [
        "dicom_output._frames", "dicom_output._description", "dicom_output.patient_orientation",
        "dicom_reference._shorten_numbers", "capture._window", "capture.draw_outlines", "capture._pixel_aspect",
        "capture._reference",
    ],
)  # fmt: skip
def test_a_fault_of_ours_is_not_told_as_one_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ours: str
) -> None:
    def faulty(*_: object) -> None:
        raise TypeError("a fault of ours")

    write_photograph(tmp_path / "in")
    monkeypatch.setattr(f"fedfms.prediction.{ours}", faulty)
    with pytest.raises(TypeError, match="a fault of ours"):
        run(tmp_path / "in", tmp_path / "out", capture=True)


@pytest.mark.parametrize("keyword", ["PatientOrientation", "PixelAspectRatio"])
def test_an_element_that_cannot_be_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keyword: str) -> None:
    get = pydicom.Dataset.get

    def undecodable(self: pydicom.Dataset, key: str, default: object = None) -> object:
        if key == keyword:
            raise ValueError("no such value")
        return get(self, key, default)

    write_photograph(tmp_path / "in")
    monkeypatch.setattr(pydicom.Dataset, "get", undecodable)
    report = run(tmp_path / "in", tmp_path / "out", capture=True)
    assert [problem.kind.id for problem in report.problems] == ["FMS-P004"]


def write_photograph(folder: Path) -> np.ndarray:
    """A colour photograph (rows, columns) without a position in the patient."""
    pixels = object_in(SIZE)[:, :, 5].T
    photograph = highdicom.sc.SCImage(
        np.stack([pixels] * 3, axis=-1), "RGB", 8, "PATIENT", highdicom.UID(), highdicom.UID(), 1, highdicom.UID(), 1,
        "x", patient_id="P1", patient_orientation=("L", "F"),
    )  # fmt: skip
    folder.mkdir()
    photograph.save_as(folder / "eye.dcm")
    return pixels


def test_a_photograph(tmp_path: Path) -> None:
    """Ophthalmic photography: no place in the patient, colour; the SEG has its rows and columns."""
    pixels = write_photograph(tmp_path / "in")
    report = run(tmp_path / "in", tmp_path / "out", capture=True)
    assert [path.name for path in report.written] == ["eye_seg.dcm", "eye_capture"], report.problems
    frames = pydicom.dcmread(report.written[0]).pixel_array
    assert (frames[0] == (pixels >= ORGAN)).all() and (frames[1] == (pixels >= LESION)).all()
    capture = pydicom.dcmread(report.written[1] / "0001.dcm")
    assert list(capture.PatientOrientation) == ["L", "F"]
    conforms(report.written[0])


# --- secondary captures ---------------------------------------------------------------------------------


def test_captures_show_the_outlines_where_the_object_is(tmp_path: Path) -> None:
    voxels = object_in(SIZE, np.uint16)
    write_series(tmp_path / "in", voxels, stored("axial"))
    _, folder = run(tmp_path / "in", tmp_path / "out", capture=True).written
    assert sorted(path.name for path in folder.iterdir()) == [f"{number:04d}.dcm" for number in range(4, 12)]
    path = folder / "0005.dcm"
    capture = pydicom.dcmread(path)
    pixels = capture.pixel_array
    times = 8  # 64 columns are shown as 512
    assert pixels.shape[1] == 512 and pixels.shape[0] > 48 * times
    coloured = (pixels.max(axis=2) != pixels.min(axis=2))[: 48 * times]
    rows, columns = np.nonzero(coloured)
    organ = np.argwhere(voxels[:, :, 4] >= ORGAN)
    assert (columns.min(), rows.min()) == tuple(organ.min(axis=0) * times)
    assert (columns.max() + 1, rows.max() + 1) == tuple((organ.max(axis=0) + 1) * times)
    # Inside of the outline the image is as it was.
    i, j = np.argwhere(voxels[:, :, 4] == ORGAN)[40]
    assert (pixels[j * times + 4, i * times + 4] == ORGAN).all()
    assert pixels[48 * times :].max() > 200, "the words below"
    source = next(
        image for image in map(pydicom.dcmread, (tmp_path / "in").iterdir()) if image.ImagePositionPatient[2] == -28
    )
    assert capture.SourceImageSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID
    assert capture.StudyInstanceUID == source.StudyInstanceUID and capture.InstanceNumber == 5
    assert NOTICE in capture.SeriesDescription and capture.ImageComments == NOTICE
    assert SHA256 in capture.DerivationDescription and capture.BurnedInAnnotation == "NO"
    assert list(capture.PatientOrientation) == ["L", "P"]
    assert len({pydicom.dcmread(item).SeriesInstanceUID for item in folder.iterdir()}) == 1
    conforms(path)


@pytest.mark.parametrize(("name", "letters"), [("sagittal", "PF"), ("flipped", "RA"), ("oblique", "LP")])
def test_captures_give_their_orientation(tmp_path: Path, name: str, letters: str) -> None:
    write_series(tmp_path / "in", object_in(SIZE, np.uint16), stored(name))
    _, folder = run(tmp_path / "in", tmp_path / "out", capture=True).written
    path = next(folder.iterdir())
    assert list(pydicom.dcmread(path).PatientOrientation) == list(letters)
    conforms(path)


def test_captures_say_that_their_pixels_are_not_square(tmp_path: Path) -> None:
    for name, height in (("high", 0.7 * 3), ("square", 0.9)):
        affine = stored("axial")
        affine[1, 1] = height
        write_series(tmp_path / "in" / name, object_in(SIZE, np.uint16), affine)
    _, high, _, square = run(tmp_path / "in", tmp_path / "out", capture=True).written
    path = high / "0005.dcm"
    assert list(pydicom.dcmread(path).PixelAspectRatio) == [2100, 900]
    conforms(path)
    assert "PixelAspectRatio" not in pydicom.dcmread(square / "0005.dcm")


def test_captures_use_the_window_of_the_source(tmp_path: Path) -> None:
    voxels = object_in(SIZE, np.uint16)
    write_series(tmp_path / "in", voxels, stored("axial"), WindowCenter=[ORGAN, 1], WindowWidth=[80, 1])
    _, folder = run(tmp_path / "in", tmp_path / "out", capture=True).written
    pixels = pydicom.dcmread(folder / "0005.dcm").pixel_array
    i, j = np.argwhere(voxels[:, :, 4] == ORGAN)[40]
    assert abs(int(pixels[j * 8 + 4, i * 8 + 4, 0]) - 128) <= 1


def test_captures_leave_a_window_of_inverted_values_aside(tmp_path: Path) -> None:
    """The reader turns MONOCHROME1 round; the header's window is of the values before."""
    voxels = object_in(SIZE, np.uint16)
    shown = []
    for name, tags in (("with", {"WindowCenter": 60000, "WindowWidth": 60000}), ("without", {})):
        folder = tmp_path / name
        write_series(folder, voxels, stored("axial"), PhotometricInterpretation="MONOCHROME1", **tags)
        _, captures = run(folder, tmp_path / "out" / name, capture=True).written
        shown.append([pydicom.dcmread(path).pixel_array for path in sorted(captures.iterdir())])
    assert all((one == other).all() for one, other in zip(*shown, strict=True))


def test_captures_keep_the_warning_of_words_in_the_source(tmp_path: Path) -> None:
    write_series(tmp_path / "in", object_in(SIZE, np.uint16), stored("axial"), BurnedInAnnotation="YES")
    _, folder = run(tmp_path / "in", tmp_path / "out", capture=True).written
    assert {pydicom.dcmread(path).BurnedInAnnotation for path in folder.iterdir()} == {"YES"}


# --- real series ----------------------------------------------------------------------------------------


@pytest.mark.shared_data
@pytest.mark.parametrize("name", ["ct_liver_seg_dcmqi", "ct_rtstruct_rt-utils", "ct_seg_highdicom"])
def test_real_series(shared_data: Path, tmp_path: Path, name: str) -> None:
    """The small ones; test_samples.py has all, and a trained model."""
    report = run(shared_data / "dicom_samples" / name, tmp_path, capture=True)
    assert not report.problems
    seg_file, folder = report.written
    # dcmqi reads what highdicom wrote, at the same places.
    for number, item in enumerate(pydicom.dcmread(seg_file).SegmentSequence, start=1):
        places = highdicom_places(seg_file, number)
        assert item.SegmentLabel in ("organ", "lesion")
        if len(places):
            assert same_places(dcmqi_places(seg_file, tmp_path / "itk", number), places)
    for path in (seg_file, *folder.iterdir()):
        conforms(path)
