"""DICOM results: segmentations (PS3.3 A.51)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedfms import __version__
from fedfms.colours import colour_of
from fedfms.data.volume.geometry import Array, Picture, SourceFrame, Volume
from fedfms.files import atomic_path
from fedfms.prediction.codes import segment_code
from fedfms.prediction.dicom_reference import (
    header_faults,
    patient_orientation,
    quiet_dicom,
    read_references,
    series_number,
    sources_of,
    stored_slices,
)
from fedfms.prediction.results import FULL_PROBABILITY, Masks
from fedfms.training.evaluation import RESEARCH_NOTICE

MANUFACTURER = "FedFMS"
MODEL_NAME = "fedfms predict"
#: UTF-8, whatever the source uses.
CHARACTER_SET = "ISO_IR 192"

# Series numbers of results, above those of scanners.
_SEG_SERIES = 9000
_PROBABILITY_SERIES = 19000


@dataclass(frozen=True)
class Algorithm:
    """The algorithm that made a segmentation; named in every DICOM result.

    Attributes:
        task: The model's task.
        model_sha256: Of the checkpoint file.
        prompted: Whether a person drew a box or points.
    """

    task: str
    model_sha256: str
    prompted: bool


def write_seg(
    path: Path, where: Path, origin: Volume | Picture, masks: Masks, algorithm: Algorithm, *, probabilities: bool
) -> None:
    """Write one DICOM SEG with a segment per structure; segments may overlap.

    Frames without any voxel of a segment are left out, as viewers expect. Each frame refers to its source image and
    is in the same frame of reference.

    Args:
        path: The file.
        where: The source, named in the error.
        origin: What the masks were made from.
        masks: In the order of ``origin``: (i, j, k) or (rows, columns).
        algorithm: Written into each segment.
        probabilities: The masks hold 0..255 and become a fractional SEG of type PROBABILITY; else 0/1, binary.

    Raises:
        FedfmsError: FMS-P004 when the source lacks what a SEG must refer to; FMS-D011 when the file cannot be written.
    """
    import highdicom

    sources = sources_of(origin)
    with quiet_dicom():
        references = read_references(origin)
        frames = _frames(origin, sources, references, masks, probabilities)
        descriptions = [_description(number, structure, algorithm) for number, structure in enumerate(masks, start=1)]
        number = series_number(references[0], _PROBABILITY_SERIES if probabilities else _SEG_SERIES)
        with header_faults(where):
            content = highdicom.seg.Segmentation(
                source_images=references,
                pixel_array=frames,
                segmentation_type="FRACTIONAL" if probabilities else "BINARY",
                max_fractional_value=FULL_PROBABILITY,
                segment_descriptions=descriptions,
                series_instance_uid=highdicom.UID(),
                series_number=number,
                sop_instance_uid=highdicom.UID(),
                instance_number=1,
                manufacturer=MANUFACTURER,
                manufacturer_model_name=MODEL_NAME,
                software_versions=__version__,
                device_serial_number=algorithm.model_sha256,
                content_label="PROBABILITY" if probabilities else "SEGMENTATION",
                content_description=RESEARCH_NOTICE,
                series_description=("FedFMS probability: " if probabilities else "FedFMS: ") + RESEARCH_NOTICE,
                specific_character_set=CHARACTER_SET,
            )
        if isinstance(origin, Picture):
            content.PatientOrientation = patient_orientation(origin, references[0], where)
    with atomic_path(path) as temporary:
        content.save_as(temporary)


def _frames(
    origin: Volume | Picture,
    sources: Sequence[SourceFrame],
    references: Sequence[Any],
    masks: Masks,
    probabilities: bool,
) -> Array:
    """(frame, row, column, segment), frames as the source files have them."""
    frames = np.stack([stored_slices(origin, mask) for mask in masks.values()], axis=-1)
    indices = [source.frame for source in sources if source.frame is not None]
    if indices:
        # One file of many frames: those that are not part of the stack stay empty.
        whole = np.zeros((int(references[0].NumberOfFrames), *frames.shape[1:]), dtype=np.uint8)
        whole[indices] = frames
        frames = whole
    return frames.astype(np.float32) / np.float32(FULL_PROBABILITY) if probabilities else frames


def _description(number: int, structure: str, algorithm: Algorithm) -> Any:
    import highdicom
    from pydicom.sr.codedict import codes

    category, type_ = (highdicom.sr.CodedConcept(value, "SCT", meaning) for value, meaning in segment_code(structure))
    return highdicom.seg.SegmentDescription(
        segment_number=number,
        segment_label=structure,
        segmented_property_category=category,
        segmented_property_type=type_,
        algorithm_type="SEMIAUTOMATIC" if algorithm.prompted else "AUTOMATIC",
        algorithm_identification=highdicom.AlgorithmIdentificationSequence(
            name=f"FedFMS {algorithm.task}"[:64],
            family=codes.cid7162.ArtificialIntelligence,
            version=__version__,
            source=MANUFACTURER,
            parameters={"model_sha256": algorithm.model_sha256},
        ),
        display_color=highdicom.color.CIELabColor.from_rgb(*colour_of(number - 1)),
    )
