"""Optic disc and cup in fundus photographs: REFUGE, ORIGA, G1020, Drishti-GS."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fedfms.data.readers import raster
from fedfms.data.readers.masks import present_values
from fedfms.data.volume.geometry import Array
from fedfms.datasets.recipes.archive import Archive, Files
from fedfms.datasets.recipes.plan import IMAGES, PATIENTS_UNKNOWN, Case, Institution, MaskFolder, Part, Recipe
from fedfms.errors import LABEL_UNKNOWN, fail, first_of

REFUGE_IMAGES = (
    Files("**/*Training400/**/{case}.jpg", "REFUGE: training photographs"),
    Files("**/*Validation400/**/{case}.jpg", "REFUGE: validation photographs"),
    Files("**/*Test400/**/{case}.jpg", "REFUGE: test photographs"),
)
REFUGE_MASKS = (
    Files("**/Annotation-Training400/**/{case}.bmp", "REFUGE: training label maps"),
    Files("**/REFUGE-Validation400-GT/**/{case}.bmp", "REFUGE: validation label maps"),
    Files("**/REFUGE-Test-GT/**/{case}.bmp", "REFUGE: test label maps"),
)
ORIGA = (
    Files("**/ORIGA/Images/{case}.jpg", "ORIGA: photographs"),
    Files("**/ORIGA/Masks/{case}.png", "ORIGA: label maps"),
)
G1020 = (
    Files("**/G1020/Images/{case}.jpg", "G1020: photographs"),
    Files("**/G1020/Masks/{case}.png", "G1020: label maps"),
)
DRISHTI = (
    Files("**/Drishti-GS1_files/*/Images/**/{case}.png", "Drishti-GS: photographs"),
    Files("**/Drishti-GS1_files/*/*GT/{case}/SoftMap/{case}_ODsegSoftmap.png", "Drishti-GS: disc, share of experts"),
    Files("**/Drishti-GS1_files/*/*GT/{case}/SoftMap/{case}_cupsegSoftmap.png", "Drishti-GS: cup, share of experts"),
)


class _Values(NamedTuple):
    """The values of a label map; the rim is the disc without the cup."""

    background: int
    rim: int
    cup: int


_REFUGE_VALUES = _Values(background=255, rim=128, cup=0)
_COLLECTION_VALUES = _Values(background=0, rim=1, cup=2)
# Soft maps hold 0, 64, 128, 191 and 255 for none to four experts, give or take one.
_TWO_OF_FOUR = 100


def _label_maps(
    name: str, images: tuple[Files, ...], masks: tuple[Files, ...], values: _Values
) -> Callable[[Archive], list[Case]]:
    """The ``plan`` of a set whose masks are label maps."""

    def plan(archive: Archive) -> list[Case]:
        institution = Institution(name, PATIENTS_UNKNOWN)
        found = archive.match(f"{name}'s photographs and masks", archive.find_all(images), archive.find_all(masks))
        return [
            Case(institution, case, {IMAGES: image}, partial(_from_label_map, mask, values))
            for case, image, mask in found
        ]

    return plan


def _from_label_map(path: Path, values: _Values) -> Mapping[str, Array]:
    labels = raster.read_mask(path)
    if unknown := [value for value in present_values(labels) if value not in values]:
        detail = f"values {first_of(unknown, 10)}; expected {', '.join(map(str, sorted(values)))}"
        raise fail(LABEL_UNKNOWN, path, detail, "Get the archive again from its source.")
    return _disc_and_cup(labels != values.background, labels == values.cup)


def _drishti(archive: Archive) -> list[Case]:
    institution = Institution("Drishti-GS", PATIENTS_UNKNOWN)
    images, discs, cups = (archive.find(files) for files in DRISHTI)
    archive.match("Drishti-GS's photographs and cups", images, cups)
    return [
        Case(institution, case, {IMAGES: image}, partial(_from_soft_maps, disc, cups[case]))
        for case, image, disc in archive.match("Drishti-GS's photographs and discs", images, discs)
        if case in cups
    ]


def _from_soft_maps(disc: Path, cup: Path) -> Mapping[str, Array]:
    cup_mask = raster.read_mask(cup) >= _TWO_OF_FOUR
    return _disc_and_cup((raster.read_mask(disc) >= _TWO_OF_FOUR) | cup_mask, cup_mask)


def _disc_and_cup(disc: Array, cup: Array) -> Mapping[str, Array]:
    masks = {"disc": disc, "cup": cup} if cup.any() else {"disc": disc}
    return {folder: mask.astype(np.uint8) * np.uint8(255) for folder, mask in masks.items()}


FUNDUS = Recipe(
    name="fundus",
    format="raster",
    masks=(MaskFolder("disc", {"disc": (255,)}), MaskFolder("cup", {"cup": (255,)})),
    parts=(
        Part(
            name="REFUGE",
            source="https://refuge.grand-challenge.org (registration)",
            licence="the challenge's terms, accepted at registration",
            files=(*REFUGE_IMAGES, *REFUGE_MASKS),
            documented=1200,
            plan=_label_maps("REFUGE", REFUGE_IMAGES, REFUGE_MASKS, _REFUGE_VALUES),
        ),
        Part(
            name="ORIGA",
            source="on request from the Singapore Eye Research Institute; copies with G1020 at Kaggle",
            licence="none stated with the copies, as far as known",
            files=ORIGA,
            documented=650,
            plan=_label_maps("ORIGA", ORIGA[:1], ORIGA[1:], _COLLECTION_VALUES),
        ),
        Part(
            name="G1020",
            source="https://www.dfki.uni-kl.de/g1020; copies at Kaggle",
            licence="free for research, terms not verified",
            files=G1020,
            documented=1020,
            plan=_label_maps("G1020", G1020[:1], G1020[1:], _COLLECTION_VALUES),
        ),
        Part(
            name="Drishti-GS",
            source="https://cvit.iiit.ac.in/projects/mip/drishti-gs/mip-dataset2/Home.php (registration)",
            licence="for research, terms accepted at registration",
            files=DRISHTI,
            documented=101,
            plan=_drishti,
        ),
    ),
    notes=(
        "Structure disc: the whole disc, the cup in it included. Structure cup: the cup.",
        "A photograph without a cup in its label map counts as not annotated for the cup, not as a disc without a cup.",
        "Drishti-GS: what at least two of the four experts marked.",
    ),
)
