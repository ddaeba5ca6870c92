"""The frames of DICOM images with their positions in the patient, for single-frame and enhanced multi-frame objects.

Single-frame images give the position in the Image Plane module (PS3.3 C.7.6.2), enhanced ones in functional groups
(PS3.3 C.7.6.16), per frame or shared by all frames.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fedfms.data.dicom.elements import Elements, quiet
from fedfms.data.dicom.modality import Rescale, rescale_of
from fedfms.data.dicom.variants import frame_variants, mosaic_of, variants
from fedfms.data.volume.geometry import SourceFrame
from fedfms.data.volume.remedies import GeneralRemedy
from fedfms.errors import IMAGE_UNREADABLE, fail

#: Objects of these classes have a position in the patient; without it they are damaged, not photographs.
_POSITIONED_CLASSES = (
    "CT Image Storage",
    "MR Image Storage",
    "Positron Emission Tomography Image Storage",
    "PET Image Storage",
)
#: Dimensions that give a frame's position; all others distinguish frames at the same position.
_SPATIAL = (
    "ImagePositionPatient",
    "InStackPositionNumber",
    "ImageOrientationPatient",
    "SliceLocation",
    "TablePosition",
)
#: Compressed images may unpack to this many bytes, or to this many times the size of their file if that is more.
_UNPACKED_BYTES = 64 * 2**20
_UNPACKED_RATIO = 200


@dataclass(frozen=True)
class Frame:
    """One image plane.

    Attributes:
        source: File, and index of the frame in it.
        size: (rows, columns).
        position: ImagePositionPatient (0020,0032): centre of the first pixel in mm, LPS.
        orientation: ImageOrientationPatient (0020,0037): direction along a row, then along a column, as unit vectors
            in LPS.
        spacing: PixelSpacing (0028,0030): distance of rows, then of columns, in mm.
        thickness: Distance to the next slice as the header gives it (SpacingBetweenSlices, else SliceThickness), in
            mm; 0 when it gives none.
        rescale: How values follow from stored ones; None: by the table of the file (ModalityLUTSequence).
        dimensions: What distinguishes images at the same position, by keyword: in multi-frame objects the index of the
            frame in each non-spatial dimension (PS3.3 C.7.6.17), in others the values of ``variants``.
        number: InstanceNumber (0020,0013) of a single-frame object, InStackPositionNumber (0020,9057) of a frame; None
            without one.
        gap: SpacingBetweenSlices (0018,0088) in mm, which is from centre to centre; 0 where it is not known.
        acquired: ImagesInAcquisition (0020,1002); 0 where it is not known.
    """

    source: SourceFrame
    size: tuple[int, int]
    position: tuple[float, ...]
    orientation: tuple[float, ...]
    spacing: tuple[float, ...]
    thickness: float
    rescale: Rescale | None = field(default_factory=Rescale)
    dimensions: dict[str, str] = field(default_factory=dict)
    number: int | None = None
    gap: float = 0.0
    acquired: int = 0


def frames_of(header: Elements, uid: str) -> list[Frame]:
    """The frames of an image file; an empty list for a picture that has no position in the patient.

    Args:
        header: Elements of the file.
        uid: SOPInstanceUID.

    Raises:
        FedfmsError: FMS-D004 when the header is damaged or of a kind that is not read.
    """
    with quiet():
        size = _checked_size(header)
        groups = header.items("PerFrameFunctionalGroupsSequence")
        shared = header.items("SharedFunctionalGroupsSequence")
        kinds = frame_variants([*groups[:1], *shared]).get("FrameType", "").split("/")
        if mosaic := mosaic_of(header, kinds):
            raise fail(
                IMAGE_UNREADABLE,
                header.path,
                mosaic,
                GeneralRemedy("Export it as Enhanced MR or with mosaics switched off, or convert it to NIfTI."),
            )
        if any("PlanePositionSequence" in group for group in (*groups, *shared)):
            frames = _multi_frame(header, groups, shared, size, uid)
        else:  # photographs may have groups without positions
            frames = _single_frame(header, size, uid)
    for frame in frames:
        _check_geometry(header.path, frame)
    return frames


def _checked_size(header: Elements) -> tuple[int, int]:
    """(rows, columns). What cannot be read is refused before memory is allocated for it."""
    path = header.path
    lost = [
        name
        for name in ("Rows", "Columns", "BitsAllocated", "PhotometricInterpretation")
        if header.text(name) in ("", "0")
    ]
    if lost:
        raise fail(IMAGE_UNREADABLE, path, f"an image without {', '.join(lost)}")
    rows, columns, bits = (header.whole(name) for name in ("Rows", "Columns", "BitsAllocated"))
    samples, frames = header.whole("SamplesPerPixel", 1) or 1, header.whole("NumberOfFrames", 1) or 1
    if samples not in (1, 3) or bits not in (1, 8, 16):
        raise fail(
            IMAGE_UNREADABLE,
            path,
            f"{samples} samples of {bits} bits per pixel; grey and colour of 8 or 16 bits are read",
        )
    if min(rows, columns, frames) < 1:
        raise fail(IMAGE_UNREADABLE, path, f"an image of {rows} x {columns} pixels, {frames} frames")
    needed = rows * columns * samples * frames * bits // 8
    if header.text("PhotometricInterpretation") == "YBR_FULL_422":
        needed = needed * 2 // 3
    size = path.stat().st_size
    syntax = header.transfer_syntax
    packed = syntax.compressed or syntax.deflated
    if needed > (max(_UNPACKED_BYTES, size * _UNPACKED_RATIO) if packed else size):
        raise fail(
            IMAGE_UNREADABLE,
            path,
            f"{frames} frames of {rows} x {columns} pixels cannot be in a file of {size} bytes",
        )
    return rows, columns


def _single_frame(header: Elements, size: tuple[int, int], uid: str) -> list[Frame]:
    path = header.path
    missing = [
        name for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing") if not header.has(name)
    ]
    name = header.uid("SOPClassUID")[1] or "image without SOPClassUID"
    frames = header.whole("NumberOfFrames", 1) or 1
    if frames > 1:
        raise fail(
            IMAGE_UNREADABLE,
            path,
            f"a {name} of {frames} frames without positions (no PlanePositionSequence)",
            GeneralRemedy("Export it as one image per frame."),
        )
    if missing and name.endswith(_POSITIONED_CLASSES):
        raise fail(IMAGE_UNREADABLE, path, f"a {name} without {', '.join(missing)}")
    # Photographs and projections may have a pixel spacing, and colours have no common scale over slices.
    if (
        "ImagePositionPatient" in missing
        or "ImageOrientationPatient" in missing
        or header.whole("SamplesPerPixel", 1) == 3
    ):
        return []
    if missing:
        raise fail(IMAGE_UNREADABLE, path, f"a {name} with a position, but without PixelSpacing")
    return [
        Frame(
            source=SourceFrame(path, None, uid),
            size=size,
            position=header.numbers("ImagePositionPatient"),
            orientation=header.numbers("ImageOrientationPatient"),
            spacing=header.numbers("PixelSpacing"),
            thickness=_thickness(header),
            rescale=rescale_of(header),
            dimensions=variants(header),
            number=header.whole("InstanceNumber") if header.has("InstanceNumber") else None,
            gap=_gap(header),
            acquired=header.whole("ImagesInAcquisition", 0),
        )
    ]


def _multi_frame(
    header: Elements, groups: list[Elements], shared: list[Elements], size: tuple[int, int], uid: str
) -> list[Frame]:
    path = header.path
    count = header.whole("NumberOfFrames", 1) or 1
    if len(groups) != count or len(shared) > 1:
        raise fail(IMAGE_UNREADABLE, path, f"{count} frames, but {len(groups)} items of per-frame functional groups")
    if (header.whole("SamplesPerPixel", 1) or 1) != 1:
        raise fail(
            IMAGE_UNREADABLE, path, "a multi-frame object in colour", GeneralRemedy("Export it as one image per frame.")
        )
    pointers = [_dimension_name(item) for item in header.items("DimensionIndexSequence")]
    return [_frame(header, index, [group, *shared], pointers, size, uid) for index, group in enumerate(groups)]


def _frame(
    header: Elements, index: int, groups: list[Elements], pointers: list[str], size: tuple[int, int], uid: str
) -> Frame:
    """One frame of a multi-frame object from its functional groups: its own, then the shared ones."""
    own = groups[0]
    position = _functional_group(groups, "PlanePositionSequence", "ImagePositionPatient")
    orientation = _functional_group(groups, "PlaneOrientationSequence", "ImageOrientationPatient")
    measures = _functional_group(groups, "PixelMeasuresSequence", "PixelSpacing")
    if position is None or orientation is None or measures is None:
        missing = [
            name
            for name, item in (
                ("ImagePositionPatient", position),
                ("ImageOrientationPatient", orientation),
                ("PixelSpacing", measures),
            )
            if item is None
        ]
        raise fail(
            IMAGE_UNREADABLE, own.path, f"frame {index + 1} has no {', '.join(missing)} in its functional groups"
        )
    return Frame(
        source=SourceFrame(own.path, index, uid),
        size=size,
        position=position.numbers("ImagePositionPatient"),
        orientation=orientation.numbers("ImageOrientationPatient"),
        spacing=measures.numbers("PixelSpacing"),
        thickness=_thickness(measures),
        rescale=rescale_of(header, groups),
        dimensions={**frame_variants(groups), **_dimensions(pointers, own)},
        number=_position_number(own),
        gap=_gap(measures),
    )


def _functional_group(groups: list[Elements], sequence: str, keyword: str) -> Elements | None:
    """The item of a functional group that has a value for ``keyword``, in the first of ``groups`` that has one."""
    for group in groups:
        items = group.items(sequence)
        if items and items[0].has(keyword):
            return items[0]
    return None


def _dimension_name(item: Elements) -> str:
    return item.keyword("DimensionIndexPointer") or item.text("DimensionDescriptionLabel") or "unnamed"


def _dimensions(pointers: list[str], group: Elements) -> dict[str, str]:
    content = group.items("FrameContentSequence")
    if not content:
        return {}
    stack = content[0].text("StackID")
    result = dict(zip(pointers, content[0].texts("DimensionIndexValues"), strict=False))
    result |= {"StackID": stack} if stack else {}
    return {name: value for name, value in result.items() if name not in _SPATIAL}


def _position_number(group: Elements) -> int | None:
    content = group.items("FrameContentSequence")
    return content[0].whole("InStackPositionNumber", 0) or None if content else None


def _thickness(measures: Elements) -> float:
    return measures.number("SpacingBetweenSlices", 0.0) or measures.number("SliceThickness", 0.0)


def _gap(measures: Elements) -> float:
    """Some devices write the gap between the slices instead of the distance of their centres: then it is not known."""
    gap = measures.number("SpacingBetweenSlices", 0.0)
    return gap if gap >= measures.number("SliceThickness", 0.0) else 0.0


def _check_geometry(path: Path, frame: Frame) -> None:
    numbers = (*frame.position, *frame.orientation, *frame.spacing, frame.thickness)
    if (len(frame.position), len(frame.orientation), len(frame.spacing)) != (3, 6, 2) or not np.isfinite(numbers).all():
        raise fail(
            IMAGE_UNREADABLE, path, "ImagePositionPatient, ImageOrientationPatient or PixelSpacing is not possible"
        )
    axes = np.array(frame.orientation).reshape(2, 3)
    if min(frame.spacing) <= 0 or np.abs(axes @ axes.T - np.eye(2)).max() > 0.02:
        raise fail(IMAGE_UNREADABLE, path, "ImageOrientationPatient or PixelSpacing is not possible")
