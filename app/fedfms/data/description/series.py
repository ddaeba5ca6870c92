"""A DICOM series, and how ``site.yaml`` chooses one of several."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from fedfms.configuration import Strict, TruthValue

#: Kind of a DICOM object, by its SOP class (PS3.4 B.5).
ObjectKind = Literal["image", "seg", "rtstruct", "other"]


@dataclass(frozen=True)
class Series:
    """The files of one series that are of one kind.

    Attributes:
        uid, study_uid: SeriesInstanceUID and StudyInstanceUID.
        modality: Modality (0008,0060), such as CT; ``?`` when it is absent.
        description, number: SeriesDescription and SeriesNumber; empty when absent.
        kind: ``image``, ``seg`` (DICOM SEG), ``rtstruct`` or ``other``.
        files: Sorted by path.
    """

    uid: str = field(repr=False)
    study_uid: str = field(repr=False)
    modality: str
    description: str = field(repr=False)
    number: str
    kind: ObjectKind
    files: tuple[Path, ...] = field(repr=False)

    def __str__(self) -> str:
        count = f"{len(self.files)} file{'s' if len(self.files) > 1 else ''}"
        return f"{self.modality} '{self.description}' (series number {self.number or '-'}, {count})"


class SeriesChoice(Strict):
    """Which series of a folder is the case; a series must fit all keys that are given.

    Attributes:
        description: Regular expression that matches a part of SeriesDescription; case is ignored.
        modality: Modality, such as ``CT``.
        uid: SeriesInstanceUID; ``*`` matches any text.
        dimensions: For a series of several stacks, acquisitions, echoes or points in time: the value to use of each,
            such as ``AcquisitionNumber: 1``, or ``StackID: 1`` in multi-frame files. ``*`` says that images of all
            values are slices of one volume.
        skips_slices: True: slices that seem to be missing evenly, by number or by distance, are meant to be.
    """

    model_config = ConfigDict(json_schema_extra={"minProperties": 1})

    description: Annotated[str, Field(min_length=1)] | None = None
    modality: Annotated[str, Field(min_length=1)] | None = None
    uid: Annotated[str, Field(min_length=1)] | None = None
    dimensions: dict[str, str | Annotated[int, Field(strict=True)] | Annotated[float, Field(strict=True)]] = Field(
        default_factory=dict
    )
    skips_slices: TruthValue = False

    @field_validator("description")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from None
        return value

    @model_validator(mode="after")
    def _chooses(self) -> SeriesChoice:
        if not self.model_fields_set:
            raise ValueError("give at least one of description, modality, uid, dimensions, skips_slices")
        return self

    def fits(self, series: Series) -> bool:
        """Whether the series fits all keys."""
        return (
            (self.description is None or re.search(self.description, series.description, re.IGNORECASE) is not None)
            and (self.modality is None or self.modality == series.modality)
            and (self.uid is None or fnmatchcase(series.uid, self.uid))
        )
