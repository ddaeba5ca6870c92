"""Partition of a token grid into square windows without padding.

SAM and TinyViT pad the grid to a multiple of the window's side: at 256 px SAM's 16 x 16 tokens become 28 x 28, three
times the work. But query, key and value of a padded token are the same everywhere. So the windows at the grid's edge
keep only their real tokens here, and their padded keys, which differ in nothing but the bias b_i, become one key:

    sum_i exp(q k + b_i) v = exp(q k + log sum_i exp(b_i)) v
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor


def map_windows(function: Callable[[Tensor], Tensor], grid: Tensor, side: int) -> Tensor:
    """Apply a function to the whole windows of a grid and to those that its right edge, bottom edge and corner cut.

    Args:
        function: Of windows of one size, ``(B, rows, h, columns, w, C)`` with h and w at most ``side``, to
            ``(B, rows, h, columns, w, C')``.
        grid: ``(B, H, W, C)``.
        side: Side of a window in tokens; may be larger than the grid.

    Returns:
        ``(B, H, W, C')``.
    """
    strips = []
    for strip in torch.split(grid, _parts(grid.shape[1], side), dim=1):
        mapped = []
        for part in torch.split(strip, _parts(grid.shape[2], side), dim=2):
            height, width = min(side, part.shape[1]), min(side, part.shape[2])
            windows = unflatten(unflatten(part, 2, (-1, width)), 1, (-1, height))
            mapped.append(function(windows).flatten(3, 4).flatten(1, 2))
        strips.append(torch.cat(mapped, dim=2) if len(mapped) > 1 else mapped[0])
    return torch.cat(strips, dim=1) if len(strips) > 1 else strips[0]


def unflatten(tensor: Tensor, dim: int, sizes: tuple[int, ...]) -> Tensor:
    """``Tensor.unflatten``, which has no types."""
    return cast(Tensor, tensor.unflatten(dim, sizes))  # type: ignore[no-untyped-call]


def _parts(length: int, side: int) -> list[int]:
    """Lengths of the whole windows together and of the cut one, without those that are 0."""
    return [part for part in (length - length % side, length % side) if part]
