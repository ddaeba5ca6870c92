"""TinyViT image encoder in the layout of LiteMedSAM's weight file.

Source: Wu et al., "TinyViT" (ECCV 2022), section 3; stride and widths as in LiteMedSAM (256 px input, no
stride in the patch embedding, 64 x 64 embeddings). Differences from the packaged implementation: activations stay
channels-last, the attention bias is looked up at each call (never stale, always with a gradient), and BatchNorm
statistics are frozen in training mode too.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from fedfms.sam.adapter import Adapter
from fedfms.sam.arithmetic import Linear
from fedfms.sam.attention import Bias, append_key, attention
from fedfms.sam.encoder import Encoder, Neck
from fedfms.sam.windows import map_windows, unflatten


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
    """Multi-head attention within the windows of a grid, with a learnt bias per relative distance.

    Args:
        width: Channels.
        heads: Number of heads.
        window: Side of the window in tokens.
    """

    attention_bias_indices: Tensor

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.window = window
        self.norm = nn.LayerNorm(width)
        self.qkv = Linear(width, 3 * width)
        self.proj = Linear(width, width)
        self.attention_biases = nn.Parameter(torch.zeros(heads, window * window))
        row, column = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
        row, column = row.flatten(), column.flatten()
        # The file numbers the distances (rows apart, columns apart) in row-major order.
        indices = (row[:, None] - row).abs() * window + (column[:, None] - column).abs()
        self.register_buffer("attention_bias_indices", indices, persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """``(B, H, W, C)`` to the same shape."""
        qkv = self.qkv(self.norm(tokens))
        return cast(Tensor, self.proj(map_windows(self._attend, qkv, self.window)))

    def _attend(self, windows: Tensor) -> Tensor:
        """Queries, keys and values ``(B, rows, h, columns, w, 3C)`` to ``(B, rows, h, columns, w, C)``."""
        batch, rows, height, columns, width, _ = windows.shape
        # The file interleaves q, k and v within each head.
        qkv = unflatten(windows, -1, (self.heads, 3, -1)).permute(6, 0, 1, 3, 5, 2, 4, 7)
        qkv = qkv.reshape(3, batch * rows * columns, self.heads, height * width, -1)
        query, key, value = qkv.unbind()

        bias = self.attention_biases[:, self.attention_bias_indices]
        if height * width < self.window**2:
            # The original pads with zeros before the norm: a padded token after it is the norm's bias.
            _, padded_key, padded_value = self.qkv(self.norm.bias).to(qkv.dtype).view(1, self.heads, 3, 1, -1).unbind(2)
            key, value = append_key(key, padded_key), append_key(value, padded_value)
            real = torch.zeros(self.window, self.window, dtype=torch.bool, device=bias.device)
            real[:height, :width] = True
            bias = bias[:, real.flatten()]
            padded_bias = bias[..., ~real.flatten()].logsumexp(-1, keepdim=True)
            bias = torch.cat([bias[..., real.flatten()], padded_bias], dim=-1)
        mixed = attention(query, key, value, Bias(table=bias))
        mixed = mixed.view(batch, rows, columns, self.heads, height, width, -1)
        return mixed.permute(0, 1, 4, 2, 5, 3, 6).flatten(-2)


class FeedForward(nn.Module):
    """The MLP of a block; its LayerNorm is applied by the block, which shares it with the adapter."""

    def __init__(self, width: int, ratio: int = 4) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1 = Linear(width, width * ratio)
        self.fc2 = Linear(width * ratio, width)
        self.act = nn.GELU()

    def forward(self, normalised: Tensor) -> Tensor:
        return cast(Tensor, self.fc2(self.act(self.fc1(normalised))))


class TinyViTBlock(nn.Module):
    """Window attention, a depthwise convolution, an MLP; ``(B, H, W, C)`` to the same shape."""

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.width = width
        self.attn = WindowAttention(width, heads, window)
        self.local_conv = ConvNorm(width, width, kernel=3, groups=width)
        self.mlp = FeedForward(width)
        self.adapter_attention: Adapter | None = None
        self.adapter_mlp: Adapter | None = None
        self.adapter_scale = 0.0

    def forward(self, tokens: Tensor) -> Tensor:
        mixed = self.attn(tokens)
        if self.adapter_attention is not None:
            mixed = mixed + self.adapter_attention(mixed)
        tokens = tokens + mixed
        tokens = self.local_conv(tokens.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        normalised = self.mlp.norm(tokens)
        tokens = tokens + self.mlp(normalised)
        if self.adapter_mlp is not None:
            tokens = tokens + self.adapter_scale * self.adapter_mlp(normalised)
        return tokens


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
        widths: tuple[int, int, int, int],
        depths: tuple[int, int, int, int],
        heads: tuple[int, int, int],
        windows: tuple[int, int, int],
        outputs: int,
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
