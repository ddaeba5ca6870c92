"""DICOM: from the files of a series to voxels, segmentations and structure sets (PS3.3, PS3.5, PS3.10)."""

from typing import TYPE_CHECKING

if not TYPE_CHECKING:  # type checkers know the new names only
    from fedfms.moved import former_names

    __getattr__ = former_names(__name__)
