"""``fedfms data init``: folders of results, which series is meant, names that mean the same, and who is a patient."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK
from highdicom.seg import SegmentationTypeValues
from PIL import Image
from pydicom.uid import generate_uid

from fedfms.data.authoring.first_site.dicom_cases import _itself
from fedfms.data.authoring.first_site.labels import regions
from fedfms.data.authoring.first_site.write import write_first_site
from fedfms.data.description.site import load_site
from fedfms.data.quality.check import check_site
from fedfms.data.slices.case_pixels import read_case
from fedfms.data.slices.discovery import find_cases
from fedfms.errors import FedfmsError
from tests.command import Command
from tests.data.authoring.test_first_site import MASK, described, picture
from tests.data.dicom.test_rtstruct import FRAME, box, image_of, write_rtstruct
from tests.data.dicom.test_seg import STUDY, lps_affine, two_segments, write_seg
from tests.generators import write_series

DRAWN = [box((2, 2), (5, 5), 1)]
LAYOUTS = {"flat": "P{0}", "series": "P{0}/{uid}", "studies": "P{0}/{uid}/{uid}"}


def export(data: Path, layout: str, count: int = 4) -> dict[Path, list[pydicom.Dataset]]:
    """Folder below ``data`` -> files of the patient's series."""
    found = {}
    for number in range(count):
        folder = "/".join(part.format(number, uid=generate_uid()) for part in LAYOUTS[layout].split("/"))
        found[Path(folder)] = series(data / folder, f"P{number}")
    return found


def series(folder: Path, patient: str, slices: int = 6, **tags: object) -> list[pydicom.Dataset]:
    """Files of a series, last slice first, as ``write_seg`` takes them."""
    voxels = np.random.default_rng([len(patient), ord(patient[-1]), slices]).integers(0, 4000, (11, 9, slices))
    names = [f"{tags.get('SeriesNumber', 1)}-{index:03d}.dcm" for index in range(slices)]
    write_series(folder, voxels.astype(np.uint16), lps_affine(), names=names, patient=patient, **STUDY, **tags)
    return [pydicom.dcmread(folder / name) for name in reversed(names)]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_from_predictions_beside_the_images_to_the_sheet(fedfms: Command, tmp_path: Path, layout: str) -> None:
    """As docs/site-data.md says: predict into EXPORT/predicted, init, check, preview."""
    data, out = tmp_path / "export", tmp_path / "site.yaml"
    for folder, images in export(data, layout, 12).items():
        write_seg(data / "predicted" / f"{folder}_seg.dcm", images, two_segments())
    assert fedfms("data", "init", data, "--out", out).code == 0
    assert "folders that fit but have results or masks" in out.read_text()
    report = check_site(out)
    assert report.ok, report.findings
    assert report.rows[0].cases == report.rows[0].patients == 12
    assert [item.annotated_cases for item in report.rows[0].structures] == [12, 12]
    (finding,) = [finding for finding in report.findings if finding.kind.id == "FMS-D003"]
    assert (finding.severity, finding.count) == ("WARN", 1 if layout == "flat" else 12)
    assert "predicted" in finding.named[0] and "predicted" not in finding.detail
    assert fedfms("data", "check", out).code == 0
    assert fedfms("data", "preview", out, "--out", tmp_path / "sheet.png").code == 0


@pytest.mark.parametrize("left", ["its mask", "nothing", "a damaged slice"])
def test_a_case_that_lost_its_images_is_not_passed_over(tmp_path: Path, left: str) -> None:
    data = tmp_path / "export"
    for folder, images in export(data, "flat").items():
        write_seg(data / folder / "seg.dcm", images, two_segments())
    write_first_site(data, tmp_path / "site.yaml")
    for path in (data / "P2").glob("*.dcm"):
        if left != "its mask" or path.name != "seg.dcm":
            path.unlink()
    if left == "a damaged slice":
        (data / "P2" / "1.dcm").write_bytes(b"damaged")
    found = find_cases(load_site(tmp_path / "site.yaml").datasets[0])
    assert (len(found.cases), len(found.bad), found.skipped) == (3, 1, [])


def test_the_series_that_the_segmentation_refers_to(tmp_path: Path) -> None:
    """Though it is smaller than the other."""
    data = tmp_path / "export"
    for number in range(4):
        study = data / f"P{number}" / "study"
        small = series(study / "a", f"P{number}", SeriesDescription="T1", SeriesNumber=1)
        series(study / "b", f"P{number}", 9, SeriesDescription="DWI", SeriesNumber=2)
        write_seg(study / "s" / "1.dcm", small, two_segments())
    dataset = described(data, tmp_path / "site.yaml")
    assert dataset.images.series is not None and dataset.images.series.description == "^T1$"
    text = (tmp_path / "site.yaml").read_text()
    assert "in 4 of 4 folders; in 4 the one that most SEG or RTSTRUCT files refer to is taken" in text
    assert {item.kind.id for item in check_site(tmp_path / "site.yaml").problems} == set()


def test_the_series_that_the_structure_set_refers_to(tmp_path: Path) -> None:
    data = tmp_path / "export"
    for number in range(3):
        folder = data / f"P{number}"
        small = series(folder, f"P{number}", SeriesDescription="T1", SeriesNumber=1)
        series(folder, f"P{number}", 9, SeriesDescription="DWI", SeriesNumber=2)
        path = write_rtstruct(folder / "rs.dcm", image_of(), {"Liver": DRAWN}, frame=FRAME)
        header = pydicom.dcmread(path)
        study = header.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0]
        study.RTReferencedSeriesSequence[0].SeriesInstanceUID = small[0].SeriesInstanceUID
        header.save_as(path)
    dataset = described(data, tmp_path / "site.yaml")
    assert dataset.images.series is not None and dataset.images.series.description == "^T1$"


@pytest.mark.parametrize("folders", [True, False])
def test_a_localiser_with_more_files_and_one_description_is_not_taken(tmp_path: Path, folders: bool) -> None:
    """And what differs from case to case is listed, without escapes that mean nothing."""
    data = tmp_path / "export"
    names = ("t2 tse-tra", "T2 (ax)", "t2_320")
    for number in range(6):
        study = data / f"P{number}" / "study"
        a, b = (study / "a", study / "b") if folders else (study, study)
        series(a, f"P{number}", SeriesDescription=names[number % 3], SeriesNumber=1)
        kind = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
        series(b, f"P{number}", 9, SeriesDescription="Localizer", SeriesNumber=2, ImageType=kind)
    dataset = described(data, tmp_path / "site.yaml")
    assert dataset.images.series is not None
    assert dataset.images.series.description == r"^(T2 \(ax\)|t2 tse-tra|t2_320)$"
    text = (tmp_path / "site.yaml").read_text()
    assert "in 6 the one with the most files, localisers aside is taken" in text
    assert "files refer to" not in text
    assert {item.kind.id for item in check_site(tmp_path / "site.yaml").problems} == set()


def test_what_no_description_tells_is_told_by_the_modality_or_left_open(tmp_path: Path) -> None:
    for number in range(3):
        for name, other in (("modality", "CT"), ("nothing", "MR")):
            folder = tmp_path / name / f"P{number}"
            series(folder, f"P{number}", SeriesNumber=1)
            series(folder, f"P{number}", 4, SeriesNumber=2, Modality=other)
    dataset = described(tmp_path / "modality", tmp_path / "a.yaml")
    assert dataset.images.series is not None and dataset.images.series.modality == "MR"
    assert {item.kind.id for item in check_site(tmp_path / "a.yaml").problems} == set()
    write_first_site(tmp_path / "nothing", tmp_path / "b.yaml")
    assert "in 3 folders neither description nor modality" in (tmp_path / "b.yaml").read_text()
    assert load_site(tmp_path / "b.yaml").datasets[0].images.series is None


def test_one_case_is_told_by_its_uid(tmp_path: Path) -> None:
    folder = tmp_path / "export" / "P1"
    wanted = series(folder, "P1", SeriesNumber=1)
    series(folder, "P1", 4, SeriesNumber=2)
    dataset = described(folder, tmp_path / "site.yaml")
    assert dataset.images.pattern == "{case}/P1"
    assert dataset.images.series is not None and dataset.images.series.uid == wanted[0].SeriesInstanceUID


def test_equal_series_are_said_to_be_equal(tmp_path: Path) -> None:
    for number in range(2):
        for index, name in enumerate(("a", "b")):
            series(tmp_path / "export" / f"P{number}", f"P{number}", SeriesDescription=name, SeriesNumber=index)
    write_first_site(tmp_path / "export", tmp_path / "site.yaml")
    assert "in 2 one of several that are equal in files and references is taken" in (tmp_path / "site.yaml").read_text()


def test_the_highest_folder_as_the_one_case() -> None:
    root, images = _itself(Path("/export-that-is-not"))
    assert (root, images.pattern) == (Path("/"), "export-that-is-no{case}")
    assert images.cases == {Path("export-that-is-not"): {"case": "t"}}


def test_names_that_differ_in_case_and_separators_only(tmp_path: Path) -> None:
    files = {"a": ["LIVER", "GTV 1"], "b": ["Liver", "GTV_1"], "c": ["liver", "gtv1"]}
    paths = [Path(f"{name}.dcm") for name in files]
    for name, rois in files.items():
        write_rtstruct(tmp_path / f"{name}.dcm", image_of(), dict.fromkeys(rois, DRAWN))
    mask = regions(tmp_path, "{case}.dcm", paths, set(), missing=0)
    assert mask.labels == {"liver": ("LIVER", "Liver", "liver"), "gtv_1": ("GTV 1", "GTV_1", "gtv1")}
    assert mask.required and "differ in case" in " ".join(mask.comments)
    # Those that meet in a file are different things.
    write_rtstruct(tmp_path / "c.dcm", image_of(), {"LIVER": DRAWN, "Liver": DRAWN})
    mask = regions(tmp_path, "{case}.dcm", paths, set(), missing=0)
    assert mask.labels == {"liver": "LIVER", "liver_2": "Liver", "gtv_1": ("GTV 1", "GTV_1")}
    assert not mask.required


def test_a_list_of_names_is_written_and_read_back(tmp_path: Path) -> None:
    data = tmp_path / "export"
    for number, (folder, images) in enumerate(export(data, "flat").items()):
        path = write_seg(data / folder / "seg.dcm", images, two_segments(), SegmentationTypeValues.BINARY)
        header = pydicom.dcmread(path)
        header.SegmentSequence[0].SegmentLabel = ("LEBER", "Leber")[number % 2]
        header.save_as(path)
    dataset = described(data, tmp_path / "site.yaml")
    assert dict(dataset.masks[0].labels) == {"leber": ("LEBER", "Leber"), "zyste_1": ("Zyste 1",)}
    report = check_site(tmp_path / "site.yaml")
    assert [item.annotated_cases for item in report.rows[0].structures] == [4, 4]


@pytest.mark.parametrize(
    ("folders", "names", "rule"),
    [
        (("north", "south"), "{0}{1}_{2}", "name"),  # patients of a hospital, several images of each
        (("north", "south"), "X_{0}{1}_{2}", "name"),
        (("anna", "bert"), "{0}_{2}", "pattern"),  # slices of one patient
        (("anna", "bert"), "{0}_t{1}_{2}", "pattern"),  # kinds of images of one patient
    ],
)
def test_hospitals_are_not_patients(tmp_path: Path, folders: tuple[str, ...], names: str, rule: str) -> None:
    for folder in folders:
        for patient in range(4):
            for number in range(3):
                name = names.format(folder[0], patient, number)
                picture(tmp_path / "data" / folder / "images" / f"{name}.png")
                picture(tmp_path / "data" / folder / "masks" / f"{name}.png", MASK)
    dataset = described(tmp_path / "data", tmp_path / "site.yaml")
    assert dataset.images.pattern == "{patient}/images/{case}.png"
    assert dataset.patient.rule == rule
    assert len({case.patient for case in find_cases(dataset).cases}) == (8 if rule == "name" else 2)


def test_names_without_a_second_word_fit_the_patients_expression_too(tmp_path: Path) -> None:
    for name in ("a_1", "a_2", "b_1", "b_2", "b_3", "c"):
        picture(tmp_path / "data" / "images" / f"{name}.png")
        picture(tmp_path / "data" / "masks" / f"{name}.png", MASK)
    dataset = described(tmp_path / "data", tmp_path / "site.yaml")
    assert sorted({case.patient for case in find_cases(dataset).cases}) == ["a", "b", "c"]


# --- masks whose values are not labels -------------------------------------------------------------------------


def write_masks(root: Path, kind: str) -> int:
    """Six images with a disc each, and its mask with soft edges; returns the pixels in a disc."""
    y, x = np.mgrid[:512, :512] / 4
    inside = (x - 60) ** 2 + (y - 64) ** 2 <= 196
    rng = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for number in range(6):
        noise = rng.integers(0, 255, (128, 128)).astype(np.uint8)
        Image.fromarray(noise).save(root / "images" / f"c{number}.png")
        whole = Image.fromarray(inside.astype(np.uint8) * 255).resize((128, 128), Image.Resampling.BICUBIC)
        if kind == "jpeg":
            whole.point(lambda value: 255 if value > 127 else 0).save(root / "masks" / f"c{number}.jpg", quality=70)
        elif kind == "smoothed":
            whole.save(root / "masks" / f"c{number}.png")
        elif kind == "labels as jpeg":
            steps = np.repeat(np.repeat(rng.choice([0, 80, 160, 240], (16, 16)), 8, 0), 8, 1).astype(np.uint8)
            Image.fromarray(steps).save(root / "masks" / f"c{number}.jpg", quality=70)
        elif kind == "objects":
            objects = np.arange(256).reshape(16, 16).repeat(8, 0).repeat(8, 1).astype(np.uint8)
            Image.fromarray(objects).save(root / "masks" / f"c{number}.png")
    return int(inside[::4, ::4].sum())


@pytest.mark.parametrize("kind", ["jpeg", "smoothed"])
def test_empty_masks_do_not_hide_soft_edges(tmp_path: Path, kind: str) -> None:
    """Most slices of a patient are empty."""
    write_masks(tmp_path, kind)
    for path in sorted((tmp_path / "masks").iterdir())[1:]:
        Image.fromarray(np.zeros((128, 128), np.uint8)).save(path)
    write_first_site(tmp_path, tmp_path / "site.yaml")
    (source,) = load_site(tmp_path / "site.yaml").datasets[0].masks
    assert source.above == 127


def test_some_masks_with_soft_edges_among_others_are_an_error(tmp_path: Path) -> None:
    write_masks(tmp_path / "objects", "objects")
    write_masks(tmp_path / "smoothed", "smoothed")
    (tmp_path / "smoothed" / "masks" / "c0.png").replace(tmp_path / "objects" / "masks" / "c0.png")
    with pytest.raises(FedfmsError, match="FMS-D006 .*1 of 6 masks that are not empty look like one shape"):
        write_first_site(tmp_path / "objects", tmp_path / "site.yaml")


@pytest.mark.parametrize("kind", ["jpeg", "smoothed"])
def test_soft_edges_are_cut_in_the_middle_and_not_counted_as_objects(tmp_path: Path, kind: str) -> None:
    true = write_masks(tmp_path, kind)
    write_first_site(tmp_path, tmp_path / "site.yaml")
    (source,) = load_site(tmp_path / "site.yaml").datasets[0].masks
    assert source.above == pytest.approx(127, abs=1) and set(source.labels.values()) == {"nonzero"}
    assert "# guess: shapes with soft edges" in (tmp_path / "site.yaml").read_text()
    for case in find_cases(load_site(tmp_path / "site.yaml").datasets[0]).cases:
        (mask,) = read_case(case, "axial", list(source.labels)).masks.values()
        assert int(mask.sum()) == pytest.approx(true, rel=0.03)


def test_labels_that_were_compressed_with_loss_are_not_guessed(tmp_path: Path) -> None:
    write_masks(tmp_path, "labels as jpeg")
    with pytest.raises(FedfmsError, match="FMS-D006.*JPEG"):
        write_first_site(tmp_path, tmp_path / "site.yaml")
    assert not (tmp_path / "site.yaml").exists()


def test_numbers_of_objects_are_one_structure_as_before(tmp_path: Path) -> None:
    write_masks(tmp_path, "objects")
    write_first_site(tmp_path, tmp_path / "site.yaml")
    (source,) = load_site(tmp_path / "site.yaml").datasets[0].masks
    assert source.above is None and set(source.labels.values()) == {"nonzero"}


def test_segments_of_3d_slicer_are_named(tmp_path: Path) -> None:
    for number in range(3):
        for kind in ("images", "labels"):
            (tmp_path / kind).mkdir(exist_ok=True)
            voxels = np.arange(128, dtype=np.int16).reshape(2, 8, 8) % (200 if kind == "images" else 3)
            image = SimpleITK.GetImageFromArray(voxels + number * (kind == "images"))
            if kind == "labels":
                for segment, (name, value) in enumerate({"Liver": "2", "Tumour": "1"}.items()):
                    image.SetMetaData(f"Segment{segment}_Name", name)
                    image.SetMetaData(f"Segment{segment}_LabelValue", value)
            SimpleITK.WriteImage(image, str(tmp_path / kind / f"c{number}.nrrd"))
    write_first_site(tmp_path, tmp_path / "site.yaml")
    (source,) = load_site(tmp_path / "site.yaml").datasets[0].masks
    assert source.labels == {"liver": ("Liver",), "tumour": ("Tumour",)}
