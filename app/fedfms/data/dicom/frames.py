"""The frames of DICOM images: where each lies in the patient, for single-frame and enhanced multi-frame objects.

Single-frame images say it in the Image Plane module (PS3.3 C.7.6.2), enhanced ones in functional groups (PS3.3
C.7.6.16), per frame or shared by all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fedfms.data.dicom.series import as_unreadable
from fedfms.data.volume.geometry import SourceFrame
from fedfms.data.volume.remedies import GeneralRemedy
from fedfms.errors import IMAGE_UNREADABLE, fail

#: Objects of these classes have a place in the patient; without it they are damaged, not photographs.
_PLACED_CLASSES = (
    "CT Image Storage",
    "MR Image Storage",
    "Positron Emission Tomography Image Storage",
    "PET Image Storage",
)
#: Dimensions that tell where a frame lies; every other one tells frames at the same place apart.
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
        source: File and index.
        size: (rows, columns).
        position: ImagePositionPatient, centre of the first pixel in mm, LPS.
        orientation: ImageOrientationPatient: direction along a row, then along a column.
        spacing: PixelSpacing: distance of rows, then of columns, in mm.
        thickness: Distance to the next slice as the header gives it, in mm; 0 when it does not.
        rescale: Slope and intercept from a functional group; None: the header's modality transform applies.
        dimensions: Index of the frame in each non-spatial dimension, by the name of the dimension.
    """

    source: SourceFrame
    size: tuple[int, int]
    position: tuple[float, ...]
    orientation: tuple[float, ...]
    spacing: tuple[float, ...]
    thickness: float
    rescale: tuple[float, float] | None = None
    dimensions: dict[str, str] = field(default_factory=dict)


def frames_of(path: Path, header: Any, uid: str) -> list[Frame]:
    """The frames of an image file; an empty list for a picture that has no place in the patient.

    Args:
        path: The file.
        header: pydicom dataset without pixels.
        uid: SOPInstanceUID.

    Raises:
        FedfmsError: FMS-D004 when the header is damaged or of a kind that is not read.
    """
    with as_unreadable(path):
        _check_pixels(path, header)
        frames = list(_enhanced(path, header, uid)) if _has_places(header) else _single(path, header, uid)
    for frame in frames:
        _check_geometry(path, frame)
    return frames


def _check_pixels(path: Path, header: Any) -> None:
    """Refuse what cannot be read before memory is set aside for it."""
    lost = [tag for tag in ("Rows", "Columns", "BitsAllocated", "PhotometricInterpretation") if not header.get(tag)]
    if lost:
        raise fail(IMAGE_UNREADABLE, path, f"an image without {', '.join(lost)}")
    samples, bits = int(header.get("SamplesPerPixel", 1) or 1), int(header.BitsAllocated)
    if samples not in (1, 3) or bits not in (1, 8, 16):
        raise fail(
            IMAGE_UNREADABLE,
            path,
            f"{samples} samples of {bits} bits per pixel; grey and colour of 8 or 16 bits are read",
        )
    frames = int(header.get("NumberOfFrames", 1) or 1)
    if min(int(header.Rows), int(header.Columns), frames) < 1:
        raise fail(IMAGE_UNREADABLE, path, f"an image of {header.Rows} x {header.Columns} pixels, {frames} frames")
    needed = int(header.Rows) * int(header.Columns) * samples * frames * bits // 8
    if header.PhotometricInterpretation == "YBR_FULL_422":
        needed = needed * 2 // 3
    size = path.stat().st_size
    syntax = header.file_meta.get("TransferSyntaxUID")
    if syntax is None:
        raise fail(IMAGE_UNREADABLE, path, "no TransferSyntaxUID")
    packed = syntax.is_compressed or syntax.is_deflated
    if needed > (max(_UNPACKED_BYTES, size * _UNPACKED_RATIO) if packed else size):
        raise fail(
            IMAGE_UNREADABLE,
            path,
            f"{frames} frames of {header.Rows} x {header.Columns} pixels cannot be in a file of {size} bytes",
        )


def _single(path: Path, header: Any, uid: str) -> list[Frame]:
    frames = int(header.get("NumberOfFrames", 1) or 1)
    missing = [
        tag
        for tag in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
        if header.get(tag) in (None, "")
    ]
    name = header.SOPClassUID.name if "SOPClassUID" in header else "image without SOPClassUID"
    if frames > 1:
        raise fail(
            IMAGE_UNREADABLE,
            path,
            f"a {name} of {frames} frames that do not say where they lie (no PlanePositionSequence)",
            GeneralRemedy("Export it as one image per frame."),
        )
    if missing and name.endswith(_PLACED_CLASSES):
        raise fail(IMAGE_UNREADABLE, path, f"a {name} without {', '.join(missing)}")
    # Photographs and projections may give a distance of pixels, and colour has no scale to compare slices by.
    if "ImagePositionPatient" in missing or "ImageOrientationPatient" in missing or header.get("SamplesPerPixel") == 3:
        return []
    if missing:
        raise fail(IMAGE_UNREADABLE, path, f"a {name} with a position, but without PixelSpacing")
    return [
        Frame(
            source=SourceFrame(path, None, uid),
            size=(int(header.Rows), int(header.Columns)),
            position=_numbers(header.ImagePositionPatient),
            orientation=_numbers(header.ImageOrientationPatient),
            spacing=_numbers(header.PixelSpacing),
            thickness=_thickness(header),
        )
    ]


def _has_places(header: Any) -> bool:
    """Whether functional groups say where frames lie; photographs may have groups that do not."""
    groups = [
        item
        for name in ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence")
        for item in header.get(name) or []
    ]
    return any("PlanePositionSequence" in group for group in groups)


def _enhanced(path: Path, header: Any, uid: str) -> Iterator[Frame]:
    groups = list(header.get("PerFrameFunctionalGroupsSequence") or [])
    shared = list(header.get("SharedFunctionalGroupsSequence") or [])
    count = int(header.get("NumberOfFrames", 1) or 1)
    if len(groups) != count or len(shared) > 1:
        raise fail(IMAGE_UNREADABLE, path, f"{count} frames, but {len(groups)} items of per-frame functional groups")
    if int(header.get("SamplesPerPixel", 1) or 1) != 1:
        raise fail(
            IMAGE_UNREADABLE, path, "a multi-frame object in colour", GeneralRemedy("Export it as one image per frame.")
        )
    pointers = [_dimension_name(item) for item in header.get("DimensionIndexSequence") or []]
    for index, group in enumerate(groups):
        places = [group, *shared]
        position = _group(places, "PlanePositionSequence", "ImagePositionPatient")
        orientation = _group(places, "PlaneOrientationSequence", "ImageOrientationPatient")
        measures = _group(places, "PixelMeasuresSequence", "PixelSpacing")
        missing = [
            name
            for name, item in (
                ("ImagePositionPatient", position),
                ("ImageOrientationPatient", orientation),
                ("PixelSpacing", measures),
            )
            if item is None
        ]
        if missing:
            raise fail(
                IMAGE_UNREADABLE, path, f"frame {index + 1} has no {', '.join(missing)} in its functional groups"
            )
        rescale = _group(places, "PixelValueTransformationSequence", "RescaleSlope")
        yield Frame(
            source=SourceFrame(path, index, uid),
            size=(int(header.Rows), int(header.Columns)),
            position=_numbers(position.ImagePositionPatient),
            orientation=_numbers(orientation.ImageOrientationPatient),
            spacing=_numbers(measures.PixelSpacing),
            thickness=_thickness(measures),
            rescale=(float(rescale.RescaleSlope), float(rescale.RescaleIntercept)) if rescale else (1.0, 0.0),
            dimensions=_dimensions(pointers, group),
        )


def _group(places: list[Any], sequence: str, tag: str) -> Any:
    """The first item of a functional group that has a value for ``tag``: the frame's own, or the shared one."""
    for where in places:
        items = where.get(sequence) or []
        if len(items) and items[0].get(tag) not in (None, ""):
            return items[0]
    return None


def _dimension_name(item: Any) -> str:
    from pydicom.datadict import keyword_for_tag

    return keyword_for_tag(item.DimensionIndexPointer) or str(item.get("DimensionDescriptionLabel", "unnamed"))


def _dimensions(pointers: list[str], group: Any) -> dict[str, str]:
    items = group.get("FrameContentSequence") or []
    if not len(items):
        return {}
    values = items[0].get("DimensionIndexValues")
    indexes = [values] if isinstance(values, int) else list(values or [])
    result = {"StackID": str(items[0].get("StackID") or "")} if items[0].get("StackID") else {}
    result.update({name: str(value) for name, value in zip(pointers, indexes, strict=False)})
    return {name: value for name, value in result.items() if name not in _SPATIAL}


def _thickness(measures: Any) -> float:
    return float(measures.get("SpacingBetweenSlices") or measures.get("SliceThickness") or 0.0)


def _numbers(values: Any) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def _check_geometry(path: Path, frame: Frame) -> None:
    numbers = (*frame.position, *frame.orientation, *frame.spacing, frame.thickness)
    if (len(frame.position), len(frame.orientation), len(frame.spacing)) != (3, 6, 2) or not np.isfinite(numbers).all():
        raise fail(
            IMAGE_UNREADABLE, path, "ImagePositionPatient, ImageOrientationPatient or PixelSpacing is not possible"
        )
    axes = np.array(frame.orientation).reshape(2, 3)
    if min(frame.spacing) <= 0 or np.abs(axes @ axes.T - np.eye(2)).max() > 0.02:
        raise fail(IMAGE_UNREADABLE, path, "ImageOrientationPatient or PixelSpacing is not possible")
