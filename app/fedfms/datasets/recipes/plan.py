"""The content of a recipe: its downloads, its cases, and the meaning of the masks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from fedfms.data.authoring.site_yaml import Patient
from fedfms.data.volume.geometry import Array
from fedfms.datasets.recipes.archive import Archive, Files

#: Folder of the images in every institution's folder.
IMAGES = "images"


@dataclass(frozen=True)
class Institution:
    """One client of the federation.

    Attributes:
        name: Follows FLARE's rule for client names.
        patient: Patient rule of its ``site.yaml``.
    """

    name: str
    patient: Patient


@dataclass(frozen=True)
class Case:
    """One image with its masks.

    Attributes:
        institution: The institution that has it.
        name: File name without suffix; unique within the institution.
        linked: Folder (``images`` or that of a mask) -> file of the archive that can be used unchanged.
        made: Called when the case is written; returns folder -> pixels for a PNG file. The case is not annotated for
            a mask whose folder is in neither.
    """

    institution: Institution
    name: str = field(repr=False)
    linked: Mapping[str, Path] = field(repr=False)
    made: Callable[[], Mapping[str, Array]] | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Part:
    """One download.

    Attributes:
        name: Its usual name.
        source: Where it is obtained.
        licence: As far as known, with a note when it was not verified.
        files: The tree that ``plan`` expects.
        documented: Number of cases that its authors state.
        plan: Finds the cases; faults of the tree are recorded in the archive.
    """

    name: str
    source: str
    licence: str
    files: tuple[Files, ...]
    documented: int
    plan: Callable[[Archive], list[Case]]


@dataclass(frozen=True)
class MaskFolder:
    """Masks of one kind.

    Attributes:
        folder: Folder in every institution's folder.
        labels: Structure -> values.
        ignored: Values that belong to no structure.
    """

    folder: str
    labels: dict[str, tuple[int, ...] | Literal["nonzero"]]
    ignored: tuple[int, ...] = ()


@dataclass(frozen=True)
class Recipe:
    """A benchmark set; its name is also the task's name.

    Attributes:
        name: Name of the set.
        format: Format of the images, as in ``site.yaml``.
        masks: Folders of masks in every institution's folder.
        parts: The downloads it consists of.
        notes: What was decided about the labels; also in the README of the written folder.
    """

    name: str
    format: str
    masks: tuple[MaskFolder, ...]
    parts: tuple[Part, ...]
    notes: tuple[str, ...]


EACH_IMAGE_IS_A_PATIENT = Patient(
    "each_image", comment=("As documented, every image of this set shows another patient.",)
)
PATIENTS_UNKNOWN = Patient(
    "each_image",
    comment=(
        "The archive does not say which images show the same patient: one patient may be in training and",
        "validation at once, and the measured quality is then too good.",
    ),
)
