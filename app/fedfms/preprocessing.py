"""How a slice becomes a model input: intensity rule, scaling with kept aspect, padding, normalisation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fedfms.configuration import Number, Strict


class PercentileIntensity(Strict):
    """Clip to two percentiles of the whole image or volume, then scale to 0..255 (MR)."""

    rule: Literal["percentile"]
    low: Annotated[Number, Field(ge=0, lt=100)]
    high: Annotated[Number, Field(gt=0, le=100)]

    @model_validator(mode="after")
    def _ordered(self) -> PercentileIntensity:
        if self.low >= self.high:
            raise ValueError("low must be smaller than high")
        return self


class WindowIntensity(Strict):
    """Clip to ``center - width/2 .. center + width/2`` (Hounsfield units in CT), then scale to 0..255."""

    rule: Literal["window"]
    center: Number
    width: Annotated[Number, Field(gt=0)]


class RangeIntensity(Strict):
    """Keep 8-bit values as they are; scale 16-bit values by their type's range to 0..255 (photographs)."""

    rule: Literal["range"]


Channels = Literal["same", "neighbours"]
Intensity = Annotated[PercentileIntensity | WindowIntensity | RangeIntensity, Field(discriminator="rule")]


class Preprocessing(Strict):
    """Part of the job, its digest and every checkpoint: inference needs nothing else.

    Attributes:
        input_size: Side of the square model input in pixels.
        intensity: Rule that maps stored values to 0..255.
        slice_axis: Anatomical plane along which volumes become slices, or ``thickest``: the one across the largest
            voxel side. Not read for raster images.
        channels: What the model's three channels hold for grey images. ``same``: the slice, three times.
            ``neighbours`` (2.5D): the slice before it in the volume, the slice, the one after it.
    """

    input_size: Annotated[int, Field(strict=True, ge=32, le=2048, multiple_of=16)]
    intensity: Intensity
    slice_axis: Literal["axial", "coronal", "sagittal", "thickest"]
    channels: Channels = "same"
