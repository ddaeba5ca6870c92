"""The model: encoder, prompt encoder and one mask per structure."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from segment_anything.modeling.prompt_encoder import PromptEncoder
from torch import Tensor, nn

from fedfms.errors import FedfmsError
from fedfms.sam.adapter import Adapter, insert_adapters
from fedfms.sam.backbones import BACKBONES
from fedfms.sam.config import ModelConfig, impossible_settings
from fedfms.sam.decoder import StructureDecoder
from fedfms.sam.scope import apply_scope


def whole_input_box(size: int) -> Tensor:
    """The box that is used when nobody prompts: ``(1, 4)`` corners x0, y0, x1, y1 of an input of ``size`` pixels."""
    return torch.tensor([[0.0, 0.0, size - 1, size - 1]])


class Segmenter(nn.Module):
    """SAM with one mask per structure, with adapters if the job uses them; needs no prompts.

    Args:
        config: The job's model configuration. Weights are loaded by ``fedfms.sam.model.build_model``.

    Raises:
        FedfmsError: FMS-M005 when the configuration is not possible.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        backbone = BACKBONES[config.backbone]
        problems = impossible_settings(config.backbone, config.input_size, config.scope, config.adapter.blocks)
        if problems:
            raise FedfmsError(problems)
        self.config = config
        self.encoder = backbone.encoder(config.input_size)
        side = config.input_size // backbone.patch
        self.prompt_encoder = PromptEncoder(
            backbone.decoder_width, (side, side), (config.input_size, config.input_size), mask_in_chans=16
        )
        self.decoder = StructureDecoder(
            config.structures, backbone.decoder_width, backbone.decoder_heads, backbone.decoder_mlp_width
        )
        if config.scope == "adapters+decoder":
            insert_adapters(self.encoder.blocks(), config.adapter)
        self.schema = apply_scope(self, config.scope)
        self.first_trainable = self.encoder.first_trainable()
        self.eval()

    def prefix(self, images: Tensor) -> Tensor:
        """The frozen part of the encoder; its output may be cached. Images ``(B, 3, S, S)``, normalised."""
        with torch.no_grad():
            return self.encoder.prefix(images, self.first_trainable)

    def from_prefix(
        self,
        activation: Tensor,
        *,
        boxes: Tensor | None = None,
        points: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Run the rest of the model.

        Args:
            activation: Output of ``prefix``, first axis the batch.
            boxes: ``(B, 4)`` corners x0, y0, x1, y1 in input pixels, or None. Without boxes and points the box is the
                whole input: the frozen model's logits for it already separate lesion from background, while its logits
                for SAM's "no prompt" embedding are about -22 in every pixel (LiteMedSAM).
            points: Coordinates ``(B, P, 2)`` as x, y in input pixels and labels ``(B, P)`` with 1 inside, 0 outside;
                or None.

        Returns:
            Logits ``(B, structures, S, S)``.
        """
        embeddings = self.encoder.suffix(activation, self.first_trainable)
        if boxes is None and points is None:
            boxes = whole_input_box(self.config.input_size).to(embeddings.device)
        # The prompt encoder is frozen and tiny; in fp32 its prompts keep their position to the pixel.
        with torch.autocast(embeddings.device.type, enabled=False):
            sparse, dense = self.prompt_encoder(points=points, boxes=boxes, masks=None)
            position = self.prompt_encoder.get_dense_pe()
        if sparse.shape[0] != embeddings.shape[0]:
            sparse = sparse.expand(embeddings.shape[0], -1, -1)
        like = embeddings.dtype
        logits = self.decoder(embeddings, position.to(like), sparse.to(like), dense.to(like))
        if logits.shape[-1] != self.config.input_size:
            size = (self.config.input_size, self.config.input_size)
            logits = F.interpolate(logits, size, mode="bilinear", align_corners=False)
        return cast(Tensor, logits)

    def forward(
        self,
        images: Tensor,
        *,
        boxes: Tensor | None = None,
        points: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Images ``(B, 3, S, S)``, normalised, to logits ``(B, structures, S, S)``; prompts as in ``from_prefix``."""
        return self.from_prefix(self.prefix(images), boxes=boxes, points=points)

    def adapters(self) -> dict[str, Adapter]:
        """The adapters by name, in the order of the forward pass."""
        return {name: module for name, module in self.named_modules() if isinstance(module, Adapter)}

    def exchanged(self) -> dict[str, Tensor]:
        """The trained tensors, detached, fp32 on the CPU, in the schema's order; not copies where already so."""
        parameters = dict(self.named_parameters())
        return {name: parameters[name].detach().float().cpu() for name in self.schema.names}

    @torch.no_grad()
    def load_exchanged(self, state: dict[str, Tensor]) -> None:
        """Overwrite the trained tensors.

        Raises:
            FedfmsError: FMS-X001 when ``state`` does not match the schema.
        """
        self.schema.check(state)
        parameters = dict(self.named_parameters())
        for name, tensor in state.items():
            parameters[name].copy_(tensor)
