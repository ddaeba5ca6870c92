"""DICOM Segmentation objects (SEG, PS3.3 A.51): binary, fractional and label map."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedfms.data.description.label_values import Code, LabelValue
from fedfms.data.dicom.elements import Elements, quiet
from fedfms.data.dicom.pixels import stored_frames
from fedfms.data.dicom.references import referenced_series
from fedfms.data.volume.geometry import LPS_TO_RAS, Array, Grid, Matrix, Placement, Volume, locate_in_grid
from fedfms.data.volume.remedies import GeneralRemedy
from fedfms.errors import CASE_AMBIGUOUS, GEOMETRY_MISMATCH, IMAGE_UNREADABLE, FedfmsError, Problem, fail, first_of

#: Segmentation Storage and Label Map Segmentation Storage.
SOP_CLASSES = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")

#: A voxel of a fractional segmentation belongs to the segment from this probability or occupancy up.
_THRESHOLD = 0.5


@dataclass(frozen=True)
class _Segment:
    number: int
    label: str
    codes: tuple[Any, ...]  # pydicom's Code, which knows that SRT and SCT codes mean the same

    def __str__(self) -> str:
        meanings = ", ".join(f"{code.meaning}, {code.scheme_designator} {code.value}" for code in self.codes)
        return f"{self.number} '{self.label}' ({meanings or 'no code'})"


@dataclass(frozen=True)
class _Frame:
    index: int
    segment: int  # 0 for all segments of a label map
    grid: Grid


class Segmentation:
    """The segments of one SEG.

    Args:
        elements: Elements of the file; without pixels, everything but ``voxels`` works.

    Attributes:
        kind: What a region of this kind of file is called in messages.
        series: SeriesInstanceUIDs of the series that the SEG refers to (ReferencedSeriesSequence); empty when it
            names none.

    Raises:
        FedfmsError: FMS-D004 when the object does not say which segments it has.
    """

    kind = "segment"

    def __init__(self, elements: Elements) -> None:
        self._elements = elements
        self._path = elements.path
        self._type = elements.text("SegmentationType")
        if "SegmentSequence" not in elements:
            raise fail(IMAGE_UNREADABLE, self._path, "no SegmentSequence; the file is cut or damaged")
        self._segments = [_segment(item) for item in elements.items("SegmentSequence")]
        self.series = referenced_series(elements)
        if self._type not in ("BINARY", "FRACTIONAL", "LABELMAP"):
            raise fail(IMAGE_UNREADABLE, self._path, f"a segmentation of type {self._type} is not supported")

    @property
    def all(self) -> frozenset[int]:
        """Numbers of all segments; a label map may describe its background as number 0."""
        return frozenset(segment.number for segment in self._segments if segment.number)

    @property
    def names(self) -> tuple[str | int, ...]:
        """What to write under ``labels`` for each segment: its label, or its number when it has none."""
        return tuple(dict.fromkeys(segment.label or segment.number for segment in self._segments if segment.number))

    def find(self, value: LabelValue) -> frozenset[int]:
        """Numbers of the segments that a value under ``labels`` means.

        A text is a segment label; when no segment has that label, the meaning of a code of its property type.
        """
        if isinstance(value, int):
            return self.all & {value}
        if isinstance(value, Code):
            from pydicom.sr.coding import Code as PydicomCode

            wanted = PydicomCode(value.code, value.scheme, "")
            return frozenset(segment.number for segment in self._segments if wanted in segment.codes)
        return frozenset(segment.number for segment in self._segments if segment.label == value) or frozenset(
            segment.number for segment in self._segments if value in (code.meaning for code in segment.codes)
        )

    def __str__(self) -> str:
        return "; ".join(map(str, self._segments)) or "none"

    def voxels(self, numbers: Collection[int], image: Volume, image_from: object) -> Array:
        """The union of segments on the image's grid.

        Frames may be in any order, cover only some of the slices, and be along any axis of the image; every frame's
        pixels must coincide with voxels of the image. A voxel that no frame covers is not in the segment (PS3.3
        C.8.20.2).

        Args:
            numbers: Segment numbers.
            image: The image; only its grid and frame of reference are used.
            image_from: File or series of the image, for messages.

        Returns:
            uint8 0/1, in the shape (i, j, k) of the image.

        Raises:
            FedfmsError: FMS-D005, with the geometry of both, for another frame of reference, another grid, or a
                segment that extends beyond the image's slices; FMS-D014 for two frames of one segment at the same
                position; FMS-D004 when the object is damaged.
        """
        result = np.zeros(image.grid.shape, dtype=np.uint8)
        if not numbers:
            return result
        self._check_frame_of_reference(image, image_from)
        with quiet():
            frames = [frame for frame in self._frames() if frame.segment in {0, *numbers}]
        placements = self._placed(frames, image.grid, image_from)
        for frame, placement, pixels in zip(frames, placements, self._pixels(frames), strict=True):
            inside = np.isin(pixels, list(numbers)) if self._type == "LABELMAP" else self._binary(pixels)
            self._draw(result, placement, inside, frame, image.grid, image_from)
        return result

    def _check_frame_of_reference(self, image: Volume, image_from: object) -> None:
        own = self._elements.text("FrameOfReferenceUID")
        if own and image.frame_of_reference and own != image.frame_of_reference:
            raise fail(
                GEOMETRY_MISMATCH,
                self._path,
                f"the segmentation is in frame of reference {own}, image {image_from} in {image.frame_of_reference}",
                GeneralRemedy("Export image and segmentation of the same series."),
            )

    def _frames(self) -> list[_Frame]:
        shared = self._elements.items("SharedFunctionalGroupsSequence")
        groups = self._elements.items("PerFrameFunctionalGroupsSequence")
        count = self._elements.whole("NumberOfFrames")
        if len(groups) != count or len(shared) > 1:
            detail = f"{count} frames, but {len(groups)} items of per-frame functional groups"
            raise fail(IMAGE_UNREADABLE, self._path, detail)
        rows, columns = self._size
        return [self._frame(index, [group, *shared], (columns, rows, 1)) for index, group in enumerate(groups)]

    def _frame(self, index: int, groups: list[Elements], shape: tuple[int, int, int]) -> _Frame:
        """One frame from its functional groups: its own, then the shared ones."""
        segment = 0
        if self._type != "LABELMAP":
            segment = self._group(groups, "SegmentIdentificationSequence").whole("ReferencedSegmentNumber")
        measures = self._group(groups, "PixelMeasuresSequence")
        orientation = self._group(groups, "PlaneOrientationSequence").numbers("ImageOrientationPatient")
        position = self._group(groups, "PlanePositionSequence").numbers("ImagePositionPatient")
        spacing = measures.numbers("PixelSpacing")
        thickness = measures.number("SliceThickness", 1.0) or 1.0
        numbers = (*position, *orientation, *spacing, thickness)
        if (len(position), len(orientation), len(spacing)) != (3, 6, 2) or not np.isfinite(numbers).all():
            detail = f"frame {index + 1}: its position, orientation or pixel spacing is not possible"
            raise fail(IMAGE_UNREADABLE, self._path, detail)
        along_row, along_column = np.array(orientation).reshape(2, 3)
        affine: Matrix = np.eye(4)
        # PS3.3 equation C.7.6.2.1-1: PixelSpacing is (distance of rows, distance of columns).
        affine[:3, 0] = along_row * spacing[1]
        affine[:3, 1] = along_column * spacing[0]
        affine[:3, 2] = np.cross(along_row, along_column) * thickness
        affine[:3, 3] = position
        return _Frame(index, segment, Grid(shape, LPS_TO_RAS @ affine))

    def _group(self, groups: list[Elements], name: str) -> Elements:
        for group in groups:
            if items := group.items(name):
                return items[0]
        raise fail(IMAGE_UNREADABLE, self._path, f"a frame without {name}")

    @property
    def _size(self) -> tuple[int, int]:
        """(rows, columns) of each frame."""
        rows, columns = self._elements.whole("Rows"), self._elements.whole("Columns")
        if min(rows, columns) < 1:
            raise fail(IMAGE_UNREADABLE, self._path, f"frames of {rows} x {columns} pixels")
        return rows, columns

    def _placed(self, frames: list[_Frame], image: Grid, image_from: object) -> list[Placement]:
        placements = []
        wrong = []
        seen: set[tuple[int, tuple[int, int, int]]] = set()
        twice = []
        for frame in frames:
            found = locate_in_grid(frame.grid, image)
            if found is None or not _fits_across(found, image):
                wrong.append(frame)
                continue
            if (frame.segment, found.start) in seen:
                twice.append(frame)
            seen.add((frame.segment, found.start))
            placements.append(found)
        problems = []
        if wrong:
            detail = f"{len(wrong)} of {len(frames)} frames, such as: {wrong[0].grid}; image {image_from}: {image}"
            problems.append(Problem(GEOMETRY_MISMATCH, str(self._path), detail))
        if twice:
            frame_numbers = first_of([frame.index + 1 for frame in twice], 10)
            problems.append(
                Problem(
                    CASE_AMBIGUOUS,
                    str(self._path),
                    f"{len(twice)} frames are at the position of another frame of the same segment: {frame_numbers}",
                    GeneralRemedy("Save one segmentation per series and point in time."),
                )
            )
        if problems:
            raise FedfmsError(problems)
        return placements

    def _pixels(self, frames: list[_Frame]) -> Iterator[Array]:
        """Stored values (row, column) of each frame, one at a time."""
        if not frames:
            return
        syntax = self._elements.transfer_syntax
        packed = self._elements.whole("BitsAllocated") == 1 and syntax is not None and not syntax.compressed
        if packed:
            yield from (self._bits(frame.index) for frame in frames)
            return
        for index, values, _ in stored_frames(self._elements, [frame.index for frame in frames]):
            if values.shape != self._size:
                raise fail(IMAGE_UNREADABLE, self._path, f"frame {index + 1} has pixels of shape {values.shape}")
            yield values

    def _bits(self, index: int) -> Array:
        # A frame begins within a byte unless its number of pixels is a multiple of 8 (PS3.5 8.1.1), and pydicom
        # takes single frames only where it is.
        shape = self._size
        size = shape[0] * shape[1]
        first, skipped = divmod(index * size, 8)
        count = -(-(skipped + size) // 8)
        data = self._elements.data("PixelData")
        if first + count > len(data):
            raise fail(IMAGE_UNREADABLE, self._path, f"there are no pixels for frame {index + 1}")
        stored = np.frombuffer(data, np.uint8, count, first)
        return np.unpackbits(stored, bitorder="little")[skipped : skipped + size].reshape(shape)

    def _binary(self, pixels: Array) -> Array:
        highest = self._elements.whole("MaximumFractionalValue") if self._type == "FRACTIONAL" else 1
        inside: Array = pixels >= _THRESHOLD * highest
        return inside

    def _draw(
        self, result: Array, placement: Placement, inside: Array, frame: _Frame, image: Grid, image_from: object
    ) -> None:
        block = placement.reorder(inside.T[:, :, None])
        ends = [start + size for start, size in zip(placement.start, placement.shape, strict=True)]
        if min(placement.start) < 0 or any(end > size for end, size in zip(ends, image.shape, strict=True)):
            if block.any():
                raise fail(
                    GEOMETRY_MISMATCH,
                    self._path,
                    f"segment {frame.segment or 'map'} extends beyond the slices of the image: {frame.grid};"
                    f" image {image_from}: {image}",
                    GeneralRemedy("Export the complete image series, or cut the segmentation to it."),
                )
            return
        region = tuple(slice(start, end) for start, end in zip(placement.start, ends, strict=True))
        result[region] |= block


def _segment(item: Elements) -> _Segment:
    from pydicom.sr.coding import Code as PydicomCode

    codes = tuple(
        PydicomCode(
            code.text("CodeValue") or code.text("LongCodeValue") or code.text("URNCodeValue"),
            code.text("CodingSchemeDesignator"),
            code.text("CodeMeaning"),
        )
        for code in item.items("SegmentedPropertyTypeCodeSequence")
    )
    return _Segment(item.whole("SegmentNumber"), item.text("SegmentLabel"), codes)


def _fits_across(placement: Placement, image: Grid) -> bool:
    """Whether a frame stays within the image, except along the axis across it."""
    return all(
        size == 1 or (start >= 0 and start + size <= whole)
        for start, size, whole in zip(placement.start, placement.shape, image.shape, strict=True)
    )
