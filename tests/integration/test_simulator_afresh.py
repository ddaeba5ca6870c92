"""The simulator with a process for each site, and with a new process for each task: the same job, the same bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedfms.results.run_folder import open_run
from fedfms.sam.checkpoint import load_segmenter
from tests.integration.simulation import Simulation, Simulator, tiny_job, write_site

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def write_sites_one_without_lesions(simulator: Simulator) -> dict[str, Any]:
    """Two sites, of which one has not annotated lesions, and the job that takes both."""
    write_site(simulator.sites, "site-1", seed=1)
    write_site(simulator.sites, "site-2", seed=2, lesions=False)
    return tiny_job(missing_structure="mask")


@pytest.fixture(scope="module")
def without_lesions(tmp_path_factory: pytest.TempPathFactory) -> Simulation:
    """Two hospitals, one without a structure, each with a process that lives as long as the job."""
    simulator = Simulator(tmp_path_factory.mktemp("without_lesions"))
    return simulator.run(write_sites_one_without_lesions(simulator), "-n", "2", "-t", "2")


def test_a_hospital_without_a_structure_trains_the_others(without_lesions: Simulation) -> None:
    run = without_lesions
    assert [line["accepted"] for line in run.lines("round")] == [["site-1", "site-2"]] * 2, run.stdout + run.stderr
    cases = {line["site"]: line["cases"] for line in run.lines("update") if line["round"] == 1}
    assert cases == {"site-1": {"organ": 4, "lesion": 4}, "site-2": {"organ": 4, "lesion": 0}}
    # What 'fedfms results' reads of a real run.
    found = open_run(run.workspace)
    assert found.result.refusals == [] and set(found.site_files) == {"site-1", "site-2"}
    assert found.result.sites["site-2"].dice["lesion"] == [None, None, None]
    assert all(value is not None for value in found.result.sites["site-1"].dice["lesion"])
    assert load_segmenter(found.model_file)[1].rounds == found.result.chosen_rounds


def test_two_clients_on_one_thread_start_afresh_for_every_task(tmp_path: Path, without_lesions: Simulation) -> None:
    """The bare command's default: FLARE makes a new client process, and a new executor, for each task."""
    simulator = Simulator(tmp_path)
    run = simulator.run(write_sites_one_without_lesions(simulator))

    report = f"{run.stdout}\n{run.stderr}"
    assert [line["accepted"] for line in run.lines("round")] == [["site-1", "site-2"]] * 2, report
    assert len({line["report"]["model_sha256"] for line in run.lines("final")}) == 1
    assert all((run.site(name) / "model.safetensors").is_file() for name in ("site-1", "site-2"))
    # What only training needed is gone.
    left = {path.name for name in ("site-1", "site-2") for path in run.site(name).iterdir()}
    assert left == {"data.json", "fingerprint.json", "model.safetensors", "ready.json", "tasks"}
    # Moments, order of slices and the state to compare with were all taken up from the disk: the same bits come out as
    # when each site keeps its process.
    last = Path("models", "last", "exchange.safetensors")
    assert (run.server_app / last).read_bytes() == (without_lesions.server_app / last).read_bytes()
