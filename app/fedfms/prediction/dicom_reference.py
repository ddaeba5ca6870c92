"""Headers of source images, made fit to be referred to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedfms.data.dicom_files import quiet
from fedfms.data.geometry import Array, Picture, SourceFrame, Volume

# Patient and study attributes that PS3.3 demands at least empty (type 2). De-identified exports often lack them, and
# highdicom asks for them.
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
_SEXES = ("M", "F", "O", "")


def sources_of(origin: Volume | Picture) -> tuple[SourceFrame, ...]:
    """The DICOM frame of each stored slice."""
    return (origin.source,) if isinstance(origin, Picture) else origin.sources


def stored_slices(origin: Volume | Picture, mask: Array) -> Array:
    """A mask in the order of its origin, as (slice, row, column) of the source frames."""
    return mask[None] if isinstance(origin, Picture) else mask.transpose(2, 1, 0)


def read_references(sources: Sequence[SourceFrame]) -> list[Any]:
    """Headers (pydicom datasets without pixels) of the different files, in order of first use.

    Attributes that must be there, if only empty, are; a sex, date or time that DICOM does not allow is emptied.
    """
    paths = list(dict.fromkeys(source.path for source in sources))
    with quiet():
        return [_reference(path) for path in paths]


def _reference(path: Path) -> Any:
    import pydicom

    header = pydicom.dcmread(path, stop_before_pixels=True)
    for keyword in _TYPE_2:
        if header.get(keyword) is None:
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
    return header


def series_number(header: Any, offset: int) -> int:
    """A series number for results: that of the source and ``offset``."""
    try:
        return max(0, int(header.get("SeriesNumber") or 0)) + offset
    except (TypeError, ValueError):
        return offset
