"""Files that programs read in different ways, or wrongly without a word: read rightly, or refused with both readings.

The right values come from construction, from tifffile, gzip or SimpleITK.
"""

from __future__ import annotations

import bz2
import gzip
import struct
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK
import tifffile
from PIL import Image

from fedfms.data.description.site import MaskSource, load_site
from fedfms.data.readers import itk, nifti, raster
from fedfms.data.readers.masks import annotated, raster_masks, region_names, volume_masks
from fedfms.data.slices.discovery import find_cases
from fedfms.data.slices.palettes import palette_problems
from fedfms.errors import FedfmsError
from tests.generators import write_nifti, write_raster_site, write_yaml

RNG = np.random.default_rng(0)


def refused(call: Any, *arguments: Any, **named: Any) -> FedfmsError:
    with pytest.raises(FedfmsError) as caught:
        call(*arguments, **named)
    return caught.value


# --- TIFF ----------------------------------------------------------------------------------------------------


def test_signed_16_bit_keeps_its_sign(tmp_path: Path) -> None:
    values = RNG.integers(-1024, 3000, (20, 30)).astype(np.int16)
    tifffile.imwrite(tmp_path / "x.tif", values, photometric="minisblack")
    assert raster.read_image(tmp_path / "x.tif").dtype == np.int16
    assert np.array_equal(raster.read_image(tmp_path / "x.tif"), tifffile.imread(tmp_path / "x.tif"))


def imagej_file(path: Path, values: np.ndarray, *lines: str) -> Path:
    """A TIFF file with a description as ImageJ writes it."""
    description = "\n".join(["ImageJ=1.54f", *lines, ""])
    tifffile.imwrite(path, values, photometric="minisblack", description=description, metadata=None)
    return path


def test_signed_16_bit_as_imagej_writes_it_keeps_its_sign(tmp_path: Path) -> None:
    values = RNG.integers(-1024, 3000, (20, 30)).astype(np.int16)
    stored = (values.astype(np.int32) + 32768).astype(np.uint16)
    path = imagej_file(tmp_path / "x.tif", stored, "cf=0", "c0=-32768.0", "c1=1.0", "vunit=Gray Value")
    assert np.array_equal(raster.read_image(path), values) and raster.read_image(path).dtype == np.int16
    plain = imagej_file(tmp_path / "y.tif", stored, "min=0.0", "max=40000.0")
    assert np.array_equal(raster.read_image(plain), stored)


@pytest.mark.parametrize(
    "lines", [["cf=0", "c0=-10", "c1=0.5"], ["cf=21"], ["cf=2", "c0=0", "c1=1", "c2=0.1"], ["c1=x"]]
)
def test_other_calibrations_of_imagej_are_refused_and_shown(tmp_path: Path, lines: list[str]) -> None:
    path = imagej_file(tmp_path / "x.tif", np.ones((8, 8), np.uint8), *lines)
    error = refused(raster.read_image, path)
    assert error.ids == ("FMS-D004",) and " ".join(lines) in str(error)


@pytest.mark.parametrize("dtype", [np.int8, np.uint32, np.uint64, np.float16, np.float64])
def test_numbers_of_every_type_are_read_as_tifffile_reads_them(tmp_path: Path, dtype: type) -> None:
    low, high = (-1000, 1000) if np.dtype(dtype).kind == "f" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    values = np.resize(np.array([low, low // 3, 0, high // 3, high], dtype), (20, 30))
    tifffile.imwrite(tmp_path / "x.tif", values, photometric="minisblack")
    found, expected = raster.read_image(tmp_path / "x.tif"), tifffile.imread(tmp_path / "x.tif")
    assert np.array_equal(found, expected.astype(np.float32) if expected.dtype.kind == "f" else expected)


def test_a_photograph_with_further_pictures_in_it_is_named(tmp_path: Path) -> None:
    picture = Image.fromarray(np.zeros((8, 9, 3), np.uint8))
    picture.save(tmp_path / "x.jpg", format="MPO", save_all=True, append_images=[picture])
    error = refused(raster.read_image, tmp_path / "x.jpg")
    assert error.ids == ("FMS-D004",) and "(MPO)" in str(error) and "Save the photograph again" in str(error)


@pytest.mark.parametrize(
    ("values", "options", "said"),
    [
        (np.zeros((20, 30, 2), np.uint16), {"planarconfig": "contig"}, "2 channel(s) of type uint16"),
        (np.zeros((2, 20, 30), np.uint8), {"planarconfig": "separate"}, "2 channel(s) of type uint8"),
        (np.zeros((20, 30, 5), np.uint8), {"planarconfig": "contig"}, "5 channel(s) of type uint8"),
        (np.zeros((3, 20, 30), np.float64), {}, "3 page(s)"),
    ],
)
def test_a_tiff_of_another_kind_is_described(
    tmp_path: Path, values: np.ndarray, options: dict[str, Any], said: str
) -> None:
    tifffile.imwrite(tmp_path / "x.tif", values, photometric="minisblack", **options)
    error = refused(raster.read_image, tmp_path / "x.tif")
    assert error.ids == ("FMS-D004",) and said in str(error) and "Export it again" in str(error)


def packed_tiff(path: Path, bits: int) -> np.ndarray:
    """A TIFF of 4 or 10 bits for each pixel, byte by byte; returns its values."""
    values = np.arange(600).reshape(20, 30) % (1 << bits)
    rows = ["".join(f"{value:0{bits}b}" for value in row) for row in values]
    data = b"".join(int(row.ljust(-(-len(row) // 8) * 8, "0"), 2).to_bytes(-(-len(row) // 8), "big") for row in rows)
    tags = {256: 30, 257: 20, 258: bits, 259: 1, 262: 1, 273: 8, 277: 1, 278: 20, 279: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    head = b"II*\0" + struct.pack("<I", 8 + len(data))
    path.write_bytes(head + data + struct.pack("<H", len(tags)) + entries + bytes(4))
    return values


def test_labels_of_4_bits_are_those_in_the_file(tmp_path: Path) -> None:
    values = packed_tiff(tmp_path / "x.tif", 4)
    assert np.array_equal(raster.read_mask(tmp_path / "x.tif"), values)
    assert np.array_equal(raster.read_image(tmp_path / "x.tif"), 17 * values)
    packed_tiff(tmp_path / "y.tif", 10)
    assert "type uint16" in str(refused(raster.read_image, tmp_path / "y.tif"))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, ">u2", np.uint32])
def test_white_is_zero_is_inverted_at_every_depth(tmp_path: Path, dtype: Any) -> None:
    values = RNG.integers(0, np.iinfo(dtype).max, (20, 30)).astype(dtype)
    order = ">" if dtype == ">u2" else None
    tifffile.imwrite(tmp_path / "x.tif", values, photometric="miniswhite", byteorder=order)
    assert np.array_equal(raster.read_image(tmp_path / "x.tif"), np.iinfo(dtype).max - values)


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.float32])
def test_white_is_zero_of_numbers_without_a_largest_is_refused(tmp_path: Path, dtype: type) -> None:
    tifffile.imwrite(tmp_path / "x.tif", np.ones((8, 8), dtype), photometric="miniswhite")
    assert refused(raster.read_image, tmp_path / "x.tif").ids == ("FMS-D004",)


def test_stacks_that_look_like_one_page_are_refused(tmp_path: Path) -> None:
    values = RNG.integers(0, 255, (5, 20, 30)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "imagej.tif", values, imagej=True)
    tifffile.imwrite(tmp_path / "volume.tif", values, volumetric=True, tile=(1, 16, 16), photometric="minisblack")
    for name in ("imagej.tif", "volume.tif"):
        error = refused(raster.read_image, tmp_path / name)
        assert error.ids == ("FMS-D004",)
    assert "5 pages or slices" in str(refused(raster.read_image, tmp_path / "imagej.tif"))


@pytest.mark.parametrize("colours", [1, 3])
def test_a_further_channel_is_transparency_only_when_the_file_says_so(tmp_path: Path, colours: int) -> None:
    values = RNG.integers(0, 200, (20, 30, colours)).astype(np.uint8)
    more = np.concatenate([values, np.full_like(values[..., :1], 255)], axis=2)
    for extra in ("unspecified", "unassalpha"):
        photometric = "rgb" if colours == 3 else "minisblack"
        path = tmp_path / f"{extra}.tif"
        tifffile.imwrite(path, more, photometric=photometric, extrasamples=[extra], planarconfig="contig")
    assert np.array_equal(raster.read_image(tmp_path / "unassalpha.tif"), np.squeeze(values))
    error = refused(raster.read_image, tmp_path / "unspecified.tif")
    assert error.ids == ("FMS-D004",) and f"{colours + 1} channels" in str(error)


# --- masks ---------------------------------------------------------------------------------------------------


def test_masks_with_transparent_parts_are_refused(tmp_path: Path) -> None:
    labels = np.zeros((8, 9, 2), np.uint8)
    labels[2:5, 2:5] = 255
    Image.fromarray(labels, "LA").save(tmp_path / "x.png")
    assert "transparent" in str(refused(raster.read_mask, tmp_path / "x.png"))
    labels[..., 1] = 255
    Image.fromarray(labels, "LA").save(tmp_path / "x.png")
    assert np.array_equal(raster.read_mask(tmp_path / "x.png"), labels[..., 0])


@pytest.mark.parametrize("mode", ["1", "L", "I;16", "RGB"])
def test_a_png_with_a_transparent_colour_is_refused_where_it_occurs(tmp_path: Path, mode: str) -> None:
    values = np.zeros((8, 9), np.uint16 if mode == "I;16" else np.uint8)
    values[2:5, 2:5] = 200
    shown = {"1": values > 0, "RGB": np.stack([values] * 3, axis=-1)}.get(mode, values)
    for key, occurs in ((200, True), (7, False)):
        if mode == "1" and not occurs:
            continue
        colour = (key, key, key) if mode == "RGB" else min(key, 1) if mode == "1" else key
        Image.fromarray(shown).save(tmp_path / "x.png", transparency=colour)
        if occurs:
            assert "transparent" in str(refused(raster.read_image, tmp_path / "x.png"))
        else:
            assert np.array_equal(raster.read_image(tmp_path / "x.png"), shown)


def test_all_values_of_a_jpeg_are_no_mask(tmp_path: Path) -> None:
    inside = np.hypot(*np.mgrid[-32:32, -32:32]) < 12
    Image.fromarray((255 * inside).astype(np.uint8)).save(tmp_path / "x.jpg", quality=80)
    every = MaskSource.model_validate({"pattern": "{case}", "labels": {"organ": "nonzero"}})
    error = refused(raster_masks, tmp_path / "x.jpg", every, ["organ"], (64, 64), "image")
    assert error.ids == ("FMS-D006",)
    assert f"{inside.sum()} are above 127" in str(error) and "above: 127" in str(error)
    above = MaskSource.model_validate({"pattern": "{case}", "labels": {"organ": "nonzero"}, "above": 127})
    assert np.array_equal(raster_masks(tmp_path / "x.jpg", above, ["organ"], (64, 64), "image")["organ"], inside)
    Image.fromarray((255 * inside).astype(np.uint8)).save(tmp_path / "x.png")
    assert np.array_equal(raster_masks(tmp_path / "x.png", every, ["organ"], (64, 64), "image")["organ"], inside)


def write_palette_mask(path: Path, indices: np.ndarray, colours: list[int]) -> Path:
    image = Image.fromarray(indices.astype(np.uint8), "P")
    image.putpalette(colours)
    image.save(path)
    return path


def test_a_palette_of_greys_is_read_as_viewers_show_it(tmp_path: Path) -> None:
    inside = np.zeros((8, 9), np.uint8)
    inside[2:5, 3:7] = 1
    one = write_palette_mask(tmp_path / "a.png", inside, [0, 0, 0, 255, 255, 255])
    other = write_palette_mask(tmp_path / "b.png", 1 - inside, [255, 255, 255, 0, 0, 0])
    for path in (one, other):
        assert np.array_equal(raster.read_mask(path), 255 * inside)
        assert raster.palette_colours(path) is None
        assert np.array_equal(raster.read_mask(path), np.asarray(Image.open(path).convert("L")))


@pytest.mark.parametrize("swapped", [False, True])
def test_palettes_of_other_colours_in_one_list_of_masks_are_d018(tmp_path: Path, swapped: bool) -> None:
    site_file = write_raster_site(tmp_path)
    red_green, green_red = [0, 0, 0, 255, 0, 0, 0, 255, 0], [0, 0, 0, 0, 255, 0, 255, 0, 0]
    masks = sorted((tmp_path / "masks").iterdir())
    for number, path in enumerate(masks):
        indices = np.asarray(Image.open(path)) % 3
        write_palette_mask(path, indices, green_red if swapped and number == 3 else red_green)
    dataset = load_site(site_file).datasets[0]
    problems = palette_problems(find_cases(dataset).cases, dataset.structures)
    assert [problem.kind.id for problem in problems] == (["FMS-D018"] if swapped else [])
    if swapped:
        assert masks[3].name in problems[0].detail and masks[0].name in problems[0].detail


@pytest.mark.parametrize("suffix", [".tif", ".nii.gz"])
def test_whole_numbers_stored_as_floating_point_are_labels_and_others_need_above(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"mask{suffix}"

    def write(values: np.ndarray) -> None:
        if suffix == ".tif":
            tifffile.imwrite(path, values.astype(np.float32), photometric="minisblack")
        else:
            write_nifti(path, values[..., None].astype(np.float32), np.eye(4))

    def masks(**settings: Any) -> np.ndarray:
        source = MaskSource.model_validate({"pattern": "{case}", **settings})
        if suffix == ".tif":
            return raster_masks(path, source, ["organ"], (8, 9), "image")["organ"]
        return volume_masks(path, source, ["organ"], nifti.read_volume(path), "image")["organ"][..., 0]

    values = np.zeros((8, 9))
    values[2:5, 3:7] = 1
    write(values)
    assert np.array_equal(masks(labels={"organ": 1}), values)
    write(values * 0.7)
    assert refused(masks, labels={"organ": 1}).ids == ("FMS-D006",)
    assert np.array_equal(masks(labels={"organ": "nonzero"}, above=0.5), values)
    assert not masks(labels={"organ": "nonzero"}, above=0.7001).any()


def test_above_goes_with_nonzero_alone() -> None:
    with pytest.raises(ValueError, match="nonzero"):
        MaskSource.model_validate({"pattern": "{case}", "labels": {"organ": 1}, "above": 3})


# --- NIfTI ---------------------------------------------------------------------------------------------------


def two_affines(path: Path) -> tuple[Path, np.ndarray, np.ndarray]:
    sform = np.diag([2.0, 2, 3, 1])
    sform[:3, 3] = -19, -21, -13.5
    qform = sform.copy()
    qform[0, 0], qform[0, 3] = -2, 19
    image = nibabel.Nifti1Image(RNG.integers(0, 100, (20, 22, 10)).astype(np.int16), sform)
    image.set_sform(sform, 2)
    image.set_qform(qform, 1)
    nibabel.save(image, path)
    return path, sform, qform


def test_sform_and_qform_that_disagree_are_shown_and_can_be_chosen(tmp_path: Path) -> None:
    path, sform, qform = two_affines(tmp_path / "x.nii.gz")
    error = refused(nifti.read_grid, path)
    assert error.ids == ("FMS-D014",)
    assert "sform" in str(error) and "qform" in str(error) and "(19.00, -21.00, -13.50)" in str(error)
    assert np.allclose(nifti.read_grid(path, "sform").affine, sform)
    assert np.allclose(nifti.read_volume(path, "qform").grid.affine, qform)
    seen = SimpleITK.ReadImage(str(path))
    assert np.allclose(np.array(seen.GetOrigin()) * [-1, -1, 1], qform[:3, 3]), "why a choice matters"


def test_rounding_of_the_qform_is_no_disagreement(tmp_path: Path) -> None:
    affine = np.eye(4)
    affine[:3, :3] = np.linalg.qr(RNG.normal(size=(3, 3)))[0] @ np.diag([0.4883, 0.4883, 5])
    affine[:3, 3] = -123.456, 78.9, -1000.123
    write_nifti(tmp_path / "x.nii", np.zeros((512, 512, 40), np.uint8), affine)
    assert np.allclose(nifti.read_grid(tmp_path / "x.nii").affine, affine, atol=1e-3)


def test_a_site_with_such_files_lists_them_before_anything_is_read(tmp_path: Path) -> None:
    two_affines(tmp_path / "x.nii.gz")
    content = {
        "name": "n", "task": "t", "format": "nifti", "root": ".", "images": {"pattern": "{case}.nii.gz"},
        "patient": {"rule": "each_image"},
    }  # fmt: skip
    site_file = write_yaml(tmp_path / "site.yaml", {"datasets": [content]})
    (bad,) = find_cases(load_site(site_file).datasets[0]).bad
    assert bad[0].kind.id == "FMS-D014"
    content["images"] = {"pattern": "{case}.nii.gz", "affine": "qform"}
    write_yaml(site_file, {"datasets": [content]})
    assert len(find_cases(load_site(site_file).datasets[0]).cases) == 1


def test_every_damage_that_gzip_finds_is_found(tmp_path: Path) -> None:
    write_nifti(tmp_path / "good.nii", RNG.integers(0, 1000, (20, 22, 10)).astype(np.int16), np.diag([2.0, 2, 3, 1]))
    packed = gzip.compress((tmp_path / "good.nii").read_bytes(), 6, mtime=0)
    path = tmp_path / "bad.nii.gz"
    found = 0
    for position in [*range(400, len(packed) - 8, len(packed) // 12), len(packed) - 6, len(packed) - 2]:
        bad = bytearray(packed)
        bad[position] ^= 0x10
        try:
            gzip.decompress(bytes(bad))
        except Exception:  # noqa: BLE001 - whatever it says
            path.write_bytes(bad)
            assert refused(nifti.read_volume, path).ids == ("FMS-D004",)
            found += 1
    assert found > 8


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("scl_slope", np.nan, "scl_slope nan"),
        ("scl_slope", np.inf, "scl_slope inf"),
        ("scl_inter", np.nan, "scl_inter nan"),
        ("vox_offset", 0, "vox_offset 0"),
        ("vox_offset", 352.5, "vox_offset 352.5"),
        ("vox_offset", 16, "vox_offset 16"),
        ("vox_offset", np.nan, "vox_offset nan"),
        ("xyzt_units", 5, "unit of length 5"),
        ("xyzt_units", 1, "meters: voxels would be 1000 x 1000 x 1000 mm"),
        ("bitpix", 8, "bitpix 8 with datatype 4"),
        ("datatype", 1, "datatype 1"),
        ("sform_code", 99, "sform_code 99"),
        ("dim", [9, 4, 5, 6, 1, 1, 1, 1], "dim [9"),
        ("dim", [3, -4, 5, 6, 1, 1, 1, 1], "dim [3, -4"),
        ("magic", b"ni1", "pair of files"),
        ("sizeof_hdr", 1, "not a NIfTI file"),
    ],
)
def test_header_fields_without_a_meaning_are_d004(tmp_path: Path, field: str, value: Any, said: str) -> None:
    path = write_nifti(tmp_path / "x.nii", np.ones((4, 5, 6), np.int16), np.eye(4))
    header = nibabel.Nifti1Header.from_fileobj(path.open("rb"), check=False)
    header["scl_slope"], header["scl_inter"] = 1, 0
    header[field] = value
    path.write_bytes(header.binaryblock + path.read_bytes()[len(header.binaryblock) :])
    for read in (nifti.read_grid, nifti.read_volume):
        error = refused(read, path)
        assert error.ids == ("FMS-D004",)
        assert said in str(error)


def test_the_size_of_voxels_that_sform_and_pixdim_give_in_two_ways_is_an_error(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "x.nii", np.ones((4, 5, 6), np.int16), np.diag([1.0, 1, 2.5, 1]))
    header = nibabel.Nifti1Header.from_fileobj(path.open("rb"), check=False)
    header["sform_code"], header["qform_code"] = 1, 0
    header["pixdim"][1:4] = 2
    path.write_bytes(header.binaryblock + path.read_bytes()[len(header.binaryblock) :])
    assert SimpleITK.ReadImage(str(path)).GetSpacing() == (2, 2, 2), "why a choice matters"
    error = refused(nifti.read_grid, path)
    assert error.ids == ("FMS-D014",)
    assert "1 x 1 x 2.5 mm by the sform, 2 x 2 x 2 mm by pixdim" in str(error)
    assert nifti.read_grid(path, "sform").spacing == (1, 1, 2.5)


def test_a_pixdim_of_zero_is_shown_as_it_is_stored(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = write_nifti(tmp_path / "x.nii", np.ones((4, 5, 6), np.int16), np.diag([2.0, 2, 2, 1]))
    header = nibabel.Nifti1Header.from_fileobj(path.open("rb"), check=False)
    header["sform_code"], header["qform_code"] = 1, 0
    header["pixdim"][1:4] = 0
    path.write_bytes(header.binaryblock + path.read_bytes()[len(header.binaryblock) :])
    assert "2 x 2 x 2 mm by the sform, 0 x 0 x 0 mm by pixdim" in str(refused(nifti.read_grid, path))
    assert capfd.readouterr().err == "", "nibabel's own lines"


def test_what_is_no_nifti_file_is_said_to_be_none(tmp_path: Path) -> None:
    good = write_nifti(tmp_path / "good.nii", np.ones((4, 5, 6), np.int16), np.eye(4)).read_bytes()
    surface = nibabel.cifti2.BrainModelAxis.from_mask(np.ones((2, 2, 2), bool), affine=np.eye(4))
    nibabel.save(
        nibabel.Cifti2Image(np.zeros((1, 8), np.float32), (nibabel.cifti2.ScalarAxis(["x"]), surface)),
        tmp_path / "x.dscalar.nii",
    )
    (tmp_path / "packed.nii").write_bytes(gzip.compress(good))
    (tmp_path / "plain.nii.gz").write_bytes(good)
    (tmp_path / "cut.nii.gz").write_bytes(gzip.compress(good)[:-8])
    for name, said in (
        ("x.dscalar.nii", "expected one 3-D volume"),
        ("packed.nii", "does not end in .gz"),
        ("plain.nii.gz", "Not a gzipped file"),
        ("cut.nii.gz", "ended before"),
    ):
        error = refused(nifti.read_volume, tmp_path / name)
        assert error.ids == ("FMS-D004",) and said in str(error)


# --- NRRD segmentations --------------------------------------------------------------------------------------


def write_segmentation(path: Path) -> tuple[Path, np.ndarray]:
    """As 3D Slicer writes one: the value of a segment is not its place in the list."""
    labels = np.zeros((5, 8, 9), np.uint8)
    labels[1:3, 2:5, 3:7], labels[3:, 2:5, 3:7] = 4, 2
    image = SimpleITK.GetImageFromArray(labels)
    for key, value in {
        "Segment0_Name": "Leber größer", "Segment0_LabelValue": "4", "Segment0_Layer": "0",
        "Segment1_Name": "Tumour", "Segment1_LabelValue": "2", "Segment1_Layer": "0",
    }.items():  # fmt: skip
        image.SetMetaData(key, value)
    SimpleITK.WriteImage(image, str(path))
    return path, labels.transpose(2, 1, 0)


def test_a_header_of_many_segments_is_read_to_its_end(tmp_path: Path) -> None:
    image = SimpleITK.GetImageFromArray(np.zeros((2, 3, 4), np.uint8))
    names = [f"structure {number:03d}" for number in range(200)]
    for number, name in enumerate(names):
        image.SetMetaData(f"Segment{number}_Name", name)
        image.SetMetaData(f"Segment{number}_LabelValue", str(number + 1))
        image.SetMetaData(f"Segment{number}_Tags", "TerminologyEntry:" + "x" * 400)
    SimpleITK.WriteImage(image, str(tmp_path / "x.seg.nrrd"))
    assert sorted(region_names(tmp_path / "x.seg.nrrd")) == names


def test_segments_of_a_nrrd_file_go_by_name(tmp_path: Path) -> None:
    path, labels = write_segmentation(tmp_path / "x.seg.nrrd")
    assert region_names(path) == ("Leber größer", "Tumour")
    image = itk.read_volume(path)

    def masks(required: bool = True, **named: Any) -> dict[str, np.ndarray]:
        source = MaskSource.model_validate({"pattern": "{case}", "labels": named, "required": required})
        assert annotated(source, path) == (frozenset(named) if required else frozenset(named) - {"kidney"})
        return volume_masks(path, source, list(named), image, "image")

    found = masks(liver="Leber größer", tumour=["Tumour", "Tumor"], both=[4, "Tumour"])
    assert np.array_equal(found["liver"], labels == 4)
    assert np.array_equal(found["tumour"], labels == 2)
    assert np.array_equal(found["both"], labels > 0)
    error = refused(masks, liver="Leber größer", kidney="Kidney")
    assert error.ids == ("FMS-D016",) and "Leber größer, Tumour" in str(error)
    assert set(masks(required=False, liver="Leber größer", kidney="Kidney")) == {"liver"}


def test_segments_that_are_not_named_under_labels_are_forgotten_only_by_number(tmp_path: Path) -> None:
    path, _ = write_segmentation(tmp_path / "x.seg.nrrd")
    image = itk.read_volume(path)
    by_name = MaskSource.model_validate({"pattern": "{case}", "labels": {"tumour": "Tumour"}})
    assert set(volume_masks(path, by_name, ["tumour"], image, "image")) == {"tumour"}
    by_number = MaskSource.model_validate({"pattern": "{case}", "labels": {"tumour": 2}})
    assert refused(volume_masks, path, by_number, ["tumour"], image, "image").ids == ("FMS-D006",)


@pytest.mark.parametrize(("layer", "fits"), [("0", False), ("1", True)])
def test_two_segments_with_one_value_are_refused_unless_they_are_in_two_layers(
    tmp_path: Path, layer: str, fits: bool
) -> None:
    image = SimpleITK.GetImageFromArray(np.ones((5, 8, 9), np.uint8))
    for number, name in enumerate("AB"):
        image.SetMetaData(f"Segment{number}_Name", name)
        image.SetMetaData(f"Segment{number}_LabelValue", "1")
        image.SetMetaData(f"Segment{number}_Layer", layer if number else "0")
    SimpleITK.WriteImage(image, str(tmp_path / "x.seg.nrrd"))
    if fits:
        assert region_names(tmp_path / "x.seg.nrrd") == ("A", "B")
    else:
        assert "'A' and 'B' have the same LabelValue 1" in str(refused(region_names, tmp_path / "x.seg.nrrd"))


def test_nrrd_files_that_are_compressed_with_bzip2_are_refused_with_a_remedy(tmp_path: Path) -> None:
    path, _ = write_segmentation(tmp_path / "x.seg.nrrd")
    head, data = path.read_bytes().split(b"\n\n", 1)
    path.write_bytes(head.replace(b"encoding: raw", b"encoding: bzip2") + b"\n\n" + bz2.compress(data))
    assert "compressed with gzip" in str(refused(itk.read_volume, path))
