"""What another party's programs say of the DICOM files that were written."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import highdicom
import numpy as np
import pytest
import SimpleITK

from tests.prediction.model import world


def dciodvfy(path: Path) -> str:
    """What David Clunie's validator of DICOM objects prints of a file; skips the test where it is not installed.

    Tests ask for it last, so that only this is skipped.
    """
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy is not installed (Debian package dicom3tools); all but DICOM conformance was tested")
    result = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, timeout=120)
    return result.stdout + result.stderr


def errors(path: Path) -> list[str]:
    """The errors among what ``dciodvfy`` prints, and its own; warnings are left out."""
    lines = dciodvfy(path).splitlines()
    assert {"Segmentation", "SCImage"} & set(lines), "it was taken for what it is"
    return [line for line in lines if line.startswith(("Error", "dciodvfy"))]


def conforms(path: Path) -> None:
    """A segmentation or a secondary capture without an error."""
    assert not errors(path)


def dcmqi_places(path: Path, folder: Path, number: int) -> np.ndarray:
    """Positions of a segment as dcmqi and ITK read it."""
    folder.mkdir(exist_ok=True)
    command = ["segimage2itkimage", "--inputDICOM", path, "--outputDirectory", folder, "--outputType", "nrrd"]
    subprocess.run(list(map(str, command)), capture_output=True, check=True, timeout=120)
    image = SimpleITK.ReadImage(str(folder / f"{number}.nrrd"))
    found = np.argwhere(SimpleITK.GetArrayFromImage(image))[:, ::-1]
    return np.array([image.TransformIndexToPhysicalPoint(list(map(int, index))) for index in found])


def highdicom_places(path: Path, number: int) -> np.ndarray:
    """Positions of a segment as highdicom reads it."""
    volume = highdicom.seg.segread(path).get_volume(segment_numbers=[number], allow_missing_positions=True)
    return world(volume.array[..., 0], volume.affine)
