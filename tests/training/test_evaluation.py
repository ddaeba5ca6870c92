"""Evaluation of volumes, with a model whose answer is known: the numbers come from the files through SimpleITK."""

from __future__ import annotations

import io
import weakref
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from rich.console import Console
from scipy.ndimage import gaussian_filter

from fedfms.data.description.site import load_site
from fedfms.data.slices.dataset import Sample
from fedfms.errors import FedfmsError
from fedfms.results.evaluation_tables import scores_table
from fedfms.sam.checkpoint import save_inference
from fedfms.training import evaluation
from tests.generators import raster_dataset, write_nifti, write_yaml
from tests.sam.models import config, make_header, make_state
from tests.training.itk_scores import itk_scores

SPACING = (0.8, 1.1, 3.0)  # to the right, to anterior, to superior
STRUCTURES = ("organ", "lesion")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_inference(path, make_header(config()), make_state(config()))
    return path


@pytest.fixture(autouse=True)
def brightness_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """Organ where the image is above 100, lesion above 200."""

    def segment_slice(model: object, sample: Sample, *_: object) -> torch.Tensor:
        return torch.from_numpy(np.stack([sample.image[0] - 100, sample.image[0] - 200]))

    monkeypatch.setattr(evaluation, "segment_slice", segment_slice)


def make_case(seed: int, shape: tuple[int, int, int] = (20, 24, 9)) -> tuple[np.ndarray, np.ndarray]:
    """Image and label map (R, A, S) of a hospital whose model is nearly right."""
    field = gaussian_filter(np.random.default_rng(seed).normal(size=(2, *shape)), (0, 3, 3, 1.5))
    true, near = field[0], 0.8 * field[0] + 0.3 * field[1]
    masks = [[item > np.quantile(item, share) for share in (0.75, 0.93)] for item in (near, true)]
    masks[0][1][..., :4] = masks[1][1][..., 6:] = False
    image = (150 * masks[0][0] + 100 * masks[0][1]).astype(np.uint8)
    return image, (masks[1][0].astype(np.uint8) + masks[1][1])


def write_site(folder: Path, cases: dict[str, tuple[np.ndarray, np.ndarray]], codes: str = "RAS", **mask: Any) -> Path:
    """One NIfTI image and label map per case, stored in the given axis order."""
    orientation = nibabel.orientations.axcodes2ornt(codes)
    for name, volumes in cases.items():
        for kind, voxels in zip(("images", "labels"), volumes, strict=True):
            stored = nibabel.Nifti1Image(voxels, np.diag([*SPACING, 1.0]))
            turned = stored.as_reoriented(nibabel.orientations.ornt_transform([[0, 1], [1, 1], [2, 1]], orientation))
            write_nifti(folder / kind / f"{name}.nii.gz", np.asarray(turned.dataobj), turned.affine)
    dataset = raster_dataset(
        format="nifti",
        images={"pattern": "images/{case}.nii.gz"},
        masks=[{"pattern": "labels/{case}.nii.gz", "labels": {"organ": [1, 2], "lesion": 2}, **mask}],
    )
    return write_yaml(folder / "site.yaml", {"datasets": [dataset]})


def run(checkpoint: Path, site: Path) -> dict[str, Any]:
    return evaluation.evaluate(checkpoint, load_site(site), "all", None, lambda *_: None)


def masks_of(case: tuple[np.ndarray, np.ndarray], structure: str) -> tuple[np.ndarray, np.ndarray]:
    image, labels = case
    return (image > 100, labels >= 1) if structure == "organ" else (image > 200, labels == 2)


@pytest.mark.parametrize("codes", ["RAS", "SPL", "AIR"])
def test_volumes_are_scored_in_space_whatever_their_axis_order(checkpoint: Path, tmp_path: Path, codes: str) -> None:
    cases = {"a_0": make_case(0), "a_1": make_case(1), "b_0": make_case(2)}
    result = run(checkpoint, write_site(tmp_path, cases, codes))
    assert [item["slices"] for item in result["per_case"]] == [9, 9, 9]
    for structure in STRUCTURES:
        expected = [itk_scores(*masks_of(case, structure), SPACING) for case in cases.values()]
        for metric in ("dice", "iou", "hd95_mm", "assd_mm"):
            singles = [item["structures"][structure][metric] for item in result["per_case"]]
            wanted = [item[metric] for item in expected]
            assert singles == pytest.approx(wanted, rel=1e-5)
            summary = result["structures"][structure][metric]
            assert summary["mean"] == pytest.approx(np.mean(wanted), rel=1e-5) and summary["n"] == 3
            # Two patients: one with the first two cases, one with the last.
            assert sorted([np.mean(wanted[:2]), wanted[2]]) == pytest.approx(
                [summary["low"], summary["high"]], rel=1e-5
            )


def test_slices_are_scored_in_their_plane(checkpoint: Path, tmp_path: Path) -> None:
    cases = {"a_0": make_case(0), "b_0": make_case(2)}
    result = run(checkpoint, write_site(tmp_path, cases, "SPL"))
    for structure in STRUCTURES:
        pairs = [
            (found[..., index], true[..., index])
            for found, true in (masks_of(case, structure) for case in cases.values())
            for index in range(9)
        ]
        both = [itk_scores(found, true, SPACING[:2]) for found, true in pairs if found.any() and true.any()]
        missed = sum(bool(true.any() and not found.any()) for found, true in pairs)
        alarms = sum(bool(found.any() and not true.any()) for found, true in pairs)
        support = result["per_slice"][structure]["support"]
        assert (support["annotated"], support["missed"], support["false_alarms"]) == (18, missed, alarms)
        for metric, count in (("dice", len(both) + missed), ("hd95_mm", len(both)), ("assd_mm", len(both))):
            summary = result["per_slice"][structure][metric]
            assert summary["n"] == count
            assert summary["mean"] == pytest.approx(sum(item[metric] for item in both) / count, rel=1e-5)
    lesion = result["per_slice"]["lesion"]["support"]
    assert lesion["missed"] > 0 and lesion["false_alarms"] > 0, "otherwise little is shown"


def test_a_single_slice_is_scored_in_its_plane(checkpoint: Path, tmp_path: Path) -> None:
    """In space each of its voxels would be surface, and the distances nearly 0."""
    cases = {name: tuple(volume[..., 4:5] for volume in make_case(seed)) for name, seed in (("a_0", 0), ("b_0", 2))}
    result = run(checkpoint, write_site(tmp_path, cases))
    expected = [itk_scores(*(mask[..., 0] for mask in masks_of(case, "organ")), SPACING[:2]) for case in cases.values()]
    assert [item["structures"]["organ"]["hd95_mm"] for item in result["per_case"]] == pytest.approx(
        [item["hd95_mm"] for item in expected], rel=1e-5
    )


def test_what_is_not_annotated_is_left_out(checkpoint: Path, tmp_path: Path) -> None:
    site = write_site(tmp_path, {"a_0": make_case(0), "b_0": make_case(2)}, required=False)
    (tmp_path / "labels" / "a_0.nii.gz").unlink()
    result = run(checkpoint, site)
    assert result["cases"] == 2
    assert [list(item["structures"]) for item in result["per_case"]] == [[], ["organ", "lesion"]]
    assert result["structures"]["organ"]["support"]["annotated"] == 1
    assert result["per_slice"]["organ"]["support"]["annotated"] == 9


def test_a_structure_that_the_site_never_annotated_is_no_error(checkpoint: Path, tmp_path: Path) -> None:
    """A hospital that took part with ``missing_structure: mask`` scores what it has."""
    labels = {"labels": {"organ": [1, 2]}}
    result = run(checkpoint, write_site(tmp_path, {"a_0": make_case(0), "b_0": make_case(2)}, **labels))
    assert result["structures"]["organ"]["dice"]["n"] == 2
    lesion = result["structures"]["lesion"]
    assert lesion["support"]["annotated"] == 0 and lesion["dice"] == {"mean": None, "low": None, "high": None, "n": 0}
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(scores_table(result))
    lines = [line.split() for line in console.export_text().splitlines() if "lesion" in line]
    assert lines == [["lesion", "not", "annotated"]]
    write_site(tmp_path, {}, labels={"vessel": 1})
    with pytest.raises(FedfmsError, match="FMS-M004"):
        run(checkpoint, tmp_path / "site.yaml")


def test_bad_cases_that_are_left_out_are_counted(checkpoint: Path, tmp_path: Path) -> None:
    site = write_site(tmp_path, {"a_0": make_case(0), "b_0": make_case(2)})
    site.write_text(f"strict: false\n{site.read_text()}")
    broken = tmp_path / "images" / "a_0.nii.gz"
    broken.write_bytes(broken.read_bytes()[:500])
    result = run(checkpoint, site)
    assert (result["cases"], result["cases_left_out"]) == (1, 1)
    assert "1 left out because of bad files" in str(scores_table(result).title)


def test_progress_covers_files_and_slices(checkpoint: Path, tmp_path: Path) -> None:
    site = load_site(write_site(tmp_path, {"a_0": make_case(0), "b_0": make_case(2)}))
    told: list[tuple[str, int, int]] = []
    evaluation.evaluate(checkpoint, site, "all", None, lambda *event: told.append(event))
    assert told == [*(("checking", case, 2) for case in (1, 2)), *(("scoring", index, 18) for index in range(1, 19))]


def test_images_do_not_pile_up(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slice as the model gets it takes 12 bytes per pixel; of a volume only the masks may be kept."""
    seen: list[weakref.ref[np.ndarray]] = []
    alive: list[int] = []
    inner = evaluation.segment_slice

    def segment_slice(model: Any, sample: Sample, *others: Any) -> torch.Tensor:
        seen.append(weakref.ref(sample.image))
        alive.append(sum(image() is not None for image in seen))
        return inner(model, sample, *others)

    monkeypatch.setattr(evaluation, "segment_slice", segment_slice)
    run(checkpoint, write_site(tmp_path, {"a_0": make_case(0), "b_0": make_case(2)}))
    assert len(alive) == 18 and max(alive) <= 2
