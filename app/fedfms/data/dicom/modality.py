"""From stored pixels to values: the modality transform (PS3.3 C.11.1), the polarity, and padding."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedfms.data.dicom.elements import Elements, as_unreadable
from fedfms.data.volume.geometry import Array
from fedfms.data.volume.remedies import GeneralRemedy
from fedfms.errors import IMAGE_UNREADABLE, fail

#: Modalities whose rescaled values are measurements: Hounsfield units, activity.
_MEASURED = ("CT", "PT", "NM")
_UNITS = ("HU", "HU_MOD", "BQML", "OD")
_PAIR = ("RescaleSlope", "RescaleIntercept")
_16_BITS = (1 << 16) - 1
_EXPORT = GeneralRemedy("Export the series again from its source.")


@dataclass(frozen=True)
class Rescale:
    """``value = slope * stored + intercept``.

    Attributes:
        slope, intercept: RescaleSlope (0028,1053) and RescaleIntercept (0028,1052).
        measured: Whether the values are in a unit, so that they mean the same whatever the polarity of the display.
    """

    slope: float = 1.0
    intercept: float = 0.0
    measured: bool = False


def rescale_of(header: Elements, groups: Sequence[Elements] = ()) -> Rescale | None:
    """The rescaling of a frame, wherever the object has it.

    Args:
        header: Elements of the file. The Modality LUT module is there in single-frame objects, and in Multi-frame
            Grayscale Secondary Capture (PS3.3 A.8.3, A.8.4).
        groups: Items of functional groups, the frame's own first (PS3.3 C.7.6.16.2.9); they come before the header.

    Returns:
        None when the file has a table instead (ModalityLUTSequence).

    Raises:
        FedfmsError: FMS-D004 for half a pair, a slope of 0, numbers that are not finite, and a table beside a pair.
    """
    path = header.path
    places = [item for group in groups for item in group.items("PixelValueTransformationSequence")[:1]]
    holders = [item for item in (*places, header) if item.has("RescaleSlope") or item.has("RescaleIntercept")]
    if header.has("ModalityLUTSequence"):
        if holders:
            raise fail(IMAGE_UNREADABLE, path, "both ModalityLUTSequence and RescaleSlope: only one may be there")
        return None
    if not holders:
        return Rescale()
    pair = [holders[0].numbers(name) for name in _PAIR]
    if any(len(numbers) != 1 or not math.isfinite(numbers[0]) for numbers in pair) or pair[0][0] == 0:
        shown = ", ".join(
            f"{name} {numbers[0]:g}" if len(numbers) == 1 else f"no {name}"
            for name, numbers in zip(_PAIR, pair, strict=True)
        )
        raise fail(IMAGE_UNREADABLE, path, f"the rescaling is not possible: {shown}", _EXPORT)
    unit = holders[0].text("RescaleType").upper()
    measured = unit in _UNITS or (unit in ("", "US") and header.text("Modality") in _MEASURED)
    return Rescale(pair[0][0], pair[1][0], measured)


def values_of(header: Elements, stored: Array, rescale: Rescale | None) -> Array:
    """Values after the modality transform, of which larger ones are brighter unless they are measurements.

    Args:
        header: All elements of the file.
        stored: Stored values of a grey frame.
        rescale: From ``rescale_of``; None: the table of the file.

    Returns:
        float32; NaN where PixelPaddingValue (0028,0120) says that there is no image.

    Raises:
        FedfmsError: FMS-D004 when values are not finite, and for MONOCHROME1 with rescaled values of unknown meaning.
    """
    import pydicom

    padding = _padding(header, stored)
    inverted = header.text("PhotometricInterpretation") == "MONOCHROME1"
    if inverted and (rescale is None or ((rescale.slope, rescale.intercept) != (1.0, 0.0) and not rescale.measured)):
        raise fail(
            IMAGE_UNREADABLE,
            header.path,
            "MONOCHROME1 with rescaled values of no known unit: either smaller values are brighter, or the rescaling"
            " has already turned them round",
            GeneralRemedy("Export the image as MONOCHROME2."),
        )
    if inverted and rescale is not None and not rescale.measured:
        # Signed values are mirrored about the middle of their range, -1/2; unsigned ones about that of 0 and the
        # largest (PS3.3 C.7.6.3.1.2).
        ends = -1 if stored.dtype.kind == "i" else (1 << header.whole("BitsStored")) - 1
        stored = ends - stored.astype(np.int64)
    with np.errstate(over="ignore", invalid="ignore"):  # refused below
        if rescale is None:
            with as_unreadable(header.path):
                rescaled = pydicom.pixels.apply_modality_lut(stored, header.dataset)
        else:
            rescaled = stored * rescale.slope + rescale.intercept
        values: Array = np.asarray(rescaled, dtype=np.float32)
    if not np.isfinite(values).all():
        raise fail(IMAGE_UNREADABLE, header.path, "the rescaled image holds values that are not finite")
    if padding is not None:
        values[padding] = np.nan
    return values


def fill_padding(values: Array) -> Array:
    """Padding (NaN) as the smallest value of the image, in place; 0 where all is padding."""
    missing = np.isnan(values)
    if missing.any():
        values[missing] = 0.0 if missing.all() else np.nanmin(values)
    return values


def _padding(header: Elements, stored: Array) -> Array | None:
    """Which pixels are padding (PS3.3 C.7.5.1.1.2); None without any."""
    if not header.has("PixelPaddingValue"):
        return None
    ends = [header.whole("PixelPaddingValue")]
    ends.append(header.whole("PixelPaddingRangeLimit", ends[0]))
    if stored.dtype.itemsize == 2:
        # Of signed pixels, some devices write it as if it were unsigned: the same bits.
        ends = [int(np.array(end & _16_BITS, np.uint16).astype(stored.dtype)) for end in ends]
    found: Array = (stored >= min(ends)) & (stored <= max(ends))
    return found if found.any() else None
