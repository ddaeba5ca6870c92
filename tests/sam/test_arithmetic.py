"""The Linear that multiplies in fp32 under autocast to bf16."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedfms.sam import arithmetic
from fedfms.sam.adapter import insert_adapters
from fedfms.sam.arithmetic import Linear
from fedfms.sam.backbones import BACKBONES
from fedfms.sam.config import AdapterConfig


@pytest.fixture
def slow_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arithmetic, "has_fast_bf16", lambda: False)


@pytest.mark.usefixtures("slow_bf16")
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(), (7,), (2, 3, 5)], ids=["one token", "tokens", "grids"])
def test_values_and_gradients_are_fp32_ones_rounded_once(
    shape: tuple[int, ...], dtype: torch.dtype, frozen: bool
) -> None:
    torch.manual_seed(0)
    linear = Linear(64, 32)
    tokens = torch.randn(*shape, 64).to(dtype).requires_grad_()
    weights = torch.randn(*shape, 32).bfloat16()
    if frozen:
        linear.requires_grad_(False)
    with torch.autocast("cpu", torch.bfloat16):
        found = linear(tokens)
    assert found.dtype == torch.bfloat16
    inputs = [tokens] if frozen else [tokens, linear.weight, linear.bias]
    gradients = torch.autograd.grad(found, inputs, weights)
    exact = tokens.detach().float().requires_grad_()
    expected = torch.nn.functional.linear(exact, linear.weight, linear.bias)
    assert torch.equal(found, expected.bfloat16())
    in_fp32 = list(torch.autograd.grad(expected, [exact, *inputs[1:]], weights.float()))
    if not frozen:
        # As autograd's own does, it keeps its input in bf16 for the weight's gradient.
        kept = tokens.detach().bfloat16().float()
        in_fp32[1] = weights.float().reshape(-1, 32).T @ kept.reshape(-1, 64)
    assert gradients[0].dtype == dtype
    torch.testing.assert_close(gradients[0], in_fp32[0].to(dtype))
    for one, other in zip(gradients[1:], in_fp32[1:], strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.usefixtures("slow_bf16")
def test_without_autocast_it_is_the_ordinary_linear() -> None:
    linear = Linear(8, 4).double()
    tokens = torch.randn(3, 8, dtype=torch.float64)
    assert torch.equal(linear(tokens), torch.nn.functional.linear(tokens, linear.weight, linear.bias))


@pytest.mark.parametrize("backbone", ["vit_t", "vit_test"])
def test_every_linear_layer_of_an_encoder_multiplies_that_way(backbone: str) -> None:
    with torch.device("meta"):
        encoder = BACKBONES[backbone].encoder(BACKBONES[backbone].native_size)
        insert_adapters(encoder.blocks(), AdapterConfig())
    layers = {name: type(module) for name, module in encoder.named_modules() if isinstance(module, nn.Linear)}
    assert len(layers) > 10 and set(layers.values()) == {Linear}, layers
