"""The preprocessing rules of a job: intensity, input size, plane of the slices, channels."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fedfms.configuration import Number, Strict


class PercentileIntensity(Strict):
    """Clip to two percentiles of the whole image or volume, then scale to 0..255. For MR."""

    rule: Literal["percentile"]
    low: Annotated[Number, Field(ge=0, lt=100)]
    high: Annotated[Number, Field(gt=0, le=100)]

    @model_validator(mode="after")
    def _ordered(self) -> PercentileIntensity:
        if self.low >= self.high:
            raise ValueError("low must be smaller than high")
        return self


class WindowIntensity(Strict):
    """Clip to ``center - width/2 .. center + width/2`` (Hounsfield units in CT), then scale to 0..255. For CT."""

    rule: Literal["window"]
    center: Number
    width: Annotated[Number, Field(gt=0)]


class RangeIntensity(Strict):
    """Keep 8-bit values; scale 16-bit values from the range of their type to 0..255. For photographs."""

    rule: Literal["range"]


#: The rules by name, in the order in which people are told of them.
INTENSITY_RULES: dict[str, type[PercentileIntensity | WindowIntensity | RangeIntensity]] = {
    "percentile": PercentileIntensity,
    "window": WindowIntensity,
    "range": RangeIntensity,
}

Channels = Literal["same", "neighbours"]
Intensity = Annotated[PercentileIntensity | WindowIntensity | RangeIntensity, Field(discriminator="rule")]


class Preprocessing(Strict):
    """From stored values to model inputs. Part of the job, its digest and every checkpoint.

    Attributes:
        input_size: Side of the square model input in pixels.
        intensity: Rule that maps stored values to 0..255.
        slice_axis: Anatomical plane in which volumes are cut into slices, or ``thickest``: the plane across the largest
            voxel side. Not used for raster images.
        channels: The model's three channels for grey images. ``same``: the slice three times. ``neighbours`` (2.5D):
            the slice before it in the volume, the slice itself, the slice after it.
    """

    input_size: Annotated[int, Field(strict=True, ge=32, le=2048, multiple_of=16)]
    intensity: Intensity
    slice_axis: Literal["axial", "coronal", "sagittal", "thickest"]
    channels: Channels = "same"
