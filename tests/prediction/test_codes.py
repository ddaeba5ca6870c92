"""The table of codes holds what the DICOM dictionary holds."""

from __future__ import annotations

from pydicom.sr.codedict import codes

from fedfms.prediction.codes import _CODES, OTHER, segment_code

KNOWN = {code.value for code in codes.SCT.concepts.values()}
CATEGORIES = {code.value for code in codes.cid7150.concepts.values()}


def test_every_code_is_in_the_dictionary() -> None:
    for name, code in [*_CODES.items(), ("other", OTHER)]:
        meanings = {concept.meaning.lower() for concept in codes.SCT.concepts.values() if concept.value == code.type[0]}
        assert code.type[0] in KNOWN and code.type[1].lower() in meanings, name
        assert code.category[0] in CATEGORIES, name


def test_a_name_that_is_not_known_is_tissue() -> None:
    assert segment_code("cup") == OTHER == (("85756007", "Tissue"), ("85756007", "Tissue"))
    assert segment_code("prostate").type == ("41216001", "Prostate")
