"""SAM's mask decoder with one mask token and hypernetwork per structure, batched over images.

Source: Kirillov et al., "Segment Anything" (ICCV 2023), appendix A, "Lightweight mask decoder". FedFMS trains it
without prompts; here box and point prompts are additional tokens, as in SAM. Each structure's own token and
hypernetwork start from SAM's first ones. SAM's other mask tokens stay in the sequence, frozen, because the tokens
attend to each other: with one structure and no training the logits are SAM's own. The IoU head is left out: training
never reaches it.
"""

from __future__ import annotations

from typing import cast

import torch
from segment_anything.modeling.common import LayerNorm2d
from segment_anything.modeling.mask_decoder import MLP
from segment_anything.modeling.transformer import TwoWayTransformer
from torch import Tensor, nn


class Structure(nn.Module):
    """What one structure owns: its mask token ``(C,)`` and the hypernetwork that turns it into a filter."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(width))
        self.hypernetwork = MLP(width, width, width // 8, 3)


class StructureDecoder(nn.Module):
    """Embeddings and prompts to one logit map per structure.

    Args:
        structures: Names, in the order of the output channels.
        width: Channels of the embeddings.
        heads: Attention heads of the two-way transformer.
        mlp_width: Hidden width of its MLP.
    """

    other_mask_tokens: Tensor

    def __init__(self, structures: tuple[str, ...], width: int = 256, heads: int = 8, mlp_width: int = 2048) -> None:
        super().__init__()
        self.transformer = TwoWayTransformer(depth=2, embedding_dim=width, num_heads=heads, mlp_dim=mlp_width)
        self.iou_token = nn.Embedding(1, width)
        self.register_buffer("other_mask_tokens", torch.zeros(3, width))
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(width, width // 4, kernel_size=2, stride=2),
            LayerNorm2d(width // 4),
            nn.GELU(),
            nn.ConvTranspose2d(width // 4, width // 8, kernel_size=2, stride=2),
            nn.GELU(),
        )
        self.structures = nn.ModuleDict({name: Structure(width) for name in structures})

    def forward(self, embeddings: Tensor, position: Tensor, sparse_prompts: Tensor, dense_prompts: Tensor) -> Tensor:
        """Predict one logit map per structure for each image.

        Args:
            embeddings: ``(B, C, h, w)`` from the encoder.
            position: ``(1, C, h, w)`` positional encoding of the grid.
            sparse_prompts: ``(B, P, C)`` points and box corners, P may be 0.
            dense_prompts: ``(B, C, h, w)`` or broadcastable to it.

        Returns:
            Logits ``(B, structures, 4h, 4w)``.
        """
        batch, _, height, width = embeddings.shape
        structures = [cast(Structure, module) for module in self.structures.values()]
        tokens = torch.cat([self.iou_token.weight, *(item.token[None] for item in structures), self.other_mask_tokens])
        tokens = torch.cat([tokens.expand(batch, -1, -1), sparse_prompts], dim=1)
        source = embeddings + dense_prompts
        mixed_tokens, mixed_source = self.transformer(source, position.expand(batch, -1, -1, -1), tokens)

        features = mixed_source.transpose(1, 2).reshape(batch, -1, height, width)
        features = self.output_upscaling(features)
        filters = torch.stack(
            [item.hypernetwork(mixed_tokens[:, 1 + index]) for index, item in enumerate(structures)], dim=1
        )
        return torch.einsum("bsc,bchw->bshw", filters, features)
