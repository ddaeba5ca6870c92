"""TinyViT image encoder in the layout of LiteMedSAM's weight file.

Source: Wu et al., "TinyViT" (ECCV 2022), section 3; stride and widths as in LiteMedSAM (256 px input, no
stride in the patch embedding, 64 x 64 embeddings). Differences from the packaged implementation: activations stay
channels-last, the attention bias is looked up at each call (never stale, always with a gradient), and BatchNorm
statistics are frozen in training mode too.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedfms.sam.adapter import Adapter
from fedfms.sam.encoder import Encoder, Neck


class FrozenStatisticsBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm that always normalises with its stored statistics and never changes them."""

    def train(self, mode: bool = True) -> FrozenStatisticsBatchNorm2d:
        """Stay in evaluation mode whatever ``mode`` says."""
        super().train(False)
        return self


class ConvNorm(nn.Sequential):
    """Convolution without bias, then BatchNorm; the names ``c`` and ``bn`` are the weight file's."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
        self.add_module("c", convolution)
        self.add_module("bn", FrozenStatisticsBatchNorm2d(outputs))


class PatchEmbedding(nn.Module):
    """Two 1 x 1 convolutions; ``(B, 3, S, S)`` to ``(B, width, S, S)``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.seq = nn.Sequential(ConvNorm(3, width // 2), nn.GELU(), ConvNorm(width // 2, width))

    def forward(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.seq(images.contiguous(memory_format=torch.channels_last)))


class InvertedBottleneck(nn.Module):
    """MBConv block (TinyViT, figure 3); ``(B, C, H, W)`` to the same shape."""

    def __init__(self, width: int, expansion: int = 4) -> None:
        super().__init__()
        self.conv1 = ConvNorm(width, width * expansion)
        self.conv2 = ConvNorm(width * expansion, width * expansion, kernel=3, groups=width * expansion)
        self.conv3 = ConvNorm(width * expansion, width)
        self.act = nn.GELU()

    def forward(self, features: Tensor) -> Tensor:
        hidden = self.act(self.conv2(self.act(self.conv1(features))))
        return cast(Tensor, self.act(self.conv3(hidden) + features))


class Downsampling(nn.Module):
    """Change of width between stages, at half the resolution or the same.

    ``(B, C, H, W)`` from a convolutional stage or ``(B, H, W, C)`` from a transformer stage to
    ``(B, H', W', C')``, the layout of the next stage.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, channels_last_input: bool) -> None:
        super().__init__()
        self.conv1 = ConvNorm(inputs, outputs)
        self.conv2 = ConvNorm(outputs, outputs, kernel=3, stride=stride, groups=outputs)
        self.conv3 = ConvNorm(outputs, outputs)
        self.act = nn.GELU()
        self.channels_last_input = channels_last_input

    def forward(self, features: Tensor) -> Tensor:
        if self.channels_last_input:
            features = features.permute(0, 3, 1, 2)
        features = self.conv3(self.act(self.conv2(self.act(self.conv1(features)))))
        return features.permute(0, 2, 3, 1)


class WindowAttention(nn.Module):
    """Multi-head attention in one square window, with a learnt bias per relative distance.

    Args:
        width: Channels.
        heads: Number of heads.
        window: Side of the window in tokens.
    """

    attention_bias_indices: Tensor

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.attention_biases = nn.Parameter(torch.zeros(heads, window * window))
        row, column = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
        row, column = row.flatten(), column.flatten()
        # The file numbers the distances (rows apart, columns apart) in row-major order.
        indices = (row[:, None] - row).abs() * window + (column[:, None] - column).abs()
        self.register_buffer("attention_bias_indices", indices, persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """``(windows, N, C)`` to the same shape, N = window squared."""
        windows, count, width = tokens.shape
        # The file interleaves q, k and v within each head.
        qkv = self.qkv(self.norm(tokens)).view(windows, count, self.heads, 3, width // self.heads)
        query, key, value = qkv.permute(3, 0, 2, 1, 4)
        bias = self.attention_biases[:, self.attention_bias_indices].to(query.dtype)
        # Windows are small: spelt out, forward and backward take a fifth of the time of PyTorch's fused CPU kernel.
        weights = (query * (width // self.heads) ** -0.5) @ key.transpose(-2, -1) + bias
        mixed = weights.softmax(dim=-1) @ value
        return cast(Tensor, self.proj(mixed.transpose(1, 2).reshape(windows, count, width)))


class FeedForward(nn.Module):
    """The MLP of a block; its LayerNorm is applied by the block, which shares it with the adapter."""

    def __init__(self, width: int, ratio: int = 4) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, width * ratio)
        self.fc2 = nn.Linear(width * ratio, width)
        self.act = nn.GELU()

    def forward(self, normalised: Tensor) -> Tensor:
        return cast(Tensor, self.fc2(self.act(self.fc1(normalised))))


class TinyViTBlock(nn.Module):
    """Window attention, a depthwise convolution, an MLP; ``(B, H, W, C)`` to the same shape."""

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.width = width
        self.window = window
        self.attn = WindowAttention(width, heads, window)
        self.local_conv = ConvNorm(width, width, kernel=3, groups=width)
        self.mlp = FeedForward(width)
        self.adapter_attention: Adapter | None = None
        self.adapter_mlp: Adapter | None = None
        self.adapter_scale = 0.0

    def forward(self, tokens: Tensor) -> Tensor:
        mixed = self._windowed_attention(tokens)
        if self.adapter_attention is not None:
            mixed = mixed + self.adapter_attention(mixed)
        tokens = tokens + mixed
        tokens = self.local_conv(tokens.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        normalised = self.mlp.norm(tokens)
        tokens = tokens + self.mlp(normalised)
        if self.adapter_mlp is not None:
            tokens = tokens + self.adapter_scale * self.adapter_mlp(normalised)
        return tokens

    def _windowed_attention(self, tokens: Tensor) -> Tensor:
        # As in the original, padding comes before the norm inside the attention: padded tokens take part.
        batch, height, width, channels = tokens.shape
        side = self.window
        padded = F.pad(tokens, (0, 0, 0, -width % side, 0, -height % side))
        rows, columns = padded.shape[1] // side, padded.shape[2] // side
        windows = padded.view(batch, rows, side, columns, side, channels).transpose(2, 3)
        mixed = self.attn(windows.reshape(batch * rows * columns, side * side, channels))
        mixed = mixed.view(batch, rows, columns, side, side, channels).transpose(2, 3)
        return cast(Tensor, mixed.reshape(padded.shape)[:, :height, :width])


class ConvolutionalStage(nn.Module):
    def __init__(self, width: int, outputs: int, depth: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(InvertedBottleneck(width) for _ in range(depth))
        self.downsample = Downsampling(width, outputs, stride=2, channels_last_input=False)


class TransformerStage(nn.Module):
    def __init__(self, width: int, depth: int, heads: int, window: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(TinyViTBlock(width, heads, window) for _ in range(depth))
        # The last stage has no downsampling (outputs == 0).
        self.downsample = Downsampling(width, outputs, stride, channels_last_input=True) if outputs else None


class TinyViT(Encoder):
    """LiteMedSAM's image encoder.

    Args:
        widths: Channels of the four stages.
        depths: Blocks of the four stages; the first is convolutional.
        heads: Attention heads of stages two to four.
        windows: Window sides of stages two to four, in tokens.
        outputs: Channels of the embeddings.
    """

    patch = 4

    def __init__(
        self,
        widths: tuple[int, int, int, int] = (64, 128, 160, 320),
        depths: tuple[int, int, int, int] = (2, 2, 6, 2),
        heads: tuple[int, int, int] = (4, 5, 10),
        windows: tuple[int, int, int] = (7, 14, 7),
        outputs: int = 256,
    ) -> None:
        super().__init__()
        self.patch_embed = PatchEmbedding(widths[0])
        stages: list[nn.Module] = [ConvolutionalStage(widths[0], widths[1], depths[0])]
        # LiteMedSAM halves the resolution after stages one and two only.
        for index, (following, stride) in enumerate(((widths[2], 2), (widths[3], 1), (0, 1)), start=1):
            stages.append(
                TransformerStage(widths[index], depths[index], heads[index - 1], windows[index - 1], following, stride)
            )
        self.layers = nn.ModuleList(stages)
        self.neck = Neck(widths[3], outputs)

    def units(self) -> list[tuple[str, nn.Module]]:
        """Patch embedding, each block, each downsampling, the neck."""
        chain: list[tuple[str, nn.Module]] = [("patch_embed", self.patch_embed)]
        for stage, layer in enumerate(self.layers):
            for index, block in enumerate(cast(nn.ModuleList, layer.blocks)):
                chain.append((f"layers.{stage}.blocks.{index}", block))
            if layer.downsample is not None:
                chain.append((f"layers.{stage}.downsample", cast(nn.Module, layer.downsample)))
        chain.append(("neck", self.neck))
        return chain
