"""Prostate MRI of six institutions (Liu et al., Shape-aware Meta-learning, MICCAI 2020)."""

from __future__ import annotations

from fedfms.datasets.recipes.archive import Archive, Files
from fedfms.datasets.recipes.plan import EACH_IMAGE_IS_A_PATIENT, IMAGES, Case, Institution, MaskFolder, Part, Recipe

INSTITUTIONS = ("RUNMC", "BMC", "I2CVB", "UCL", "BIDMC", "HK")
# One institution writes Segmentation with a capital letter.
TREE = {
    name: (
        Files(f"**/{name}/Case{{case}}.nii.gz", "T2-weighted volumes"),
        Files(f"**/{name}/Case{{case}}_?egmentation.nii.gz", "their masks"),
    )
    for name in INSTITUTIONS
}


def _plan(archive: Archive) -> list[Case]:
    cases = []
    for name, (images, masks) in TREE.items():
        institution = Institution(name, EACH_IMAGE_IS_A_PATIENT)
        segmentations = archive.find(masks)
        # "Case{case}.nii.gz" also fits the masks.
        volumes = archive.find(images, but=set(segmentations.values()))
        cases += [
            Case(institution, f"Case{number}", {IMAGES: volume, "masks": mask})
            for number, volume, mask in archive.match(f"the volumes and masks of {name}", volumes, segmentations)
        ]
    return cases


PROSTATE = Recipe(
    name="prostate",
    format="nifti",
    masks=(MaskFolder("masks", {"prostate": "nonzero"}),),
    parts=(
        Part(
            name="SAML",
            source="https://liuquande.github.io/SAML/ (from NCI-ISBI 2013, I2CVB and PROMISE12)",
            licence="none stated for the collection, as far as known; the three sources have terms of their own",
            files=tuple(files for pair in TREE.values() for files in pair),
            documented=116,
            plan=_plan,
        ),
    ),
    notes=(
        "Structure prostate: every mask value but 0. Some institutions divide the gland into zones (1 and 2); the"
        " zones are joined.",
    ),
)
