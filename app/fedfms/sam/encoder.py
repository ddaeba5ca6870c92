"""The base class of image encoders: a chain of units, the first of which may be frozen.

The units before the first with a trainable parameter give the same output every time; it is computed once per
image and cached (``fedfms.training.cache``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import cast

from segment_anything.modeling.common import LayerNorm2d
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fedfms.sam.adapter import AdaptableBlock


class Neck(nn.Sequential):
    """SAM's neck: channels-last tokens ``(batch, rows, columns, inputs)`` to ``(batch, outputs, rows, columns)``."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel_size=1, bias=False),
            LayerNorm2d(outputs),
            nn.Conv2d(outputs, outputs, kernel_size=3, padding=1, bias=False),
            LayerNorm2d(outputs),
        )

    def forward(self, tokens: Tensor) -> Tensor:
        features = tokens.permute(0, 3, 1, 2)
        for layer in self:
            features = layer(features)
        return features


class Encoder(nn.Module, ABC):
    """An image encoder as a chain of named units.

    Attributes:
        gradient_checkpointing: Recompute each unit in the backward pass instead of keeping its activations.
    """

    gradient_checkpointing = False

    @abstractmethod
    def units(self) -> list[tuple[str, nn.Module]]:
        """Names and modules, applied one after the other."""

    def blocks(self) -> list[AdaptableBlock]:
        """The transformer blocks among the units, in order."""
        return [cast(AdaptableBlock, unit) for _, unit in self.units() if hasattr(unit, "adapter_attention")]

    def unit_name(self, index: int) -> str:
        """Name of a unit; ``end`` for the index after the last."""
        return [*(name for name, _ in self.units()), "end"][index]

    def first_trainable(self) -> int:
        """Index of the first unit with a trainable parameter; the number of units if there is none."""
        for index, (_, unit) in enumerate(self.units()):
            if any(parameter.requires_grad for parameter in unit.parameters()):
                return index
        return len(self.units())

    def prefix(self, images: Tensor, first_trainable: int) -> Tensor:
        """Run the units before ``first_trainable``: images ``(B, 3, S, S)`` to their activation."""
        activation = images
        for _, unit in self.units()[:first_trainable]:
            activation = unit(activation)
        return activation

    def suffix(self, activation: Tensor, first_trainable: int) -> Tensor:
        """Run the units from ``first_trainable`` on: the prefix's activation to embeddings ``(B, C, S/p, S/p)``."""
        for _, unit in self.units()[first_trainable:]:
            if self.gradient_checkpointing and self.training:
                activation = checkpoint(unit, activation, use_reentrant=False)
            else:
                activation = unit(activation)
        return activation

    def forward(self, images: Tensor) -> Tensor:
        """Images ``(B, 3, S, S)``, normalised, to embeddings ``(B, C, S/p, S/p)``."""
        return self.suffix(images, 0)
