"""Which image series a DICOM SEG or RTSTRUCT says it was drawn on."""

from __future__ import annotations

from collections.abc import Iterator

from fedfms.data.dicom.elements import Elements


def referenced_series(header: Elements) -> frozenset[str]:
    """SeriesInstanceUIDs that a SEG (PS3.3 C.8.20.2) or RTSTRUCT (C.8.8.5) refers to; empty when it names none.

    Raises:
        FedfmsError: FMS-D004 when the elements are damaged.
    """
    named = [*header.items("ReferencedSeriesSequence"), *(series for _, series in roi_series(header))]
    return frozenset(item.text("SeriesInstanceUID") for item in named) - {""}


def roi_series(header: Elements) -> Iterator[tuple[str, Elements]]:
    """Each item of RTReferencedSeriesSequence of an RTSTRUCT, with its FrameOfReferenceUID (empty when absent).

    Raises:
        FedfmsError: FMS-D004 when the elements are damaged.
    """
    for frame in header.items("ReferencedFrameOfReferenceSequence"):
        for study in frame.items("RTReferencedStudySequence"):
            for series in study.items("RTReferencedSeriesSequence"):
                yield frame.text("FrameOfReferenceUID"), series
