"""Damaged files end in a typed error or a correct read: no hang, no crash, no memory over 2 GB."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import openjpeg
import pydicom
import pytest
import SimpleITK
from PIL import Image
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from tests.generators import write_enhanced, write_picture, write_series

#: Variants of each kind of generated file, and of each of the development samples.
VARIANTS = 36
PROJECT = Path(__file__).parents[3]


def fuzz(folder: Path, name: str, first: int, *options: str) -> list[dict[str, str]]:
    """What became of each variant of a file, read in a folder with the rest of its series."""
    command = [
        sys.executable,
        "-m",
        "tests.data.readers.fuzz",
        str(folder),
        name,
        str(first),
        str(first + VARIANTS),
        *options,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=850, check=False
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    results = [{**made, **read} for made, read in zip(lines[::2], lines[1::2], strict=False)]
    assert done.returncode == 0, f"after {lines[-1:]}: {done.returncode} {done.stderr[-2000:]}"
    assert len(results) == VARIANTS
    return results


def check(results: list[dict[str, str]]) -> None:
    """Typed errors and sound images only; a file that was cut is never read."""
    allowed = {"read", "FMS-D003", "FMS-D004", "FMS-D014", "FMS-D015"}
    wrong = [item for item in results if not set(item["outcome"].split()) <= allowed]
    assert not wrong
    assert [item for item in results if item["way"] == "truncate" and item["outcome"] == "read"] == []
    counts = Counter("read" if item["outcome"] == "read" else "refused" for item in results)
    assert counts["refused"] >= len(results) / 4  # the damage is not always where it matters


def single(folder: Path) -> None:
    voxels = np.random.default_rng(0).integers(-500, 500, (40, 36, 3), dtype=np.int16)
    write_series(folder, voxels, np.diag([0.7, 0.9, 3.0, 1.0]), RescaleSlope=1, RescaleIntercept=-3)


def enhanced(folder: Path) -> None:
    voxels = np.random.default_rng(0).integers(0, 500, (20, 18, 4), dtype=np.uint16)
    write_enhanced(folder / "000.dcm", voxels, np.diag([0.7, 0.9, 3.0, 1.0]), rescale=[(1, 2)] * 4)


def photograph(folder: Path) -> None:
    write_picture(folder / "000.dcm", np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8))


def recode(path: Path, syntax: str, frame: bytes | None = None, **tags: Any) -> None:
    header = pydicom.dcmread(path)
    if frame is None and pydicom.uid.UID(syntax).is_compressed:
        header.compress(syntax, generate_instance_uid=False)
    header.file_meta.TransferSyntaxUID = syntax
    if frame is not None:
        header.PixelData = pydicom.encaps.encapsulate([frame])
        header["PixelData"].is_undefined_length = True
    for tag, value in tags.items():
        setattr(header, tag, value)
    header.save_as(path)


def jpeg_2000(folder: Path) -> None:
    single(folder)
    pixels = pydicom.dcmread(folder / "000.dcm").pixel_array
    frame = openjpeg.utils.encode_array(pixels, bits_stored=16, photometric_interpretation=2)
    recode(folder / "000.dcm", JPEG2000Lossless, bytes(frame))


def jpeg_lossless(folder: Path) -> None:
    single(folder)
    writer = SimpleITK.ImageFileWriter()
    writer.SetImageIO("GDCMImageIO")
    writer.SetUseCompression(True)
    writer.SetCompressor("JPEG")
    writer.SetFileName(str(folder / "encoded.dcm"))
    writer.Execute(SimpleITK.GetImageFromArray(pydicom.dcmread(folder / "000.dcm").pixel_array))
    source = pydicom.dcmread(folder / "encoded.dcm")
    (folder / "encoded.dcm").unlink()
    frame = pydicom.encaps.get_frame(source.PixelData, 0, number_of_frames=1)
    recode(folder / "000.dcm", JPEGLosslessSV1, frame)


def jpeg(folder: Path) -> None:
    photograph(folder)
    Image.fromarray(pydicom.dcmread(folder / "000.dcm").pixel_array).save(folder / "x.jpg")
    frame = (folder / "x.jpg").read_bytes()
    (folder / "x.jpg").unlink()
    recode(folder / "000.dcm", JPEGBaseline8Bit, frame, PhotometricInterpretation="YBR_FULL_422")


def by_pydicom(make: Any, syntax: str) -> Any:
    def write(folder: Path) -> None:
        make(folder)
        recode(folder / "000.dcm", syntax)

    return write


KINDS: dict[str, Any] = {
    "single": single,
    "enhanced": enhanced,
    "photograph": photograph,
    "jpeg": jpeg,
    "jpeg-lossless": jpeg_lossless,
    "jpeg-2000": jpeg_2000,
    "jpeg-ls": by_pydicom(single, JPEGLSLossless),
    "rle": by_pydicom(enhanced, RLELossless),
    "deflated": by_pydicom(single, DeflatedExplicitVRLittleEndian),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_are_refused_or_read(tmp_path: Path, kind: str) -> None:
    KINDS[kind](tmp_path)
    check(fuzz(tmp_path, "000.dcm", 1000 * list(KINDS).index(kind)))


@pytest.mark.slow
@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("ct_liver_seg_dcmqi", "02.dcm"),
        ("ct_rtstruct_rt-utils", "ct_1.dcm"),
        ("ct_seg_highdicom", "ct_image.dcm"),
        ("mr_prostate3t", "000011.dcm"),
    ],
)
def test_damaged_samples_are_refused_or_read(shared_data: Path, folder: str, name: str) -> None:
    check(fuzz(shared_data / "dicom_samples" / folder, name, 0))


@pytest.mark.slow
@pytest.mark.shared_data
@pytest.mark.parametrize(("folder", "name"), [("ct_liver_seg_dcmqi", "liver.dcm"), ("ct_rtstruct_rt-utils", "rt.dcm")])
def test_damaged_objects_beside_the_images_do_no_harm(shared_data: Path, folder: str, name: str) -> None:
    outcomes = {item["outcome"] for item in fuzz(shared_data / "dicom_samples" / folder, name, 0)}
    assert outcomes <= {"read", "FMS-D004", "FMS-D014", "FMS-D015"}
    assert "read" in outcomes


@pytest.mark.slow
@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("ct_liver_seg_dcmqi", "liver.dcm"),
        ("ct_liver_seg_dcmqi", "partial_overlaps.dcm"),
        ("ct_seg_highdicom", "seg_image_ct_binary_single_frame.dcm"),
        ("ct_rtstruct_rt-utils", "rt.dcm"),
    ],
)
def test_damaged_masks_are_refused_or_read(shared_data: Path, folder: str, name: str) -> None:
    results = fuzz(shared_data / "dicom_samples" / folder, name, 0, "mask")
    allowed = {"read", "read otherwise", "not annotated", "FMS-D004", "FMS-D005", "FMS-D014", "FMS-D016"}
    assert [item for item in results if item["outcome"] not in allowed] == []
    # Behind an RTSTRUCT's contours only remarks follow, so that a cut there may leave all of the mask, but never less.
    cut = {item["outcome"] for item in results if item["way"] == "truncate"}
    assert "FMS-D004" in cut and cut <= {"FMS-D004", "read"}
    assert cut == {"FMS-D004"} or name == "rt.dcm"
