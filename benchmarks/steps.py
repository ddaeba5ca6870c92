"""Time training steps in several ways, side by side in one run; prints medians, ratios and peak memory.

    python benchmarks/steps.py [--backbone vit_t] [--input-size 256] [--device cpu] [--ways "all blocks"] [--json FILE]

Each is the package's own training loop on a synthetic hospital: slices read, prepared or taken from the cache's files,
box prompts, clipping, AdamW. The ways take turns, so that a machine whose speed drifts slows all of them alike. The
ways called ``peer`` run the encoder of the package that the weights come from, with the same adapters (``peer.py``).
The peak memory of each way is that of a process of its own, on a GPU what PyTorch allocated there.

Weights: the published ones for ``vit_t``, random ones for the others; the time does not depend on them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from peer import use_peer
from rich.console import Console
from rich.table import Table

from fedfms.data.description.site import SiteDescription, load_site
from fedfms.datasets.phantom import write_demo_site
from fedfms.job.folder import TRAINING_FILE
from fedfms.job.training import parse_job
from fedfms.sam.backbones import BACKBONES, FOLDER_VARIABLE, published_sha256, random_weights, serialise
from fedfms.training.feed import chunked
from fedfms.training.hardware import peak_memory_bytes
from fedfms.training.optimizer import make_optimizer
from fedfms.training.process import MEMORY_REUSE
from fedfms.training.session import open_session
from fedfms.training.trainer import train_round

JOB_FILE = Path(__file__).parents[1] / "jobs/fedmsa" / TRAINING_FILE
STEPS_A_TURN = 2
# Part of the names of the ways that are timed unless others are asked for; all of them would take an hour at 1024 px.
DEFAULT_WAYS = {"vit_t": "", "vit_test": "all blocks"}
FEW_WAYS = "all blocks, bf16, not cached"
#: Before the name of the way that does the same work with our encoder.
PEER = "peer: "


@dataclass(frozen=True)
class Way:
    """One way to train."""

    name: str
    scope: str
    blocks: str | int
    precision: str
    cached: bool
    peer: bool = False


WAYS = (
    Way("adapters in all blocks, fp32, not cached", "adapters+decoder", "all", "fp32", False),
    Way("adapters in all blocks, fp32, cached", "adapters+decoder", "all", "fp32", True),
    Way("adapters in all blocks, bf16, not cached", "adapters+decoder", "all", "bf16", False),
    Way("adapters in all blocks, bf16, cached", "adapters+decoder", "all", "bf16", True),
    Way("adapters in the last 4, bf16, cached", "adapters+decoder", 4, "bf16", True),
    Way("decoder only, bf16, cached", "decoder", "all", "bf16", True),
    Way("full (FedSAM), fp32", "full", "all", "fp32", False),
    Way("full (FedSAM), bf16", "full", "all", "bf16", False),
    Way(f"{PEER}adapters in all blocks, fp32, not cached", "adapters+decoder", "all", "fp32", False, peer=True),
    Way(f"{PEER}adapters in all blocks, bf16, not cached", "adapters+decoder", "all", "bf16", False, peer=True),
)


class Trainer:
    """A model ready to go on training in one way."""

    def __init__(self, way: Way, site: SiteDescription, cache: Path, settings: dict[str, Any]) -> None:
        content: dict[str, Any] = yaml.safe_load(JOB_FILE.read_text(encoding="utf-8"))
        batch_size, device = settings["batch"], settings["device"]
        content.update(scope=way.scope, precision=way.precision, batch_size=batch_size, rounds=1000)
        content.update(local_work={"steps": STEPS_A_TURN}, augmentation={"variants": 1})
        content.update(backbone=settings["backbone"], backbone_sha256=settings["backbone_sha256"])
        content["preprocessing"]["input_size"] = settings["input_size"]
        content["adapter"]["blocks"] = way.blocks
        self.way, self._job, self._turn = way, parse_job(content, JOB_FILE), 0
        compute = site.compute.model_copy(update={"cache_gb": 20.0 if way.cached else 0.0, "device": device})
        self._session = open_session(self._job, site.model_copy(update={"compute": compute}), cache)
        if way.peer:
            use_peer(self._session.model)
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
        begin = time.monotonic()
        if session.hardware.device.type == "cuda":  # the last step may still run
            torch.cuda.synchronize()
        return (result.seconds + time.monotonic() - begin) / result.steps


def chosen_ways(backbone: str, part: str | None) -> list[Way]:
    """The ways whose names contain ``part``, or the backbone's default ones; without those it lacks blocks for."""
    part = DEFAULT_WAYS.get(backbone, FEW_WAYS) if part is None else part
    with torch.device("meta"):
        depth = len(BACKBONES[backbone].encoder(BACKBONES[backbone].native_size).blocks())
    return [way for way in WAYS if part in way.name and not (isinstance(way.blocks, int) and way.blocks > depth)]


def write_backbone(name: str, folder: Path) -> str:
    """Let the package find a weight file of the backbone; returns its SHA-256."""
    if name in ("vit_t", "vit_test"):
        return published_sha256(name)
    content = serialise(random_weights(BACKBONES[name], seed=0))
    (folder / f"{name}.safetensors").write_bytes(content)
    os.environ[FOLDER_VARIABLE] = str(folder)
    return hashlib.sha256(content).hexdigest()


def peak_mb(way: Way, folder: Path, settings: dict[str, Any]) -> float:
    """Peak memory in MB of one turn in a process of its own."""
    task = {"way": asdict(way), "folder": str(folder), "settings": settings}
    command = [sys.executable, str(Path(__file__).resolve()), "--peak-of", json.dumps(task)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return float(output.splitlines()[-1])


def print_peak(task: dict[str, Any]) -> None:
    """In that process: train, then print the peak."""
    folder, settings = Path(task["folder"]), task["settings"]
    torch.set_num_threads(settings["threads"])
    trainer = Trainer(Way(**task["way"]), load_site(folder / "site" / "site.yaml"), folder / "cache", settings)
    trainer.seconds()
    used = torch.cuda.max_memory_allocated() if settings["device"] == "cuda" else peak_memory_bytes()
    print(used / 1e6)


def measure(
    ways: list[Way], settings: dict[str, Any], repeats: int, memory: bool, folder: Path
) -> list[dict[str, Any]]:
    """For each way: name, seconds of a step (median, min, max) and peak memory in MB, None if not measured."""
    site = load_site(write_demo_site(folder / "site", "benchmark"))
    # Before this process holds the models of all ways.
    peaks = {way.name: peak_mb(way, folder, settings) if memory else None for way in ways}
    trainers = [Trainer(way, site, folder / "cache", settings) for way in ways]
    times: dict[str, list[float]] = {way.name: [] for way in ways}
    for repeat in range(repeats + 1):
        for trainer in trainers:
            seconds = trainer.seconds()
            if repeat:  # the first turn warms up
                times[trainer.way.name].append(seconds)
    return [
        {
            "name": name,
            "seconds": statistics.median(values),
            "min": min(values),
            "max": max(values),
            "peak_mb": peaks[name],
        }
        for name, values in times.items()
    ]


def print_profiles(ways: list[Way], settings: dict[str, Any], folder: Path) -> None:
    """For each way, where the time of a turn goes: PyTorch's profiler, by operator."""
    site = load_site(write_demo_site(folder / "site", "benchmark"))
    for way in ways:
        trainer = Trainer(way, site, folder / "cache", settings)
        trainer.seconds()  # warms up
        with torch.profiler.profile() as profile:
            trainer.seconds()
        key = f"self_{settings['device']}_time_total"
        print(way.name, profile.key_averages().table(sort_by=key, row_limit=15), sep="\n")


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "cpu": torch.cpu.get_capabilities().get("cpu_name", platform.processor()),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
    }


def print_table(rows: list[dict[str, Any]], title: str) -> None:
    """One line per way; a way that does the same work as a peer is compared with it."""
    table = Table(title=title)
    for heading in ("way", "median s", "min s", "max s", "times the peer's speed", "peak MB"):
        table.add_column(heading, justify="left" if heading == "way" else "right")
    peers = {row["name"].removeprefix(PEER): row["seconds"] for row in rows if row["name"].startswith(PEER)}
    for row in rows:
        peer = peers.get(row["name"].removeprefix(PEER))
        table.add_row(
            row["name"],
            *(f"{row[key]:.3f}" for key in ("seconds", "min", "max")),
            "" if peer is None else f"{peer / row['seconds']:.2f}",
            "" if row["peak_mb"] is None else f"{row['peak_mb']:.0f}",
        )
    Console(width=120).print(table)


def start_like_a_training_process() -> None:
    """Start this program again with the memory settings that training processes are started with."""
    if not MEMORY_REUSE.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **MEMORY_REUSE})


def main() -> None:
    start_like_a_training_process()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", choices=sorted(BACKBONES), default="vit_t")
    parser.add_argument("--input-size", type=int, help="pixels; default 256, or 64 for vit_test")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--ways", help="only ways whose name contains this; '' for all of them")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--no-memory", action="store_true", help="do not measure peak memory")
    parser.add_argument("--profile", action="store_true", help="instead of times, print where they go, by operator")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    parser.add_argument("--peak-of", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak_of:
        print_peak(options.peak_of)
        return
    ways = chosen_ways(options.backbone, options.ways)
    if not ways:
        parser.error(f"no way's name contains '{options.ways}'")
    torch.set_num_threads(options.threads)
    settings = {name: getattr(options, name) for name in ("backbone", "device", "batch", "threads")}
    settings["input_size"] = options.input_size or (64 if options.backbone == "vit_test" else 256)
    with tempfile.TemporaryDirectory() as folder:
        settings["backbone_sha256"] = write_backbone(options.backbone, Path(folder))
        if options.profile:
            print_profiles(ways, settings, Path(folder))
            return
        rows = measure(ways, settings, options.repeats, not options.no_memory, Path(folder))
    settings["repeats"] = options.repeats
    title = "one step: {backbone}, {input_size} px, {batch} images, {device}, {threads} threads, {repeats} repeats"
    print_table(rows, title.format(**settings))
    if options.json:
        content = {"machine": machine(), "settings": settings, "ways": rows}
        options.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
