"""How much of a round is not training, and how much memory the processes take: the real simulator with one site.

    python benchmarks/flare_share.py [--minutes 1] [--rounds 3] [--threads 2]

Runs ``jobs/fedmsa`` on one synthetic hospital with a local work of some minutes, watches the memory of all processes,
and prints for each round: seconds at the server, seconds that the site trained and validated, the share of the rest.
The first round also starts a training process from nothing; later ones find theirs warm.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from fedfms.job_folder import new_job
from fedfms.report.ledger import find_ledger, read_ledger

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        settings = [f"rounds={options.rounds}", f"local_work.minutes={options.minutes}", "min_clients=1"]
        new_job(PROJECT / "jobs/fedmsa", settings, root / "job")
        shutil.copytree(PROJECT / "simulator_workspace/local", root / "workspace/local")
        command = [Path(sys.executable).with_name("nvflare"), "simulator", root / "job", "-w", root / "workspace"]
        environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
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
        result = read_ledger(find_ledger(root / "workspace"))
    site = next(iter(result.sites.values()))
    table = Table(title=f"rounds of {options.minutes:g} minutes, one site, {options.threads} threads")
    for heading in ("round", "seconds at the server", "seconds of training and validation", "share of the rest"):
        table.add_column(heading, justify="right")
    for number, (whole, work) in enumerate(zip(result.round_seconds, site.seconds, strict=True), start=1):
        if work is not None:
            table.add_row(str(number), f"{whole:.1f}", f"{work:.1f}", f"{(whole - work) / whole:.1%}")
    Console().print(table)
    for kind, size in sorted(peak.items()):
        print(f"peak resident memory, {kind}: {size / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
