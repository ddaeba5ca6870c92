"""Updates of a small model, and the store that the rules read them from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedfms.aggregation.kept_updates import KeptUpdates
from fedfms.aggregation.rules import combine
from fedfms.exchange.messages import Update
from fedfms.job.aggregation import Aggregation
from fedfms.sam.scope import Schema, TensorSpec

ORGAN, LESION = "decoder.structures.organ.token", "decoder.structures.lesion.token"
SCHEMA = Schema(
    (
        TensorSpec("decoder.weight", (4, 5)),
        TensorSpec(ORGAN, (6,)),
        TensorSpec("decoder.bias", (7,)),
        TensorSpec(LESION, (2, 3)),
    )
)
SHARED = ("decoder.weight", "decoder.bias")
HEX = "0" * 64
RULES = [
    Aggregation(),
    Aggregation(max_share=0.3),
    Aggregation(rule="coordinate_median"),
    Aggregation(rule="trimmed_mean", trim=0.25),
    Aggregation(rule="trimmed_mean", trim=0.1, max_share=0.28),
    Aggregation(rule="geometric_median"),
]


def name_of(settings: Aggregation) -> str:
    return f"{settings.rule}-{settings.trim}-{settings.max_share}"


def random_tensors(seed: int, scale: float = 1e-2, schema: Schema = SCHEMA) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {spec.name: scale * torch.randn(spec.shape, generator=generator) for spec in schema.tensors}


def make_update(site: str, tensors: Mapping[str, Tensor], cases: Mapping[str, int] | None = None) -> Update:
    return Update(HEX, HEX, HEX, 0, site, dict(cases or {"organ": 5, "lesion": 3}), dict(tensors))


def some_updates(count: int) -> list[Update]:
    """Updates with different numbers of cases; every third site has no lesion."""
    return [
        make_update(f"site-{i}", random_tensors(i), {"organ": 3 + 7 * i, "lesion": 0 if i % 3 == 2 else 11 - 2 * i})
        for i in range(count)
    ]


def keep(folder: Path, updates: Iterable[Update], schema: Schema = SCHEMA) -> KeptUpdates:
    kept = KeptUpdates(schema, folder)
    for update in updates:
        kept.keep(update)
    return kept


def combined(
    folder: Path, updates: Iterable[Update], settings: Aggregation | None = None, schema: Schema = SCHEMA
) -> dict[str, Tensor]:
    kept = keep(folder, updates, schema)
    try:
        return combine(kept, settings or Aggregation())
    finally:
        kept.close()


def bits(tensors: Mapping[str, Tensor]) -> bytes:
    return b"".join(tensor.numpy().tobytes() for tensor in tensors.values())


def flat(tensors: Mapping[str, Tensor], names: Iterable[str]) -> npt.NDArray[np.float64]:
    return np.concatenate([tensors[name].double().numpy().ravel() for name in names])
