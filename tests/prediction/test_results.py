"""Results in the format of the input: the mask is where the object is."""

from __future__ import annotations

import weakref
from itertools import permutations, product
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK
from PIL import Image

from fedfms.data.volume.geometry import Plane
from fedfms.prediction.cases import PredictOptions, Report, predict
from fedfms.prediction.images import CaseImage, load_image
from fedfms.prediction.inputs import InputCase, find_inputs
from fedfms.prediction.predictor import Predictor
from fedfms.prediction.prompts import Prompts
from fedfms.prediction.results import Prediction, write_results
from tests.generators import rotation, write_nifti
from tests.prediction.model import LESION, ORGAN, SHA256, object_in, predictor, same_places, world

ORIENTATIONS = list(product(permutations(range(3)), product((1, -1), repeat=3)))


def run(path: Path, out: Path, made: Predictor | None = None, **options: object) -> Report:
    report = predict(made or predictor(), find_inputs(path, out), PredictOptions(out, **options))  # type: ignore[arg-type]
    assert not report.problems, report.problems
    return report


def turned(axes: tuple[int, ...], signs: tuple[int, ...], oblique: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """The object and its affine in RAS, stored with other axes; 64 voxels to the right, 48 to anterior, 8 up."""
    whole = np.eye(4)
    whole[:3, :3] = np.diag([1.5, 1.5, 4])
    whole[:3, 3] = [-40, 13, 7]
    if oblique:
        whole[:3, :3] = rotation((12, -8, 15)) @ whole[:3, :3]
    voxels = object_in((64, 48, 8)).transpose(axes)
    order = np.zeros((4, 4))
    order[3, 3] = 1
    for stored, (axis, sign) in enumerate(zip(axes, signs, strict=True)):
        order[axis, stored] = sign
        if sign < 0:
            order[axis, 3] = voxels.shape[stored] - 1
            voxels = np.flip(voxels, stored)
    return np.ascontiguousarray(voxels), whole @ order


@pytest.mark.parametrize(("axes", "signs"), ORIENTATIONS)
def test_nifti_in_every_orientation(tmp_path: Path, axes: tuple[int, ...], signs: tuple[int, ...]) -> None:
    """The mask has the object's places in the patient, and exactly the header's affine."""
    voxels, affine = turned(axes, signs)
    path = write_nifti(tmp_path / "in" / "case.nii.gz", voxels, affine, code=2)
    run(path, tmp_path / "out")
    source = nibabel.load(path)
    plain = turned((0, 1, 2), (1, 1, 1))
    for structure, least in (("organ", ORGAN), ("lesion", LESION)):
        mask = nibabel.load(tmp_path / "out" / f"case_{structure}.nii.gz")
        assert (mask.affine == source.affine).all() and mask.shape == source.shape
        assert mask.get_data_dtype() == np.uint8
        found = np.asarray(mask.dataobj)
        assert set(np.unique(found)) == {0, 1}
        assert (found == (voxels >= least)).all()
        assert same_places(world(found, mask.affine), world(plain[0] >= least, plain[1]))


def test_nifti_keeps_codes_units_and_form(tmp_path: Path) -> None:
    voxels, affine = turned((1, 0, 2), (1, -1, 1), oblique=True)
    image = nibabel.Nifti1Image(voxels[..., None].astype(np.int16), affine)
    image.set_sform(affine, code=4)
    image.set_qform(affine, code=1)
    image.header.set_xyzt_units("micron")
    image.header["cal_max"] = 80
    image.header.set_slope_inter(2, -3)
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"Mr Secret"))
    path = tmp_path / "case.nii"
    nibabel.save(image, path)
    run(path, tmp_path / "out", probabilities=True)
    for name, kind in (("organ", np.uint8), ("organ_probability", np.float32)):
        header = nibabel.load(tmp_path / "out" / f"case_{name}.nii").header
        source = nibabel.load(path).header
        for key in ("qform_code", "sform_code", "quatern_b", "qoffset_x", "srow_x", "srow_y", "xyzt_units"):
            assert (header[key] == source[key]).all()
        assert header.get_data_dtype() == kind and header.get_data_shape() == voxels.shape
        assert header.get_slope_inter() in ((1, 0), (None, None)) and header["cal_max"] == 0
        assert b"for research use, not for diagnosis" in header["descrip"].item()
        (comment,) = header.extensions
        assert comment.get_content().decode().endswith(f"model {SHA256}")


def test_probabilities_are_those_of_the_model(tmp_path: Path) -> None:
    voxels, affine = turned((0, 1, 2), (1, 1, 1))
    path = write_nifti(tmp_path / "case.nii.gz", voxels, affine)
    report = run(path, tmp_path / "out", probabilities=True)
    assert [file.name for file in report.written] == [
        "case_organ.nii.gz", "case_lesion.nii.gz", "case_organ_probability.nii.gz", "case_lesion_probability.nii.gz",
    ]  # fmt: skip
    found = nibabel.load(tmp_path / "out" / "case_organ_probability.nii.gz").get_fdata()
    expected = 1 / (1 + np.exp(-(voxels.astype(float) - 130) / 10))
    assert np.abs(found - expected).max() <= 0.5 / 255 + 1e-6
    mask = nibabel.load(tmp_path / "out" / "case_organ.nii.gz").get_fdata()
    assert ((found > 0.5) == (mask == 1)).all()


@pytest.mark.parametrize("name", ["case.nrrd", "case.mha", "case.nhdr", "case.mhd"])
def test_itk_formats(tmp_path: Path, name: str) -> None:
    voxels, affine = turned((2, 0, 1), (-1, 1, -1), oblique=True)
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(voxels.transpose(2, 1, 0)))
    lps = np.diag([-1.0, -1, 1, 1]) @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    (tmp_path / "in").mkdir()
    SimpleITK.WriteImage(image, str(tmp_path / "in" / name))
    report = run(tmp_path / "in", tmp_path / "out", probabilities=True)
    ending = ".mha" if name[5] == "m" else ".nrrd"
    assert {path.name for path in report.written} == {path.name for path in (tmp_path / "out").iterdir()}
    for structure, least in (("organ", ORGAN), ("lesion", LESION)):
        mask = SimpleITK.ReadImage(str(tmp_path / "out" / f"case_{structure}{ending}"))
        assert mask.GetSize() == image.GetSize()
        for corner in ((0, 0, 0), (5, 7, 3)):
            one, other = (item.TransformIndexToPhysicalPoint(corner) for item in (mask, image))
            assert np.allclose(one, other, atol=1e-6)
        assert (SimpleITK.GetArrayFromImage(mask).transpose(2, 1, 0) == (voxels >= least)).all()
        assert "not for diagnosis" in mask.GetMetaData("Notice")
    map_ = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(tmp_path / "out" / f"case_organ_probability{ending}")))
    assert map_.dtype == np.float32 and 0.9 < map_.max() <= 1


def test_pictures_become_png(tmp_path: Path) -> None:
    pixels = object_in((64, 48, 8))[:, :, 3].T
    (tmp_path / "in").mkdir()
    Image.fromarray(np.stack([pixels] * 3, axis=-1)).save(tmp_path / "in" / "case.tif")
    run(tmp_path / "in", tmp_path / "out", probabilities=True)
    for structure, least in (("organ", ORGAN), ("lesion", LESION)):
        picture = Image.open(tmp_path / "out" / f"case_{structure}.png")
        assert (np.asarray(picture) == np.where(pixels >= least, 255, 0)).all()
        assert "not for diagnosis" in picture.text["Comment"] and "abababab" in picture.text["Comment"]
    map_ = np.asarray(Image.open(tmp_path / "out" / "case_organ_probability.png"))
    assert map_.dtype == np.uint8 and ((map_ >= 128) == (pixels >= ORGAN)).all()


def test_cases_do_not_pile_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a case is read, nothing of those before it is in memory any more; progress is told on the way."""
    voxels, affine = turned((0, 1, 2), (1, 1, 1))
    for name in "abc":
        write_nifti(tmp_path / "in" / f"{name}.nii.gz", voxels, affine)
    seen: list[weakref.ref[object]] = []
    alive: list[int] = []

    def watched(case: InputCase, plane: Plane) -> CaseImage:
        alive.append(sum(one() is not None for one in seen))
        image = load_image(case, plane)
        seen.append(weakref.ref(image.values))
        return image

    def write(case: InputCase, prediction: Prediction, *others: Any) -> list[Path]:
        seen.append(weakref.ref(prediction))
        return write_results(case, prediction, *others)

    monkeypatch.setattr("fedfms.prediction.cases.load_image", watched)
    monkeypatch.setattr("fedfms.prediction.cases.write_results", write)
    told: list[tuple[str, int, int]] = []
    inputs = find_inputs(tmp_path / "in", tmp_path / "out")
    predict(
        predictor(), inputs, PredictOptions(tmp_path / "out"),
        lambda *counts: told.append(("case", *counts)), lambda *counts: told.append(("slice", *counts)),
    )  # fmt: skip
    assert alive == [0, 0, 0] and len(seen) == 9, "an image, results of one voxel and the prediction, three times"
    slices = [("slice", done, 8) for done in range(9)]
    assert told == [*slices, ("case", 1, 3), *slices, ("case", 2, 3), *slices, ("case", 3, 3)]


def test_a_prompt_fills_only_its_slice(tmp_path: Path) -> None:
    voxels, affine = turned((0, 1, 2), (1, 1, 1))
    path = write_nifti(tmp_path / "case.nii.gz", np.full_like(voxels, ORGAN), affine)
    # In the axial slice x runs to the left and y to posterior: voxel (i, j) is at column 63 - i, row 47 - j.
    run(path, tmp_path / "out", prompts=Prompts(box=(10, 20, 30, 40), slice=5))
    found = np.argwhere(nibabel.load(tmp_path / "out" / "case_organ.nii.gz").get_fdata())
    assert found.min(axis=0).tolist() == [34, 8, 5] and found.max(axis=0).tolist() == [53, 27, 5]
