"""Build a segmenter from a job's model configuration, and the exchange state it starts from."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from fedfms.sam.adapter import adapter_parameters
from fedfms.sam.backbones import BACKBONES, encoder_tensors, load_weights
from fedfms.sam.config import ModelConfig
from fedfms.sam.scope import Schema
from fedfms.sam.segmenter import Segmenter
from fedfms.sam.vit import resample_position, resample_relative_position


@lru_cache(maxsize=8)
def schema_of(config: ModelConfig) -> Schema:
    """What the configuration exchanges. Needs no weights.

    Raises:
        FedfmsError: FMS-M005 when the configuration is not possible.
    """
    return skeleton(config).schema


def skeleton(config: ModelConfig, device: str = "meta") -> Segmenter:
    """The model without weights: on the meta device for its shapes, or elsewhere to load a state into."""
    with torch.device("meta"):
        model = Segmenter(config)
    if device != "meta":
        model.to_empty(device=device)
        _restore_constant_buffers(model, config)
    return model


def build_model(config: ModelConfig, seed: int) -> Segmenter:
    """The model as it is before round 0: the backbone's weights, fresh adapters.

    Args:
        config: The job's model configuration.
        seed: The job's seed; decides the adapters' first layer.

    Raises:
        FedfmsError: FMS-M001, -M002 or -M003 for the backbone's file, FMS-M005 for the configuration.
    """
    model = skeleton(config, device="cpu")
    model.load_state_dict(_backbone_state(model, config), strict=False)
    generator = torch.Generator().manual_seed(seed)
    for adapter in model.adapters().values():
        adapter.reset(generator)
    return model


def initial_state(config: ModelConfig, seed: int) -> dict[str, Tensor]:
    """Exactly the exchanged tensors as they are before round 0; server and sites both derive it."""
    return build_model(config, seed).exchanged()


def _restore_constant_buffers(model: Segmenter, config: ModelConfig) -> None:
    """Copy the buffers that no file holds (index tables) from a model built outside the meta device."""
    fresh = dict(BACKBONES[config.backbone].encoder(config.input_size).named_buffers())
    saved = set(model.encoder.state_dict())
    for name, buffer in model.encoder.named_buffers():
        if name not in saved:
            buffer.copy_(fresh[name])


def _backbone_state(model: Segmenter, config: ModelConfig) -> dict[str, Tensor]:
    """The file's tensors under the model's names, position tables resampled to the job's input size.

    Every tensor of the model but the adapters must be covered.
    """
    backbone = BACKBONES[config.backbone]
    weights = load_weights(config.backbone, config.backbone_sha256)
    own = model.state_dict()
    adapters = adapter_parameters(model)
    names = [name for name in own if name not in adapters]
    in_encoder = [name.removeprefix("encoder.") for name in names if name.startswith("encoder.")]
    state = {
        f"encoder.{name}": _resampled(name, tensor, own[f"encoder.{name}"].shape)
        for name, tensor in encoder_tensors(backbone, weights, in_encoder).items()
    }
    for name in names:
        if name.startswith("prompt_encoder."):
            state[name] = weights[name]
        elif name.startswith("decoder.structures."):
            leaf = name.split(".", 3)[3]
            # SAM's first mask token is the one that answers an unambiguous prompt with a single mask.
            state[name] = (
                weights["mask_decoder.mask_tokens.weight"][0]
                if leaf == "token"
                else weights[f"mask_decoder.output_hypernetworks_mlps.0.{leaf.removeprefix('hypernetwork.')}"]
            )
        elif name == "decoder.other_mask_tokens":
            state[name] = weights["mask_decoder.mask_tokens.weight"][1:]
        elif name.startswith("decoder."):
            state[name] = weights[f"mask_{name}"]
    uncovered = sorted(set(names) - set(state))
    if uncovered:
        raise AssertionError(f"tensors of the model that the backbone's file does not cover: {uncovered}")
    return state


def _resampled(name: str, tensor: Tensor, shape: torch.Size) -> Tensor:
    if tensor.shape == shape:
        return tensor
    if name.endswith("pos_embed"):
        return resample_position(tensor, shape[1])
    return resample_relative_position(tensor, (shape[0] + 1) // 2)
