"""Good data of each kind, small: nothing is found in them until a test spoils them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.generators import raster_dataset, write_nifti, write_series, write_yaml

CASES = 15
SPLIT = {"rule": "by_patient", "validation": 0.25, "seed": 0}
PATIENT = {"rule": "name", "expression": "^(.+)_0$"}


def picture(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Grey values and the mask of a bright disc at the right side of the picture; (48, 64) each."""
    rng = np.random.default_rng(number)
    rows, columns = np.mgrid[:48, :64]
    mask = (rows - 24 - number % 3) ** 2 + (columns - 48) ** 2 < 64
    values = rng.integers(40, 60, (48, 64)) + 100 * mask
    return values.astype(np.uint8), mask.astype(np.uint8)


def raster_site(folder: Path, **changes: Any) -> Path:
    """``images/c<i>_0.png`` with ``masks/c<i>_0.png``: structure organ, value 1."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for number in range(CASES):
        values, mask = picture(number)
        Image.fromarray(values).save(folder / "images" / f"c{number:02d}_0.png")
        Image.fromarray(mask).save(folder / "masks" / f"c{number:02d}_0.png")
    masks = [{"pattern": "masks/{case}.png", "labels": {"organ": 1}}]
    dataset = raster_dataset(masks=masks, patient=PATIENT, split=SPLIT)
    return write_yaml(folder / "site.yaml", {"datasets": [{**dataset, **changes}]})


def affine(spacing: float = 1.0) -> np.ndarray:
    """Columns to the patient's left, rows to the back, slices upwards; RAS."""
    return np.diag([-spacing, -spacing, 2.0, 1.0])


def write_volume(folder: Path, number: int, *, flipped: bool = False, spacing: float = 1.0) -> None:
    """``c<i>_0.nii.gz`` and ``c<i>_0_mask.nii.gz``; ``flipped``: both from left to right."""
    values, mask = picture(number)
    for name, array in (("", values.astype(np.int16)), ("_mask", mask)):
        shown = array[:, ::-1] if flipped else array
        voxels = np.repeat(shown.T[:, :, None], 3, axis=2)
        voxels[:, :, 0] += np.int16(number) if not name else 0
        write_nifti(folder / f"c{number:02d}_0{name}.nii.gz", np.ascontiguousarray(voxels), affine(spacing))


def volume_site(folder: Path) -> Path:
    """The pictures as NIfTI volumes of three slices."""
    for number in range(CASES):
        write_volume(folder, number)
    images, masks = {"pattern": "{case}.nii.gz"}, [{"pattern": "{case}_mask.nii.gz", "labels": {"organ": 1}}]
    dataset = raster_dataset(format="nifti", images=images, masks=masks, patient=PATIENT, split=SPLIT)
    return write_yaml(folder / "site.yaml", {"datasets": [dataset]})


def dicom_site(folder: Path, **tags: Any) -> Path:
    """The pictures as DICOM series of two slices with NIfTI masks; ``tags`` go into the first series."""
    for number in range(CASES):
        values, mask = picture(number)
        voxels = np.stack([values, values], axis=2).transpose(1, 0, 2).astype(np.uint16)
        where = np.diag([1.0, 1.0, 2.0, 1.0])
        more = tags if number == 0 else {}
        write_series(folder / "images" / f"c{number:02d}", voxels, where, patient=f"P{number}", **more)
        labels = np.stack([mask, mask], axis=2).transpose(1, 0, 2)
        write_nifti(folder / "masks" / f"c{number:02d}.nii.gz", labels, np.diag([-1.0, -1.0, 1.0, 1.0]) @ where)
    masks = [{"pattern": "masks/{case}.nii.gz", "labels": {"organ": 1}}]
    images, patient = {"pattern": "images/{case}"}, {"rule": "dicom_patient_id"}
    dataset = raster_dataset(format="dicom", images=images, masks=masks, patient=patient, split=SPLIT)
    return write_yaml(folder / "site.yaml", {"datasets": [dataset]})
