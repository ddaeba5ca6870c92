from __future__ import annotations

import itertools
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK
import tifffile
from PIL import Image

from fedfms.data.dicom.image import read_dicom_grid, read_dicom_volume, read_patient_id
from fedfms.data.readers import nifti, raster
from fedfms.data.readers.masks import read_label_map
from fedfms.data.volume.geometry import LPS_TO_RAS, Grid, Volume, reorder_onto, slice_plan
from fedfms.errors import FedfmsError
from tests.generators import rotation, write_nifti, write_series


def ids_of(call: object, *arguments: object) -> tuple[str, ...]:
    with pytest.raises(FedfmsError) as caught:
        call(*arguments)  # type: ignore[operator]
    return caught.value.ids


@pytest.fixture()
def deep() -> np.ndarray:
    """16-bit values whose low byte matters."""
    return np.arange(60 * 50, dtype=np.uint16).reshape(60, 50) * 21 + 7


# --- raster ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit_grey_keeps_every_bit(tmp_path: Path, deep: np.ndarray, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    Image.fromarray(deep).save(path)
    values = raster.read_image(path)
    assert values.dtype == np.uint16
    assert np.array_equal(values, deep)
    assert np.array_equal(raster.read_mask(path), deep)


def test_16_bit_big_endian_tiff(tmp_path: Path, deep: np.ndarray) -> None:
    tifffile.imwrite(tmp_path / "x.tif", deep, byteorder=">")
    assert np.array_equal(raster.read_image(tmp_path / "x.tif"), deep)


@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_16_bit_colour_tiff_keeps_every_bit(tmp_path: Path, deep: np.ndarray, planar: str) -> None:
    colours = np.stack([deep, deep + 1, deep + 2], axis=0 if planar == "separate" else 2)
    tifffile.imwrite(tmp_path / "x.tif", colours, photometric="rgb", planarconfig=planar)
    expected = np.stack([deep, deep + 1, deep + 2], axis=2)
    values = raster.read_image(tmp_path / "x.tif")
    assert values.dtype == np.uint16
    assert np.array_equal(values, expected)


def test_16_bit_colour_png_keeps_every_bit(tmp_path: Path, deep: np.ndarray) -> None:
    colours = np.stack([deep, deep + 1, deep + 2], axis=2)
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(colours, isVector=True), str(tmp_path / "x.png"))
    with Image.open(tmp_path / "x.png") as image:
        assert np.asarray(image).dtype == np.uint8  # what this test is about
    values = raster.read_image(tmp_path / "x.png")
    assert values.dtype == np.uint16
    assert np.array_equal(values, colours)


def test_8_bit_colour_grey_palette_and_one_bit(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 255, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(colours).save(tmp_path / "rgb.png")
    assert np.array_equal(raster.read_image(tmp_path / "rgb.png"), colours)
    alpha = np.dstack([colours, np.full((20, 30), 255, np.uint8)])
    Image.fromarray(alpha).save(tmp_path / "rgba.png")
    assert np.array_equal(raster.read_image(tmp_path / "rgba.png"), colours)
    labels = rng.integers(0, 3, (20, 30), dtype=np.uint8)
    palette = Image.fromarray(labels, mode="P")
    palette.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    palette.save(tmp_path / "p.png")
    assert np.array_equal(raster.read_mask(tmp_path / "p.png"), labels)
    assert raster.read_image(tmp_path / "p.png").shape == (20, 30, 3)
    Image.fromarray(labels > 0).save(tmp_path / "one.png")
    assert np.array_equal(raster.read_mask(tmp_path / "one.png"), (labels > 0).astype(np.uint8))
    grey = np.dstack([labels] * 3)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    assert np.array_equal(raster.read_mask(tmp_path / "grey.png"), labels)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg"])
def test_a_truncated_image_is_d004(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert ids_of(raster.read_image, path) == ("FMS-D004",)
    assert ids_of(raster.read_mask, path) == ("FMS-D004",)


def test_a_truncated_16_bit_colour_png_is_d004(tmp_path: Path, deep: np.ndarray) -> None:
    path = tmp_path / "x.png"
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(np.dstack([deep] * 3), isVector=True), str(path))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert ids_of(raster.read_image, path) == ("FMS-D004",)


def test_other_unreadable_images_are_d004(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "empty.png").touch()
    pages = [Image.new("L", (8, 8), shade) for shade in (0, 9)]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    Image.new("CMYK", (8, 8)).save(tmp_path / "cmyk.jpg")
    Image.new("RGBA", (8, 8), (1, 2, 3, 100)).save(tmp_path / "clear.png")
    turned = Image.new("RGB", (8, 4))
    turned.getexif()[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=turned.getexif())
    for name in ("text.png", "empty.png", "pages.tif", "cmyk.jpg", "clear.png", "turned.jpg"):
        assert ids_of(raster.read_image, tmp_path / name) == ("FMS-D004",), name
    Image.new("RGB", (8, 8), (255, 0, 0)).save(tmp_path / "red.png")
    assert ids_of(raster.read_mask, tmp_path / "red.png") == ("FMS-D004",)
    assert ids_of(raster.read_image, tmp_path / "absent.png") == ("FMS-D003",)


# --- NIfTI ----------------------------------------------------------------------------------------------


def test_nifti_in_all_48_orientations_gives_the_same_slices(tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).integers(0, 200, (7, 6, 5), dtype=np.uint8)  # (R, A, S)
    affine = np.diag([0.8, 1.2, 3.0, 1.0])
    affine[:3, 3] = (-10, 5, 40)
    reference = nibabel.Nifti1Image(voxels, affine)
    seen = set()
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            image = reference.as_reoriented(np.array(list(zip(order, signs, strict=True))))
            path = write_nifti(tmp_path / "x.nii", np.asarray(image.dataobj), image.affine)
            seen.add(nibabel.aff2axcodes(image.affine))
            volume = nifti.read_volume(path)
            axial = slice_plan(volume.grid, "axial")
            assert np.array_equal(axial.cut(volume.voxels), voxels[::-1, ::-1, :].transpose(2, 1, 0))
            assert axial.spacing == pytest.approx((1.2, 0.8))
            assert axial.slice_distance == pytest.approx(3.0)
            coronal = slice_plan(volume.grid, "coronal")
            assert np.array_equal(coronal.cut(volume.voxels), voxels[::-1, ::-1, ::-1].transpose(1, 2, 0))
            assert coronal.spacing == pytest.approx((3.0, 0.8))
            assert coronal.slice_distance == pytest.approx(1.2)
            sagittal = slice_plan(volume.grid, "sagittal")
            assert np.array_equal(sagittal.cut(volume.voxels), voxels[::-1, ::-1, ::-1].transpose(0, 2, 1))
            back = reorder_onto(volume, Grid((7, 6, 5), affine))
            assert back is not None
            assert np.array_equal(back, voxels)
    assert len(seen) == 48


def test_nifti_scale_factors_and_units(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4), np.diag([1e-3, 1e-3, 2e-3, 1]))
    image.header.set_slope_inter(2, -5)
    image.header.set_xyzt_units("meter")
    image.set_sform(image.affine, 1)
    nibabel.save(image, tmp_path / "x.nii.gz")
    volume = nifti.read_volume(tmp_path / "x.nii.gz")
    stored = np.asarray(nibabel.load(tmp_path / "x.nii.gz").dataobj)
    assert np.allclose(volume.voxels, stored)
    assert volume.grid.spacing == pytest.approx((1, 1, 2))
    assert nifti.read_grid(tmp_path / "x.nii.gz").shape == (2, 3, 4)


def test_bad_nifti_files(tmp_path: Path) -> None:
    good = np.zeros((20, 20, 20), np.int16)
    good[:] = np.random.default_rng(0).integers(0, 999, good.shape)
    for name in ("cut.nii", "cut.nii.gz"):
        path = write_nifti(tmp_path / name, good, np.eye(4))
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        assert ids_of(nifti.read_volume, path) == ("FMS-D004",)
    (tmp_path / "text.nii").write_text("no")
    assert ids_of(nifti.read_volume, tmp_path / "text.nii") == ("FMS-D004",)
    assert ids_of(nifti.read_volume, tmp_path / "absent.nii") == ("FMS-D003",)
    four = write_nifti(tmp_path / "four.nii", np.zeros((4, 4, 4, 2), np.uint8), np.eye(4))
    assert ids_of(nifti.read_volume, four) == ("FMS-D004",)
    nan = write_nifti(tmp_path / "nan.nii", np.full((4, 4, 4), np.nan, np.float32), np.eye(4))
    assert ids_of(nifti.read_volume, nan) == ("FMS-D004",)
    lost = write_nifti(tmp_path / "lost.nii", good, np.eye(4), code=0)
    assert ids_of(nifti.read_volume, lost) == ("FMS-D005",)
    half = write_nifti(tmp_path / "half.nii", np.full((4, 4, 4), 0.5, np.float32), np.eye(4))
    assert ids_of(read_label_map, half) == ("FMS-D006",)


# --- geometry -------------------------------------------------------------------------------------------


def test_grids_that_do_not_coincide_are_refused() -> None:
    target = Grid((6, 5, 4), np.diag([1.0, 1.0, 3.0, 1.0]))
    voxels = np.zeros((6, 5, 4))
    shifted = target.affine.copy()
    shifted[0, 3] = 0.5
    turned = np.eye(4)
    turned[:3, :3] = rotation((0, 0, 4)) @ target.affine[:3, :3]
    finer = np.diag([0.9, 1.0, 3.0, 1.0])
    for affine in (shifted, turned, finer):
        assert reorder_onto(Volume(voxels, Grid((6, 5, 4), affine)), target) is None
    assert reorder_onto(Volume(np.zeros((6, 5, 3)), Grid((6, 5, 3), target.affine)), target) is None
    rounded = target.affine + 1e-4
    rounded[3] = target.affine[3]
    assert reorder_onto(Volume(voxels, Grid((6, 5, 4), rounded)), target) is not None


# --- DICOM ----------------------------------------------------------------------------------------------


def lps_affine(turn: tuple[float, float, float] = (0, 0, 0), flip_slices: bool = False) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = rotation(turn) @ np.diag([0.7, 0.9, -4.0 if flip_slices else 4.0])
    affine[:3, 3] = (-20, 13, 7)
    return affine


@pytest.mark.parametrize("turn", [(0, 0, 0), (20, -10, 5), (90, 0, 0), (0, 90, 0), (0, 0, 180)])
@pytest.mark.parametrize("flip", [False, True])
def test_series_is_ordered_by_position_and_agrees_with_simpleitk(
    tmp_path: Path, turn: tuple[float, float, float], flip: bool
) -> None:
    voxels = np.random.default_rng(0).integers(0, 4000, (9, 8, 6), dtype=np.uint16)
    write_series(tmp_path, voxels, lps_affine(turn, flip), names=[f"{x}.dcm" for x in "cafbed"])
    volume = read_dicom_volume(tmp_path)
    expected = voxels[:, :, ::-1] if flip else voxels
    assert np.array_equal(volume.voxels, expected)
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path)))
    other = reader.Execute()
    assert np.array_equal(SimpleITK.GetArrayFromImage(other).transpose(2, 1, 0), volume.voxels)
    for index in [(0, 0, 0), (8, 0, 0), (3, 7, 5)]:
        here = LPS_TO_RAS @ volume.grid.affine @ [*index, 1]
        assert np.allclose(here[:3], other.TransformIndexToPhysicalPoint(index), atol=1e-4)
    assert read_dicom_grid(tmp_path).shape == volume.grid.shape


def test_rescale_per_slice_signed_pixels_and_unused_bits(tmp_path: Path) -> None:
    voxels = np.array([-100, 0, 5, 1023], dtype=np.int16).reshape(2, 2, 1)
    write_series(tmp_path / "a", voxels, lps_affine(), RescaleSlope="2.5", RescaleIntercept="-10")
    assert np.allclose(read_dicom_volume(tmp_path / "a").voxels, voxels * 2.5 - 10)
    dirty = np.array([0x7123, 0xF801], dtype=np.uint16).reshape(2, 1, 1)
    write_series(tmp_path / "b", dirty, lps_affine(), BitsStored=12, HighBit=11)
    assert read_dicom_volume(tmp_path / "b").voxels.ravel().tolist() == [0x123, 0x801]
    write_series(tmp_path / "c", dirty.view(np.int16), lps_affine(), BitsStored=12, HighBit=11)
    assert read_dicom_volume(tmp_path / "c").voxels.ravel().tolist() == [0x123, 0x801 - 4096]


def test_monochrome1_is_inverted(tmp_path: Path) -> None:
    voxels = np.array([0, 1, 4095], dtype=np.uint16).reshape(3, 1, 1)
    tags = {"PhotometricInterpretation": "MONOCHROME1", "BitsStored": 12, "HighBit": 11}
    write_series(tmp_path / "a", voxels, lps_affine(), **tags)
    assert read_dicom_volume(tmp_path / "a").voxels.ravel().tolist() == [4095, 4094, 0]
    signed = np.array([-128, 0, 127], dtype=np.int8).reshape(3, 1, 1)
    write_series(tmp_path / "b", signed, lps_affine(), PhotometricInterpretation="MONOCHROME1")
    assert read_dicom_volume(tmp_path / "b").voxels.ravel().tolist() == [127, -1, -128]


def compress(folder: Path, syntax: str) -> None:
    for path in folder.iterdir():
        header = pydicom.dcmread(path)
        header.compress(syntax, generate_instance_uid=False)
        header.save_as(path)


def test_rle_is_read_and_the_rest_is_d004_with_its_name(tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).integers(0, 4000, (16, 12, 2), dtype=np.uint16)
    write_series(tmp_path / "rle", voxels, lps_affine())
    compress(tmp_path / "rle", pydicom.uid.RLELossless)
    assert np.array_equal(read_dicom_volume(tmp_path / "rle").voxels, voxels)
    write_series(tmp_path / "other", voxels, lps_affine())
    for path in (tmp_path / "other").iterdir():
        header = pydicom.dcmread(path)
        header.file_meta.TransferSyntaxUID = pydicom.uid.MPEG4HP41
        header.PixelData = pydicom.encaps.encapsulate([bytes(60)])
        header["PixelData"].is_undefined_length = True
        header.save_as(path)
    with pytest.raises(FedfmsError) as caught:
        read_dicom_volume(tmp_path / "other")
    assert caught.value.ids == ("FMS-D004",)
    assert len(caught.value.problems) == 2
    assert "MPEG-4 AVC/H.264 High Profile" in str(caught.value)
    assert "uncompressed" in str(caught.value)


def test_bad_series(tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).integers(0, 4000, (9, 8, 6), dtype=np.uint16)

    def series(name: str, **tags: object) -> Path:
        write_series(tmp_path / name, voxels, lps_affine(), **tags)
        return tmp_path / name

    assert ids_of(read_dicom_volume, tmp_path / "absent") == ("FMS-D003",)
    (tmp_path / "empty").mkdir()
    assert ids_of(read_dicom_volume, tmp_path / "empty") == ("FMS-D003",)

    cut = series("cut")
    for name in ("001.dcm", "003.dcm"):
        (cut / name).write_bytes((cut / name).read_bytes()[:-40])
    with pytest.raises(FedfmsError) as caught:
        read_dicom_volume(cut)
    assert caught.value.ids == ("FMS-D004",)
    assert [Path(problem.where).name for problem in caught.value.problems] == ["001.dcm", "003.dcm"]

    text = series("text")
    (text / "readme.txt").write_text("hello")
    assert ids_of(read_dicom_volume, text) == ("FMS-D004",)
    assert read_dicom_volume(text, "*.dcm").grid.shape == (9, 8, 6)

    gap = series("gap")
    (gap / "002.dcm").unlink()
    assert ids_of(read_dicom_volume, gap) == ("FMS-D015",)
    double = series("double")
    (double / "copy.dcm").write_bytes((double / "002.dcm").read_bytes())
    with pytest.raises(FedfmsError, match="FMS-D015.*same position: 002.dcm and copy.dcm"):
        read_dicom_volume(double)

    two = series("two")
    write_series(two, voxels, lps_affine(), names=[f"t{number}.dcm" for number in range(6)])
    with pytest.raises(FedfmsError) as caught:
        read_dicom_volume(two)
    assert caught.value.ids == ("FMS-D014",)
    assert str(caught.value).count("MR '' (series number -, 6 files) from ") == 2

    assert ids_of(read_dicom_volume, series("frames", NumberOfFrames=2)) == ("FMS-D004",)
    assert ids_of(read_dicom_volume, series("nowhere", ImagePositionPatient=None)) == ("FMS-D004",)
    assert ids_of(read_patient_id, series("nobody", PatientID="")) == ("FMS-D004",)


def test_dicom_warnings_never_quote_identifiers(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    odd = "SECRET" + "x" * 80
    with pydicom.config.disable_value_validation():
        write_series(tmp_path, np.zeros((4, 4, 2), np.uint16), lps_affine(), patient=odd)
    assert read_patient_id(tmp_path) == odd
    read_dicom_volume(tmp_path)
    assert not any("SECRET" in str(warning.message) for warning in recwarn)
