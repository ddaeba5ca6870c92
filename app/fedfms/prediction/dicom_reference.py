"""Headers of source images, prepared so that DICOM results can refer to them."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from fedfms.data.volume.geometry import LPS_TO_RAS, Array, Picture, SourceFrame, Volume
from fedfms.errors import DICOM_UNWRITABLE, fail, reason_of

# Patient and study attributes that PS3.3 requires to be present, if only empty (type 2). De-identified exports often
# lack them, and highdicom asks for them.
_TYPE_2 = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "StudyID",
    "ReferringPhysicianName",
)
_IDENTITIES = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")
_SEXES = ("M", "F", "O", "")

# Most characters of a number written as text (DS; PS3.5 6.2). Some devices write more, and results copy numbers.
_DECIMAL_LENGTH = 16

# What highdicom and pydicom raise on headers that they cannot build on.
_FAULTS = (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RuntimeError)


def sources_of(origin: Volume | Picture) -> tuple[SourceFrame, ...]:
    """The DICOM frame of each stored slice."""
    return (origin.source,) if isinstance(origin, Picture) else origin.sources


def stored_slices(origin: Volume | Picture, mask: Array) -> Array:
    """A mask in the order of its origin, as (slice, row, column) of the source frames."""
    return mask[None] if isinstance(origin, Picture) else mask.transpose(2, 1, 0)


@contextmanager
def quiet_dicom() -> Iterator[None]:
    """Silence highdicom and pydicom: their warnings quote what they find, and that may be identifiers.

    Values that DICOM does not allow are then copied from source to result without a check.
    """
    import pydicom

    levels = {logger: logger.level for logger in map(logging.getLogger, ("highdicom", "pydicom"))}
    for logger in levels:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings(), pydicom.config.disable_value_validation():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)


@contextmanager
def header_faults(where: Path) -> Iterator[None]:
    """Turn what highdicom and pydicom raise on an unfit source header into FMS-P004.

    Only for calls of these libraries on a header: around code of ours it would report our faults as the hospital's.

    Args:
        where: The source, named in the error.
    """
    try:
        yield
    except _FAULTS as error:
        raise fail(DICOM_UNWRITABLE, where, reason_of(error)) from error


def header_value(header: Any, keyword: str, where: Path) -> Any:
    """The value of a header's element, which pydicom decodes on first access; None when it is missing.

    Raises:
        FedfmsError: FMS-P004 when it cannot be decoded.
    """
    with header_faults(where):
        return header.get(keyword)


def read_references(origin: Volume | Picture) -> list[Any]:
    """Read the headers (pydicom datasets without pixels) of the different source files, in order of first use.

    Whatever highdicom would refuse is corrected: attributes that must at least be empty (type 2) are added, a sex, date
    or time that DICOM does not allow is emptied, numbers with more digits than it allows are rounded, and slices share
    orientation and spacing. Call this within ``quiet_dicom``.

    Raises:
        FedfmsError: FMS-P004 when a file lacks an identifier that results refer to, or several files are multi-frame.
    """
    needed = _IDENTITIES if isinstance(origin, Picture) else (*_IDENTITIES, "FrameOfReferenceUID")
    sources = sources_of(origin)
    paths = list(dict.fromkeys(source.path for source in sources))
    if len(paths) > 1 and any(source.frame is not None for source in sources):
        detail = f"its slices are in {len(paths)} multi-frame files; a SEG can refer to one such file only"
        raise fail(DICOM_UNWRITABLE, paths[0].parent, detail, "Export it as one multi-frame file or as single slices.")
    headers = [_reference(path, needed) for path in paths]
    if isinstance(origin, Volume):
        _share_geometry(headers, origin)
    return headers


def _share_geometry(headers: Sequence[Any], origin: Volume) -> None:
    """Give all slices the orientation and spacing of the first, as the volume has them.

    highdicom looks for them in the shared functional groups only, though a frame may have its own (PS3.3
    C.7.6.16.1.1), and single slices must not differ in the last decimal.
    """
    first = headers[0]
    with header_faults(origin.sources[0].path):
        if origin.sources[0].frame is None:
            for header in headers[1:]:
                header.ImageOrientationPatient = first.ImageOrientationPatient
                header.PixelSpacing = first.PixelSpacing
            return
        frames = first.PerFrameFunctionalGroupsSequence
        chosen = frames[origin.sources[0].frame]
        if not first.get("SharedFunctionalGroupsSequence"):
            first.SharedFunctionalGroupsSequence = [type(chosen)()]
        for keyword in ("PixelMeasuresSequence", "PlaneOrientationSequence"):
            if keyword in chosen:
                setattr(first.SharedFunctionalGroupsSequence[0], keyword, chosen[keyword].value)
                for frame in frames:
                    if keyword in frame:
                        delattr(frame, keyword)


def _reference(path: Path, needed: Sequence[str]) -> Any:
    import pydicom

    with header_faults(path):
        header = pydicom.dcmread(path, stop_before_pixels=True)
    if missing := [keyword for keyword in needed if not header_value(header, keyword, path)]:
        raise fail(DICOM_UNWRITABLE, path, f"no {', '.join(missing)}")
    for keyword in _TYPE_2:
        if header_value(header, keyword, path) is None:
            setattr(header, keyword, "")
    if header.PatientSex not in _SEXES:
        header.PatientSex = ""
    for keyword, check in (
        ("PatientBirthDate", pydicom.valuerep.DA),
        ("StudyDate", pydicom.valuerep.DA),
        ("StudyTime", pydicom.valuerep.TM),
    ):
        try:
            check(header[keyword].value or None)
        except ValueError:
            setattr(header, keyword, "")
    _shorten_numbers(header, path)
    return header


def _shorten_numbers(dataset: Any, where: Path) -> None:
    from pydicom.valuerep import format_number_as_ds

    for tag in list(dataset.keys()):
        try:
            element = dataset[tag]
        except _FAULTS:
            # Its content does not match its type. Most elements are never used; one that is used fails there.
            continue
        if element.VR == "SQ":
            for item in element.value:
                _shorten_numbers(item, where)
        elif element.VR == "DS" and not element.is_empty:
            values = element.value if element.VM > 1 else [element.value]
            if any(len(str(value)) > _DECIMAL_LENGTH for value in values):
                with header_faults(where):
                    element.value = [format_number_as_ds(float(value)) for value in values]


def series_number(header: Any, offset: int) -> int:
    """A series number for results: that of the source and ``offset``."""
    try:
        return max(0, int(header.get("SeriesNumber") or 0)) + offset
    except (TypeError, ValueError):
        return offset


def patient_orientation(origin: Volume | Picture, header: Any, where: Path) -> list[str]:
    """Directions of rows and columns, such as L and P (PS3.3 C.7.6.1.1.1); the nearest ones of an oblique slice.

    Raises:
        FedfmsError: FMS-P004 when the element of a picture's header cannot be decoded.
    """
    if isinstance(origin, Picture):
        return list(header_value(header, "PatientOrientation", where) or [])
    letters = ("LR", "PA", "HF")
    directions = []
    for axis in (0, 1):
        direction = LPS_TO_RAS[:3, :3] @ origin.grid.affine[:3, axis]
        largest = int(np.abs(direction).argmax())
        directions.append(letters[largest][0 if direction[largest] > 0 else 1])
    return directions
