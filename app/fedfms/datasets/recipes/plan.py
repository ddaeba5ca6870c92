"""What a recipe says: its downloads, its cases, and what the masks mean."""

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
    """One client of the federation; ``name`` follows FLARE's rule for client names."""

    name: str
    patient: Patient


@dataclass(frozen=True)
class Case:
    """One image with its masks.

    Attributes:
        institution: Whose it is.
        name: File name without suffix; unique within the institution.
        linked: Folder (``images`` or a mask's) -> file of the archive that can be read as it is.
        made: Called when the case is written: folder -> pixels for a PNG file. A mask's folder that is in neither
            means that the case is not annotated for it.
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
        licence: As far as known; what was not verified says so.
        files: The tree that ``plan`` looks for.
        documented: Number of cases its authors state.
        plan: Finds the cases; faults of the tree are noted in the archive.
    """

    name: str
    source: str
    licence: str
    files: tuple[Files, ...]
    documented: int
    plan: Callable[[Archive], list[Case]]


@dataclass(frozen=True)
class MaskFolder:
    """Masks of one kind: folder, structure -> values, values of no structure."""

    folder: str
    labels: dict[str, tuple[int, ...] | Literal["nonzero"]]
    ignored: tuple[int, ...] = ()


@dataclass(frozen=True)
class Recipe:
    """A benchmark set; its name is also the task's name.

    Attributes:
        format: Of the images, as in ``site.yaml``.
        masks: Folders of masks in every institution's folder.
        parts: The downloads it consists of.
        notes: What was decided about the labels; stands in the written README.
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
