"""Which format a file has: by the ending of its name; DICOM by the mark in its preamble."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from fedfms.data.readers import itk, nifti, raster

Format = Literal["raster", "nifti", "itk", "dicom"]

SUFFIXES: dict[Format, tuple[str, ...]] = {"raster": raster.SUFFIXES, "nifti": nifti.SUFFIXES, "itk": itk.SUFFIXES}

# PS3.10 7.1: a preamble of any content, then the mark.
_PREAMBLE, _MARK = 128, b"DICM"


def format_of(path: Path) -> Format | None:
    """The format by the ending of the name alone; None for DICOM and for anything else."""
    name = path.name.lower()
    return next((kind for kind, suffixes in SUFFIXES.items() if name.endswith(suffixes)), None)


def stem(name: str) -> str:
    """A file's name without its ending; the whole name when its ending is not one of these formats'."""
    lower = name.lower()
    for suffixes in SUFFIXES.values():
        for suffix in sorted(suffixes, key=len, reverse=True):
            if lower.endswith(suffix):
                return name[: -len(suffix)]
    return name


def has_dicom_mark(path: Path) -> bool:
    """Whether the file has the mark of a DICOM file (PS3.10 7.1).

    Raises:
        OSError: when it cannot be read.
    """
    with path.open("rb") as file:
        return file.read(_PREAMBLE + len(_MARK))[_PREAMBLE:] == _MARK
