"""Each recipe on a miniature archive: what comes out passes the check and means what docs/datasets.md says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedfms.data.description.site import load_site
from fedfms.data.quality.check import check_site
from fedfms.data.slices.dataset import SiteDataset
from fedfms.data.slices.opening import DataRequest, open_dataset
from fedfms.datasets.recipes.prepare import RECIPES, PreparedReport, prepare
from fedfms.errors import FedfmsError
from tests.datasets.recipes.archives import BUILDERS, disc_map, outline_xml, save, square
from tests.generators import preprocessing

DOCS = Path(__file__).parents[3] / "docs" / "datasets.md"


@pytest.fixture(params=BUILDERS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def run(name: str, tmp_path: Path, **options: object) -> PreparedReport:
    source = tmp_path / "source"
    if not source.exists():
        BUILDERS[name](source)
    return prepare(RECIPES[name], source, tmp_path / "out", **options)  # type: ignore[arg-type]


def refused(name: str, tmp_path: Path, *ids: str, **options: object) -> str:
    with pytest.raises(FedfmsError) as caught:
        run(name, tmp_path, **options)
    assert caught.value.ids == ids, str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["source"], "nothing is left"
    return str(caught.value)


def dataset(tmp_path: Path, institution: str, *structures: str) -> SiteDataset:
    site = load_site(tmp_path / "out" / f"{institution}.yaml")
    volumes = site.datasets[0].format == "nifti"
    return open_dataset(
        site,
        DataRequest(
            task=site.datasets[0].task,
            structures=structures,
            missing_structure="mask",
            preprocessing=preprocessing({"rule": "percentile", "low": 1, "high": 99} if volumes else None),
        ),
        verify=False,
    )


def masks(data: SiteDataset) -> dict[str, np.ndarray]:
    """Name of the case and number of the slice -> masks."""
    return {f"{Path(item.case.identity).name} {item.index}": data.load(item).masks for item in data.slices("all")}


def test_every_institution_passes_the_check(name: str, tmp_path: Path) -> None:
    report = run(name, tmp_path)
    files = sorted(path.stem for path in (tmp_path / "out").glob("*.yaml"))
    assert files == sorted(report.images)
    for institution, images in report.images.items():
        checked = check_site(tmp_path / "out" / f"{institution}.yaml")
        # One subject cannot train and validate; that is so in the archive, and said.
        single = {"FMS-D008"} if images == 1 else set()
        assert {item.kind.id for item in checked.problems} == single, checked.problems
        assert (f"{institution}: one image cannot both train and validate" in report.warnings) == bool(single)
        assert checked.rows[0].cases == images
        assert checked.rows[0].task == name


def test_the_source_is_not_changed(name: str, tmp_path: Path) -> None:
    source = BUILDERS[name](tmp_path / "source")
    before = {path: (path.read_bytes() if path.is_file() else None) for path in source.rglob("*")}
    run(name, tmp_path)
    assert {path: (path.read_bytes() if path.is_file() else None) for path in source.rglob("*")} == before


def test_other_nesting_of_the_unpacked_folders_is_found(name: str, tmp_path: Path) -> None:
    BUILDERS[name](tmp_path / "source" / "downloads" / "unpacked")
    assert sum(run(name, tmp_path).images.values()) > 0


def test_an_empty_folder_shows_every_path_that_is_expected(name: str, tmp_path: Path) -> None:
    (tmp_path / "source" / "photos").mkdir(parents=True)
    message = refused(name, tmp_path, "FMS-D017")
    for part in RECIPES[name].parts:
        for files in part.files:
            assert f"{files.pattern} ({files.meaning}): nothing found" in message
    assert "the folder has photos/;" in message


def test_docs_name_every_archive_path_and_count(name: str) -> None:
    text = DOCS.read_text(encoding="utf-8")
    for part in RECIPES[name].parts:
        assert part.name in text
        assert str(part.documented) in text
        for files in part.files:
            assert f"`{files.pattern}`" in text, files.pattern
    for mask in RECIPES[name].masks:
        assert all(f"`{structure}`" in text for structure in mask.labels)


def test_prostate_zones_become_one_structure(tmp_path: Path) -> None:
    report = run("prostate", tmp_path)
    assert report.images == dict.fromkeys(("RUNMC", "BMC", "I2CVB", "UCL", "BIDMC", "HK"), 2)
    assert any("SAML: 12 images; its authors state 116" in warning for warning in report.warnings)
    for institution in ("RUNMC", "BMC"):
        data = dataset(tmp_path, institution, "prostate")
        assert sum(int(mask.sum()) for mask in masks(data).values()) == 2 * 2 * 3 * 2


def test_prostate_case_without_mask_is_named(tmp_path: Path) -> None:
    source = BUILDERS["prostate"](tmp_path / "source")
    (source / "HK" / "Case01_segmentation.nii.gz").unlink()
    message = refused("prostate", tmp_path, "FMS-D017")
    assert "1 without partner among the volumes and masks of HK: 01" in message
    assert "**/RUNMC/Case{case}.nii.gz (T2-weighted volumes): 2 found" in message


def test_brain_institutions_come_from_the_natural_partition(tmp_path: Path) -> None:
    report = run("brain", tmp_path)
    assert report.images == {"institution_01": 3, "institution_04": 2, "institution_18": 1}
    data = dataset(tmp_path, "institution_04", "tumour_core")
    assert [case.patient.split("/")[-1] for case in data.cases("all")] == [
        "FeTS2022_00003.nii.gz",
        "FeTS2022_00004.nii.gz",
    ]
    assert (tmp_path / "out/institution_04/images/FeTS2022_00003.nii.gz").resolve().name == "FeTS2022_00003_t1ce.nii.gz"
    core = {key: int(mask.sum()) for key, mask in masks(data).items()}
    assert sorted(core.values())[-2:] == [4, 4], "necrosis and enhancing tumour, without the oedema around them"
    assert sum(core.values()) == 8


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("Partition,Subject\n", "the table has the columns Partition, Subject"),
        ("Partition_ID,Subject_ID\none,FeTS2022_00000\n", "line 2 of the table holds 'one' and 'FeTS2022_00000'"),
        ("Partition_ID,Subject_ID\n1,FeTS2022_00009\n", "1 subjects of **/partitioning_1.csv have no files"),
        (
            "Partition_ID,Subject_ID\n" + "".join(f"1,FeTS2022_0009{number}\n" for number in range(7)),
            "have no files: FeTS2022_00090, FeTS2022_00091, FeTS2022_00092, FeTS2022_00093, FeTS2022_00094 and 2 more",
        ),
        ("Partition_ID,Subject_ID\n1,FeTS2022_00001\n", "5 subjects are not in **/partitioning_1.csv"),
        (
            "Partition_ID,Subject_ID\n1,FeTS2022_00009\n",
            "FeTS2022_00000, FeTS2022_00001, FeTS2022_00002, FeTS2022_00003, FeTS2022_00004 and 1 more",
        ),
    ],
)
def test_brain_table_and_folders_must_agree(tmp_path: Path, rows: str, words: str) -> None:
    source = BUILDERS["brain"](tmp_path / "source")
    (source / "MICCAI_FeTS2022_TrainingData" / "partitioning_1.csv").write_text(rows, encoding="utf-8")
    assert words in refused("brain", tmp_path, "FMS-D017")


def test_nuclei_join_all_kinds(tmp_path: Path) -> None:
    report = run("nuclei", tmp_path)
    assert report.images == {"PanNuke_Uterus": 4, "PanNuke_Bile-duct": 2, "MoNuSAC": 3, "MoNuSeg": 2, "TNBC": 3}
    expected = {"PanNuke_Uterus": 100 + 200, "MoNuSAC": 16 + 25, "MoNuSeg": 36, "TNBC": 20}
    for institution, pixels in expected.items():
        found = masks(dataset(tmp_path, institution, "nuclei"))
        assert {int(mask.sum()) for mask in found.values()} == {pixels}, institution


def test_nuclei_patients_are_known_where_the_names_tell(tmp_path: Path) -> None:
    report = run("nuclei", tmp_path)
    patients = {
        name: [case.patient for case in dataset(tmp_path, name, "nuclei").cases("all")] for name in ("MoNuSAC", "TNBC")
    }
    assert patients == {"MoNuSAC": ["TCGA-21-5784", "TCGA-5P-A9K0", "TCGA-5P-A9K0"], "TNBC": ["01", "01", "02"]}
    assert "1 patient(s) are both in MoNuSAC and MoNuSeg: they may train here and validate there" in report.warnings


def test_pannuke_images_are_what_the_arrays_hold(tmp_path: Path) -> None:
    run("nuclei", tmp_path, only=["PanNuke"])
    data = dataset(tmp_path, "PanNuke_Bile-duct", "nuclei")
    sample = data.load(data.slices("all")[0])
    assert (sample.image[0] == 200).all() and (sample.image[1:] == 0).all()


def test_pannuke_arrays_of_another_kind_are_refused(tmp_path: Path) -> None:
    source = BUILDERS["nuclei"](tmp_path / "source")
    first = source / "Fold 1" / "images" / "fold1" / "images.npy"
    good = first.read_bytes()
    np.save(first, np.zeros((3, 128, 128, 3)))
    assert "(3, 128, 128, 3), expected (3, 256, 256, 3)" in refused("nuclei", tmp_path, "FMS-D004")
    np.save(first, np.full((3, 256, 256, 3), 256.0))
    assert "image 0 holds values outside 0..255" in refused("nuclei", tmp_path, "FMS-D004")
    first.write_bytes(good[:4000])
    refused("nuclei", tmp_path, "FMS-D004")
    np.save(first, np.array([{}], dtype=object), allow_pickle=True)
    assert "Python objects" in refused("nuclei", tmp_path, "FMS-D004"), "a file of the archive runs no code"


def test_outlines_that_are_wrong_are_all_named(tmp_path: Path) -> None:
    source = BUILDERS["nuclei"](tmp_path / "source")
    first, second, third = sorted((source / "MoNuSAC_images_and_annotations").rglob("*.xml"))
    first.write_text("<Annotations><Annotation>", encoding="utf-8")
    second.write_text("<html/>", encoding="utf-8")
    outline_xml(third, {"Epithelial": [square(500, 500, 4)]})
    message = refused("nuclei", tmp_path, "FMS-D004")
    assert all(path.name in message for path in (first, second, third))
    assert "expected Annotations" in message
    assert "none of its 1 outlines is in the image of 24 rows x 20 columns" in message


def test_fundus_disc_is_the_whole_disc_everywhere(tmp_path: Path) -> None:
    report = run("fundus", tmp_path)
    assert report.images == {"REFUGE": 4, "ORIGA": 2, "G1020": 2, "Drishti-GS": 2}
    for institution, disc in (("REFUGE", 100), ("ORIGA", 100), ("G1020", 100), ("Drishti-GS", 110)):
        data = dataset(tmp_path, institution, "disc", "cup")
        for reference in data.slices("all"):
            sample = data.load(reference)
            annotated = [True, "image_1" not in reference.case.identity]
            assert sample.annotated.tolist() == annotated, "no cup drawn is not an empty cup"
            assert sample.masks.sum(axis=(1, 2)).tolist() == [disc, 16 * annotated[1]], institution
    assert "G1020: 1 of 2 images have no cup: not annotated" in report.warnings


def test_fundus_label_maps_with_other_values_are_refused(tmp_path: Path) -> None:
    source = BUILDERS["fundus"](tmp_path / "source")
    save(source / "ORIGA" / "Masks" / "001.png", disc_map(0, 128, 255))
    assert "values 128, 255; expected 0, 1, 2" in refused("fundus", tmp_path, "FMS-D006")


def test_drishti_cup_map_is_needed(tmp_path: Path) -> None:
    source = BUILDERS["fundus"](tmp_path / "source")
    next((source / "Drishti-GS1_files" / "Test").rglob("*_cupsegSoftmap.png")).unlink()
    message = refused("fundus", tmp_path, "FMS-D017")
    assert "1 without partner among Drishti-GS's photographs and cups: drishtiGS_001" in message


def test_one_archive_of_a_set_is_enough_when_said_so(tmp_path: Path) -> None:
    source = BUILDERS["fundus"](tmp_path / "all")
    (tmp_path / "source").mkdir()
    (source / "ORIGA").rename(tmp_path / "source" / "ORIGA")
    with pytest.raises(FedfmsError, match="G1020"):
        run("fundus", tmp_path)
    assert run("fundus", tmp_path, only=["ORIGA"]).images == {"ORIGA": 2}


def test_two_copies_of_an_archive_are_ambiguous(tmp_path: Path) -> None:
    for folder in "ab":
        BUILDERS["prostate"](tmp_path / "source" / folder)
    message = refused("prostate", tmp_path, "FMS-D017")
    assert "of one name: a/HK/Case00.nii.gz, b/HK/Case00.nii.gz" in message
