"""From a slice at its stored resolution to the model's input and back.

The steps in order: scale the longest side to the input size, keeping the aspect ratio; augment; normalise; pad at the
bottom and right with zeros. Padding comes last, as in SAM (``Sam.preprocess``) and LiteMedSAM, so that the padding is 0
in the normalised image.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from fedfms.data.slices.dataset import Sample
from fedfms.preprocessing import Preprocessing

Normalisation = Literal["unit", "sam"]

#: RGB mean and standard deviation on 0..255 of SAM's training (``segment_anything.build_sam``).
SAM_PIXEL_MEAN = (123.675, 116.28, 103.53)
SAM_PIXEL_STD = (58.395, 57.12, 57.375)

# Ranges of the augmentation, each in both directions: rotation in radians (15 degrees), shift in pixels for an
# input of 256, relative zoom, relative brightness, exponent.
_ROTATION = 0.26
_SHIFT_AT_256 = 12
_ZOOM = 0.1
_BRIGHTNESS = 0.15
_GAMMA = (0.8, 1.25)


@dataclass(frozen=True)
class Geometry:
    """Sizes of a slice before scaling, after scaling, and after padding.

    Attributes:
        native: (H, W) of the slice at its stored resolution.
        scaled: (h, w) of its part of the model input, at the top left.
        size: Side S of the square model input.
    """

    native: tuple[int, int]
    scaled: tuple[int, int]
    size: int

    def restore(self, logits: Tensor) -> Tensor:
        """Cut off the padding and scale back to the stored resolution.

        Args:
            logits: (C, S, S).

        Returns:
            (C, H, W), bilinearly interpolated.

        Raises:
            ValueError: for another shape.
        """
        if logits.ndim != 3 or tuple(logits.shape[1:]) != (self.size, self.size):
            raise ValueError(f"expected (C, {self.size}, {self.size}), found {tuple(logits.shape)}")
        part = logits[None, :, : self.scaled[0], : self.scaled[1]]
        return functional.interpolate(part, size=self.native, mode="bilinear", align_corners=False)[0]


def geometry_of(native: tuple[int, int], size: int) -> Geometry:
    """Scale the longest side to ``size``; no side becomes smaller than one pixel."""
    longest = max(native)
    height, width = (max(1, int(side * size / longest + 0.5)) for side in native)
    return Geometry(native, (height, width), size)


def prepare(
    sample: Sample, preprocessing: Preprocessing, normalisation: Normalisation, variant: int, seed: int
) -> tuple[Tensor, Tensor, Geometry]:
    """Make the model input of a slice.

    Args:
        sample: The slice; its values already follow the intensity rule.
        preprocessing: The job's rules.
        normalisation: ``unit``: minimum and maximum of the slice become 0 and 1 (LiteMedSAM). ``sam``: SAM's
            pixel mean and standard deviation on 0..255.
        variant: 0: no augmentation; 1 and above: each number is another augmentation.
        seed: The job's seed.

    Returns:
        Image (3, S, S) float32; masks (C, S, S) float32, 0 or 1; the geometry. The same slice content, variant and
        seed give the same bits.
    """
    geometry = geometry_of((sample.image.shape[1], sample.image.shape[2]), preprocessing.input_size)
    image = scale(torch.from_numpy(sample.image), geometry)
    masks = torch.from_numpy(sample.masks).float()
    masks = functional.interpolate(masks[None], size=geometry.scaled, mode="nearest-exact")[0]
    if variant > 0:
        image, masks = _augment(image, masks, variant, seed)
    return pad(normalise(image, normalisation), geometry), pad(masks, geometry), geometry


def scale(image: Tensor, geometry: Geometry) -> Tensor:
    """Scale images ``(..., 3, H, W)`` to ``(..., 3, h, w)``: bilinear, with antialiasing when they become smaller."""
    if geometry.scaled == geometry.native:
        return image.clone()
    stack = image.reshape(-1, *image.shape[-3:])
    scaled = functional.interpolate(stack, geometry.scaled, mode="bilinear", align_corners=False, antialias=True)
    return scaled.reshape(*image.shape[:-2], *geometry.scaled)


def normalise(image: Tensor, normalisation: Normalisation) -> Tensor:
    """Normalise an image ``(3, h, w)`` from 0..255 to the range that the backbone was trained on; see ``prepare``."""
    if normalisation == "unit":
        low, high = image.min(), image.max()
        return (image - low) / (high - low).clamp_min(1e-8)
    mean, std = torch.tensor(SAM_PIXEL_MEAN), torch.tensor(SAM_PIXEL_STD)
    return (image - mean[:, None, None]) / std[:, None, None]


def pad(image: Tensor, geometry: Geometry) -> Tensor:
    """Pad ``(..., h, w)`` to ``(..., S, S)`` with zeros below and to the right."""
    return functional.pad(image, (0, geometry.size - geometry.scaled[1], 0, geometry.size - geometry.scaled[0]))


def _augment(image: Tensor, masks: Tensor, variant: int, seed: int) -> tuple[Tensor, Tensor]:
    # The state depends on the slice's content, so that the same variant differs from slice to slice.
    content = hashlib.sha256(image.numpy().tobytes()).hexdigest()
    state = int(hashlib.sha256(f"{seed} {variant} {content}".encode()).hexdigest()[:8], 16)
    transform = _augmentation(max(image.shape[1:]))
    transform.set_random_state(seed=state)
    result = transform({"image": image, "masks": masks})
    return result["image"].as_tensor().clamp(0, 255), result["masks"].as_tensor()


@cache
def _augmentation(size: int) -> Any:
    # MONAI takes seconds to import, and only training needs it.
    from monai.transforms import Compose, RandAdjustContrastd, RandAffined, RandFlipd, RandScaleIntensityd

    both = ["image", "masks"]
    shift = _SHIFT_AT_256 * size / 256

    return Compose(
        [
            RandFlipd(both, prob=0.5, spatial_axis=0),
            RandFlipd(both, prob=0.5, spatial_axis=1),
            RandAffined(
                both,
                prob=0.8,
                rotate_range=_ROTATION,
                translate_range=(shift, shift),
                scale_range=(_ZOOM, _ZOOM),
                mode=("bilinear", "nearest"),
                padding_mode="zeros",
            ),
            RandScaleIntensityd(["image"], prob=0.5, factors=_BRIGHTNESS),
            RandAdjustContrastd(["image"], prob=0.5, gamma=_GAMMA),
        ]
    )
