"""Attention with a bias: PyTorch's fused kernel on a GPU, pieces that fit the cache on a CPU.

On a CPU the fused kernel is slow backwards. ``PiecewiseAttention`` works through the scores in pieces and computes
them again in the backward pass, so that no matrix of tokens by tokens is ever stored.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from fedfms.sam.arithmetic import has_fast_bf16
from fedfms.sam.windows import unflatten

# Scores in one piece for each thread: 2 MB in fp32, the level-2 cache of a core. With whole heads of 4096 x 4096
# scores, softmax and its gradient take 1.4 and 2 times as long per score (fp32, Xeon with 2 MB of it per core).
PIECE = 2**19

_Piece = tuple[slice, slice, slice]


class Bias(NamedTuple):
    """What is added to the scores ``(n, heads, Q, K)`` of queries and keys.

    Attributes:
        row: ``(n, heads, Q, h)``: for all keys in a row of a grid of h x w keys; comes with ``column``.
        column: ``(n, heads, Q, w)``: for all keys in a column of that grid.
        last: ``(n, heads, Q, 1)``: for one more key behind the grid.
        table: ``(heads, Q, K)``: the same for all n.
    """

    row: Tensor | None = None
    column: Tensor | None = None
    last: Tensor | None = None
    table: Tensor | None = None


def uses_fused_kernel(device: torch.device) -> bool:
    """Whether attention runs in PyTorch's fused kernel: everywhere but on CPUs."""
    return device.type != "cpu"


def attention(query: Tensor, key: Tensor, value: Tensor, bias: Bias) -> Tensor:
    """``softmax(query @ key^T / sqrt(d) + bias) @ value``.

    Args:
        query: ``(n, heads, Q, d)``.
        key: ``(n, heads, K, d)``.
        value: ``(n, heads, K, d)``.
        bias: ``row`` and ``column``, with ``last`` or without; or ``table``.

    Returns:
        ``(n, heads, Q, d)``.
    """
    by_row, by_column, by_table = (term is not None for term in (bias.row, bias.column, bias.table))
    assert by_row == by_column != by_table
    if uses_fused_kernel(query.device):
        return _fused(query, key, value, bias)
    return cast(Tensor, PiecewiseAttention.apply(query, key, value, *bias))


def append_key(keys: Tensor, key: Tensor) -> Tensor:
    """One more key (or value) ``(1, heads, 1, d)``, the same for all n, behind ``(n, heads, K, d)``."""
    return torch.cat([keys, key.expand(keys.shape[0], -1, -1, -1)], dim=2)


def _fused(query: Tensor, key: Tensor, value: Tensor, bias: Bias) -> Tensor:
    """Without a matrix of tokens by tokens where rows and columns are given.

    They are folded into queries and keys: ``q k + row[row of k] + column[column of k]`` is
    ``[q, row, column] . [k, onehot(row of k), onehot(column of k)]``.
    """
    size = query.shape[-1]
    if bias.row is None or bias.column is None:
        assert bias.table is not None
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias.table.to(query.dtype))
    terms = [bias.row, bias.column] if bias.last is None else [bias.row, bias.column, bias.last]
    query = torch.cat([query * size**-0.5, *terms], dim=-1).to(value.dtype)
    height, width = bias.row.shape[-1], bias.column.shape[-1]
    rows = torch.eye(height, dtype=key.dtype, device=key.device).repeat_interleave(width, dim=0)
    columns = torch.eye(width, dtype=key.dtype, device=key.device).repeat(height, 1)
    places = torch.cat([rows, columns], dim=-1)
    if bias.last is not None:
        places = F.pad(places, (0, 1, 0, 1))
        places[-1, -1] = 1
    key = torch.cat([key, places.expand(*key.shape[:2], -1, -1)], dim=-1)
    # The fused kernels want one width for all three, a multiple of 8.
    padded = -(-query.shape[-1] // 8) * 8
    query, key, value = (F.pad(part, (0, padded - part.shape[-1])) for part in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value, scale=1.0)[..., :size]


class PiecewiseAttention(torch.autograd.Function):
    """``attention`` for CPUs; its tensors are query, key, value and the four parts of ``Bias``."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, *bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(query, key, value, *bias)
        mixed = torch.empty_like(query)
        scaled, key, value = _for_products(query, key, value)
        scaled = scaled * query.shape[-1] ** -0.5
        with torch.autocast("cpu", enabled=False):
            for piece in _pieces(query, key):
                mixed[piece] = _weights(piece, scaled, key, Bias(*bias)) @ value[piece[:2]]
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *terms = ctx.saved_tensors
        bias, scale = Bias(*terms), query.shape[-1] ** -0.5
        d_query = torch.empty_like(query)
        d_row, d_column, d_last = (None if term is None else torch.empty_like(term) for term in bias[:3])
        scaled, keys, values, d_mixed = _for_products(query, key, value, *gradients)
        scaled = scaled * scale
        # Sums over pieces, hence not in bf16; transposed, because the products are faster so.
        wide = torch.promote_types(query.dtype, torch.float32)
        d_key, d_value = (part.new_zeros(part.mT.shape, dtype=wide) for part in (key, value))
        d_table = None
        if bias.table is not None and bias.table.requires_grad:
            d_table = torch.zeros_like(bias.table, dtype=wide)
        for piece in _pieces(query, key):
            weights = _weights(piece, scaled, keys, bias)
            _add_product(d_value[piece[:2]], d_mixed[piece].mT, weights)
            d_weights = d_mixed[piece] @ values[piece[:2]].mT
            # What autograd itself calls; no public function does it in one pass.
            d_scores = torch._softmax_backward_data(d_weights, weights, -1, weights.dtype)
            d_query[piece] = (d_scores @ keys[piece[:2]]).mul_(scale)
            _add_product(d_key[piece[:2]], scaled[piece].mT, d_scores)
            if d_row is not None and d_column is not None:
                grid = _as_grid(d_scores, d_row, d_column)
                d_row[piece], d_column[piece] = grid.sum(-1), grid.sum(-2)
            if d_last is not None:
                d_last[piece] = d_scores[..., -1:]
            if d_table is not None:
                d_table[piece[1:]] += d_scores.sum(0)
        return (
            d_query,
            d_key.mT.to(key.dtype),
            d_value.mT.to(value.dtype),
            d_row,
            d_column,
            d_last,
            d_table if d_table is None else d_table.to(terms[3].dtype),
        )


def _for_products(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in the type in which this CPU multiplies them fastest."""
    slow = tensors[0].dtype == torch.bfloat16 and not has_fast_bf16()
    return tuple(tensor.float() if slow else tensor for tensor in tensors)


def _pieces(query: Tensor, key: Tensor) -> Iterator[_Piece]:
    """Slices of n, heads and queries that cover all scores: some n with all heads, or some queries of some heads.

    Of large scores as many heads are taken as there are threads, so that each thread multiplies a head of its own: for
    4096 x 4096 scores a fifth faster on two threads than sharing the products of one head.
    """
    count, heads, queries, _ = query.shape
    keys = key.shape[2]
    scores, threads = heads * queries * keys, torch.get_num_threads()
    if scores <= PIECE * threads:
        step = PIECE * threads // scores
        for start in range(0, count, step):
            yield slice(start, start + step), slice(None), slice(None)
        return
    together = min(heads, threads)
    step = max(1, PIECE * threads // (together * keys))
    for index in range(count):
        for head in range(0, heads, together):
            for start in range(0, queries, step):
                yield slice(index, index + 1), slice(head, head + together), slice(start, start + step)


def _weights(piece: _Piece, scaled: Tensor, key: Tensor, bias: Bias) -> Tensor:
    """The piece of ``softmax(scaled @ key^T + bias)``, with the queries scaled by ``1 / sqrt(d)``."""
    scores = scaled[piece] @ key[piece[:2]].mT
    if bias.row is not None and bias.column is not None:
        grid = _as_grid(scores, bias.row, bias.column)
        grid += bias.row[piece].unsqueeze(-1)
        grid += bias.column[piece].unsqueeze(-2)
    if bias.last is not None:
        scores[..., -1:] += bias.last[piece]
    if bias.table is not None:
        scores += bias.table[piece[1:]]
    return torch.softmax(scores, -1)


def _add_product(total: Tensor, first: Tensor, second: Tensor) -> None:
    """``total += first @ second``; all three with two leading axes."""
    if total.dtype == first.dtype:
        total.view(-1, *total.shape[2:]).baddbmm_(first.flatten(0, 1), second.flatten(0, 1))  # one pass
    else:
        total += first @ second


def _as_grid(scores: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """A view ``(..., h, w)`` of the scores of the keys in the grid."""
    height, width = row.shape[-1], column.shape[-1]
    return unflatten(scores[..., : height * width], -1, (height, width))
