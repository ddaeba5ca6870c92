"""Products of bf16 tensors on processors that are faster in fp32."""

from __future__ import annotations

from functools import cache
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


@cache
def has_fast_bf16() -> bool:
    """Whether the CPU multiplies in bf16 faster than in fp32.

    Intel's cores without AMX (hidden by some virtual machines) have an instruction for it that runs at half the speed
    of fp32: 167 against 320 GFLOP/s on two cores of a Xeon. AMD's run at twice that of fp32.
    """
    features = torch.cpu.get_capabilities()
    is_intel = "Intel" in str(features.get("cpu_name", ""))
    return bool(features.get("amx_bf16") or (features.get("avx512_bf16") and not is_intel))


class Linear(nn.Linear):
    """``nn.Linear``; under autocast to bf16 on a CPU without fast bf16 it multiplies in fp32, and gives bf16."""

    def forward(self, tokens: Tensor) -> Tensor:
        """``(..., in)`` to ``(..., out)``."""
        in_bf16 = tokens.device.type == "cpu" and torch.is_autocast_enabled("cpu")
        if in_bf16 and torch.get_autocast_dtype("cpu") == torch.bfloat16 and not has_fast_bf16():
            return cast(Tensor, _LinearInFp32.apply(tokens, self.weight, self.bias))
        return super().forward(tokens)


class _LinearInFp32(torch.autograd.Function):
    """Like autograd's own of a bf16 Linear, it keeps its input in bf16 and gives gradients in its inputs' types."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        # A frozen weight has no gradient that would need the input.
        ctx.save_for_backward(tokens.bfloat16() if weight.requires_grad else None, weight)
        ctx.dtype = tokens.dtype
        with torch.autocast("cpu", enabled=False):
            return F.linear(tokens.float(), weight, bias).bfloat16()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        tokens, weight = ctx.saved_tensors
        gradient = gradients[0].float()
        flat = gradient.reshape(-1, gradient.shape[-1])
        d_tokens = (gradient @ weight).to(ctx.dtype) if ctx.needs_input_grad[0] else None
        d_weight = flat.T @ tokens.float().reshape(-1, tokens.shape[-1]) if ctx.needs_input_grad[1] else None
        d_bias = flat.sum(0) if ctx.needs_input_grad[2] else None
        return d_tokens, d_weight, d_bias
