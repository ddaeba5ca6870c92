"""SAM's ViT image encoder with fused attention, in the layout of SAM's weight files.

Source: Kirillov et al., "Segment Anything" (ICCV 2023), appendix A; decomposed relative positions after Li et
al., "MViTv2" (CVPR 2022), section 4.1. The relative positions are folded into queries and keys, so PyTorch's fused
attention runs without an N x N bias:

    q k + r_row(q)[row of k] + r_column(q)[column of k] = [q, r_row(q), r_column(q)] . [k, onehot(row), onehot(column)]
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from segment_anything.modeling.common import MLPBlock
from torch import Tensor, nn

from fedfms.sam.adapter import Adapter
from fedfms.sam.encoder import Encoder, Neck


class PatchEmbedding(nn.Module):
    """Convolution of one patch and the absolute position; ``(B, 3, S, S)`` to ``(B, S/p, S/p, C)``."""

    def __init__(self, width: int, patch: int, side: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=patch, stride=patch)
        self.pos_embed = nn.Parameter(torch.zeros(1, side, side, width))

    def forward(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.proj(images).permute(0, 2, 3, 1) + self.pos_embed)


class Attention(nn.Module):
    """Multi-head attention over an H x W grid with decomposed relative positions.

    Args:
        width: Channels.
        heads: Number of heads.
        side: Side of the grid in tokens.
    """

    def __init__(self, width: int, heads: int, side: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * side - 1, width // heads))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * side - 1, width // heads))

    def forward(self, tokens: Tensor) -> Tensor:
        """``(B, H, W, C)`` to the same shape, H = W = side."""
        batch, height, width, channels = tokens.shape
        count, size = height * width, channels // self.heads
        qkv = self.qkv(tokens).view(batch, count, 3, self.heads, size)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)

        grid = query.reshape(batch, self.heads, height, width, size)
        row, column = _distances(height, tokens.device), _distances(width, tokens.device)
        to_row = torch.einsum("bnhwc,hkc->bnhwk", grid, self.rel_pos_h[row].to(grid.dtype))
        to_column = torch.einsum("bnhwc,wkc->bnhwk", grid, self.rel_pos_w[column].to(grid.dtype))
        query = torch.cat([query * size**-0.5, to_row.flatten(2, 3), to_column.flatten(2, 3)], dim=-1).to(value.dtype)
        place = _one_hot_positions(height, width, key).expand(batch, self.heads, -1, -1)
        key = torch.cat([key, place], dim=-1)

        # The fused kernels want one width for all three, a multiple of 8.
        padded = -(-query.shape[-1] // 8) * 8
        query, key, value = (F.pad(part, (0, padded - part.shape[-1])) for part in (query, key, value))
        mixed = F.scaled_dot_product_attention(query, key, value, scale=1.0)[..., :size]
        return cast(Tensor, self.proj(mixed.transpose(1, 2).reshape(batch, height, width, channels)))


def _distances(side: int, device: torch.device) -> Tensor:
    """``(side, side)`` rows of the relative-position table: query index minus key index, shifted to 0."""
    index = torch.arange(side, device=device)
    return index[:, None] - index[None, :] + side - 1


def _one_hot_positions(height: int, width: int, like: Tensor) -> Tensor:
    """``(height * width, height + width)``: one-hot row, then one-hot column of each token."""
    rows = torch.eye(height, dtype=like.dtype, device=like.device).repeat_interleave(width, dim=0)
    columns = torch.eye(width, dtype=like.dtype, device=like.device).repeat(height, 1)
    return torch.cat([rows, columns], dim=-1)


class Block(nn.Module):
    """Transformer block with window attention, or global attention when ``window`` is 0.

    ``(B, H, W, C)`` to the same shape.
    """

    def __init__(self, width: int, heads: int, window: int, side: int, mlp_ratio: int) -> None:
        super().__init__()
        self.width = width
        self.window = window
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads, window or side)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = MLPBlock(width, width * mlp_ratio)
        self.adapter_attention: Adapter | None = None
        self.adapter_mlp: Adapter | None = None
        self.adapter_scale = 0.0

    def forward(self, tokens: Tensor) -> Tensor:
        mixed = self._attention(self.norm1(tokens))
        if self.adapter_attention is not None:
            mixed = mixed + self.adapter_attention(mixed)
        tokens = tokens + mixed
        normalised = self.norm2(tokens)
        tokens = tokens + self.mlp(normalised)
        if self.adapter_mlp is not None:
            tokens = tokens + self.adapter_scale * self.adapter_mlp(normalised)
        return tokens

    def _attention(self, normalised: Tensor) -> Tensor:
        if self.window == 0:
            return cast(Tensor, self.attn(normalised))
        # As in SAM, windows are padded with zeros after the norm.
        batch, height, width, channels = normalised.shape
        side = self.window
        padded = F.pad(normalised, (0, 0, 0, -width % side, 0, -height % side))
        rows, columns = padded.shape[1] // side, padded.shape[2] // side
        windows = padded.view(batch, rows, side, columns, side, channels).transpose(2, 3)
        mixed = self.attn(windows.reshape(batch * rows * columns, side, side, channels))
        mixed = mixed.view(batch, rows, columns, side, side, channels).transpose(2, 3)
        return cast(Tensor, mixed.reshape(padded.shape)[:, :height, :width])


class ViT(Encoder):
    """SAM's image encoder for any input size that the patch size divides.

    Args:
        side: Side of the token grid: input size / patch size.
        width: Channels of the tokens.
        depth: Number of blocks.
        heads: Attention heads.
        global_blocks: Indices of the blocks with global attention.
        window: Side of the window of the other blocks, in tokens.
        outputs: Channels of the embeddings.
        patch: Patch size in pixels.
        mlp_ratio: Hidden width of the MLP relative to ``width``.
    """

    def __init__(
        self,
        side: int,
        width: int,
        depth: int,
        heads: int,
        global_blocks: tuple[int, ...],
        window: int = 14,
        outputs: int = 256,
        patch: int = 16,
        mlp_ratio: int = 4,
    ) -> None:
        super().__init__()
        self.patch_embed = PatchEmbedding(width, patch, side)
        self.layers = nn.ModuleList(
            Block(width, heads, 0 if index in global_blocks else window, side, mlp_ratio) for index in range(depth)
        )
        self.neck = Neck(width, outputs)

    def units(self) -> list[tuple[str, nn.Module]]:
        """Patch embedding, each block, the neck."""
        blocks = [(f"layers.{index}", block) for index, block in enumerate(self.layers)]
        return [("patch_embed", self.patch_embed), *blocks, ("neck", self.neck)]


def resample_position(embedding: Tensor, side: int) -> Tensor:
    """Absolute positions ``(1, G, G, C)`` on a grid of another side, bicubic, ``(1, side, side, C)``."""
    if embedding.shape[1] == side:
        return embedding
    # Double precision keeps the result the same, to the last bit of fp32, on nearly every processor.
    channels_first = embedding.double().permute(0, 3, 1, 2)
    resized = F.interpolate(channels_first, (side, side), mode="bicubic", align_corners=False)
    return resized.permute(0, 2, 3, 1).float().contiguous()


def resample_relative_position(table: Tensor, side: int) -> Tensor:
    """Relative positions ``(2G - 1, C)`` of a grid of another side, linear as in SAM, ``(2 side - 1, C)``."""
    if table.shape[0] == 2 * side - 1:
        return table
    resized = F.interpolate(table.double().T.unsqueeze(0), 2 * side - 1, mode="linear")
    return resized[0].T.float().contiguous()
