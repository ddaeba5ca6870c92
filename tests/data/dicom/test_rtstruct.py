"""Contours as voxels."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from fedfms.data.description.site import MaskSource
from fedfms.data.dicom.contours import fill_even_odd
from fedfms.data.dicom.rtstruct import SOP_CLASS
from fedfms.data.readers.masks import annotated, region_facts, volume_masks
from fedfms.data.volume.geometry import LPS_TO_RAS, Grid, SourceFrame, Volume
from fedfms.errors import FedfmsError
from tests.generators import rotation

FRAME = "1.2.3.4"
Contour = Sequence[Sequence[float]]  # points as voxel indices (i, j, k)


def image_of(shape: tuple[int, int, int] = (120, 100, 8), affine_lps: np.ndarray | None = None) -> Volume:
    """An oblique image that has a frame of reference."""
    if affine_lps is None:
        affine_lps = np.eye(4)
        affine_lps[:3, :3] = rotation((15, -20, 30)) @ np.diag([0.8, 0.6, 3.0])
        affine_lps[:3, 3] = (-40, 25, 60)
    return Volume(np.zeros(shape, np.int16), Grid(shape, LPS_TO_RAS @ affine_lps), FRAME)


def write_rtstruct(
    path: Path,
    image: Volume,
    rois: dict[str, Sequence[Contour]],
    *,
    frame: str = FRAME,
    kind: str = "CLOSED_PLANAR",
    image_uids: Sequence[str] = (),
    series_uid: str = "",
) -> Path:
    """Write contours given in voxel indices of the image."""
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = SOP_CLASS
    dataset.SOPInstanceUID = generate_uid()
    dataset.SeriesInstanceUID = generate_uid()
    dataset.Modality = "RTSTRUCT"
    dataset.SeriesInstanceUID = generate_uid()
    dataset.StudyInstanceUID = generate_uid()
    series = pydicom.Dataset()
    series.ContourImageSequence = []
    series.SeriesInstanceUID = series_uid
    for uid in image_uids:
        reference = pydicom.Dataset()
        reference.ReferencedSOPInstanceUID = uid
        series.ContourImageSequence.append(reference)
    study = pydicom.Dataset()
    study.RTReferencedSeriesSequence = [series]
    referenced = pydicom.Dataset()
    referenced.FrameOfReferenceUID = frame
    referenced.RTReferencedStudySequence = [study]
    dataset.ReferencedFrameOfReferenceSequence = [referenced]
    dataset.StructureSetROISequence, dataset.ROIContourSequence = [], []
    to_lps = LPS_TO_RAS @ image.grid.affine
    for number, (name, contours) in enumerate(rois.items(), start=1):
        roi = pydicom.Dataset()
        roi.ROINumber, roi.ROIName, roi.ReferencedFrameOfReferenceUID = number, name, frame
        dataset.StructureSetROISequence.append(roi)
        drawn = pydicom.Dataset()
        drawn.ReferencedROINumber, drawn.ContourSequence = number, []
        for points in contours:
            item = pydicom.Dataset()
            item.ContourGeometricType = kind
            item.NumberOfContourPoints = len(points)
            positions = np.array(points, dtype=np.float64) @ to_lps[:3, :3].T + to_lps[:3, 3]
            item.ContourData = [f"{value:.4f}" for value in positions.ravel()]
            drawn.ContourSequence.append(item)
        dataset.ROIContourSequence.append(drawn)
    dataset.save_as(path, enforce_file_format=True)
    return path


def read(path: Path, image: Volume, required: bool = True, **labels: object) -> dict[str, np.ndarray]:
    source = MaskSource.model_validate({"pattern": "{case}.dcm", "labels": labels, "required": required})
    return volume_masks(path, source, list(labels), image, "the image")


def failure(path: Path, image: Volume, **labels: object) -> FedfmsError:
    with pytest.raises(FedfmsError) as caught:
        read(path, image, **labels)
    return caught.value


def circle(centre: tuple[float, float], radius: float, k: float, points: int = 360) -> Contour:
    angles = np.linspace(0, 2 * np.pi, points, endpoint=False)
    return [(centre[0] + radius * np.cos(a), centre[1] + radius * np.sin(a), k) for a in angles]


def box(low: tuple[float, float], high: tuple[float, float], k: float) -> Contour:
    return [(low[0], low[1], k), (high[0], low[1], k), (high[0], high[1], k), (low[0], high[1], k)]


def area(contour: Contour) -> float:
    x, y = np.array(contour)[:, :2].T
    return 0.5 * abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1)))


# --- area and position -----------------------------------------------------------------------------------


def inner_contours(path: Path, **labels: object) -> int:
    """What the check counts."""
    facts = region_facts(MaskSource.model_validate({"pattern": "{case}.dcm", "labels": labels}), path)
    assert facts is not None
    return facts.inner_contours


def test_contours_that_are_in_no_other_are_not_called_holes(tmp_path: Path) -> None:
    image = image_of()
    beside = [circle((40, 50), 20.3, 2), circle((85, 50), 20.3, 2), circle((40, 50), 9.3, 3)]
    overlapping = [circle((40, 50), 20.3, 2), circle((60, 50), 20.3, 2)]
    nested = [circle((40, 50), 20.3, 2), circle((40, 50), 9.3, 2)]
    line: Contour = [(1, 1, 4), (5, 5, 4)]
    rois = {"beside": beside, "overlapping": overlapping, "line": [line]}
    path = write_rtstruct(tmp_path / "rt.dcm", image, rois)
    assert inner_contours(path, a="beside", b="overlapping", c="line") == 0
    exclusive = write_rtstruct(tmp_path / "xor.dcm", image, {"x": nested}, kind="CLOSEDPLANAR_XOR")
    assert inner_contours(exclusive, a="x") == 0, "there DICOM itself says what is a hole"


@pytest.mark.parametrize("shape", ["circle", "triangle", "star"])
def test_the_area_of_a_known_polygon_is_kept_within_2_percent(tmp_path: Path, shape: str) -> None:
    image = image_of()
    outline = {
        "circle": circle((58.3, 47.8), 35.2, 5),
        "triangle": [(10.3, 9.7, 5), (110.6, 30.2, 5), (47.9, 93.4, 5)],
        "star": [
            (58.2 + radius * np.cos(np.pi * n / 5), 49.6 + radius * np.sin(np.pi * n / 5), 5)
            for n, radius in enumerate([48, 20] * 5)
        ],
    }[shape]
    mask = read(write_rtstruct(tmp_path / "rt.dcm", image, {"x": [outline]}), image, organ="x")["organ"]
    assert mask.shape == image.grid.shape and mask.dtype == np.uint8
    assert mask.sum() == mask[:, :, 5].sum() == pytest.approx(area(outline), rel=0.02)
    centre = np.argwhere(mask[:, :, 5]).mean(axis=0)
    if shape == "circle":
        assert centre == pytest.approx((58.3, 47.8), abs=0.1)


def test_pixels_are_inside_when_their_centre_is(tmp_path: Path) -> None:
    image = image_of()
    path = write_rtstruct(tmp_path / "rt.dcm", image, {"x": [box((9.6, 20.4), (14.4, 22.6), 0)]})
    mask = read(path, image, organ="x")["organ"]
    expected = np.zeros(image.grid.shape, np.uint8)
    expected[10:15, 21:23, 0] = 1
    assert np.array_equal(mask, expected)


def test_a_contour_traced_through_pixel_centres_gives_these_pixels(tmp_path: Path) -> None:
    """As tools that make contours from masks write them; rounding in the file must not tear the border."""
    image = image_of()
    hole = box((30, 30), (40, 45), 2)
    path = write_rtstruct(tmp_path / "rt.dcm", image, {"x": [box((20, 20), (50, 60), 2), hole]})
    expected = np.zeros(image.grid.shape, np.uint8)
    expected[20:51, 20:61, 2] = 1
    expected[31:40, 31:45, 2] = 0  # the hole's contour runs through pixels of the structure
    assert np.array_equal(read(path, image, organ="x")["organ"], expected)
    diamond = [(60, 40, 1), (70, 50, 1), (60, 60, 1), (50, 50, 1)]
    mask = read(write_rtstruct(tmp_path / "d.dcm", image, {"x": [diamond]}), image, organ="x")["organ"]
    i, j = np.indices((120, 100))
    assert np.array_equal(mask[:, :, 1], abs(i - 60) + abs(j - 50) <= 10)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
@pytest.mark.parametrize("flipped", [False, True])
def test_an_image_with_its_axes_in_another_order_gets_the_same_voxels(
    tmp_path: Path, order: tuple[int, int, int], flipped: bool
) -> None:
    image = image_of()
    path = write_rtstruct(tmp_path / "rt.dcm", image, {"x": [circle((40, 60), 20, 3), circle((44, 61), 15, 4)]})
    expected = read(path, image, organ="x")["organ"]
    change = np.zeros((4, 4))
    change[3, 3] = 1
    for axis, old in enumerate(order):
        change[old, axis] = 1
    if flipped:
        mirror = np.diag([1.0, 1.0, -1.0, 1.0])
        mirror[2, 3] = image.grid.shape[order[2]] - 1
        change = change @ mirror
    shape = (image.grid.shape[order[0]], image.grid.shape[order[1]], image.grid.shape[order[2]])
    other = Volume(np.zeros(shape), Grid(shape, image.grid.affine @ change))
    found = read(path, other, organ="x")["organ"]
    moved = expected.transpose(order)
    assert np.array_equal(found, moved[:, :, ::-1] if flipped else moved)


# --- holes and several contours ----------------------------------------------------------------------------


def test_holes_islands_and_separate_parts_in_one_slice(tmp_path: Path) -> None:
    image = image_of()
    contours = [
        circle((40, 50), 30.3, 2),
        circle((40, 50), 20.3, 2),  # a hole
        circle((40, 50), 10.3, 2),  # an island in it
        circle((95, 50), 15.3, 2),  # a second part
        circle((40, 50), 12.3, 3),  # another slice
    ]
    path = write_rtstruct(tmp_path / "rt.dcm", image, {"x": contours, "y": contours[:2]})
    mask = read(path, image, organ="x")["organ"]
    assert inner_contours(path, organ="x") == 2 and inner_contours(path, organ="x", other="y") == 3
    i, j = np.indices((120, 100))
    distance = np.hypot(i - 40, j - 50)
    ring = (distance < 10.3) | ((distance > 20.3) & (distance < 30.3)) | (np.hypot(i - 95, j - 50) < 15.3)
    assert (mask[:, :, 2] != ring).sum() < 10
    assert mask[:, :, 3].sum() == pytest.approx(np.pi * 12.3**2, rel=0.02)
    assert mask[:, :, [0, 1, 4, 5, 6, 7]].sum() == 0


@pytest.mark.parametrize("channel", [50.0, 50.5])
def test_a_keyhole_is_a_hole(tmp_path: Path, channel: float) -> None:
    image = image_of()
    outline = [
        *((20, channel, 1), (20, 80, 1), (80, 80, 1), (80, 20, 1), (20, 20, 1), (20, channel, 1)),
        *((40.5, channel, 1), (40.5, 30.5, 1), (60.5, 30.5, 1), (60.5, 60.5, 1), (40.5, 60.5, 1), (40.5, channel, 1)),
    ]
    mask = read(write_rtstruct(tmp_path / "rt.dcm", image, {"x": [outline]}), image, organ="x")["organ"]
    expected = np.zeros((120, 100), np.uint8)
    expected[20:81, 20:81] = 1
    expected[41:61, 31:61] = 0
    assert np.array_equal(mask[:, :, 1], expected)


def test_a_keyhole_is_a_hole_in_whichever_direction_it_is_drawn(tmp_path: Path) -> None:
    image = image_of()
    outer, inner = circle((40, 50), 30.3, 2), circle((40, 50), 12.3, 2)
    for hole in (inner, inner[::-1]):
        contour = [*outer, outer[0], *hole, hole[0]]
        mask = read(write_rtstruct(tmp_path / "rt.dcm", image, {"x": [contour]}), image, organ="x")["organ"]
        assert (mask[:, :, 2] != (discs(BIG) & ~discs(SMALL))).sum() < 30  # the channel is a line of pixels


@pytest.mark.parametrize("name", ["a point on one way", "ways apart"])
def test_a_channel_need_not_be_one_line(tmp_path: Path, name: str) -> None:
    image = image_of()
    outer, inner = circle((40, 50), 30.3, 2), circle((40, 50), 12.3, 2)
    first, last = np.array(outer[0]), np.array(inner[0])
    if name == "a point on one way":
        contour = [*outer, outer[0], *inner, inner[0], tuple((first + last) / 2 + (0, 0.1, 0))]
    else:
        contour = [*outer, *inner]  # from the last corners to the first ones, which are next to them
    mask = read(write_rtstruct(tmp_path / "rt.dcm", image, {"x": [contour]}), image, organ="x")["organ"]
    assert (mask[:, :, 2] != (discs(BIG) & ~discs(SMALL))).sum() < 40


@pytest.mark.parametrize("name", ["goes around twice", "ends in a loop", "is a figure of eight"])
def test_one_contour_holds_all_that_it_goes_around(tmp_path: Path, name: str) -> None:
    image = image_of()
    outer = circle((40, 50), 30.3, 2)
    expected = discs(BIG)
    if name == "goes around twice":
        contour = [*outer, *outer]
    elif name == "ends in a loop":
        contour = [*outer, *circle((55, 50), 15.3, 2)]  # begins and ends at the same place as the outer one
    else:
        contour = [*outer, *((2 * 80.6 - x, y, k) for x, y, k in circle((80.6, 50), 10.3, 2))]
        expected = discs(BIG, ((80.6, 50.0), 10.3))
    mask = read(write_rtstruct(tmp_path / "rt.dcm", image, {"x": [contour]}), image, organ="x")["organ"]
    assert (mask[:, :, 2] != expected).sum() < 12


def discs(*circles: tuple[tuple[float, float], float]) -> np.ndarray:
    """Pixels within any of the circles, as centre and radius."""
    i, j = np.indices((120, 100))
    return np.any([np.hypot(i - x, j - y) < radius for (x, y), radius in circles], axis=0)


BIG, SMALL = ((40.0, 50.0), 30.3), ((40.0, 50.0), 12.3)
#: Contours of one slice as centre and radius -> the pixels, by construction.
JOINED: dict[str, tuple[list[tuple[tuple[float, float], float]], np.ndarray]] = {
    "drawn twice": ([BIG, BIG], discs(BIG)),
    "drawn twice, rounded in another way": ([BIG, ((40.004, 49.996), 30.302)], discs(BIG)),
    "drawn twice, a third of a pixel apart": ([BIG, ((40.0, 50.0), 29.97)], discs(BIG)),
    "a thin ring": ([BIG, ((40.0, 50.0), 29.3)], discs(BIG) & ~discs(((40.0, 50.0), 29.3))),
    "overlapping": ([BIG, ((75.0, 50.0), 20.3)], discs(BIG, ((75.0, 50.0), 20.3))),
    "hole drawn twice": ([BIG, SMALL, SMALL], discs(BIG) & ~discs(SMALL)),
    "overlapping holes": ([BIG, SMALL, ((50.0, 50.0), 9.3)], discs(BIG) & ~discs(SMALL, ((50.0, 50.0), 9.3))),
    "the hole of one within another": (
        [BIG, SMALL, ((40.0, 75.0), 20.3)],
        (discs(BIG) & ~discs(SMALL)) | discs(((40.0, 75.0), 20.3)),
    ),
}


@pytest.mark.parametrize("name", JOINED)
def test_contours_that_overlap_or_are_drawn_twice_are_joined(tmp_path: Path, name: str) -> None:
    """PS3.3 C.8.8.6.3 has the exclusive or for CLOSEDPLANAR_XOR alone."""
    image = image_of()
    circles, expected = JOINED[name]
    for order in (1, -1):
        contours = [circle(centre, radius, 2) for centre, radius in circles][::order]
        mask = read(write_rtstruct(tmp_path / "rt.dcm", image, {"x": contours}), image, organ="x")["organ"]
        assert (mask[:, :, 2] != expected).sum() < 12


def test_contours_of_type_xor_cut_holes_where_they_overlap(tmp_path: Path) -> None:
    image = image_of()
    circles = [BIG, ((75.0, 50.0), 20.3)]
    rois = {"x": [circle(*item, 2) for item in circles]}
    path = write_rtstruct(tmp_path / "rt.dcm", image, rois, kind="CLOSEDPLANAR_XOR")
    mask = read(path, image, organ="x")["organ"]
    assert (mask[:, :, 2] != (discs(circles[0]) ^ discs(circles[1]))).sum() < 12
    dataset = pydicom.dcmread(path)
    dataset.ROIContourSequence[0].ContourSequence[0].ContourGeometricType = "CLOSED_PLANAR"
    dataset.save_as(path)
    assert failure(path, image, organ="x").ids == ("FMS-D004",)


def test_rois_overlap_and_a_list_is_their_union(tmp_path: Path) -> None:
    image = image_of()
    rois = {"GTV": [box((10, 10), (30, 30), 2)], "GTV2": [box((20, 20), (40, 40), 2)]}
    path = write_rtstruct(tmp_path / "rt.dcm", image, rois)
    masks = read(path, image, first="GTV", second="GTV2", both=["GTV", "GTV2", "GTV 3"], anything="nonzero")
    assert masks["first"].sum() == masks["second"].sum() == 21 * 21
    assert (masks["first"] & masks["second"]).sum() == 11 * 11
    # Overlapping ROIs do not cut holes into each other.
    assert np.array_equal(masks["both"], masks["first"] | masks["second"])
    assert np.array_equal(masks["both"], masks["anything"])


def test_parts_beyond_the_image_are_cut_off_and_lines_enclose_nothing(tmp_path: Path) -> None:
    image = image_of()
    contours = [box((-50, -50), (10.5, 10.5), 0), [(50, 50, 0), (60, 60, 0)], box((150, 150), (200, 200), 0)]
    mask = read(write_rtstruct(tmp_path / "rt.dcm", image, {"x": contours}), image, organ="x")["organ"]
    assert mask.sum() == mask[:11, :11, 0].sum() == 121


def exact(polygon: np.ndarray, point: tuple[int, int]) -> tuple[bool, bool]:
    """Whether a point is inside by the even-odd rule, and on the outline; in fractions, without rounding."""
    corners = [(Fraction(round(a * 1000), 1000), Fraction(round(b * 1000), 1000)) for a, b in polygon]
    inside = outline = False
    for (a0, b0), (a1, b1) in zip(corners, corners[1:] + corners[:1], strict=True):
        side = (a1 - a0) * (point[1] - b0) - (b1 - b0) * (point[0] - a0)
        within = min(a0, a1) <= point[0] <= max(a0, a1) and min(b0, b1) <= point[1] <= max(b0, b1)
        outline |= side == 0 and within
        if (a0 <= point[0]) != (a1 <= point[0]):
            inside ^= b0 + (point[0] - a0) * (b1 - b0) / (a1 - a0) < point[1]
    return inside, outline


@pytest.mark.parametrize("seed", range(12))
def test_fill_agrees_with_exact_arithmetic_also_on_the_outline(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(3, 10))
    numbers = [rng.integers(-5, 30, (count, 2)), rng.uniform(-5, 30, (count, 2)).round(3)]
    polygons = [numbers[seed % 2].astype(float), rng.integers(3, 20, (3, 2)).astype(float)]  # they cross themselves
    found = fill_even_odd(polygons, (24, 22))
    for point in np.ndindex(24, 22):
        (first, edge), (second, other_edge) = (exact(polygon, point) for polygon in polygons)
        assert found[point] == ((first ^ second) or edge or other_edge), point


# --- what does not fit ---------------------------------------------------------------------------------------


def test_another_frame_of_reference_is_d005_with_both(tmp_path: Path) -> None:
    image = image_of()
    path = write_rtstruct(tmp_path / "rt.dcm", image, {"x": [box((1, 1), (9, 9), 0)]}, frame="9.9.9")
    error = failure(path, image, organ="x")
    assert error.ids == ("FMS-D005",)
    assert "9.9.9" in str(error) and FRAME in str(error)
    assert "9.9.9" not in error.public


def test_an_invented_frame_of_reference_is_accepted_when_the_images_it_refers_to_are_these(tmp_path: Path) -> None:
    image = image_of()
    rois = {"x": [box((1, 1), (9, 9), 0)]}
    path = write_rtstruct(tmp_path / "rt.dcm", image, rois, frame="9.9.9", image_uids=["5.5.1", "5.5.2"])
    own = tuple(SourceFrame(tmp_path, None, uid) for uid in ("5.5.2", "5.5.3"))
    other = tuple(SourceFrame(tmp_path, None, uid) for uid in ("5.5.4", "5.5.5"))
    assert read(path, Volume(image.voxels, image.grid, FRAME, own), organ="x")["organ"].sum() == 81
    assert failure(path, Volume(image.voxels, image.grid, FRAME, other), organ="x").ids == ("FMS-D005",)


@pytest.mark.parametrize(
    ("k", "fits"), [(3.1, True), (2.9, True), (3.33, False), (3.5, False), (8, False), (-1, False)]
)
def test_contours_between_or_beyond_the_slices_are_d005(tmp_path: Path, k: float, fits: bool) -> None:
    image = image_of()
    path = write_rtstruct(tmp_path / "rt.dcm", image, {"x": [box((1, 1), (9, 9), 2), box((1, 1), (9, 9), k)]})
    if fits:
        assert read(path, image, organ="x")["organ"][:, :, 3].sum() == 81
        return
    error = failure(path, image, organ="x")
    assert error.ids == ("FMS-D005",)
    assert f"1 of 2 contours are not in a slice of the image: contour 2 at slice {k + 1:.2f}" in str(error)


def test_a_contour_that_cuts_across_slices_is_d005(tmp_path: Path) -> None:
    image = image_of()
    tilted = [(1, 1, 2), (60, 1, 2.5), (60, 60, 3), (1, 60, 2.5)]
    path = write_rtstruct(tmp_path / "rt.dcm", image, {"x": [tilted]})
    assert failure(path, image, organ="x").ids == ("FMS-D005",)


def test_open_contours_and_points_are_d004(tmp_path: Path) -> None:
    image = image_of()
    path = write_rtstruct(tmp_path / "rt.dcm", image, {"x": [box((1, 1), (9, 9), 2)]}, kind="OPEN_PLANAR")
    error = failure(path, image, organ="x")
    assert error.ids == ("FMS-D004",) and "OPEN_PLANAR" in str(error)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (["1", "2", "3", "4"], "a contour of 4 numbers; three for each point are needed"),
        ([], "a contour of 0 numbers"),
        (["1", "2", "1e400"], "points that are not possible"),
        (["1e9", "2", "3"], "points that are not possible"),
    ],
)
def test_a_contour_without_whole_or_possible_points_is_d004(tmp_path: Path, data: list[str], sentence: str) -> None:
    image = image_of()
    path = write_rtstruct(tmp_path / "rt.dcm", image, {"x": [box((1, 1), (9, 9), 2)]})
    dataset = pydicom.dcmread(path)
    dataset.ROIContourSequence[0].ContourSequence[0].ContourData = data
    dataset.save_as(path)
    error = failure(path, image, organ="x")
    assert error.ids == ("FMS-D004",) and sentence in str(error), error


@pytest.mark.parametrize("lost", ["StructureSetROISequence", "ROINumber", "ReferencedROINumber"])
def test_rois_that_cannot_be_told_are_d004(tmp_path: Path, lost: str) -> None:
    image = image_of()
    path = write_rtstruct(tmp_path / "rt.dcm", image, {"x": [box((1, 1), (9, 9), 2)]})
    dataset = pydicom.dcmread(path)
    for owner in (dataset, dataset.StructureSetROISequence[0], dataset.ROIContourSequence[0]):
        if lost in owner:
            delattr(owner, lost)
    dataset.save_as(path)
    error = failure(path, image, organ="x")
    assert error.ids == ("FMS-D004",) and f"no {lost}" in str(error), error


def test_a_file_cut_before_its_contours_is_d004_not_without_annotation(tmp_path: Path) -> None:
    image = image_of()
    path = write_rtstruct(tmp_path / "rt.dcm", image, {"x": [box((1, 1), (9, 9), 2)]})
    template = pydicom.dcmread(path)
    tag = bytes.fromhex("06303900")  # ROIContourSequence (3006,0039), little endian
    path.write_bytes(path.read_bytes()[: path.read_bytes().index(tag)])
    source = MaskSource.model_validate({"pattern": "{case}.dcm", "labels": {"organ": "x"}, "required": False})
    with pytest.raises(FedfmsError, match="FMS-D004.*cut or damaged"):
        annotated(source, path)
    # A template that was never drawn in: its observations follow where the contours would be.
    del template.ROIContourSequence
    template.RTROIObservationsSequence = []
    template.save_as(path)
    assert annotated(source, path) == frozenset()


def test_a_missing_roi_is_d016_with_those_there_are_or_not_annotated(tmp_path: Path) -> None:
    image = image_of()
    path = write_rtstruct(tmp_path / "rt.dcm", image, {"Heart": [box((1, 1), (9, 9), 2)], "Liver": []})
    error = failure(path, image, heart="heart", liver="Liver")
    assert error.ids == ("FMS-D016",) and len(error.problems) == 2
    assert "no ROI fits heart (heart); the file has: 'Heart'; 'Liver' (no contour)" in str(error)
    masks = read(path, image, required=False, heart=["heart", "Heart"], liver="Liver", other="Lung")
    assert masks.keys() == {"heart"}
    source = MaskSource.model_validate(
        {"pattern": "{case}.dcm", "labels": {"heart": "Heart", "liver": "Liver"}, "required": False}
    )
    assert annotated(source, path) == {"heart"}
    assert annotated(source, None) == frozenset()


def test_rois_go_by_name_only(tmp_path: Path) -> None:
    image = image_of()
    path = write_rtstruct(tmp_path / "rt.dcm", image, {"1": [box((1, 1), (9, 9), 2)]})
    assert failure(path, image, organ=1).ids == ("FMS-D002",)
    assert failure(path, image, organ={"scheme": "SCT", "code": "1"}).ids == ("FMS-D002",)
    assert read(path, image, organ="1")["organ"].any()
