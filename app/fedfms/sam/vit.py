"""SAM's ViT image encoder in the layout of SAM's weight files.

Source: Kirillov et al., "Segment Anything" (ICCV 2023), appendix A; decomposed relative positions after Li et
al., "MViTv2" (CVPR 2022), section 4.1.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from segment_anything.modeling.common import MLPBlock
from torch import Tensor, nn

from fedfms.sam.adapter import Adapter
from fedfms.sam.arithmetic import Linear
from fedfms.sam.attention import Bias, append_key, attention
from fedfms.sam.encoder import Encoder, Neck
from fedfms.sam.windows import map_windows, unflatten


class PatchEmbedding(nn.Module):
    """Convolution of one patch and the absolute position; ``(B, 3, S, S)`` to ``(B, S/p, S/p, C)``."""

    def __init__(self, width: int, patch: int, side: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=patch, stride=patch)
        self.pos_embed = nn.Parameter(torch.zeros(1, side, side, width))

    def forward(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.proj(images).permute(0, 2, 3, 1).contiguous() + self.pos_embed)


class Attention(nn.Module):
    """Multi-head attention within the windows of a grid, with decomposed relative positions.

    Args:
        width: Channels.
        heads: Number of heads.
        side: Side of a window in tokens; that of the grid for global attention.
    """

    def __init__(self, width: int, heads: int, side: int) -> None:
        super().__init__()
        self.heads = heads
        self.side = side
        self.qkv = Linear(width, 3 * width)
        self.proj = Linear(width, width)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * side - 1, width // heads))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * side - 1, width // heads))

    def forward(self, tokens: Tensor) -> Tensor:
        """``(B, H, W, C)`` to the same shape."""
        return cast(Tensor, self.proj(map_windows(self._attend, self.qkv(tokens), self.side)))

    def _attend(self, windows: Tensor) -> Tensor:
        """Queries, keys and values ``(B, rows, h, columns, w, 3C)`` to ``(B, rows, h, columns, w, C)``."""
        batch, rows, height, columns, width, _ = windows.shape
        qkv = unflatten(windows, -1, (3, self.heads, -1)).permute(5, 0, 1, 3, 6, 2, 4, 7)
        qkv = qkv.reshape(3, batch * rows * columns, self.heads, height * width, -1)
        query, key, value = qkv.unbind()

        distance = _distances(self.side, query.device)
        grid = unflatten(query, 2, (height, width))
        to_row = torch.einsum("nmhwc,hkc->nmhwk", grid, self.rel_pos_h[distance[:height]].to(grid.dtype))
        to_column = torch.einsum("nmhwc,wkc->nmhwk", grid, self.rel_pos_w[distance[:width]].to(grid.dtype))
        to_row, to_column = to_row.flatten(2, 3), to_column.flatten(2, 3)
        last = None
        if height * width < self.side**2:
            # SAM pads with zeros after the norm: query, key and value of a padded token are the bias.
            _, padded_key, padded_value = self.qkv.bias.to(qkv.dtype).view(3, 1, self.heads, 1, -1)
            key, value = append_key(key, padded_key), append_key(value, padded_value)
            below = to_row[..., height:].logsumexp(-1, True) + to_column.logsumexp(-1, True)
            beside = to_row[..., :height].logsumexp(-1, True) + to_column[..., width:].logsumexp(-1, True)
            last = torch.logaddexp(below, beside)
        mixed = attention(query, key, value, Bias(to_row[..., :height], to_column[..., :width], last))
        mixed = mixed.view(batch, rows, columns, self.heads, height, width, -1)
        return mixed.permute(0, 1, 4, 2, 5, 3, 6).flatten(-2)


def _distances(side: int, device: torch.device) -> Tensor:
    """``(side, side)`` rows of the relative-position table: query index minus key index, shifted to 0."""
    index = torch.arange(side, device=device)
    return index[:, None] - index[None, :] + side - 1


class Block(nn.Module):
    """Transformer block with window attention, or global attention when ``window`` is 0.

    ``(B, H, W, C)`` to the same shape.
    """

    def __init__(self, width: int, heads: int, window: int, side: int, mlp_ratio: int) -> None:
        super().__init__()
        self.width = width
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads, window or side)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = MLPBlock(width, width * mlp_ratio)
        self.mlp.lin1, self.mlp.lin2 = Linear(width, width * mlp_ratio), Linear(width * mlp_ratio, width)
        self.adapter_attention: Adapter | None = None
        self.adapter_mlp: Adapter | None = None
        self.adapter_scale = 0.0

    def forward(self, tokens: Tensor) -> Tensor:
        mixed = self.attn(self.norm1(tokens))
        if self.adapter_attention is not None:
            mixed = mixed + self.adapter_attention(mixed)
        tokens = tokens + mixed
        normalised = self.norm2(tokens)
        tokens = tokens + self.mlp(normalised)
        if self.adapter_mlp is not None:
            tokens = tokens + self.adapter_scale * self.adapter_mlp(normalised)
        return tokens


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
