"""What a structure is called in DICOM (SNOMED CT codes as used in PS3.16, CID 7150 and its types)."""

from __future__ import annotations

from typing import NamedTuple


class SegmentCode(NamedTuple):
    """SNOMED CT values and meanings of SegmentedPropertyCategory and SegmentedPropertyType."""

    category: tuple[str, str]
    type: tuple[str, str]


_ANATOMY = ("91723000", "Anatomical Structure")
_ALTERED = ("49755003", "Morphologically Abnormal Structure")
_TISSUE = ("85756007", "Tissue")

#: (value, scheme, meaning) of the reason to name a source image (PS3.16, CID 7202).
SOURCE_IMAGE = ("121322", "DCM", "Source image for image processing operation")

#: For names that the table does not hold. The structure's own name is the segment's label in any case.
OTHER = SegmentCode(_TISSUE, _TISSUE)

_NEOPLASM = SegmentCode(_ALTERED, ("108369006", "Neoplasm"))

# Only names that cannot mean anything else: a disc may be one of the spine. The optic cup has no code in PS3.16.
_CODES = {
    "aorta": SegmentCode(_ANATOMY, ("15825003", "Aorta")),
    "bladder": SegmentCode(_ANATOMY, ("89837001", "Bladder")),
    "brain": SegmentCode(_ANATOMY, ("12738006", "Brain")),
    "colon": SegmentCode(_ANATOMY, ("71854001", "Colon")),
    "edema": SegmentCode(_ALTERED, ("79654002", "Edema")),
    "esophagus": SegmentCode(_ANATOMY, ("32849002", "Esophagus")),
    "gallbladder": SegmentCode(_ANATOMY, ("28231008", "Gallbladder")),
    "heart": SegmentCode(_ANATOMY, ("80891009", "Heart")),
    "kidney": SegmentCode(_ANATOMY, ("64033007", "Kidney")),
    "lesion": SegmentCode(_ALTERED, ("52988006", "Lesion")),
    "liver": SegmentCode(_ANATOMY, ("10200004", "Liver")),
    "lung": SegmentCode(_ANATOMY, ("39607008", "Lung")),
    "necrosis": SegmentCode(_ALTERED, ("6574001", "Necrosis")),
    "nuclei": SegmentCode(_ANATOMY, ("84640000", "Nucleus")),
    "optic_disc": SegmentCode(_ANATOMY, ("81016008", "Optic nerve head")),
    "organ": SegmentCode(_ANATOMY, ("91772007", "Organ")),
    "pancreas": SegmentCode(_ANATOMY, ("15776009", "Pancreas")),
    "prostate": SegmentCode(_ANATOMY, ("41216001", "Prostate")),
    "rectum": SegmentCode(_ANATOMY, ("34402009", "Rectum")),
    "spleen": SegmentCode(_ANATOMY, ("78961009", "Spleen")),
    "stomach": SegmentCode(_ANATOMY, ("69695003", "Stomach")),
    "thyroid": SegmentCode(_ANATOMY, ("69748006", "Thyroid")),
    "tumor": _NEOPLASM,
    "tumor_core": _NEOPLASM,
    "tumour": _NEOPLASM,
    "tumour_core": _NEOPLASM,
    "uterus": SegmentCode(_ANATOMY, ("35039007", "Uterus")),
}


def segment_code(structure: str) -> SegmentCode:
    """Codes of a structure's name; ``OTHER`` for a name that is not known."""
    return _CODES.get(structure, OTHER)
