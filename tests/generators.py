"""Small data made on the spot for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import yaml
from PIL import Image
from pydicom.uid import (
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
    OphthalmicPhotography8BitImageStorage,
    generate_uid,
)

from fedfms.preprocessing import Preprocessing


def preprocessing(
    intensity: dict[str, Any] | None = None, size: int = 64, slice_axis: str = "axial", channels: str = "same"
) -> Preprocessing:
    """A job's preprocessing; the intensity rule ``range`` unless told otherwise."""
    content = {"input_size": size, "intensity": intensity or {"rule": "range"}, "slice_axis": slice_axis}
    return Preprocessing.model_validate({**content, "channels": channels})


def write_yaml(path: Path, content: Any) -> Path:
    """Write a YAML file and return its path."""
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


def raster_dataset(**changes: Any) -> dict[str, Any]:
    """Description of what ``write_raster_site`` writes, with top-level keys replaced."""
    dataset: dict[str, Any] = {
        "name": "photographs",
        "task": "organ-lesion",
        "format": "raster",
        "root": ".",
        "images": {"pattern": "images/{case}.png"},
        "masks": [{"pattern": "masks/{case}.png", "labels": {"organ": [1, 2], "lesion": 2}}],
        "patient": {"rule": "name", "expression": "^(.+)_[0-9]+$"},
        "split": {"rule": "by_patient", "validation": 0.34, "seed": 0},
    }
    return {**dataset, **changes}


def write_raster_site(
    folder: Path, patients: int = 4, images: int = 2, size: tuple[int, int] = (40, 32), **changes: Any
) -> Path:
    """Images ``images/p<i>_<k>.png`` (8-bit RGB) with label maps (1 organ, 2 lesion in it), and a site.yaml."""
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    for patient in range(patients):
        for number in range(images):
            rng = np.random.default_rng([patient, number])
            values = rng.integers(0, 120, (*size, 3), dtype=np.uint8)
            labels = np.zeros(size, dtype=np.uint8)
            top = 4 + patient % 5
            labels[top : top + 16, 6:22] = 1
            labels[top + 4 : top + 10, 9 : 15 + number] = 2
            values[labels == 1] += 60
            values[labels == 2] += 120
            Image.fromarray(values).save(folder / "images" / f"p{patient}_{number}.png")
            Image.fromarray(labels).save(folder / "masks" / f"p{patient}_{number}.png")
    return write_yaml(folder / "site.yaml", {"datasets": [raster_dataset(**changes)]})


def write_series(
    folder: Path,
    voxels: np.ndarray,
    affine_lps: np.ndarray,
    *,
    names: list[str] | None = None,
    patient: str = "P1",
    **tags: Any,
) -> None:
    """Write integer voxels (column, row, slice) as one MR image file per slice; ``tags`` replace elements."""
    folder.mkdir(parents=True, exist_ok=True)
    spacing = np.linalg.norm(affine_lps[:3, :3], axis=0)
    series = generate_uid()
    study, frame_of_reference = generate_uid(), generate_uid()
    for index in range(voxels.shape[2]):
        pixels = np.ascontiguousarray(voxels[:, :, index].T)
        header = pydicom.Dataset()
        header.file_meta = pydicom.dataset.FileMetaDataset()
        header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        header.SOPClassUID = MRImageStorage
        header.SOPInstanceUID = generate_uid()
        header.StudyInstanceUID = study
        header.FrameOfReferenceUID = frame_of_reference
        header.SeriesInstanceUID = series
        header.Modality = "MR"
        header.PatientID = patient
        header.InstanceNumber = voxels.shape[2] - index
        header.ImagePositionPatient = [float(f"{x:.6f}") for x in (affine_lps @ [0, 0, index, 1])[:3]]
        directions = (*(affine_lps[:3, 0] / spacing[0]), *(affine_lps[:3, 1] / spacing[1]))
        header.ImageOrientationPatient = [float(f"{x:.8f}") for x in directions]
        header.PixelSpacing = [float(spacing[1]), float(spacing[0])]
        header.SliceThickness = float(spacing[2])
        header.SamplesPerPixel = 1
        header.PhotometricInterpretation = "MONOCHROME2"
        header.Rows, header.Columns = pixels.shape
        header.BitsAllocated = header.BitsStored = 8 * pixels.dtype.itemsize
        header.HighBit = header.BitsStored - 1
        header.PixelRepresentation = int(pixels.dtype.kind == "i")
        header.PixelData = pixels.tobytes()
        for tag, value in tags.items():
            setattr(header, tag, value)
        name = names[index] if names else f"{index:03d}.dcm"
        header.save_as(folder / name, enforce_file_format=True)


def write_nifti(path: Path, voxels: np.ndarray, affine_ras: np.ndarray, code: int = 1) -> Path:
    """Write voxels (i, j, k) with sform and qform of the given code."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(voxels, affine_ras)
    image.set_sform(affine_ras, code=code)
    image.set_qform(affine_ras, code=code)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)
    return path


def rotation(degrees: tuple[float, float, float]) -> np.ndarray:
    """Rotation about x, then y, then z."""
    result = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(degrees)):
        turn = np.eye(3)
        a, b = [other for other in range(3) if other != axis]
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
        result = turn @ result
    return result


def write_enhanced(
    path: Path,
    voxels: np.ndarray,
    affine_lps: np.ndarray,
    *,
    order: list[int] | None = None,
    rescale: list[tuple[float, float]] | None = None,
    dimensions: dict[str, list[int]] | None = None,
    **tags: Any,
) -> None:
    """Write integer voxels (column, row, slice) as one Enhanced MR object; ``tags`` replace elements.

    ``order``: slice of each frame; a slice may come several times. ``rescale``: slope and intercept of each frame.
    ``dimensions``: by the keyword of the dimension, the index of each frame.
    """
    spacing = np.linalg.norm(affine_lps[:3, :3], axis=0)
    order = order or list(range(voxels.shape[2]))
    names = ["InStackPositionNumber", *(dimensions or {})]
    header = pydicom.Dataset()
    header.file_meta = pydicom.dataset.FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.SOPClassUID = EnhancedMRImageStorage
    header.SOPInstanceUID = generate_uid()
    header.StudyInstanceUID, header.SeriesInstanceUID, header.FrameOfReferenceUID = ("1.2.7", "1.2.8", "1.2.9")
    header.Modality = "MR"
    header.PatientID = "P1"
    header.DimensionIndexSequence = []
    for name in names:
        pointer = pydicom.Dataset()
        pointer.DimensionIndexPointer = pydicom.datadict.tag_for_keyword(name)
        header.DimensionIndexSequence.append(pointer)
    shared = pydicom.Dataset()
    directions = (*(affine_lps[:3, 0] / spacing[0]), *(affine_lps[:3, 1] / spacing[1]))
    shared.PlaneOrientationSequence = [_item(ImageOrientationPatient=[float(f"{x:.8f}") for x in directions])]
    measures = {"PixelSpacing": [float(spacing[1]), float(spacing[0])], "SliceThickness": float(spacing[2])}
    shared.PixelMeasuresSequence = [_item(**measures)]
    header.SharedFunctionalGroupsSequence = [shared]
    header.PerFrameFunctionalGroupsSequence = []
    for index, number in enumerate(order):
        group = pydicom.Dataset()
        position = [float(f"{x:.6f}") for x in (affine_lps @ [0, 0, number, 1])[:3]]
        group.PlanePositionSequence = [_item(ImagePositionPatient=position)]
        values = [number + 1, *(indexes[index] for indexes in (dimensions or {}).values())]
        group.FrameContentSequence = [_item(DimensionIndexValues=values)]
        if rescale:
            slope, intercept = rescale[index]
            group.PixelValueTransformationSequence = [_item(RescaleSlope=slope, RescaleIntercept=intercept)]
        header.PerFrameFunctionalGroupsSequence.append(group)
    pixels = np.ascontiguousarray(voxels.transpose(2, 1, 0)[order])
    header.SamplesPerPixel = 1
    header.PhotometricInterpretation = "MONOCHROME2"
    header.NumberOfFrames, header.Rows, header.Columns = pixels.shape
    header.BitsAllocated = header.BitsStored = 8 * pixels.dtype.itemsize
    header.HighBit = header.BitsStored - 1
    header.PixelRepresentation = int(pixels.dtype.kind == "i")
    header.PixelData = pixels.tobytes()
    for tag, value in tags.items():
        setattr(header, tag, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    header.save_as(path, enforce_file_format=True)


def write_picture(path: Path, pixels: np.ndarray, **tags: Any) -> None:
    """Write (rows, columns) grey or (rows, columns, 3) RGB pixels as a photograph without position."""
    header = pydicom.Dataset()
    header.file_meta = pydicom.dataset.FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.SOPClassUID = OphthalmicPhotography8BitImageStorage
    header.SOPInstanceUID = generate_uid()
    header.StudyInstanceUID, header.SeriesInstanceUID = ("1.2.7", "1.2.8")
    header.Modality = "OP"
    header.PatientID = "P1"
    header.Rows, header.Columns = pixels.shape[:2]
    header.SamplesPerPixel = 3 if pixels.ndim == 3 else 1
    header.PhotometricInterpretation = "RGB" if pixels.ndim == 3 else "MONOCHROME2"
    if pixels.ndim == 3:
        header.PlanarConfiguration = 0
    header.BitsAllocated = header.BitsStored = 8 * pixels.dtype.itemsize
    header.HighBit = header.BitsStored - 1
    header.PixelRepresentation = int(pixels.dtype.kind == "i")
    header.PixelData = pixels.tobytes()
    for tag, value in tags.items():
        setattr(header, tag, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    header.save_as(path, enforce_file_format=True)


def _item(**tags: Any) -> pydicom.Dataset:
    item = pydicom.Dataset()
    for tag, value in tags.items():
        setattr(item, tag, value)
    return item
