"""The same job through FLARE's simulator and through a provisioned federation over mutual TLS, in one run.

    python benchmarks/federation.py [--set rounds=4] [--set local_work.steps=5] ...

Prints the seconds of provisioning, of starting with and without the doctor, and of each round both ways, and what each
site sent and received. Both ways three synthetic hospitals with one thread each; review is required only over TLS.
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

from fedfms.job.folder import new_job
from fedfms.provision.central import provision
from fedfms.provision.poc import SITES, approve, prepare, run, started
from fedfms.results.run_result import RunResult, find_ledger, read_ledger
from fedfms.site.egress import read_record

PROJECT = Path(__file__).parents[1]
PORT = 8103


def simulate(root: Path, job: Path) -> tuple[RunResult, float]:
    """What the simulator's ledger says, and the seconds of the whole command."""
    shutil.copytree(PROJECT / "simulator_workspace/local", root / "workspace/local")
    command = [Path(sys.executable).with_name("nvflare"), "simulator", job, "-w", root / "workspace", "-n", "3"]
    begin = time.monotonic()
    with (root / "simulator.txt").open("wb") as log:
        words = [*map(str, command), "-t", "3"]
        subprocess.run(words, stdout=log, stderr=subprocess.STDOUT, cwd=root, check=True)
    seconds = time.monotonic() - begin
    return read_ledger(find_ledger(root / "workspace")), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", dest="settings", action="append", default=[])
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        job = new_job(PROJECT / "jobs/fedmsa", options.settings, root / "job")
        simulated, whole = simulate(root, root / "job")
        trial = prepare(root / "trial", root / "job", port=PORT)
        begin = time.monotonic()
        provision(trial.folder / "project.yml", root / "again", root / "again_ca")
        print(f"provisioning of server, three sites and two persons: {time.monotonic() - begin:.1f} s")
        approve(trial, lambda line: None)
        for doctor in (False, True):
            begin = time.monotonic()
            with started(trial, doctor=doctor):
                word = "with" if doctor else "without"
                print(f"start until all are connected, {word} the doctor: {time.monotonic() - begin:.1f} s")
                if doctor:
                    begin = time.monotonic()
                    done = run(trial, lambda line: None, seconds=3600)
                    over_tls = time.monotonic() - begin
        result = read_ledger(find_ledger(done.result))
        print(f"whole job: simulator {whole:.1f} s, submit to downloaded over TLS {over_tls:.1f} s")
        sent = {name: sum(line.bytes for line in read_record(trial.sites[name], done.job_id)) for name in SITES}
    table = Table(title=f"seconds of a round at the server; {job.rounds} rounds, {job.backbone}")
    for heading in ("round", "simulator", "mutual TLS", "times longer"):
        table.add_column(heading, justify="right")
    for number, (short, long) in enumerate(zip(simulated.round_seconds, result.round_seconds, strict=True), start=1):
        table.add_row(str(number), f"{short:.1f}", f"{long:.1f}", f"{long / short:.2f}")
    Console().print(table)
    for name, site in result.sites.items():
        print(f"{name}: bytes up per round {site.bytes_up}, down {site.bytes_down}; whole record {sent[name]} bytes")


if __name__ == "__main__":
    main()
