from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from fedfms.data.authoring.sites_from_folders import MaskFolder, SitesReport, parse_structures, write_sites
from fedfms.data.description.site import load_site
from fedfms.data.quality.check import check_site
from fedfms.data.slices.opening import DataRequest, open_dataset
from fedfms.errors import FedfmsError
from tests.generators import preprocessing, write_nifti, write_series


def save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.astype(np.uint8)).save(path)


def hospital(root: Path, name: str, images: int = 4, masks: tuple[str, ...] = ("masks",), value: int = 255) -> None:
    for number in range(images):
        save(root / name / "images" / f"i{number}.png", np.full((12, 10, 3), number))
        for folder in masks:
            save(root / name / folder / f"i{number}.png", np.eye(12, 10) * value)


def write(root: Path, *structures: str, **options: object) -> SitesReport:
    return write_sites(root, parse_structures(structures), out=root.parent / "out", **options)  # type: ignore[arg-type]


def refused(root: Path, *structures: str, **options: object) -> FedfmsError:
    with pytest.raises(FedfmsError) as caught:
        write(root, *structures, **options)
    assert not list((root.parent / "out").glob("*.yaml"))
    return caught.value


def test_structure_arguments() -> None:
    assert parse_structures(["tumour=masks", "cup=masks_cup/", "a=b/c:1,2", "d=e:nonzero", "f=g:>127"]) == {
        "tumour": MaskFolder("masks"),
        "cup": MaskFolder("masks_cup"),
        "a": MaskFolder("b/c", (1, 2)),
        "d": MaskFolder("e", "nonzero"),
        "f": MaskFolder("g", above=127),
    }
    for wrong in (
        ["tumour"],
        ["=masks"],
        ["Tumour=masks"],
        ["a=b:x"],
        ["a=/abs"],
        ["a=../b"],
        ["a=b", "a=c"],
        ["a=b:>x"],
        [],
    ):
        with pytest.raises(ValueError, match=r"write NAME|structure"):
            parse_structures(wrong)


def test_one_file_per_hospital_that_passes_the_check(tmp_path: Path) -> None:
    root = tmp_path / "root"
    hospital(root, "A", masks=("masks", "masks_cup"))
    hospital(root, "B", value=1)
    (root / "notes").mkdir()
    report = write(root, "disc=masks", "cup=masks_cup")
    assert [path.name for path in report.files] == ["A.yaml", "B.yaml"]
    assert "B: no masks_cup/, so the site lacks structure cup" in report.warnings
    assert "not a hospital, because there is no images/ in it: notes" in report.warnings
    assert sum("each image counts as a patient" in warning for warning in report.warnings) == 2
    first = yaml.safe_load(report.files[0].read_text(encoding="utf-8"))["datasets"][0]
    assert first["root"] == str(root / "A")
    assert first["task"] == "segmentation"
    assert first["patient"] == {"rule": "each_image"}
    for path in report.files:
        checked = check_site(path)
        assert checked.ok, checked.problems
        assert checked.rows[0].patients == 4
    assert load_site(report.files[0]).datasets[0].structures == ("disc", "cup")
    assert load_site(report.files[1]).datasets[0].structures == ("disc",)
    data = open_dataset(
        load_site(report.files[1]),
        DataRequest(
            task="segmentation", structures=("disc", "cup"), missing_structure="mask", preprocessing=preprocessing()
        ),
    )
    assert data.cases_per_structure("all") == {"disc": 4, "cup": 0}
    assert data.load(data.slices("train")[0]).masks[0].sum() == 10


def manifest(root: Path, splits: dict[str, str], header: str = "image,person,split") -> None:
    lines = [header]
    for name, words in splits.items():
        lines += [f"{name}/images/i{number}.png,q{number // 2},{word}" for number, word in enumerate(words.split())]
    (root / "manifest.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_patients_and_splits_come_from_the_manifest(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for name in "ABCD":
        hospital(root, name, images=6)
    manifest(
        root,
        {
            "A": "train train train train train train",
            "B": "train train validation validation test test",
            "C": "train train train train test test",
            "D": "train train odd odd test test",
        },
    )
    report = write(root, "tumour=masks", patient_column="person", task="brain")
    counts = {}
    for path in report.files:
        checked = check_site(path)
        assert checked.ok, checked.problems
        assert checked.rows[0].patients == 3
        assert checked.rows[0].task == "brain"
        counts[path.stem] = tuple(checked.rows[0].cases_per_split.values())
    assert counts == {"A": (4, 2, 0), "B": (2, 2, 2), "C": (2, 2, 2), "D": (4, 2, 0)}
    text = report.files[0].read_text(encoding="utf-8")
    assert "leaves no validation split: drawn by patient" in text
    assert not any("each image counts" in warning for warning in report.warnings)
    assert any("A: the split column says 'train' in every row" in warning for warning in report.warnings)
    assert any("D: the split column holds unknown words (odd)" in warning for warning in report.warnings)
    assert any("C: the split column has no validation rows" in warning for warning in report.warnings)


def test_patients_come_from_the_images_names(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for name in ("p1_left", "p1_right", "p2_left", "p3.a_left"):
        save(root / "A" / "images" / f"{name}.png", np.zeros((12, 10, 3)))
        save(root / "A" / "masks" / f"{name}.png", np.eye(12, 10) * 255)
    report = write(root, "disc=masks", patient_expression="^(.+)_")
    assert not any("each image counts" in warning for warning in report.warnings)
    checked = check_site(report.files[0])
    assert checked.ok, checked.problems
    assert checked.rows[0].patients == 3
    report.files[0].unlink()
    error = refused(root, "disc=masks", patient_expression="^(p[0-9])_")
    assert error.ids == ("FMS-D013",)
    assert "does not fit 1 of 4 images, such as p3.a_left" in str(error)


def test_a_manifest_in_the_hospitals_own_folder(tmp_path: Path) -> None:
    root = tmp_path / "root"
    hospital(root, "A")
    rows = "".join(f"images/i{number}.png,q{number // 2}\n" for number in range(3))
    (root / "A" / "manifest.csv").write_text("file,person\n" + rows, encoding="utf-8")
    report = write(root, "tumour=masks", patient_column="person")
    assert "A: 1 of 4 images have no row in manifest.csv and are not used" in report.warnings
    checked = check_site(report.files[0])
    assert checked.ok, checked.problems
    assert (checked.rows[0].cases, checked.rows[0].patients) == (3, 2)


def test_several_values_must_be_named(tmp_path: Path) -> None:
    root = tmp_path / "root"
    hospital(root, "A")
    for number in range(4):
        save(root / "A" / "masks" / f"i{number}.png", np.arange(120).reshape(12, 10) % 4)
    error = refused(root, "tumour=masks")
    assert error.ids == ("FMS-D006",)
    assert "1, 2, 3" in str(error)
    for text, pixels in (("tumour=masks:1,3", 60), ("tumour=masks:nonzero", 90)):
        report = write(root, text)
        assert check_site(report.files[0]).ok
        data = open_dataset(
            load_site(report.files[0]),
            DataRequest(
                task="segmentation", structures=("tumour",), missing_structure="error", preprocessing=preprocessing()
            ),
        )
        assert data.load(data.slices("train")[0]).masks.sum() == pixels
    report = write(root, "whole=masks:1,2,3", "core=masks:2")
    assert load_site(report.files[0]).datasets[0].structures == ("whole", "core")
    assert check_site(report.files[0]).ok


def test_masks_with_soft_edges_are_not_taken_for_nonzero(tmp_path: Path) -> None:
    root = tmp_path / "root"
    hospital(root, "A")
    rows, columns = np.mgrid[:24, :20]
    soft = np.clip(255 * (8 - np.hypot(rows - 12, columns - 10)) / 4 + 127, 0, 255).astype(np.uint8)
    for number, path in enumerate(sorted((root / "A" / "images").iterdir())):
        save(path, np.full(soft.shape, 50 + number, np.uint8))
        save(root / "A" / "masks" / path.name, soft if number == 0 else 0 * soft)
    for text in ("tumour=masks", "tumour=masks:nonzero"):
        error = refused(root, text)
        assert error.ids == ("FMS-D006",) and "1 masks have soft edges" in str(error)
        assert "--structure 'tumour=masks:>127'" in str(error), "the remedy is what can be typed"
    (source,) = load_site(write(root, "tumour=masks:>127").files[0]).datasets[0].masks
    assert (source.above, source.labels) == (127, {"tumour": "nonzero"})
    with pytest.raises(ValueError, match="hold one structure"):
        parse_structures(["a=masks:>127", "b=masks"])


def test_images_without_mask_are_not_annotated_and_said_so(tmp_path: Path) -> None:
    root = tmp_path / "root"
    hospital(root, "A")
    (root / "A" / "masks" / "i2.png").unlink()
    report = write(root, "tumour=masks")
    assert any("1 of 4 images have no mask in masks/" in warning for warning in report.warnings)
    checked = check_site(report.files[0])
    assert checked.ok
    assert checked.rows[0].structures[0].annotated_cases == 3


def test_mixed_endings(tmp_path: Path) -> None:
    root = tmp_path / "root"
    hospital(root, "A")
    save(root / "A" / "images" / "i4.jpg", np.zeros((12, 10, 3)))
    save(root / "A" / "masks" / "i4.tif", np.eye(12, 10) * 255)
    checked = check_site(write(root, "tumour=masks").files[0])
    assert checked.ok, checked.problems
    assert checked.rows[0].cases == 5


def test_nifti_and_dicom_hospitals(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for name in "ab":
        write_nifti(root / "N" / "images" / f"{name}.nii.gz", np.ones((4, 5, 3), np.int16), np.diag([-1, -1, 2, 1]))
        write_nifti(root / "N" / "masks" / f"{name}.nii.gz", np.ones((4, 5, 3), np.uint8), np.diag([-1, -1, 2, 1]))
        write_series(root / "D" / "images" / name, np.ones((4, 5, 3), np.uint16), np.diag([1, 1, 2, 1]))
        write_nifti(root / "D" / "masks" / f"{name}.nii.gz", np.ones((4, 5, 3), np.uint8), np.diag([-1, -1, 2, 1]))
    for path in write(root, "organ=masks").files:
        checked = check_site(path)
        assert checked.ok, checked.problems
        assert checked.rows[0].slices_per_split == {"train": 3, "validation": 3, "test": 0}


def test_files_of_no_known_format_are_named_and_counted(tmp_path: Path) -> None:
    hospital(tmp_path, "A")
    for name in "abcdefg":
        (tmp_path / "A" / "images" / f"{name}.txt").write_text("x")
    assert "folders of DICOM series: a.txt, b.txt, c.txt, d.txt, e.txt and 2 more" in str(
        refused(tmp_path, "organ=masks")
    )


def test_bad_layouts_are_d013(tmp_path: Path) -> None:
    root = tmp_path / "root"
    assert refused(root, "a=masks").ids == ("FMS-D013",)
    root.mkdir()
    assert "images/" in str(refused(root, "a=masks"))
    hospital(root, "A")
    assert "no hospital has typo/" in str(refused(root, "a=typo"))
    assert "patient column was named" in str(refused(root, "a=masks", patient_column="person"))
    manifest(root, {"A": "train"})
    error = refused(root, "a=masks", patient_column="patient")
    assert error.ids == ("FMS-D013",)
    assert "no column patient; there are image, person, split" in str(error)
    manifest(root, {"Z": "train"})
    assert "no column of manifest.csv holds paths" in str(refused(root, "a=masks", patient_column="person"))
    (root / "manifest.csv").unlink()
    hospital(root, "St. Mary")
    assert "letters, digits, - and _" in str(refused(root, "a=masks"))


def test_an_unreadable_mask_stops_the_command(tmp_path: Path) -> None:
    root = tmp_path / "root"
    hospital(root, "A")
    (root / "A" / "masks" / "i1.png").write_bytes(b"x")
    assert refused(root, "a=masks").ids == ("FMS-D004",)


def test_own_files_are_replaced_and_others_are_not(tmp_path: Path) -> None:
    root = tmp_path / "root"
    hospital(root, "A")
    first = write(root, "a=masks").files[0]
    assert "structure b" not in first.read_text(encoding="utf-8")
    write(root, "b=masks")
    assert load_site(first).datasets[0].structures == ("b",)
    edited = first.read_text(encoding="utf-8").split("\n", 1)[1]
    first.write_text(edited, encoding="utf-8")
    with pytest.raises(FedfmsError, match="FMS-D011"):
        write(root, "c=masks")
    assert first.read_text(encoding="utf-8") == edited


def test_a_file_in_the_way_that_is_no_text_is_not_replaced(tmp_path: Path) -> None:
    root = tmp_path / "root"
    hospital(root, "A")
    first = write(root, "a=masks").files[0]
    first.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FedfmsError, match="FMS-D011"):
        write(root, "a=masks")
    assert first.read_bytes() == b"\xff\xfe\x00"


def test_odd_names_survive_yaml(tmp_path: Path) -> None:
    root = tmp_path / 'a "quoted" ünïcode: folder # x'
    hospital(root, "no")
    checked = check_site(write(root, "yes=masks").files[0])
    assert checked.ok, checked.problems
    assert checked.rows[0].dataset == "no"
