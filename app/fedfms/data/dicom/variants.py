"""What tells apart several images of the same place: acquisitions, phases, echoes, b-values, kinds of image."""

from __future__ import annotations

from collections.abc import Sequence

from fedfms.data.dicom.elements import Elements

#: Elements of single-frame objects.
KEYWORDS = (
    "AcquisitionNumber",
    "TemporalPositionIdentifier",
    "ContrastBolusAgent",
    "EchoNumbers",
    "EchoTime",
    "InversionTime",
    "TriggerTime",
    "DiffusionBValue",
    "ImageType",
)
#: Private elements with the b-value, from the vendors' conformance statements: Siemens, GE, Philips.
_B_VALUES = (0x0019100C, 0x00431039, 0x20011003)
_TILES = 0x0019100A  # Siemens: NumberOfImagesInMosaic
#: With their creators, without which pydicom does not know how to decode them.
PRIVATE_TAGS = (*_B_VALUES, _TILES, 0x00190010, 0x00430010, 0x20010010)
#: Functional group and element of multi-frame objects (PS3.3 C.7.6.16, C.8.13.5).
_GROUPS = (
    ("FrameContentSequence", "TemporalPositionIndex"),
    ("MREchoSequence", "EffectiveEchoTime"),
    ("MRDiffusionSequence", "DiffusionBValue"),
    ("MRImageFrameTypeSequence", "FrameType"),
    ("CTImageFrameTypeSequence", "FrameType"),
)

FRAME_KEYWORDS = tuple(name for _, name in _GROUPS)


def variants(header: Elements) -> dict[str, str]:
    """The values of a single-frame image by keyword; absent ones are left out."""
    found = {name: "/".join(header.texts(name)) for name in KEYWORDS if header.has(name)}
    if "DiffusionBValue" not in found:
        private = next(filter(None, map(header.private, _B_VALUES)), "")
        found |= {"DiffusionBValue": private} if private else {}
    return found


def frame_variants(groups: Sequence[Elements]) -> dict[str, str]:
    """The values of a frame of a multi-frame object by keyword, from its functional groups, its own first."""
    found: dict[str, str] = {}
    for sequence, name in _GROUPS:
        items = [item for group in groups for item in group.items(sequence)[:1] if item.has(name)]
        if items:
            found.setdefault(name, "/".join(items[0].texts(name)))
    return found


def tiles_of(header: Elements) -> str:
    """How many slices an image shows as tiles; empty for an image of one slice."""
    number = header.private(_TILES)
    if "MOSAIC" in header.texts("ImageType"):
        return number or "several"
    return number if number.isdecimal() and int(number) > 1 else ""
