"""Medical SAM Adapter: small bottlenecks beside frozen transformer blocks.

Source: Wu et al., "Medical SAM Adapter", arXiv 2304.12620, section 3.2, as used by FedFMS (MICCAI 2024).
Each adapted block computes, with A(x) = W_up GELU(W_down x + b_down) + b_up,

    y = Attention(LN(x));  x = x + y + A_attention(y)
    h = LN(x);             x = x + MLP(h) + scale * A_mlp(h)

W_up and b_up start at zero, so the adapted model starts exactly as the frozen one.
"""

from __future__ import annotations

import math
from typing import Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from fedfms.sam.arithmetic import Linear
from fedfms.sam.config import AdapterConfig


@runtime_checkable
class AdapterModule(Protocol):
    """A module that has adapter parameters and names them, as torchtune's protocol of this name."""

    def adapter_params(self) -> list[str]:
        """Names of its adapter parameters, relative to the module."""
        ...


class Adapter(nn.Module):
    """Bottleneck ``Linear(width, hidden) - GELU - Linear(hidden, width)``, zero at the start.

    Args:
        width: Channels of the tokens.
        ratio: ``hidden = max(1, round(width * ratio))``.
    """

    def __init__(self, width: int, ratio: float) -> None:
        super().__init__()
        hidden = max(1, round(width * ratio))
        self.down = Linear(width, hidden)
        self.act = nn.GELU()
        self.up = Linear(hidden, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """``(..., width)`` to ``(..., width)``."""
        return cast(Tensor, self.up(self.act(self.down(tokens))))

    def adapter_params(self) -> list[str]:
        """All of its parameters."""
        return [f"{layer}.{leaf}" for layer in ("down", "up") for leaf in ("weight", "bias")]

    @torch.no_grad()
    def reset(self, generator: torch.Generator) -> None:
        """Draw the first Linear uniformly from ``generator``, set the last to zero.

        Uniform numbers, because their bits are the same on every processor; sites derive this state
        themselves and compare it with the server's.
        """
        bound = 1 / math.sqrt(self.down.in_features)
        for parameter in (self.down.weight, self.down.bias):
            parameter.copy_((torch.rand(parameter.shape, generator=generator) * 2 - 1) * bound)
        self.up.weight.zero_()
        self.up.bias.zero_()


class AdaptableBlock(Protocol):
    """A transformer block that runs its two adapters if it has them."""

    width: int
    adapter_attention: Adapter | None
    adapter_mlp: Adapter | None
    adapter_scale: float


def insert_adapters(blocks: list[AdaptableBlock], config: AdapterConfig) -> None:
    """Give the chosen blocks their adapters.

    Args:
        blocks: In the order of the forward pass.
        config: Which blocks, and the size of the bottleneck. Configurations that ask for more blocks than there are
            have been refused before (``fedfms.sam.config.impossible_settings``).
    """
    count = len(blocks) if config.blocks == "all" else config.blocks
    for block in blocks[len(blocks) - count :]:
        block.adapter_attention = Adapter(block.width, config.ratio)
        block.adapter_mlp = Adapter(block.width, config.ratio)
        block.adapter_scale = config.scale


def adapter_parameters(model: nn.Module) -> set[str]:
    """Names of the parameters in ``model`` that its modules declare as adapter parameters (``AdapterModule``).

    Raises:
        AssertionError: A declared parameter is not there, or one inside an ``Adapter`` is not declared. It would be
            frozen and never exchanged, and nobody would notice.
    """
    declared: set[str] = set()
    inside: set[str] = set()
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        if isinstance(module, AdapterModule):
            declared |= {prefix + own for own in module.adapter_params()}
        if isinstance(module, Adapter):
            inside |= {prefix + own for own, _ in module.named_parameters()}
    if missing := declared - {name for name, _ in model.named_parameters()}:
        raise AssertionError(f"declared adapter parameters that the model does not have: {sorted(missing)}")
    if undeclared := inside - declared:
        raise AssertionError(f"adapter parameters that no module declares: {sorted(undeclared)}")
    return declared
