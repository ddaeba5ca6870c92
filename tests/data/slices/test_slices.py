"""Which slices a job gets of a volume, and what is in their channels."""

from __future__ import annotations

import itertools
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from fedfms.data.description.site import load_site
from fedfms.data.slices.dataset import SiteDataset
from fedfms.data.slices.intensity import intensity_bounds
from fedfms.data.slices.opening import DataRequest, open_dataset
from fedfms.data.volume.geometry import Grid, slice_plan
from fedfms.errors import FedfmsError
from fedfms.preprocessing import Preprocessing
from tests.generators import preprocessing, raster_dataset, rotation, write_nifti, write_raster_site, write_yaml


def opened(path: Path, rules: Preprocessing, structures: tuple[str, ...] = ("organ",)) -> SiteDataset:
    request = DataRequest("organ-lesion", structures, missing_structure="error", preprocessing=rules)
    return open_dataset(load_site(path), request)


def nifti_site(folder: Path, voxels: np.ndarray, affine: np.ndarray) -> Path:
    """Two patients with the same volume; organ where voxels are above 100."""
    for name in ("a", "b"):
        write_nifti(folder / f"{name}.nii.gz", voxels, affine)
        write_nifti(folder / f"{name}_mask.nii.gz", (voxels > 100).astype(np.uint8), affine)
    dataset = raster_dataset(
        format="nifti",
        images={"pattern": "{case}.nii.gz"},
        masks=[{"pattern": "{case}_mask.nii.gz", "labels": {"organ": 1}}],
        patient={"rule": "each_image"},
    )
    return write_yaml(folder / "site.yaml", {"datasets": [dataset]})


# --- thickest -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("world", "plane"), [(0, "sagittal"), (1, "coronal"), (2, "axial")])
def test_thickest_is_the_plane_across_the_largest_side_in_all_48_orientations(world: int, plane: str) -> None:
    sides = [0.8, 0.9, 0.7]
    sides[world] = 4.0
    affine = np.eye(4)
    affine[:3, :3] = rotation((12, -9, 15)) @ np.diag(sides)
    reference = nibabel.Nifti1Image(np.zeros((7, 6, 5), np.uint8), affine)
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            image = reference.as_reoriented(np.array(list(zip(order, signs, strict=True))))
            grid = Grid(image.shape, image.affine)
            plan = slice_plan(grid, "thickest")
            assert plan == slice_plan(grid, plane)  # type: ignore[arg-type]
            assert plan.shape[0] == (7, 6, 5)[world]


@pytest.mark.parametrize(
    ("sides", "shape", "plane"),
    [
        ((1.0, 1.0, 1.0), (7, 6, 5), "axial"),
        ((1.0, 1.0 + 1e-6, 1.0), (7, 6, 5), "axial"),
        ((1.004, 1.0, 0.5), (7, 6, 5), "coronal"),
        ((1.02, 1.0, 1.0), (7, 6, 5), "sagittal"),
        ((0.9, 0.5, 0.9), (7, 1, 5), "coronal"),
    ],
)
def test_equally_thick_axes_and_single_slices(
    sides: tuple[float, ...], shape: tuple[int, int, int], plane: str
) -> None:
    grid = Grid(shape, np.diag([*sides, 1.0]))
    assert slice_plan(grid, "thickest") == slice_plan(grid, plane)  # type: ignore[arg-type]


def test_each_volume_of_a_site_is_cut_as_it_was_acquired(tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).integers(0, 200, (6, 5, 4), dtype=np.uint8)
    site = nifti_site(tmp_path, voxels, np.diag([1.0, 5.0, 1.0, 1.0]))
    write_nifti(tmp_path / "b.nii.gz", voxels, np.diag([1.0, 1.0, 3.0, 1.0]))
    write_nifti(tmp_path / "b_mask.nii.gz", (voxels > 100).astype(np.uint8), np.diag([1.0, 1.0, 3.0, 1.0]))
    data = opened(site, preprocessing(slice_axis="thickest"))
    counts = {case.identity: sum(item.case == case for item in data.slices("all")) for case in data.cases("all")}
    assert counts == {"photographs/a.nii.gz": 5, "photographs/b.nii.gz": 4}
    for reference in data.slices("all"):
        sample = data.load(reference)
        assert sample.spacing == pytest.approx((1.0, 1.0))
        assert np.array_equal(sample.masks[0], sample.image[0] > 100)


# --- channels -------------------------------------------------------------------------------------------


def test_neighbours_are_the_slices_before_and_after_in_the_volume(tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).integers(0, 200, (6, 5, 4), dtype=np.uint8)
    site = nifti_site(tmp_path, voxels, np.diag([1.0, 1.0, 3.0, 1.0]))
    data = opened(site, preprocessing(channels="neighbours"))
    axial = voxels[::-1, ::-1, :].transpose(2, 1, 0)
    for reference in data.slices("validation"):
        sample = data.load(reference)
        expected = [axial[max(reference.index - 1, 0)], axial[reference.index], axial[min(reference.index + 1, 3)]]
        assert np.array_equal(sample.image, np.stack(expected))
        assert np.array_equal(sample.masks[0], axial[reference.index] > 100)


def test_grey_images_that_are_alone_repeat_themselves_and_colour_is_j003(tmp_path: Path) -> None:
    site = write_raster_site(tmp_path / "colour")
    with pytest.raises(FedfmsError, match="'channels: neighbours' needs grey images, found colour") as caught:
        opened(site, preprocessing(channels="neighbours"))
    assert caught.value.ids == ("FMS-J003",)
    for path in (tmp_path / "colour" / "images").iterdir():
        Image.open(path).convert("L").save(path)
    plain, neighbours = (opened(site, preprocessing(channels=name)) for name in ("same", "neighbours"))
    for reference in plain.slices("all"):
        assert np.array_equal(plain.load(reference).image, neighbours.load(reference).image)


def test_the_digest_covers_the_neighbours_and_no_other_slice(tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).integers(0, 200, (6, 5, 7), dtype=np.uint8)
    changed = voxels.copy()
    changed[0, 0, 3] += 1
    differ = {}
    for channels in ("same", "neighbours"):
        digests = []
        for name, values in (("before", voxels), ("after", changed)):
            site = nifti_site(tmp_path / channels / name, values, np.diag([1.0, 1.0, 3.0, 1.0]))
            data = opened(site, preprocessing(channels=channels))
            digests.append([data.digest(reference) for reference in data.slices("validation")])
        differ[channels] = [index for index, (a, b) in enumerate(zip(*digests, strict=True)) if a != b]
    assert differ == {"same": [3], "neighbours": [2, 3, 4]}


# --- percentiles ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("percents", [(0, 100), (0.5, 99.5), (33.3, 66.6), (49.9, 50)])
@pytest.mark.parametrize("kind", ["uint8", "int16", "float32", "halves", "fractions", "wide", "constant", "shifted"])
def test_percentiles_are_those_of_numpy(kind: str, percents: tuple[float, float]) -> None:
    rng = np.random.default_rng(0)
    whole = np.rint(rng.normal(-300, 400, (3, 11, 7)))
    values = {
        "uint8": rng.integers(0, 255, (3, 11, 7), dtype=np.uint8),
        "int16": whole.astype(np.int16).clip(-32768, 32767),
        "float32": whole.astype(np.float32),
        "halves": whole.astype(np.float32) / 2,
        "fractions": rng.normal(0, 1, (3, 11, 7)).astype(np.float32),
        "wide": rng.integers(-(2**31), 2**31 - 1, (3, 11, 7), dtype=np.int32),
        "constant": np.full((2, 2, 2), -1000, np.int16),
        "shifted": whole.astype(np.float32) - 0.5,
    }[kind]
    rule = preprocessing({"rule": "percentile", "low": percents[0], "high": percents[1]}).intensity
    expected = np.percentile(values.astype(np.float64), percents)
    assert intensity_bounds(values, rule, "x") == pytest.approx(tuple(expected), rel=1e-6, abs=1e-6)


def test_percentiles_of_the_full_range_of_a_type() -> None:
    values = np.array([[[-32768, 32767, 0, 5]]], dtype=np.int16)
    rule = preprocessing({"rule": "percentile", "low": 0, "high": 100}).intensity
    assert intensity_bounds(values, rule, "x") == (-32768, 32767)
