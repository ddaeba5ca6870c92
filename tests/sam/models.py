"""Model configurations that the tests of several modules use."""

from __future__ import annotations

from typing import Any

from fedfms.sam.backbones import published_sha256
from fedfms.sam.config import ModelConfig


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
