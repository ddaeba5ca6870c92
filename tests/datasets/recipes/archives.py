"""Miniature archives in the layouts that docs/datasets.md describes."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from PIL import Image

from tests.generators import write_nifti

AFFINE = np.diag([-0.5, -0.5, 3.0, 1.0])
PROSTATE_SITES = ("RUNMC", "BMC", "I2CVB", "UCL", "BIDMC", "HK")


def save(path: Path, values: np.ndarray) -> None:
    """Write an image; the suffix decides the format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.astype(np.uint8)).save(path)


def photograph(seed: int, size: tuple[int, int] = (24, 20)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)


def prostate(root: Path) -> Path:
    """Two cases per institution; the file names of the collection differ in one letter."""
    for number, name in enumerate(PROSTATE_SITES):
        word = "Segmentation" if name == "BMC" else "segmentation"
        for case in ("00", "01"):
            volume = np.random.default_rng([number, int(case)]).integers(0, 300, (6, 5, 4)).astype(np.int16)
            labels = np.zeros((6, 5, 4), np.uint8)
            labels[2:4, 1:4, 1:3] = 1
            if name == "RUNMC":
                labels[2, 1:4, 1:3] = 2  # zones
            write_nifti(root / name / f"Case{case}.nii.gz", volume, AFFINE)
            write_nifti(root / name / f"Case{case}_{word}.nii.gz", labels, AFFINE)
    return root


def brain(root: Path) -> Path:
    """Institutions 1 (three subjects), 4 (two) and 18 (one)."""
    folder = root / "MICCAI_FeTS2022_TrainingData"
    subjects = {f"FeTS2022_{number:05d}": partition for number, partition in enumerate((1, 1, 1, 4, 4, 18))}
    for subject in subjects:
        labels = np.zeros((6, 6, 5), np.uint8)
        labels[1:5, 1:5, 1:4], labels[2:4, 2:4, 2], labels[2, 2, 2] = 2, 4, 1
        for kind in ("flair", "t1", "t1ce", "t2"):
            volume = np.random.default_rng(len(kind)).integers(0, 900, (6, 6, 5)).astype(np.int16)
            write_nifti(folder / subject / f"{subject}_{kind}.nii.gz", volume, AFFINE)
        write_nifti(folder / subject / f"{subject}_seg.nii.gz", labels, AFFINE)
    for name, shift in (("partitioning_1.csv", 0), ("partitioning_2.csv", 100)):
        with (folder / name).open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["Partition_ID", "Subject_ID"])
            writer.writerows([partition + shift, subject] for subject, partition in subjects.items())
    return root


def outline_xml(path: Path, outlines: dict[str, list[list[tuple[float, float]]]]) -> None:
    """Aperio's XML: annotation's name -> outlines of (x, y)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    annotations = ""
    for name, regions in outlines.items():
        text = ""
        for corners in regions:
            vertices = "".join(f'<Vertex X="{x}" Y="{y}" Z="0"/>' for x, y in corners)
            text += f"<Region><Attributes/><Vertices>{vertices}</Vertices></Region>"
        annotations += (
            f'<Annotation><Attributes><Attribute Name="{name}"/></Attributes><Regions>{text}</Regions></Annotation>'
        )
    path.write_text(f'<Annotations MicronsPerPixel="0.25">{annotations}</Annotations>', encoding="utf-8")


def square(x: float, y: float, side: float) -> list[tuple[float, float]]:
    return [(x, y), (x + side, y), (x + side, y + side), (x, y + side)]


def pannuke(root: Path) -> None:
    """Folds 1 and 2 with three images each: two of Uterus, one of Bile-duct."""
    for fold in (1, 2):
        images = np.zeros((3, 256, 256, 3))
        images[:, :, :, 0] = 200
        masks = np.zeros((3, 256, 256, 6))
        masks[:, :, :, 5] = 1
        masks[:, 10:20, 10:20, 0], masks[:, 30:40, 30:50, 4] = 3, 7
        masks[:, 10:20, 10:20, 5] = masks[:, 30:40, 30:50, 5] = 0
        folder = root / f"Fold {fold}"
        for kind in ("images", "masks"):
            (folder / kind / f"fold{fold}").mkdir(parents=True)
        np.save(folder / "images" / f"fold{fold}" / "images.npy", images)
        np.save(folder / "images" / f"fold{fold}" / "types.npy", np.array(["Uterus", "Bile-duct", "Uterus"]))
        np.save(folder / "masks" / f"fold{fold}" / "masks.npy", masks)


def nuclei(root: Path) -> Path:
    """PanNuke; MoNuSAC with two patients; MoNuSeg with one of them and another; TNBC with two slides."""
    pannuke(root)
    for patient, count in (("TCGA-5P-A9K0", 2), ("TCGA-21-5784", 1)):
        name = f"{patient}-01Z-00-DX1"
        for number in range(1, count + 1):
            stem = root / "MoNuSAC_images_and_annotations" / name / f"{name}_{number}"
            save(stem.with_suffix(".tif"), photograph(number))
            outline_xml(stem.with_suffix(".xml"), {"Epithelial": [square(2, 3, 4)], "Lymphocyte": [square(10, 10, 5)]})
    training = root / "MoNuSeg 2018 Training Data" / "MoNuSeg 2018 Training Data"
    for patient in ("TCGA-21-5784", "TCGA-A7-A13E"):
        save(training / "Tissue Images" / f"{patient}-01Z-00-DX1.tif", photograph(7))
        outline_xml(training / "Annotations" / f"{patient}-01Z-00-DX1.xml", {"": [square(1, 1, 6)]})
    for slide, number in (("01", 1), ("01", 2), ("02", 1)):
        folder = root / "TNBC_NucleiSegmentation"
        save(folder / f"Slide_{slide}" / f"{slide}_{number}.png", photograph(number))
        save(folder / f"GT_{slide}" / f"{slide}_{number}.png", np.eye(24, 20) * 255)
    return root


def disc_map(background: int, rim: int, cup: int | None) -> np.ndarray:
    """A label map with a disc of 100 pixels, 16 of them cup."""
    labels = np.full((24, 20), background)
    labels[5:15, 5:15] = rim
    if cup is not None:
        labels[8:12, 8:12] = cup
    return labels


def fundus(root: Path) -> Path:
    """Three parts of REFUGE; ORIGA; G1020 with one photograph without cup; Drishti-GS with four experts."""
    training = root / "REFUGE-Training400" / "Training400"
    answers = root / "Annotation-Training400" / "Annotation-Training400" / "Disc_Cup_Masks"
    for kind, name in (("Glaucoma", "g0001"), ("Non-Glaucoma", "n0001")):
        save(training / kind / f"{name}.jpg", photograph(1))
        save(answers / kind / f"{name}.bmp", disc_map(255, 128, 0))
    save(root / "REFUGE-Validation400" / "REFUGE-Validation400" / "V0001.jpg", photograph(2))
    save(root / "REFUGE-Validation400-GT" / "Disc_Cup_Masks" / "V0001.bmp", disc_map(255, 128, 0))
    save(root / "REFUGE-Test400" / "Test400" / "T0001.jpg", photograph(3))
    save(root / "REFUGE-Test-GT" / "Disc_Cup_Masks" / "G" / "T0001.bmp", disc_map(255, 128, 0))
    for name, stems in (("ORIGA", ("001", "002")), ("G1020", ("image_0", "image_1"))):
        for stem in stems:
            save(root / name / "Images" / f"{stem}.jpg", photograph(4))
            save(root / name / "Masks" / f"{stem}.png", disc_map(0, 1, None if stem == "image_1" else 2))
    base = root / "Drishti-GS1_files"
    for part, answer, stem in (("Training", "GT", "drishtiGS_002"), ("Test", "Test_GT", "drishtiGS_001")):
        save(base / part / "Images" / "GLAUCOMA" / f"{stem}.png", photograph(5))
        maps = base / part / answer / stem / "SoftMap"
        disc = disc_map(0, 255, None)
        disc[5:15, 4], disc[5:15, 3] = 127, 64  # two experts, one expert
        save(maps / f"{stem}_ODsegSoftmap.png", disc)
        save(maps / f"{stem}_cupsegSoftmap.png", np.where(disc_map(0, 0, 191) > 0, 191, 0))
    return root


BUILDERS = {"prostate": prostate, "brain": brain, "nuclei": nuclei, "fundus": fundus}
