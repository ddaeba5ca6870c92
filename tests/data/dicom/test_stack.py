"""Frames as one regular grid, and everything that keeps them from being one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from fedfms.data.description.series import SeriesChoice
from fedfms.data.dicom.frames import Frame
from fedfms.data.dicom.image import read_dicom_volume
from fedfms.data.dicom.stack import SPACING_TOLERANCE, stack_frames
from fedfms.data.volume.geometry import SourceFrame
from fedfms.errors import FedfmsError
from tests.generators import write_series

STEP = 4.0


def frame(name: str, position: Sequence[float], **changes: Any) -> Frame:
    whole = Frame(
        source=SourceFrame(Path(f"{name}.dcm"), None, "1.2"),
        size=(8, 9),
        position=tuple(position),
        orientation=(1, 0, 0, 0, 1, 0),
        spacing=(0.9, 0.7),
        thickness=STEP,
    )
    return replace(whole, **changes)


def frames(heights: Sequence[float] = (0, 4, 8, 12, 16), aside: dict[int, float] | None = None) -> list[Frame]:
    """Parallel frames; ``aside``: number of a frame -> its distance in mm from the others within the plane."""
    return [frame(str(number), (0, (aside or {}).get(number, 0), z)) for number, z in enumerate(heights)]


def refused(items: Sequence[Frame], **options: Any) -> FedfmsError:
    with pytest.raises(FedfmsError) as caught:
        stack_frames("the folder", items, **options)
    return caught.value


def test_rows_columns_and_slices_keep_their_own_distances() -> None:
    ordered, grid = stack_frames("the folder", frames((8, 0, 4)))
    assert [item.position[2] for item in ordered] == [0, 4, 8]
    assert grid.shape == (9, 8, 3)
    assert np.allclose(grid.spacing, (0.7, 0.9, 4))


@pytest.mark.parametrize(
    "change",
    [
        {"size": (8, 10)},
        {"size": (7, 9)},
        {"spacing": (0.9, 0.71)},
        {"spacing": (0.8, 0.7)},
        {"orientation": (0.9998, 0.02, 0, -0.02, 0.9998, 0)},
    ],
)
def test_a_slice_of_another_size_orientation_or_pixel_spacing_is_d015(change: dict[str, Any]) -> None:
    items = frames()
    items[2] = replace(items[2], **change)
    error = refused(items)
    assert error.ids == ("FMS-D015",)
    assert "size, orientation or pixel spacing differ from 0.dcm in 1 of 5 images: 2.dcm" in str(error)


def test_a_file_of_a_series_with_another_pixel_spacing_is_d015(tmp_path: Path) -> None:
    write_series(tmp_path, np.zeros((9, 8, 3), np.uint16), np.diag([0.7, 0.9, STEP, 1.0]))
    header = pydicom.dcmread(tmp_path / "001.dcm")
    header.PixelSpacing = [0.9, 0.8]
    header.save_as(tmp_path / "001.dcm")
    with pytest.raises(FedfmsError, match="pixel spacing differ from 000.dcm in 1 of 3 images: 001.dcm") as caught:
        read_dicom_volume(tmp_path)
    assert caught.value.ids == ("FMS-D015",)


@pytest.mark.parametrize(
    "change",
    [{"spacing": (0.9001, 0.7)}, {"orientation": (1, 0.0004, 0, -0.0004, 1, 0)}],
)
def test_rounded_numbers_do_not_differ(change: dict[str, Any]) -> None:
    items = frames()
    items[2] = replace(items[2], **change)
    assert stack_frames("the folder", items)[1].shape == (9, 8, 5)


def test_a_single_slice_needs_a_thickness() -> None:
    assert stack_frames("the folder", frames((3,)))[1].spacing[2] == pytest.approx(STEP)
    error = refused([frame("0", (0, 0, 0), thickness=0.0)])
    assert error.ids == ("FMS-D004",) and "a single slice without SliceThickness" in str(error)


@pytest.mark.parametrize("axis", ["along", "aside"])
@pytest.mark.parametrize(("part", "fits"), [(0.9, True), (1.3, False)])
def test_a_slice_may_be_displaced_by_the_tolerance_and_no_more(axis: str, part: float, fits: bool) -> None:
    distance = part * SPACING_TOLERANCE * STEP
    items = frames((0, 4, 8 + distance, 12, 16)) if axis == "along" else frames(aside={2: distance})
    if fits:
        assert stack_frames("the folder", items)[1].spacing[2] == pytest.approx(STEP)
        return
    error = refused(items)
    assert error.ids == ("FMS-D015",)
    detail = (
        f"{STEP + distance:.3g} mm before 2.dcm" if axis == "along" else "the slices are shifted against each other"
    )
    assert f"uneven slice distance (typically 4 mm): {detail}" in str(error)


def test_one_wide_gap_is_d015_although_each_slice_is_near_its_even_position() -> None:
    assert stack_frames("the folder", frames((0, 4, 8.39, 12.39)))[1].shape[2] == 4
    heights = np.array([0, 4, 8.41, 12.41])
    assert np.abs(heights - np.linspace(0, heights[-1], 4)).max() < SPACING_TOLERANCE * STEP
    assert "4.41 mm before 2.dcm" in str(refused(frames(heights.tolist())))


def test_slices_at_the_same_position_are_d015_by_name() -> None:
    error = refused(frames((0, 4, 4.0005, 8, 12)))
    assert error.ids == ("FMS-D015",)
    assert "two slices at the same position: 1.dcm and 2.dcm" in str(error)
    assert "same position: 0.dcm and 1.dcm; 1.dcm and 2.dcm" in str(refused(frames((5, 5, 5))))
    # Thin slices are not repeated ones.
    assert stack_frames("the folder", frames((0, 0.01, 0.02)))[1].spacing[2] == pytest.approx(0.01)


def test_a_tilted_gantry_keeps_its_shear() -> None:
    items = [frame(str(number), (0, 0.5 * number, STEP * number)) for number in range(4)]
    _, grid = stack_frames("the folder", items)
    assert np.allclose(np.abs(grid.affine[:3, 2]), (0, 0.5, STEP))


def test_dimensions_choose_frames_and_are_listed_only_when_they_divide_them() -> None:
    items = [
        frame(
            f"{echo}{number}",
            (0, 0, STEP * number),
            dimensions={"Echo": str(echo), "Index": f"{echo}{number}", "Same": "1"},
        )
        for echo in (1, 2)
        for number in range(3)
    ]
    second, _ = stack_frames("the folder", items, SeriesChoice(dimensions={"Echo": 2}))
    assert [item.dimensions["Echo"] for item in second] == ["2", "2", "2"]
    error = refused(items)
    assert error.ids == ("FMS-D014",)
    assert "they differ in Echo: 1 (3 frames), 2 (3 frames) ->" in str(error), "every frame has its own Index"
    assert "no frame fits images.series.dimensions: Echo: 1 (3 frames)" in str(
        refused(items, choice=SeriesChoice(dimensions={"Echo": 3}))
    )
