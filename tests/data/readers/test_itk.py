"""NRRD and MetaImage, against files written by ITK and by pynrrd and read by nibabel."""

from __future__ import annotations

from pathlib import Path

import nibabel
import nrrd
import numpy as np
import pytest
import SimpleITK

from fedfms.data.description.site import load_site
from fedfms.data.readers import itk
from fedfms.data.slices.dataset import SiteDataset
from fedfms.data.slices.discovery import find_cases
from fedfms.data.slices.opening import DataRequest, open_dataset
from fedfms.data.slices.verification import files_mark
from fedfms.data.volume.geometry import LPS_TO_RAS
from fedfms.errors import FedfmsError
from tests.generators import preprocessing, raster_dataset, rotation, write_nifti, write_yaml


def failure(path: Path) -> FedfmsError:
    with pytest.raises(FedfmsError) as caught:
        itk.read_volume(path)
    return caught.value


def write(path: Path, voxels: np.ndarray, affine_ras: np.ndarray, compress: bool = True) -> Path:
    """Write voxels (i, j, k) by way of ITK."""
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = LPS_TO_RAS @ affine_ras
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(voxels.transpose(2, 1, 0)))
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    image.SetDirection((affine[:3, :3] / spacing).ravel().tolist())
    SimpleITK.WriteImage(image, str(path), compress)
    return path


@pytest.fixture()
def affine() -> np.ndarray:
    result = np.eye(4)
    result[:3, :3] = rotation((20, -10, 35)) @ np.diag([0.7, 0.9, -3.0])
    result[:3, 3] = (-12.5, 40, 7)
    return result


@pytest.fixture()
def voxels() -> np.ndarray:
    return np.random.default_rng(0).integers(-900, 900, (7, 6, 5), dtype=np.int16)


@pytest.mark.parametrize("suffix", [".nrrd", ".nhdr", ".mha", ".mhd"])
@pytest.mark.parametrize("compress", [True, False])
def test_every_format_agrees_with_what_itk_writes_as_nifti(
    tmp_path: Path, voxels: np.ndarray, affine: np.ndarray, suffix: str, compress: bool
) -> None:
    path = write(tmp_path / f"x{suffix}", voxels, affine, compress)
    write(tmp_path / "x.nii", voxels, affine)
    other = nibabel.load(tmp_path / "x.nii")
    volume = itk.read_volume(path)
    assert volume.voxels.dtype == np.int16
    assert np.array_equal(volume.voxels, np.asarray(other.dataobj))
    assert np.array_equal(volume.voxels, voxels)
    assert np.allclose(volume.grid.affine, other.affine, atol=1e-4)
    assert np.allclose(volume.grid.affine, affine, atol=1e-5)
    assert volume.grid.shape == itk.read_grid(path).shape == (7, 6, 5)


@pytest.mark.parametrize(
    ("space", "signs"),
    [("Left-Posterior-Superior", (-1, -1, 1)), ("right-anterior-superior", (1, 1, 1)), ("LAS", (-1, 1, 1))],
)
def test_nrrd_spaces_are_converted(tmp_path: Path, voxels: np.ndarray, space: str, signs: tuple[int, ...]) -> None:
    header = {"space": space, "space directions": np.diag([0.5, 0.7, 3.0]), "space origin": [1.0, 2.0, 3.0]}
    nrrd.write(str(tmp_path / "x.nrrd"), voxels, header)
    volume = itk.read_volume(tmp_path / "x.nrrd")
    assert np.array_equal(volume.voxels, voxels)
    expected = np.diag([*signs, 1]) @ np.array([[0.5, 0, 0, 1], [0, 0.7, 0, 2], [0, 0, 3, 3], [0, 0, 0, 1]])
    assert np.allclose(volume.grid.affine, expected)


def test_other_units_than_millimetres_are_d004(tmp_path: Path, voxels: np.ndarray) -> None:
    header = {"space": "LPS", "space directions": np.eye(3), "space origin": [0.0, 0.0, 0.0]}
    nrrd.write(str(tmp_path / "mm.nrrd"), voxels, {**header, "space units": ["mm"] * 3})
    assert itk.read_grid(tmp_path / "mm.nrrd").shape == (7, 6, 5)
    nrrd.write(str(tmp_path / "um.nrrd"), voxels, {**header, "space units": ["um", "um", "mm"]})
    error = failure(tmp_path / "um.nrrd")
    assert error.ids == ("FMS-D004",) and "its lengths are in um, and only mm are read" in str(error)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("DistanceUnits = um", "in um"),
        ("DistanceUnits = mm", ""),
        ("ElementToIntensityFunctionSlope = 2", "FunctionSlope is 2"),
        ("ElementToIntensityFunctionOffset = -1024", "FunctionOffset is -1024"),
        ("ElementToIntensityFunctionSlope = 1.0", ""),
    ],
)
def test_what_itk_overlooks_in_a_metaimage_is_d004(tmp_path: Path, voxels: np.ndarray, line: str, said: str) -> None:
    content = write(tmp_path / "x.mha", voxels, np.eye(4), compress=False).read_bytes()
    (tmp_path / "x.mha").write_bytes(content.replace(b"ElementType", f"{line}\nElementType".encode(), 1))
    if said:
        error = failure(tmp_path / "x.mha")
        assert error.ids == ("FMS-D004",) and said in str(error)
    else:
        assert np.array_equal(itk.read_volume(tmp_path / "x.mha").voxels, voxels)


def test_a_file_without_position_or_directions_is_d005(tmp_path: Path, voxels: np.ndarray) -> None:
    directions = {"space directions": np.eye(3), "space origin": [0.0, 0.0, 0.0]}
    nrrd.write(str(tmp_path / "plain.nrrd"), voxels)
    nrrd.write(str(tmp_path / "sides.nrrd"), voxels, {"spacings": [1.0, 1.0, 2.0]})
    nrrd.write(str(tmp_path / "scanner.nrrd"), voxels, {"space": "scanner-xyz", **directions})
    mha = write(tmp_path / "x.mha", voxels, np.eye(4), compress=False).read_bytes()
    for name, key in (("direction.mha", b"TransformMatrix"), ("position.mha", b"Offset")):
        lines = [line for line in mha.split(b"\n") if not line.startswith(key)]
        (tmp_path / name).write_bytes(b"\n".join(lines))
    for name in ("plain.nrrd", "sides.nrrd", "scanner.nrrd", "direction.mha", "position.mha"):
        assert failure(tmp_path / name).ids == ("FMS-D005",), name


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
@pytest.mark.parametrize("compress", [True, False])
def test_a_truncated_file_is_d004(tmp_path: Path, voxels: np.ndarray, suffix: str, compress: bool) -> None:
    path = write(tmp_path / f"x{suffix}", voxels, np.eye(4), compress)
    whole = path.read_bytes()
    for length in (len(whole) - 12, len(whole) // 2, 40, 0):
        path.write_bytes(whole[:length])
        assert failure(path).ids[0] in ("FMS-D004", "FMS-D005"), length


def test_a_metaimage_with_fewer_compressed_voxels_than_it_says_is_d004(tmp_path: Path, voxels: np.ndarray) -> None:
    path = write(tmp_path / "x.mha", voxels, np.eye(4))
    path.write_bytes(path.read_bytes().replace(b"DimSize = 7 6 5", b"DimSize = 7 6 9"))
    assert SimpleITK.ReadImage(str(path)).GetSize() == (7, 6, 9)  # what this test is about
    assert "420 of 756 bytes" in str(failure(path))


@pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".mhd", ".nhdr"])
def test_a_header_that_claims_more_than_memory_is_refused_before_reading(
    tmp_path: Path, voxels: np.ndarray, suffix: str
) -> None:
    path = write(tmp_path / f"x{suffix}", voxels, np.eye(4))
    path.write_bytes(path.read_bytes().replace(b" 7 6 5", b" 70000 6000 5"))
    assert "cannot be in it" in str(failure(path))


@pytest.mark.parametrize("suffix", [".mhd", ".nhdr"])
def test_a_missing_file_of_voxels_is_d003(tmp_path: Path, voxels: np.ndarray, suffix: str) -> None:
    path = write(tmp_path / f"x{suffix}", voxels, np.eye(4))
    data = itk.files_of(path)[1]
    assert data.is_file() and data != path
    data.unlink()
    assert failure(path).ids == ("FMS-D003",)
    assert data.name in str(failure(path))
    path.unlink()
    assert failure(path).ids == ("FMS-D003",)


def test_what_is_not_one_volume_of_finite_numbers_is_d004(tmp_path: Path) -> None:
    SimpleITK.WriteImage(SimpleITK.Image(8, 8, SimpleITK.sitkUInt8), str(tmp_path / "flat.mha"))
    SimpleITK.WriteImage(SimpleITK.Image([8, 8, 4], SimpleITK.sitkVectorUInt8, 2), str(tmp_path / "layers.nrrd"))
    write(tmp_path / "nan.nrrd", np.full((4, 4, 4), np.nan), np.eye(4))
    (tmp_path / "text.nrrd").write_text("hello")
    for name in ("flat.mha", "layers.nrrd", "nan.nrrd", "text.nrrd"):
        assert failure(tmp_path / name).ids == ("FMS-D004",), name
    detail = failure(tmp_path / "text.nrrd").problems[0].detail
    assert detail.startswith("RuntimeError: ") and len(detail.splitlines()) == 1 and ".cxx" not in detail


def test_a_site_of_metaimages_with_nrrd_and_nifti_masks(tmp_path: Path, affine: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    for case in ("a", "b"):
        values = rng.integers(0, 255, (8, 7, 6), dtype=np.int16)
        write(tmp_path / f"images/{case}.mhd", values, affine, compress=False)
        write(tmp_path / f"organ/{case}.nrrd", (values > 100).astype(np.uint8), affine)
        write_nifti(tmp_path / f"lesion/{case}.nii.gz", (values > 200).astype(np.uint8)[::-1], affine @ flip(8))
    dataset = raster_dataset(
        format="itk",
        images={"pattern": "images/{case}.mhd"},
        masks=[
            {"pattern": "organ/{case}.nrrd", "labels": {"organ": 1}},
            {"pattern": "lesion/{case}.nii.gz", "labels": {"lesion": 1}},
        ],
        patient={"rule": "each_image"},
    )
    site = load_site(write_yaml(tmp_path / "site.yaml", {"datasets": [dataset]}))

    def opened() -> SiteDataset:
        return open_dataset(
            site,
            DataRequest(
                task="organ-lesion",
                structures=("organ", "lesion"),
                missing_structure="error",
                preprocessing=preprocessing({"rule": "window", "center": 127.5, "width": 255}),
            ),
        )

    data = opened()
    assert len(data.slices("all")) == 12
    for reference in data.slices("all"):
        sample = data.load(reference)
        assert np.array_equal(sample.masks[0], sample.image[0] > 100)
        assert np.array_equal(sample.masks[1], sample.image[0] > 200)
    assert data.digest(data.slices("all")[0]) == opened().digest(data.slices("all")[0])
    # The header stays as it is: a change of the file of voxels must count.
    cases = find_cases(site.datasets[0]).cases
    before = files_mark(site, cases, ("organ",))
    voxels_file = itk.files_of(tmp_path / "images" / "a.mhd")[1]
    voxels_file.write_bytes(voxels_file.read_bytes()[::-1])
    assert files_mark(site, cases, ("organ",)) != before


def flip(size: int) -> np.ndarray:
    """The affine of an array whose first axis is reversed, relative to the one it had."""
    result = np.diag([-1.0, 1.0, 1.0, 1.0])
    result[0, 3] = size - 1
    return result
