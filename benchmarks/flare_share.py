"""The plain training loop against the same work inside FLARE, and the memory of all processes: one site.

    python benchmarks/flare_share.py [--steps 60] [--rounds 3] [--threads 2]

Trains ``jobs/fedmsa`` on one synthetic hospital, first in a plain loop in this process (validate, train, validate),
then through the real simulator, and prints for each round the seconds of both and the share that is FLARE's: messages,
gates, aggregation, starting processes. The first round starts a training process from nothing, later ones find theirs
warm.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from fedfms.data.description.site import load_site
from fedfms.datasets.phantom import write_demo_site
from fedfms.job.folder import new_job
from fedfms.job.training import TrainingJob
from fedfms.results.run_result import find_ledger, read_ledger
from fedfms.training.optimizer import make_optimizer
from fedfms.training.session import open_session
from fedfms.training.trainer import train_round
from fedfms.training.validation import validate

PROJECT = Path(__file__).parents[1]
KINDS = {"fedfms.training.worker": "training process", "simulator_worker": "site", "simulator": "server"}


def resident_bytes() -> dict[str, int]:
    """Resident memory of this user's fedfms and FLARE processes, summed by kind (Linux)."""
    found: dict[str, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            pages = int((folder / "statm").read_text().split()[1])
        except (OSError, IndexError):
            continue  # the process ended while it was looked at
        for mark, kind in KINDS.items():
            if mark in command and "flare_share" not in command:
                found[kind] = found.get(kind, 0) + pages * os.sysconf("SC_PAGE_SIZE")
                break
    return found


def plain_rounds(job: TrainingJob, site_file: Path, cache: Path, site: str) -> Iterator[float]:
    """Seconds of each round of the same work without FLARE; one site's average is its own state."""
    session = open_session(job, load_site(site_file), cache)
    optimizer = make_optimizer(session.model, job.learning_rate, job.weight_decay)

    def score() -> None:
        slices = session.dataset.slices("validation")
        validate(session.model, session.feed, slices, session.hardware, job.batch_size, lambda *_: None)

    for number in range(job.rounds):
        begin = time.monotonic()
        score()
        train_round(
            session.model,
            optimizer,
            session.feed,
            session.dataset.slices("train"),
            job,
            session.hardware,
            site=site,
            round_index=number,
            on_step=lambda *_: None,
        )
        score()
        yield time.monotonic() - begin


def simulate(root: Path, job_folder: Path, sites: Path, threads: int) -> tuple[list[float], dict[str, int]]:
    """Seconds of each round at the server, and the peak memory of each kind of process in bytes."""
    shutil.copytree(PROJECT / "simulator_workspace/local", root / "workspace/local")
    command = [Path(sys.executable).with_name("nvflare"), "simulator", job_folder, "-w", root / "workspace"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "FEDFMS_SITES": str(sites)}
    peak: dict[str, int] = {}
    with (root / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            [*map(str, command), "-n", "1", "-t", "1"],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=root,
        )
        while process.poll() is None:
            for kind, size in resident_bytes().items():
                peak[kind] = max(peak.get(kind, 0), size)
            time.sleep(0.5)
    return read_ledger(find_ledger(root / "workspace")).round_seconds, peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        settings = [f"rounds={options.rounds}", f"local_work.steps={options.steps}", "min_clients=1"]
        job = new_job(PROJECT / "jobs/fedmsa", settings, root / "job")
        site_file = write_demo_site(root / "sites" / "site-1", "site-1")
        moved = site_file.read_text(encoding="utf-8").replace("root: .", "root: site-1", 1)
        (root / "sites" / "site-1.yaml").write_text(moved, encoding="utf-8")
        plain = list(plain_rounds(job, site_file, root / "cache", "site-1"))
        inside, peak = simulate(root, root / "job", root / "sites", options.threads)
    table = Table(title=f"rounds of {options.steps} steps, one site, {options.threads} threads")
    for heading in ("round", "plain loop, s", "inside FLARE, s", "FLARE's share"):
        table.add_column(heading, justify="right")
    for number, (without, whole) in enumerate(zip(plain, inside, strict=True), start=1):
        table.add_row(str(number), f"{without:.1f}", f"{whole:.1f}", f"{(whole - without) / whole:.1%}")
    Console().print(table)
    for kind, size in sorted(peak.items()):
        print(f"peak resident memory, {kind}: {size / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
