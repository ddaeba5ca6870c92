"""Model configurations that the tests of several modules use."""

from __future__ import annotations

from typing import Any

import torch

from fedfms.sam.backbones import published_sha256
from fedfms.sam.checkpoint import CheckpointHeader
from fedfms.sam.config import ModelConfig
from fedfms.sam.model import initial_state, schema_of
from tests.generators import preprocessing


def config(backbone: str = "vit_test", **changes: Any) -> ModelConfig:
    """A valid configuration; ``changes`` replace single values."""
    size = {"vit_test": 64, "vit_t": 256}.get(backbone, 1024)
    values: dict[str, Any] = {
        "backbone": backbone,
        "backbone_sha256": published_sha256(backbone),
        "input_size": size,
        "structures": ("organ", "lesion"),
        "scope": "adapters+decoder",
        **changes,
    }
    return ModelConfig.model_validate(values)


def make_header(model: ModelConfig, task: str = "organ-lesion") -> CheckpointHeader:
    """Header of a checkpoint of the model, for 8-bit images."""
    return CheckpointHeader(
        kind="exchange",
        task=task,
        model=model,
        preprocessing=preprocessing(size=model.input_size),
        seed=0,
        rounds=2,
        schema_sha256=schema_of(model).sha256,
        job_sha256="0" * 64,
    )


def make_state(model: ModelConfig) -> dict[str, torch.Tensor]:
    """Exchanged tensors that differ from the start."""
    generator = torch.Generator().manual_seed(5)
    state = initial_state(model, 0)
    return {name: tensor + 0.1 * torch.randn(tensor.shape, generator=generator) for name, tensor in state.items()}
