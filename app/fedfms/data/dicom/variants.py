"""What tells apart several images of the same place: acquisitions, phases, echoes, b-values, kinds of image."""

from __future__ import annotations

from collections.abc import Sequence

from fedfms.data.dicom.elements import PRIVATE_BLOCKS, Elements

#: Elements of single-frame objects that are the same in all slices of one volume, or change once along it.
_FIXED = (
    "SeriesNumber",
    "SeriesDescription",
    "ProtocolName",
    "AcquisitionDate",
    "AcquisitionNumber",
    "TemporalPositionIdentifier",
    "NominalPercentageOfCardiacPhase",
    "ContrastBolusAgent",
    "ContrastBolusStartTime",
    "EchoNumbers",
    "EchoTime",
    "FlipAngle",
    "SequenceName",
    "DiffusionBValue",
    "DiffusionDirectionality",
    "DiffusionGradientOrientation",
    "PatientPosition",
    "KVP",
    "ConvolutionKernel",
    "FilterType",
    "ReconstructionDiameter",
    "ScanningSequence",
    "ImageType",
    "ComplexImageComponent",
)
#: Elements that may also change from slice to slice of one volume: the time of each, its thickness.
_FREE = (
    "AcquisitionDateTime",
    "AcquisitionTime",
    "TriggerTime",
    "InversionTime",
    "RepetitionTime",
    "FrameReferenceTime",
    "SliceThickness",
    "ImageComments",
)
#: Elements that are read of single-frame objects.
KEYWORDS = (*_FIXED, *_FREE)
#: Creator, group and element of the private elements with the b-value, from the vendors' conformance statements.
_B_VALUES = (
    ("SIEMENS MR HEADER", 0x0019, 0x0C),
    ("GEMS_PARM_01", 0x0043, 0x39),
    ("Philips Imaging DD 001", 0x2001, 0x03),
)
#: GE adds 10^9 to its b-values.
_GE_OFFSET = 10**9
#: The same for the number of slices in a mosaic, with the vendor.
_TILES = (
    ("Siemens", ("SIEMENS MR HEADER", 0x0019, 0x0A)),
    ("United Imaging", ("Image Private Header", 0x0065, 0x50)),
)
#: The elements above and their creators, without which nobody knows whose they are.
PRIVATE_TAGS = tuple(
    tag
    for _, group, element in (*_B_VALUES, *(place for _, place in _TILES))
    for block in PRIVATE_BLOCKS
    for tag in (group << 16 | block, group << 16 | block << 8 | element)
)
#: Functional group and element of multi-frame objects (PS3.3 C.7.6.16, C.8.13.5, C.8.15.3), as above.
_FIXED_GROUPS = (
    ("FrameContentSequence", "FrameAcquisitionNumber"),
    ("FrameContentSequence", "TemporalPositionIndex"),
    ("CardiacSynchronizationSequence", "NominalPercentageOfCardiacPhase"),
    ("MREchoSequence", "EffectiveEchoTime"),
    ("MRTimingAndRelatedParametersSequence", "FlipAngle"),
    ("MRDiffusionSequence", "DiffusionBValue"),
    ("MRImageFrameTypeSequence", "FrameType"),
    ("MRImageFrameTypeSequence", "ComplexImageComponent"),
    ("CTImageFrameTypeSequence", "FrameType"),
    ("CTXRayDetailsSequence", "KVP"),
    ("CTReconstructionSequence", "ConvolutionKernel"),
    ("PETFrameTypeSequence", "FrameType"),
)
_FREE_GROUPS = (
    ("FrameContentSequence", "FrameAcquisitionDateTime"),
    ("FrameContentSequence", "FrameReferenceDateTime"),
    ("CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime"),
    ("TemporalPositionSequence", "TemporalPositionTimeOffset"),
)
#: Differences that do not occur between neighbouring slices of one volume, in both kinds of objects.
FIXED = frozenset({*_FIXED, *(name for _, name in _FIXED_GROUPS)})
#: Differences that do.
FREE = frozenset({*_FREE, *(name for _, name in _FREE_GROUPS)})

#: Those of them that are measured, in ms.
DURATIONS = frozenset(
    {
        "TriggerTime",
        "InversionTime",
        "RepetitionTime",
        "FrameReferenceTime",
        "NominalCardiacTriggerDelayTime",
        "TemporalPositionTimeOffset",
    }
)


def variants(header: Elements) -> dict[str, str]:
    """The values of a single-frame image by keyword; absent ones are left out."""
    found = {name: "/".join(header.texts(name)) for name in KEYWORDS if header.has(name)}
    if "DiffusionBValue" not in found:
        private = next(filter(None, (header.private(*place) for place in _B_VALUES)), "")
        if private.isdecimal() and int(private) >= _GE_OFFSET:
            private = str(int(private) - _GE_OFFSET)
        found |= {"DiffusionBValue": private} if private else {}
    return found


def frame_variants(groups: Sequence[Elements]) -> dict[str, str]:
    """The values of a frame of a multi-frame object by keyword, from its functional groups, its own first."""
    found: dict[str, str] = {}
    for sequence, name in (*_FIXED_GROUPS, *_FREE_GROUPS):
        items = [item for group in groups if sequence in group for item in group.items(sequence)[:1] if item.has(name)]
        if items:
            found.setdefault(name, "/".join(items[0].texts(name)))
    return found


def mosaic_of(header: Elements, frame_types: Sequence[str] = ()) -> str:
    """Why an image is a mosaic, many slices as tiles of one picture; empty for any other.

    Args:
        header: Elements of the file.
        frame_types: FrameType of its frames, in multi-frame objects.
    """
    named = any(text.strip().upper() == "MOSAIC" for text in (*header.texts("ImageType"), *frame_types))
    for vendor, place in _TILES:
        number = header.private(*place)
        if number.isdecimal() and int(number) > 1:
            return f"a {vendor} mosaic: {number} slices of a volume as tiles of one image"
    return "a Siemens mosaic: several slices of a volume as tiles of one image" if named else ""
