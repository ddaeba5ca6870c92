"""Contours of RT Structure Sets (RTSTRUCT, PS3.3 A.19) as voxels."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from fedfms.data.description.label_values import LabelValue
from fedfms.data.dicom.contours import count_inner, fill_even_odd, fill_union
from fedfms.data.dicom.elements import Elements, quiet
from fedfms.data.dicom.references import referenced_series, roi_series
from fedfms.data.volume.geometry import LPS_TO_RAS, Array, Grid, Matrix, Volume
from fedfms.data.volume.remedies import GeneralRemedy
from fedfms.errors import GEOMETRY_MISMATCH, IMAGE_UNREADABLE, SITE_INVALID, FedfmsError, Problem, fail, first_of

SOP_CLASS = "1.2.840.10008.5.1.4.1.1.481.3"

#: A contour belongs to a slice when all its points are within this fraction of the slice distance from its plane.
#: Planning systems round positions, so they are never exact; half a slice distance would let several contours of a
#: finer series fall on one slice, where one within another would be a hole.
PLANE_TOLERANCE = 0.2

_TYPES = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
_SHOWN = 5
#: Contours are in one plane when their distances along its normal are the same, rounded to these decimals of a mm.
_PLANE_DECIMALS = 1
#: A contour with points farther than this many voxels from the image is damaged: arithmetic on it would overflow.
_FARTHEST = 1e7


@dataclass(frozen=True)
class _Roi:
    number: int
    name: str
    frame_of_reference: str
    contours: tuple[Elements, ...]


class StructureSet:
    """The regions of interest (ROI) of one RTSTRUCT.

    Args:
        elements: Elements of the file.

    Attributes:
        kind: What a region of this kind of file is called in messages.
        series: SeriesInstanceUIDs of the series that the structure set refers to (RTReferencedSeriesSequence); empty
            when it names none.

    Raises:
        FedfmsError: FMS-D004 when the object does not say which ROIs it has.
    """

    kind = "ROI"

    def __init__(self, elements: Elements) -> None:
        self._path = elements.path
        # Both are mandatory and the last of their module: without them, ROIs would seem to be undrawn.
        if "ROIContourSequence" not in elements and "RTROIObservationsSequence" not in elements:
            raise fail(IMAGE_UNREADABLE, self._path, "no ROIContourSequence; the file is cut or damaged")
        if "StructureSetROISequence" not in elements:
            raise fail(IMAGE_UNREADABLE, self._path, "no StructureSetROISequence; the file is cut or damaged")
        with quiet():
            contours = {
                item.whole("ReferencedROINumber"): tuple(item.items("ContourSequence"))
                for item in elements.items("ROIContourSequence")
            }
            self._rois = [_roi(item, contours) for item in elements.items("StructureSetROISequence")]
            self._images = _referenced_images(elements)
            self.series = referenced_series(elements)

    @property
    def all(self) -> frozenset[int]:
        """Numbers of all ROIs that have contours."""
        return frozenset(roi.number for roi in self._rois if roi.contours)

    @property
    def names(self) -> tuple[str | int, ...]:
        """Names of the ROIs that have contours."""
        return tuple(dict.fromkeys(roi.name for roi in self._rois if roi.contours and roi.name))

    def find(self, value: LabelValue) -> frozenset[int]:
        """Numbers of the ROIs that a value under ``labels`` means, by their name.

        An ROI without any contour comes from a template of the planning system and does not count.

        Raises:
            FedfmsError: FMS-D002 for a number or a code.
        """
        if not isinstance(value, str):
            raise fail(SITE_INVALID, self._path, f"labels names {value!r}, but ROIs of an RTSTRUCT are found by name")
        return frozenset(roi.number for roi in self._rois if roi.name == value and roi.contours)

    def inner_contours(self, numbers: Collection[int]) -> int:
        """How many contours are read as holes, or as islands in holes, because they are within another one.

        Args:
            numbers: ROI numbers; of each only contours of type CLOSED_PLANAR count, which need not mean holes.

        Raises:
            FedfmsError: FMS-D004 for contours that are damaged.
        """
        return sum(_inner_contours(roi) for roi in self._rois if roi.number in numbers)

    def __str__(self) -> str:
        return "; ".join(f"'{roi.name}'" + ("" if roi.contours else " (no contour)") for roi in self._rois) or "none"

    def voxels(self, numbers: Collection[int], image: Volume, image_from: object) -> Array:
        """The union of ROIs on the image's grid.

        A voxel belongs to an ROI when its centre is inside or on a contour of its slice. Contours of type
        CLOSED_PLANAR are joined (``fill_union``), those of type CLOSEDPLANAR_XOR combined by exclusive or (PS3.3
        C.8.8.6.3).

        Args:
            numbers: ROI numbers.
            image: The image; its voxel values are not used.
            image_from: File or series of the image, for messages.

        Returns:
            uint8 0/1, in the shape (i, j, k) of the image.

        Raises:
            FedfmsError: FMS-D005, with the geometry of both, for another frame of reference and for contours that
                are not in the image's slices; FMS-D004 for contours that are damaged, or not closed and planar.
        """
        result = np.zeros(image.grid.shape, dtype=np.uint8)
        problems: list[Problem] = []
        for roi in self._rois:
            if roi.number not in numbers:
                continue
            try:
                self._check_frame_of_reference(roi, image, image_from)
                self._draw(result, roi, image.grid, image_from)
            except FedfmsError as error:
                problems += error.problems
        if problems:
            raise FedfmsError(problems)
        return result

    def _check_frame_of_reference(self, roi: _Roi, image: Volume, image_from: object) -> None:
        own = roi.frame_of_reference
        if not own or not image.frame_of_reference or own == image.frame_of_reference:
            return
        # Some writers (rt-utils among them) invent a frame of reference, but name the images that were drawn on.
        if self._images.get(own, frozenset()) & {source.sop_instance_uid for source in image.sources}:
            return
        raise fail(
            GEOMETRY_MISMATCH,
            self._path,
            f"ROI '{roi.name}' is in frame of reference {own} and was not drawn on these images; image"
            f" {image_from} is in {image.frame_of_reference}",
            GeneralRemedy("Export image and structure set of the same series."),
        )

    def _draw(self, result: Array, roi: _Roi, image: Grid, image_from: object) -> None:
        with quiet():
            kinds = {contour.text("ContourGeometricType") for contour in roi.contours}
        if other := kinds - set(_TYPES):
            raise fail(
                IMAGE_UNREADABLE,
                self._path,
                f"ROI '{roi.name}' has contours of type {', '.join(sorted(other))}; only {_TYPES[0]} encloses an area",
                GeneralRemedy("Take this ROI out of labels."),
            )
        if len(kinds) > 1:
            raise fail(
                IMAGE_UNREADABLE,
                self._path,
                f"ROI '{roi.name}' has contours of types {' and '.join(_TYPES)}: how they combine is not defined",
                GeneralRemedy("Take this ROI out of labels, or export it with contours of one type."),
            )
        to_index = np.linalg.inv(image.affine) @ LPS_TO_RAS
        with quiet():
            points = [_points(contour, to_index) for contour in roi.contours]
        # The axis along which no contour extends. It is that of the slices, unless the image's axes were reordered.
        extents = np.max([np.ptp(item, axis=0) for item in points], axis=0)
        across = int(extents.argmin())
        slices: dict[int, list[Array]] = {}
        off = []
        for number, item in enumerate(points, start=1):
            index = int(np.rint(np.median(item[:, across])))
            distance = float(np.abs(item[:, across] - index).max())
            if distance > PLANE_TOLERANCE or not 0 <= index < image.shape[across]:
                off.append(f"contour {number} at slice {float(np.median(item[:, across])) + 1:.2f}")
            slices.setdefault(index, []).append(np.delete(item, across, axis=1))
        if off:
            raise fail(
                GEOMETRY_MISMATCH,
                self._path,
                f"ROI '{roi.name}': {len(off)} of {len(points)} contours are not in a slice of the image:"
                f" {first_of(off, _SHOWN)}; image {image_from} has slices 1 to {image.shape[across]}"
                f" along axis {'ijk'[across]}: {image}",
                GeneralRemedy("Export the series that the contours were drawn on, with all its slices."),
            )
        planes = np.moveaxis(result, across, 0)
        fill = fill_even_odd if kinds == {"CLOSEDPLANAR_XOR"} else fill_union
        for index, polygons in slices.items():
            planes[index] |= fill(polygons, planes.shape[1:])


def _roi(item: Elements, contours: Mapping[int, tuple[Elements, ...]]) -> _Roi:
    number = item.whole("ROINumber")
    frame_of_reference = item.text("ReferencedFrameOfReferenceUID")
    return _Roi(number, item.text("ROIName"), frame_of_reference, contours.get(number, ()))


def _inner_contours(roi: _Roi) -> int:
    with quiet():
        if {contour.text("ContourGeometricType") for contour in roi.contours} != {_TYPES[0]}:
            return 0
        points = [_points(contour, np.eye(4)) for contour in roi.contours]
    points = [item for item in points if len(item) > 2]
    if not points:
        return 0
    widest = max(points, key=lambda item: float(np.ptp(item, axis=0).max()))
    # Two directions in the plane of the contours, and the one across it.
    *along, across = np.linalg.svd(widest - widest.mean(axis=0), full_matrices=False)[2]
    planes: dict[float, list[Matrix]] = {}
    for item in points:
        depth = round(float((item @ across).mean()), _PLANE_DECIMALS)
        planes.setdefault(depth, []).append(item @ np.array(along).T)
    return sum(count_inner(polygons) for polygons in planes.values())


def _points(contour: Elements, to_index: Matrix) -> Array:
    """Points of a contour as voxel indices (n, 3)."""
    values = np.array(contour.numbers("ContourData"), dtype=np.float64)
    if not len(values) or len(values) % 3:
        detail = f"a contour of {len(values)} numbers; three for each point are needed"
        raise fail(IMAGE_UNREADABLE, contour.path, detail)
    with np.errstate(over="ignore", invalid="ignore"):  # refused below
        points: Array = values.reshape(-1, 3) @ to_index[:3, :3].T + to_index[:3, 3]
    if not (np.abs(points) < _FARTHEST).all():
        raise fail(IMAGE_UNREADABLE, contour.path, "a contour has points that are not possible")
    return points


def _referenced_images(elements: Elements) -> dict[str, frozenset[str]]:
    """SOPInstanceUIDs of the images drawn on, by FrameOfReferenceUID."""
    images: dict[str, frozenset[str]] = {}
    for frame_of_reference, series in roi_series(elements):
        named = frozenset(image.text("ReferencedSOPInstanceUID") for image in series.items("ContourImageSequence"))
        images[frame_of_reference] = images.get(frame_of_reference, frozenset()) | named
    return images
