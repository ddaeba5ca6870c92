"""Time training steps of ``vit_t`` in several ways, side by side in one run; prints medians and ratios.

    python benchmarks/steps.py [--repeats 5] [--batch 4] [--threads 2]

Each is the package's own training loop on a synthetic hospital: slices read, prepared or taken from the cache's files,
box prompts, clipping, AdamW. The ways take turns, so that a machine whose speed drifts slows all of them alike.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console
from rich.table import Table

from fedfms.data.description.site import SiteDescription, load_site
from fedfms.datasets.phantom import write_demo_site
from fedfms.job.folder import TRAINING_FILE
from fedfms.job.training import parse_job
from fedfms.training.feed import chunked
from fedfms.training.optimizer import make_optimizer
from fedfms.training.session import open_session
from fedfms.training.trainer import train_round

JOB_FILE = Path(__file__).parents[1] / "jobs/fedmsa" / TRAINING_FILE
STEPS_A_TURN = 2


@dataclass(frozen=True)
class Way:
    """One way to train."""

    name: str
    scope: str
    blocks: str | int
    precision: str
    cached: bool


WAYS = (
    Way("adapters in all blocks, fp32, not cached", "adapters+decoder", "all", "fp32", False),
    Way("adapters in all blocks, fp32, cached", "adapters+decoder", "all", "fp32", True),
    Way("adapters in all blocks, bf16, not cached", "adapters+decoder", "all", "bf16", False),
    Way("adapters in all blocks, bf16, cached", "adapters+decoder", "all", "bf16", True),
    Way("adapters in the last 4, bf16, cached", "adapters+decoder", 4, "bf16", True),
    Way("decoder only, bf16, cached", "decoder", "all", "bf16", True),
    Way("full (FedSAM), fp32", "full", "all", "fp32", False),
    Way("full (FedSAM), bf16", "full", "all", "bf16", False),
)


class Trainer:
    """A model ready to go on training in one way."""

    def __init__(self, way: Way, site: SiteDescription, cache: Path, batch_size: int) -> None:
        content: dict[str, Any] = yaml.safe_load(JOB_FILE.read_text(encoding="utf-8"))
        content.update(scope=way.scope, precision=way.precision, batch_size=batch_size, rounds=1000)
        content.update(local_work={"steps": STEPS_A_TURN}, augmentation={"variants": 1})
        content["adapter"]["blocks"] = way.blocks
        self.way, self._job, self._turn = way, parse_job(content, JOB_FILE), 0
        compute = site.compute.model_copy(update={"cache_gb": 20.0 if way.cached else 0.0})
        self._session = open_session(self._job, site.model_copy(update={"compute": compute}), cache)
        self._optimizer = make_optimizer(self._session.model, self._job.learning_rate, self._job.weight_decay)
        if way.cached:
            items = [(reference, 0) for reference in self._session.dataset.slices("train")]
            for _ in self._session.feed.batches(chunked(items, batch_size)):
                pass

    def seconds(self) -> float:
        """Take some steps; seconds of one."""
        session = self._session
        result = train_round(
            session.model,
            self._optimizer,
            session.feed,
            session.dataset.slices("train"),
            self._job,
            session.hardware,
            site="benchmark",
            round_index=self._turn,
            on_step=lambda *_: None,
        )
        self._turn += 1
        return result.seconds / result.steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        site = load_site(write_demo_site(Path(folder) / "site", "benchmark"))
        trainers = [Trainer(way, site, Path(folder) / "cache", options.batch) for way in WAYS]
        times: dict[str, list[float]] = {way.name: [] for way in WAYS}
        for repeat in range(options.repeats + 1):
            for trainer in trainers:
                seconds = trainer.seconds()
                if repeat:  # the first turn warms up
                    times[trainer.way.name].append(seconds)
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
