"""Partition of a token grid into square windows without padding.

SAM and TinyViT pad the grid to a multiple of the window's side: at 256 px SAM's 16 x 16 tokens become 28 x 28, three
times the work. But query, key and value of a padded token are the same everywhere. So the windows at the grid's edge
keep only their real tokens here, and their padded keys, which differ in nothing but the bias b_i, become one key:

    sum_i exp(q k + b_i) v = exp(q k + log sum_i exp(b_i)) v
"""

from __future__ import annotations

import torch
from torch import Tensor


def split_windows(grid: Tensor, side: int) -> list[Tensor]:
    """Cut a grid into its whole windows and those cut by the right edge, the bottom edge and the corner.

    Args:
        grid: ``(B, H, W, ...)``.
        side: Side of a window in tokens; may be larger than the grid.

    Returns:
        One to four views ``(B, rows, h, columns, w, ...)``, h and w at most ``side``, in reading order.
    """
    batch, height, width = grid.shape[:3]
    regions = []
    for strip in grid.split(_parts(height, side), dim=1):
        for part in strip.split(_parts(width, side), dim=2):
            rows, columns = max(1, part.shape[1] // side), max(1, part.shape[2] // side)
            regions.append(part.unflatten(1, (rows, -1)).unflatten(3, (columns, -1)))
    return regions


def join_windows(regions: list[Tensor], height: int, width: int, side: int) -> Tensor:
    """The inverse of ``split_windows``: ``(B, H, W, ...)``."""
    parts = [region.flatten(3, 4).flatten(1, 2) for region in regions]
    across = len(_parts(width, side))
    strips = [_cat(parts[start : start + across], dim=2) for start in range(0, len(parts), across)]
    return _cat(strips, dim=1)


def _parts(length: int, side: int) -> list[int]:
    """Lengths of the whole windows together and of the cut one, without those that are 0."""
    return [part for part in (length - length % side, length % side) if part]


def _cat(tensors: list[Tensor], dim: int) -> Tensor:
    return torch.cat(tensors, dim) if len(tensors) > 1 else tensors[0]
