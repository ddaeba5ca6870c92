"""Time one training step of ``vit_t`` in several ways, side by side in one run; prints medians and ratios.

    python benchmarks/steps.py [--repeats 5] [--batch 4] [--threads 2]

The configurations take turns, so that a machine whose speed drifts slows all of them alike.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from fedfms.sam.backbones import published_sha256
from fedfms.sam.config import ModelConfig
from fedfms.sam.model import build_model
from fedfms.training.loss import SegmentationLoss
from fedfms.training.optimizer import make_optimizer


@dataclass(frozen=True)
class Way:
    """One way to do the step."""

    name: str
    scope: str
    blocks: str | int
    dtype: torch.dtype
    cached: bool


WAYS = (
    Way("adapters in all blocks, fp32, not cached", "adapters+decoder", "all", torch.float32, False),
    Way("adapters in all blocks, fp32, cached", "adapters+decoder", "all", torch.float32, True),
    Way("adapters in all blocks, bf16, not cached", "adapters+decoder", "all", torch.bfloat16, False),
    Way("adapters in all blocks, bf16, cached", "adapters+decoder", "all", torch.bfloat16, True),
    Way("adapters in the last 4, bf16, cached", "adapters+decoder", 4, torch.bfloat16, True),
    Way("decoder only, bf16, cached", "decoder", "all", torch.bfloat16, True),
    Way("full (FedSAM), fp32", "full", "all", torch.float32, False),
    Way("full (FedSAM), bf16", "full", "all", torch.bfloat16, False),
)


class Step:
    """A model ready to take one way's step again and again."""

    def __init__(self, way: Way, images: Tensor, masks: Tensor) -> None:
        config = ModelConfig.model_validate(
            {
                "backbone": "vit_t",
                "backbone_sha256": published_sha256("vit_t"),
                "input_size": 256,
                "structures": ["structure"],
                "scope": way.scope,
                "adapter": {"blocks": way.blocks},
            }
        )
        self.way, self._images, self._masks = way, images, masks
        self._model = build_model(config, seed=0).train()
        self._optimizer = make_optimizer(self._model, 1e-4, 0.01)
        self._loss = SegmentationLoss()
        self._annotated = torch.ones(len(images), 1, dtype=torch.bool)
        self._activation = self._prefix() if way.cached else None

    def _prefix(self) -> Tensor:
        with torch.autocast("cpu", self.way.dtype, enabled=self.way.dtype != torch.float32):
            return self._model.prefix(self._images)

    def seconds(self) -> float:
        """Take one step."""
        begin = time.perf_counter()
        activation = self._prefix() if self._activation is None else self._activation
        with torch.autocast("cpu", self.way.dtype, enabled=self.way.dtype != torch.float32):
            logits = self._model.from_prefix(activation)
        self._optimizer.zero_grad(set_to_none=True)
        self._loss(logits, self._masks, self._annotated).backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(options.batch, 3, 256, 256, generator=generator)
    masks = (torch.rand(options.batch, 1, 256, 256, generator=generator) > 0.5).float()
    steps = [Step(way, images, masks) for way in WAYS]
    times: dict[str, list[float]] = {way.name: [] for way in WAYS}
    for repeat in range(options.repeats + 1):
        for step in steps:
            seconds = step.seconds()
            if repeat:  # the first turn warms up
                times[step.way.name].append(seconds)
    reference = statistics.median(times[WAYS[0].name])
    table = Table(title=f"one step of {options.batch} images, {options.threads} threads, {options.repeats} repeats")
    for heading in ("way", "median s", "min s", "max s", "times faster"):
        table.add_column(heading, justify="left" if heading == "way" else "right")
    for name, values in times.items():
        median = statistics.median(values)
        cells = [f"{value:.2f}" for value in (median, min(values), max(values), reference / median)]
        table.add_row(name, *cells)
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
