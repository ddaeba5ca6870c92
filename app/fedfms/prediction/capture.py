"""Secondary captures (PS3.3 A.8.1): the outlines drawn on the slices, for viewers that do not show DICOM SEG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from fedfms import __version__
from fedfms.colours import colour_of
from fedfms.data.slices.intensity import intensity_bounds, to_model_range
from fedfms.data.volume.geometry import Array, Picture, SourceFrame, Volume
from fedfms.files import atomic_folder
from fedfms.prediction.codes import SOURCE_IMAGE
from fedfms.prediction.dicom_output import CHARACTER_SET, MANUFACTURER, MODEL_NAME, Algorithm
from fedfms.prediction.dicom_reference import (
    header_faults,
    header_value,
    patient_orientation,
    quiet_dicom,
    read_references,
    series_number,
    sources_of,
    stored_slices,
)
from fedfms.prediction.results import Masks
from fedfms.preprocessing import Intensity
from fedfms.training.evaluation import RESEARCH_NOTICE

_SERIES = 29000
# Smaller slices are enlarged, so that the text below them can be read.
_LEAST_WIDTH = 512
_LINE = 20
_MARGIN = 6


def write_captures(
    folder: Path, where: Path, origin: Volume | Picture, masks: Masks, intensity: Intensity, algorithm: Algorithm
) -> None:
    """Write one colour image per slice on which something was found, or the middle slice when nothing was.

    Slices are shown as stored, with the grey-level window of the source (PS3.3 C.11.2), else that of the model's
    intensity rule.

    Args:
        folder: Gets the files, ``0001.dcm`` for the first slice; it replaces what is there.
        where: The source, named in the error.
        origin: The image that the masks were predicted from.
        masks: In the order of ``origin``, 0/1.
        intensity: The model's intensity rule.
        algorithm: Named in each file.

    Raises:
        FedfmsError: FMS-P004 when the source's header is unfit, FMS-D011 when the folder cannot be written.
    """
    import highdicom

    values = origin.values[None] if isinstance(origin, Picture) else origin.voxels.transpose(2, 1, 0)
    planes = {name: stored_slices(origin, mask) for name, mask in masks.items()}
    found = np.flatnonzero(np.any([plane.any(axis=(1, 2)) for plane in planes.values()], axis=0))
    series = highdicom.UID()
    sources = sources_of(origin)
    with quiet_dicom(), atomic_folder(folder) as temporary:
        headers = {header.SOPInstanceUID: header for header in read_references(origin)}
        bounds = _window(headers[sources[0].sop_instance_uid], where)
        bounds = bounds or intensity_bounds(values, intensity, str(where))
        for index in map(int, found if len(found) else [len(values) // 2]):
            picture = draw_outlines(
                to_model_range(values[index], bounds), {name: plane[index] for name, plane in planes.items()}
            )
            source = sources[index]
            header = headers[source.sop_instance_uid]
            capture = _capture(picture, header, origin, series, index, algorithm, where)
            capture.SourceImageSequence = [_reference(header, source)]
            capture.save_as(temporary / f"{index + 1:04d}.dcm")


def _window(header: Any, where: Path) -> tuple[float, float] | None:
    """Values shown as black and as white; None without a window, or when the reader has inverted the values."""
    center, width = (header_value(header, name, where) for name in ("WindowCenter", "WindowWidth"))
    if center in (None, "") or width in (None, "") or header.PhotometricInterpretation != "MONOCHROME2":
        return None
    middle, extent = (float(np.atleast_1d(value)[0]) for value in (center, width))
    return (middle - extent / 2, middle + extent / 2) if extent >= 1 else None


def draw_outlines(image: npt.NDArray[np.float32], masks: Masks) -> npt.NDArray[np.uint8]:
    """Draw a slice with the outlines, and below it the structures' names and the notice.

    Args:
        image: (3, rows, columns) in 0..255.
        masks: Structure -> (rows, columns) in 0/1.

    Returns:
        (rows, columns, 3), uint8; the slice enlarged by a whole factor, and the lines of text below it.
    """
    from scipy.ndimage import binary_erosion

    times = -(-_LEAST_WIDTH // image.shape[2])
    canvas = _enlarged(np.rint(image).astype(np.uint8).transpose(1, 2, 0), times)
    for position, mask in enumerate(masks.values()):
        inside = _enlarged(mask, times).astype(bool)
        canvas[inside & ~binary_erosion(inside)] = colour_of(position)
    legend = _legend(list(masks), canvas.shape[1])
    return np.concatenate([canvas, legend])


def _legend(names: list[str], width: int) -> npt.NDArray[np.uint8]:
    font = ImageFont.load_default(14)
    places, x, line = [], _MARGIN, 0
    for name in names:
        length = int(font.getlength(name))
        if x > _MARGIN and x + length > width - _MARGIN:
            x, line = _MARGIN, line + 1
        places.append((x, line * _LINE))
        x += length + 3 * _MARGIN
    picture = Image.new("RGB", (width, (line + 2) * _LINE))
    pencil = ImageDraw.Draw(picture)
    for position, (name, corner) in enumerate(zip(names, places, strict=True)):
        pencil.text(corner, name, fill=colour_of(position), font=font)
    pencil.text((_MARGIN, (line + 1) * _LINE), f"FedFMS: {RESEARCH_NOTICE}", fill=(255, 255, 255), font=font)
    return np.asarray(picture)


def _enlarged(image: Array, times: int) -> Array:
    result: Array = image.repeat(times, axis=0).repeat(times, axis=1)
    return result


def _capture(
    picture: Array, header: Any, origin: Volume | Picture, series: str, index: int, algorithm: Algorithm, where: Path
) -> Any:
    import highdicom

    number = series_number(header, _SERIES)
    with header_faults(where):
        capture = highdicom.sc.SCImage.from_ref_dataset(
            header,
            pixel_array=picture,
            photometric_interpretation="RGB",
            bits_allocated=8,
            coordinate_system="PATIENT",
            patient_orientation=("L", "P"),
            series_instance_uid=series,
            series_number=number,
            sop_instance_uid=highdicom.UID(),
            instance_number=index + 1,
            manufacturer=MANUFACTURER,
            manufacturer_model_name=MODEL_NAME,
            software_versions=__version__,
            device_serial_number=algorithm.model_sha256,
            series_description=f"FedFMS outlines: {RESEARCH_NOTICE}",
            transfer_syntax_uid="1.2.840.10008.1.2.1",
            specific_character_set=CHARACTER_SET,
        )
    capture.PatientOrientation = patient_orientation(origin, header, where)
    if aspect := _pixel_aspect(origin, header, where):
        capture.PixelAspectRatio = aspect
    capture.Laterality = header_value(header, "Laterality", where) or ""
    capture.ImageComments = RESEARCH_NOTICE
    capture.DerivationDescription = f"Outlines drawn by FedFMS {__version__}, model {algorithm.model_sha256}"
    # The text that is drawn names nobody; text in the source may.
    burned_in = header_value(header, "BurnedInAnnotation", where) == "YES"
    capture.BurnedInAnnotation = "YES" if burned_in else "NO"
    return capture


def _pixel_aspect(origin: Volume | Picture, header: Any, where: Path) -> list[int] | None:
    """Height and width of a pixel as a ratio of whole numbers (PS3.3 C.7.6.3.1.7); None when it is square."""
    if isinstance(origin, Picture):
        return list(header_value(header, "PixelAspectRatio", where) or []) or None
    width, height, _ = origin.grid.spacing
    return None if np.isclose(width, height, rtol=1e-3) else [round(1000 * height), round(1000 * width)]


def _reference(header: Any, source: SourceFrame) -> Any:
    import highdicom
    import pydicom

    item = pydicom.Dataset()
    item.ReferencedSOPClassUID = header.SOPClassUID
    item.ReferencedSOPInstanceUID = header.SOPInstanceUID
    if source.frame is not None:
        item.ReferencedFrameNumber = source.frame + 1
    value, scheme, meaning = SOURCE_IMAGE
    item.PurposeOfReferenceCodeSequence = [highdicom.sr.CodedConcept(value, scheme, meaning)]
    return item
