"""Which image series a DICOM SEG or RTSTRUCT says it was drawn on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def referenced_series(dataset: Any) -> frozenset[str]:
    """SeriesInstanceUIDs that a SEG (DICOM PS3.3 C.8.20.2) or RTSTRUCT (C.8.8.5) names; empty when it names none.

    Call it within ``dicom_files.faults``: sequences of damaged files are none.
    """
    named = [*(dataset.get("ReferencedSeriesSequence") or ()), *(series for _, series in roi_series(dataset))]
    return frozenset(str(item.get("SeriesInstanceUID") or "").strip() for item in named) - {""}


def roi_series(dataset: Any) -> Iterator[tuple[str, Any]]:
    """Each item of RTReferencedSeriesSequence of an RTSTRUCT, with its frame of reference."""
    for frame in dataset.get("ReferencedFrameOfReferenceSequence") or ():
        for study in frame.get("RTReferencedStudySequence") or ():
            for series in study.get("RTReferencedSeriesSequence") or ():
                yield str(frame.get("FrameOfReferenceUID") or ""), series
