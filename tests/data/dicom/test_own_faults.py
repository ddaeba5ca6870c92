"""A fault of our own code shows as itself; it is never reported as a damaged file (FMS-D004)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pydicom
import pytest
from pydicom.uid import RLELossless

from fedfms.data.description.site import MaskSource
from fedfms.data.dicom import frames, image, modality, pixels, rtstruct, seg, series
from fedfms.data.dicom.image import read_dicom_image, read_dicom_volume
from fedfms.data.readers.masks import volume_masks
from fedfms.data.volume.geometry import Volume
from tests.data.dicom.test_rtstruct import box, image_of, write_rtstruct
from tests.data.dicom.test_seg import series_in, two_segments, write_seg
from tests.generators import write_enhanced, write_picture, write_series

AFFINE = np.diag([0.7, 0.9, 4.0, 1.0])


def voxels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 2000, (9, 8, 3), dtype=np.uint16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One sound object of each kind."""
    root = tmp_path_factory.mktemp("sound")
    write_series(root / "series", voxels(), AFFINE)
    write_enhanced(root / "compressed.dcm", voxels(), AFFINE)
    header = pydicom.dcmread(root / "compressed.dcm")
    header.compress(RLELossless, generate_instance_uid=False)
    header.save_as(root / "compressed.dcm")
    write_picture(root / "picture.dcm", np.zeros((5, 4), np.uint8))
    write_seg(root / "seg.dcm", series_in(root / "images"), two_segments())
    contours = {"A": [box((5, 5), (9, 9), 2)]}
    write_rtstruct(root / "rtstruct.dcm", image_of(), contours, image_uids=["1.2.3"])
    return root


def read_single_frames(folder: Path) -> None:
    read_dicom_volume(folder / "series")


def read_compressed(folder: Path) -> None:
    read_dicom_volume(folder / "compressed.dcm")


def read_picture(folder: Path) -> None:
    read_dicom_image(folder / "picture.dcm")


def read_seg(folder: Path) -> None:
    read_mask(folder / "seg.dcm", read_dicom_volume(folder / "images"))


def read_rtstruct(folder: Path) -> None:
    read_mask(folder / "rtstruct.dcm", image_of())


def read_mask(path: Path, image: Volume) -> None:
    source = MaskSource.model_validate({"pattern": "{case}.dcm", "labels": {"all": "nonzero"}})
    assert volume_masks(path, source, ["all"], image, "the image")["all"].any()


@pytest.mark.parametrize(
    ("read", "owner", "name"),
    [
        (read_single_frames, series, "_kind"),
        (read_single_frames, frames, "_checked_size"),
        (read_single_frames, frames, "_single_frame"),
        (read_single_frames, frames, "_thickness"),
        (read_single_frames, frames, "_check_geometry"),
        (read_single_frames, image, "stack_frames"),
        (read_single_frames, frames, "rescale_of"),
        (read_single_frames, frames, "variants"),
        (read_single_frames, pixels, "values_of"),
        (read_single_frames, modality, "_padding"),
        (read_compressed, frames, "_multi_frame"),
        (read_compressed, frames, "_functional_group"),
        (read_compressed, frames, "_dimensions"),
        (read_compressed, pixels, "stream_size"),
        (read_picture, pixels, "values_of"),
        (read_picture, pixels, "fill_padding"),
        (read_seg, seg, "_segment"),
        (read_seg, seg, "referenced_series"),
        (read_seg, seg, "locate_in_grid"),
        (read_seg, seg.Segmentation, "_frame"),
        (read_seg, seg.Segmentation, "_bits"),
        (read_seg, seg.Segmentation, "_draw"),
        (read_rtstruct, rtstruct, "_roi"),
        (read_rtstruct, rtstruct, "_referenced_images"),
        (read_rtstruct, rtstruct, "_points"),
        (read_rtstruct, rtstruct, "fill_union"),
        (read_rtstruct, rtstruct.StructureSet, "_check_frame_of_reference"),
    ],
)
def test_a_fault_of_ours_is_not_a_damaged_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch, read: Callable[[Path], None], owner: ModuleType | type, name: str
) -> None:
    read(folder)
    for kind in (TypeError, AttributeError, ValueError):

        def faulty(*arguments: object, kind: type[Exception] = kind, **named: object) -> None:
            raise kind("a fault of ours")

        monkeypatch.setattr(owner, name, faulty)
        with pytest.raises(kind, match="a fault of ours"):
            read(folder)
