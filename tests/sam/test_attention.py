"""Attention in pieces and by the fused kernel: against the formula written out, values and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fedfms.sam import attention as module
from fedfms.sam.attention import Bias, PiecewiseAttention, attention
from fedfms.sam.windows import map_windows

COUNT, HEADS, QUERIES, HEIGHT, WIDTH, SIZE = 3, 2, 5, 2, 3, 4
KINDS = ("grid", "grid and one more", "table")
# 10: one or two queries of one head; 100: one n with all heads; the last: everything at once.
PIECES = (10, 100, 2**20)


def _inputs(kind: str) -> tuple[Tensor, ...]:
    """Query, key, value and the parts of the bias that are there, in double precision, all with gradients."""
    generator = torch.Generator().manual_seed(0)
    keys = HEIGHT * WIDTH + (kind == "grid and one more")

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    query, key, value = draw(COUNT, HEADS, QUERIES, SIZE), *(draw(COUNT, HEADS, keys, SIZE) for _ in range(2))
    if kind == "table":
        return query, key, value, draw(HEADS, QUERIES, keys)
    lengths = (HEIGHT, WIDTH, 1)[: 2 if kind == "grid" else 3]
    return query, key, value, *(draw(COUNT, HEADS, QUERIES, length) for length in lengths)


def _bias(kind: str, parts: tuple[Tensor, ...]) -> Bias:
    return Bias(table=parts[0]) if kind == "table" else Bias(*parts)


def _written_out(query: Tensor, key: Tensor, value: Tensor, bias: Bias) -> Tensor:
    scores = query @ key.transpose(-2, -1) / SIZE**0.5
    if bias.table is not None:
        scores = scores + bias.table
    else:
        assert bias.row is not None and bias.column is not None
        whole = (bias.row[..., :, None] + bias.column[..., None, :]).flatten(-2)
        scores = scores + (whole if bias.last is None else torch.cat([whole, bias.last], dim=-1))
    return scores.softmax(-1) @ value


@pytest.fixture(params=["fused", *PIECES])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each way to compute, whatever the device; pieces of several sizes."""
    monkeypatch.setattr(module, "uses_fused_kernel", lambda device: request.param == "fused")
    if request.param != "fused":
        monkeypatch.setattr(module, "PIECE", request.param)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients_are_those_of_the_formula(kind: str) -> None:
    inputs = _inputs(kind)
    results = []
    for function in (attention, _written_out):
        mixed = function(*inputs[:3], _bias(kind, inputs[3:]))
        results.append((mixed, *torch.autograd.grad(mixed.sin().sum(), inputs)))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("piece", PIECES)
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_the_pieces_against_differences(kind: str, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECE", piece)
    inputs = _inputs(kind)

    def function(*tensors: Tensor) -> Tensor:
        return PiecewiseAttention.apply(*tensors[:3], *_bias(kind, tensors[3:]))

    assert torch.autograd.gradcheck(function, inputs, fast_mode=piece != 100)


@pytest.mark.parametrize("fast", [False, True], ids=["fp32 arithmetic", "bf16 arithmetic"])
def test_bf16_under_autocast_stays_near_the_formula(fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "has_fast_bf16", lambda: fast)
    inputs = [tensor.detach().bfloat16().requires_grad_() for tensor in _inputs("grid")]
    with torch.autocast("cpu", torch.bfloat16):
        mixed = attention(*inputs[:3], Bias(*inputs[3:]))
    assert mixed.dtype == torch.bfloat16
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    expected = _written_out(*exact[:3], Bias(*exact[3:]))
    torch.testing.assert_close(mixed.double(), expected, rtol=0.02, atol=0.02)
    found = torch.autograd.grad(mixed.float().sum(), inputs)
    for one, other in zip(found, torch.autograd.grad(expected.sum(), exact), strict=True):
        assert one.dtype == torch.bfloat16
        torch.testing.assert_close(one.double(), other, rtol=0.05, atol=0.05)


def test_the_cpu_takes_pieces_and_the_gpu_the_fused_kernel() -> None:
    assert not module.uses_fused_kernel(torch.device("cpu"))
    assert module.uses_fused_kernel(torch.device("cuda"))


@pytest.mark.parametrize(
    ("features", "fast"),
    [
        ({"cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_bf16": False}, False),
        ({"cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_bf16": True}, True),
        ({"cpu_name": "AMD EPYC", "avx512_bf16": True}, True),
        ({"cpu_name": "AMD EPYC"}, False),
    ],
)
def test_bf16_is_fast_where_it_is_faster_than_fp32(
    features: dict[str, object], fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features)
    assert module.has_fast_bf16.__wrapped__() is fast


@pytest.mark.parametrize(
    ("shape", "side", "sizes"),
    [
        ((6, 6), 3, [(2, 3, 2, 3)]),
        ((7, 6), 3, [(2, 3, 2, 3), (1, 1, 2, 3)]),
        ((7, 8), 3, [(2, 3, 2, 3), (2, 3, 1, 2), (1, 1, 2, 3), (1, 1, 1, 2)]),
        ((5, 4), 14, [(1, 5, 1, 4)]),
    ],
    ids=["fits", "bottom cut", "both cut", "larger"],
)
def test_every_token_is_in_the_window_that_padding_would_give_it(
    shape: tuple[int, int], side: int, sizes: list[tuple[int, ...]]
) -> None:
    height, width = shape
    row, column = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    grid = torch.stack([row, column], dim=-1).expand(2, height, width, 2)
    seen = []

    def within(windows: Tensor) -> Tensor:
        seen.append(tuple(windows.shape[1:5]))
        row_in_window = torch.arange(windows.shape[2])[:, None, None].expand(*windows.shape[2:5])
        column_in_window = torch.arange(windows.shape[4]).expand(*windows.shape[2:5])
        inside = torch.stack([row_in_window, column_in_window], dim=-1)
        return torch.cat([windows, inside.expand(*windows.shape)], dim=-1)

    places = map_windows(within, grid, side)
    assert seen == sizes
    assert torch.equal(places[..., :2], grid)
    assert torch.equal(places[..., 2:], grid % side)
