"""Nuclei in stained tissue: PanNuke, MoNuSAC, MoNuSeg, TNBC."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from fedfms.data.authoring.site_yaml import Patient
from fedfms.data.readers import raster
from fedfms.data.volume.geometry import Array
from fedfms.datasets.recipes.archive import Archive, Files
from fedfms.datasets.recipes.outlines import filled_outlines
from fedfms.datasets.recipes.plan import IMAGES, PATIENTS_UNKNOWN, Case, Institution, MaskFolder, Part, Recipe
from fedfms.errors import IMAGE_UNREADABLE, fail, reason_of

MASKS = "masks"
PANNUKE = (
    Files("**/images/fold{case}/images.npy", "PanNuke: images of a fold, (n, 256, 256, 3)"),
    Files("**/images/fold{case}/types.npy", "PanNuke: tissue of each image"),
    Files("**/masks/fold{case}/masks.npy", "PanNuke: masks of a fold, (n, 256, 256, 6)"),
)
MONUSAC = (
    Files("**/MoNuSAC_images_and_annotations/*/{case}.tif", "MoNuSAC: images"),
    Files("**/MoNuSAC_images_and_annotations/*/{case}.xml", "MoNuSAC: outlines"),
)
MONUSEG = (
    Files("**/MoNuSeg 2018 Training Data/Tissue Images/{case}.tif", "MoNuSeg: images"),
    Files("**/MoNuSeg 2018 Training Data/Annotations/{case}.xml", "MoNuSeg: outlines"),
)
TNBC = (
    Files("**/TNBC_NucleiSegmentation/Slide_*/{case}.png", "TNBC: images"),
    Files("**/TNBC_NucleiSegmentation/GT_*/{case}.png", "TNBC: masks"),
)
_TCGA_PATIENT = Patient("name", "^(TCGA-[^-]+-[^-]+)", ("The patient is the first three fields of the TCGA name.",))
_TNBC_PATIENT = Patient("name", "^([0-9]+)_", ("The patient is the number of the slide.",))
# The sixth channel of PanNuke's masks is the background; the five others hold the nuclei by kind.
_KINDS = 5


def _pannuke(archive: Archive) -> list[Case]:
    images, types, masks = (archive.find(files) for files in PANNUKE)
    with_types = archive.match("PanNuke's images.npy and types.npy", images, types)
    with_masks = {fold: path for fold, _, path in archive.match("PanNuke's images.npy and masks.npy", images, masks)}
    cases = []
    for fold, image_file, type_file in with_types:
        if fold not in with_masks:
            continue
        arrays = [_load(path) for path in (image_file, with_masks[fold], type_file)]
        count = len(arrays[2])
        shapes = ((count, 256, 256, 3), (count, 256, 256, 6), (count,))
        for path, array, shape in zip((image_file, with_masks[fold], type_file), arrays, shapes, strict=True):
            if array.shape != shape:
                raise fail(IMAGE_UNREADABLE, path, f"the array has shape {array.shape}, expected {shape}")
        for index, tissue in enumerate(arrays[2]):
            institution = Institution(f"PanNuke_{tissue}", PATIENTS_UNKNOWN)
            make = partial(_pannuke_pixels, image_file, arrays[0], arrays[1], index)
            cases.append(Case(institution, f"fold{fold}_{index:04d}", {}, make))
    return cases


def _load(path: Path) -> Array:
    try:
        # Memory-mapped: the masks of a fold are 8 GB.
        array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise fail(IMAGE_UNREADABLE, path, reason_of(error)) from error
    return array


def _pannuke_pixels(path: Path, images: Array, masks: Array, index: int) -> Mapping[str, Array]:
    values = np.asarray(images[index])
    if not (values.min() >= 0 and values.max() <= 255):
        raise fail(IMAGE_UNREADABLE, path, f"image {index} holds values outside 0..255")
    nuclei = (np.asarray(masks[index, :, :, :_KINDS]) != 0).any(axis=2)
    return {IMAGES: np.rint(values).astype(np.uint8), MASKS: nuclei.astype(np.uint8) * np.uint8(255)}


def _outlined(name: str, tree: tuple[Files, Files]) -> Callable[[Archive], list[Case]]:
    """The ``plan`` of a set whose nuclei are drawn as outlines."""

    def plan(archive: Archive) -> list[Case]:
        institution = Institution(name, _TCGA_PATIENT)
        images, outlines = (archive.find(files) for files in tree)
        return [
            Case(institution, case, {IMAGES: image}, partial(_drawn, image, outline))
            for case, image, outline in archive.match(f"{name}'s images and outlines", images, outlines)
        ]

    return plan


def _drawn(image: Path, outlines: Path) -> Mapping[str, Array]:
    return {MASKS: filled_outlines(outlines, raster.read_image(image).shape[:2])}


def _tnbc(archive: Archive) -> list[Case]:
    institution = Institution("TNBC", _TNBC_PATIENT)
    images, masks = (archive.find(files) for files in TNBC)
    return [
        Case(institution, case, {IMAGES: image, MASKS: mask})
        for case, image, mask in archive.match("TNBC's images and masks", images, masks)
    ]


NUCLEI = Recipe(
    name="nuclei",
    format="raster",
    masks=(MaskFolder(MASKS, {"nuclei": "nonzero"}),),
    parts=(
        Part(
            name="PanNuke",
            source="https://warwick.ac.uk/fac/cross_fac/tia/data/pannuke",
            licence="CC BY-NC-SA 4.0",
            files=PANNUKE,
            documented=7901,
            plan=_pannuke,
        ),
        Part(
            name="MoNuSAC",
            source="https://monusac-2020.grand-challenge.org/Data (training data)",
            licence="CC BY-NC-SA 4.0",
            files=MONUSAC,
            documented=209,
            plan=_outlined("MoNuSAC", MONUSAC),
        ),
        Part(
            name="MoNuSeg",
            source="https://monuseg.grand-challenge.org/Data (training data)",
            licence="CC BY-NC-SA 4.0",
            files=MONUSEG,
            documented=37,
            plan=_outlined("MoNuSeg", MONUSEG),
        ),
        Part(
            name="TNBC",
            source="https://zenodo.org/records/1175282",
            licence="CC BY 4.0 (not verified)",
            files=TNBC,
            documented=50,
            plan=_tnbc,
        ),
    ),
    notes=(
        "Structure nuclei: nuclei of every kind; touching nuclei are not separated.",
        "PanNuke: one institution per tissue; the images are written as PNG, the masks join the five kinds.",
        "MoNuSAC, MoNuSeg: outlines are filled where a pixel's centre is inside. Ambiguous areas are not drawn.",
    ),
)
