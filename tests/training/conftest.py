"""A small data set in memory, so that training is tested without files."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from fedfms.data.description.site import Compute
from fedfms.data.slices.dataset import Case, Sample, SliceReference
from fedfms.job.training import TrainingJob, parse_job
from fedfms.sam.backbones import published_sha256
from fedfms.training.hardware import Hardware, choose_hardware


class DiscData:
    """Slices with a bright disc (organ) and a brighter one in it (lesion); the last case has no lesion annotation."""

    structures = ("organ", "lesion")

    def __init__(self, count: int, lesion_annotated: bool = True) -> None:
        self._count = count
        self._lesion_annotated = lesion_annotated
        self.loads = 0

    def slices(self, split: str) -> list[SliceReference]:
        offset = {"train": 0, "validation": 100}[split]
        return [
            SliceReference(Case(f"case{offset + i}", f"p{offset + i}", split, "discs", frozenset()), 0)
            for i in range(self._count)
        ]

    def load(self, reference: SliceReference) -> Sample:
        self.loads += 1
        generator = np.random.default_rng(int(reference.case.identity[4:]))
        row, column = np.mgrid[:48, :64]
        center = generator.uniform(16, 32, 2)
        distance = np.hypot(row - center[0], column - center[1] - 8)
        masks = np.stack([distance < 12, distance < 5])
        image = 60 + 80 * masks[0] + 60 * masks[1] + generator.normal(0, 6, (48, 64))
        return Sample(
            np.repeat(image[None].astype(np.float32).clip(0, 255), 3, axis=0),
            masks.astype(np.uint8),
            np.array([True, self._lesion_annotated]),
            None,
        )

    def digest(self, reference: SliceReference) -> str:
        return hashlib.sha256(reference.case.identity.encode()).hexdigest()


def make_job(**changes: Any) -> TrainingJob:
    """A valid job for ``vit_test``; ``changes`` replace single values."""
    values = {
        "task": "discs",
        "structures": ["organ", "lesion"],
        "missing_structure": "error",
        "backbone": "vit_test",
        "backbone_sha256": published_sha256("vit_test"),
        "scope": "adapters+decoder",
        "preprocessing": {"input_size": 64, "intensity": {"rule": "range"}, "slice_axis": "axial"},
        "rounds": 2,
        "min_clients": 1,
        "straggler_minutes": 0,
        "local_work": {"steps": 4},
        "batch_size": 4,
        "learning_rate": 0.01,
        "weight_decay": 0.01,
        "warmup": 0.0,
        "gradient_clip": 1.0,
        "server_momentum": 0.0,
        "augmentation": {"variants": 2},
        "update_norm_limit": 100.0,
        "precision": "fp32",
        "seed": 0,
        **changes,
    }
    return parse_job(values, Path("training.yaml"))


def make_hardware(precision: Literal["bf16", "fp32"] = "fp32", **changes: Any) -> Hardware:
    return choose_hardware(Compute.model_validate({"device": "cpu", **changes}), precision)


@pytest.fixture
def discs() -> DiscData:
    return DiscData(8)
