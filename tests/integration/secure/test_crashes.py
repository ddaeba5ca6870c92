"""A job whose processes are killed in the middle ends as if nothing had happened, to the same bytes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from fedfms.provision.poc import SITES, STUDY
from fedfms.provision.submission import COMPLETED, submit
from fedfms.results.ledger_file import open_ledger
from fedfms.results.run_folder import open_run
from fedfms.site.egress import record_file
from tests.command import Command
from tests.integration.secure.federation import Running

pytestmark = [pytest.mark.slow, pytest.mark.faults, pytest.mark.timeout(1500)]

ROUNDS = 3
LAST = Path("models", "last", "exchange.safetensors")


def kill(module: str, job_id: str, kit: Path) -> int:
    """SIGKILL to the process of a job at a site or the server; returns its id."""
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if any(module in word for word in words) and job_id in words and str(kit) in words:
            process.kill()
            return int(process.pid)
    raise AssertionError(f"no {module} of job {job_id} at {kit}")


def run(running: Running, job: Path, strike: Callable[[str], bool] = lambda job_id: True) -> str:
    """A job to its end. ``strike`` is called again and again until it says that it has done all it wants to."""
    running.approve(job)
    job_id = submit(running.lead, job, STUDY)
    ended = threading.Event()

    def go_on() -> None:
        while not ended.wait(0.05) and not strike(job_id):
            pass

    watcher = threading.Thread(target=go_on)
    watcher.start()
    try:
        assert running.outcome(job_id) == COMPLETED, [running.told(name, job_id) for name in SITES]
    finally:
        ended.set()
        watcher.join()
    return job_id


def are_training(running: Running, job_id: str, number: int) -> bool:
    """Whether all sites are in the middle of a round: nobody's request is on its way to the server."""
    folders = [kit / job_id / "fedfms" / "tasks" / f"train-{number:04d}" for kit in running.trial.sites.values()]
    return all((folder / "progress.json").exists() and not (folder / "report.json").exists() for folder in folders)


def test_killed_job_processes_cost_no_round_and_change_no_byte(running: Running, fedfms: Command) -> None:
    """The server's in the second round, a site's in the third."""
    job = running.job("min_clients=3", f"rounds={ROUNDS}", "local_work.steps=60")
    undisturbed = running.result(run(running, job))

    killed: list[tuple[str, int]] = []
    plan = [(1, "runner_process", running.server), (2, "worker_process", running.trial.sites["hospital-a"])]

    def strike(job_id: str) -> bool:
        """In the middle of the training of the round after a commit."""
        number, module, kit = plan[len(killed)]
        if are_training(running, job_id, number):
            killed.append((module, kill(module, job_id, kit)))
        return len(killed) == len(plan)

    job_id = run(running, job, strike)
    result = running.result(job_id)
    assert [module for module, _ in killed] == [module for _, module, _ in plan]

    found, expected = open_run(result), open_run(undisturbed)
    assert (found.model_file.parents[2] / LAST).read_bytes() == (expected.model_file.parents[2] / LAST).read_bytes()
    assert found.model_file.read_bytes() == expected.model_file.read_bytes()
    assert found.result.rounds == ROUNDS and set(found.result.sites) == set(SITES) and found.result.refusals == []
    (ledger,) = result.rglob("ledger.jsonl")
    resumed = [line["rounds"] for line in open_ledger(ledger).lines if line["event"] == "resume"]
    assert resumed == [1], "no committed round was lost"
    assert not (running.server / "store" / "state" / job_id).exists(), "nothing is left of a run that reached its end"
    # No further update left than without the crashes: what was asked for again has the bytes of the first time.
    for name, kit in running.trial.sites.items():
        told = fedfms("egress", job_id, "--kit", kit, "--json")
        updates = {(line["round"], line["sha256"]) for line in told.json()["lines"] if line["task"] == "train"}
        assert sorted(number for number, _ in updates) == list(range(ROUNDS)), name
        assert record_file(kit, job_id).is_file()


def test_a_clone_goes_on_where_the_aborted_job_was(running: Running) -> None:
    """After new approvals: to the sites it is another run."""
    job = running.job("min_clients=2", f"rounds={ROUNDS}", "local_work.steps=5")
    running.approve(job)
    first = submit(running.lead, job, STUDY)
    state, asked = running.server / "store" / "state" / first, []

    def abort() -> None:
        if not asked and (state / "commit-0001.json").exists():
            with running.session() as session:
                asked.append(session.abort_job(first))

    assert running.outcome(first, abort) == "FINISHED:ABORTED"
    running.approve(job)
    with running.session() as session:
        clone = str(session.clone_job(first))
    assert running.outcome(clone) == COMPLETED, [running.told(name, clone) for name in SITES]
    result = running.result(clone)
    lines = open_ledger(next(result.rglob("ledger.jsonl"))).lines
    (resumed,) = [line for line in lines if line["event"] == "resume"]
    assert resumed["former"] == first and resumed["rounds"] in (1, 2)
    assert open_run(result).result.rounds == ROUNDS
    repeated = [line["round"] for line in lines[lines.index(resumed) :] if line["event"] == "round"]
    assert repeated == list(range(resumed["rounds"], ROUNDS))
