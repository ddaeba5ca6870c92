"""The bare simulator, which starts a new process for each task: the same job, the same bits as with one process."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedfms.results.run_folder import open_run
from fedfms.sam.checkpoint import load_segmenter
from tests.integration.simulation import Simulation, Simulator, break_image, tiny_job, write_site

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

LAST = Path("models", "last", "exchange.safetensors")


def run_site_1(folder: Path, *arguments: str) -> Simulation:
    """Two sites, of which the second cannot read its data: all updates are those of the first."""
    folder.mkdir()
    simulator = Simulator(folder)
    write_site(simulator.sites, "site-1", seed=1)
    write_site(simulator.sites, "site-2", seed=2)
    break_image(simulator.sites, "site-2")
    return simulator.run(tiny_job(min_clients=1), *arguments)


def test_two_clients_on_one_thread_start_afresh_for_every_task(tmp_path: Path) -> None:
    """The bare command's default: FLARE makes a new client process, and a new executor, for each task."""
    afresh = run_site_1(tmp_path / "afresh")
    report = f"{afresh.stdout}\n{afresh.stderr}"
    ready = {line["site"]: line["errors"] for line in afresh.lines("ready")}
    assert ready == {"site-1": [], "site-2": ["FMS-D004"]}, report
    assert [line["accepted"] for line in afresh.lines("round")] == [["site-1"]] * 2, report
    assert len({line["report"]["model_sha256"] for line in afresh.lines("final")}) == 1
    assert all((afresh.site(name) / "model.safetensors").is_file() for name in ("site-1", "site-2"))
    # What only training needed is gone.
    left = {path.name for path in afresh.site("site-1").iterdir()}
    assert left == {"data.json", "fingerprint.json", "model.safetensors", "ready.json", "tasks"}

    # Moments, order of slices and the state to compare with were all taken up from the disk: the same bits come out as
    # when the site keeps its process.
    kept = run_site_1(tmp_path / "kept", "-n", "1")
    assert [line["accepted"] for line in kept.lines("round")] == [["site-1"]] * 2, f"{kept.stdout}\n{kept.stderr}"
    assert (afresh.server_app / LAST).read_bytes() == (kept.server_app / LAST).read_bytes()
    # What 'fedfms results' reads of a run.
    found = open_run(afresh.workspace)
    assert found.result.refusals and load_segmenter(found.model_file)[1].rounds == found.result.chosen_rounds
