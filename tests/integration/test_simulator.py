"""The real simulator, the real job files, the real worker processes; only backbone and data are tiny."""

from __future__ import annotations

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fedfms.results.run_folder import open_run
from fedfms.sam.checkpoint import load_segmenter
from fedfms.site.egress import read_record
from tests.integration.records import arrived, sent
from tests.integration.simulation import RUN, Simulation, Simulator, break_image, kill_processes, tiny_job, write_site

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture
def simulator(tmp_path: Path) -> Simulator:
    return Simulator(tmp_path)


@pytest.fixture(scope="module")
def troubled(tmp_path_factory: pytest.TempPathFactory) -> Simulation:
    """Three hospitals, figures withheld. The second has annotated no lesions and its training is killed in round 1; the
    third has a broken file.
    """
    simulator = Simulator(tmp_path_factory.mktemp("troubled"))
    for number in (1, 2, 3):
        write_site(simulator.sites, f"site-{number}", seed=number, lesions=number != 2)
    break_image(simulator.sites, "site-3")
    simulator.policy(metrics={"allowed": ["dice", "seconds"], "min_slices": 1})
    state = simulator.folder / "simulator_workspace" / "site-2" / RUN / "fedfms"
    progress = state / "tasks" / "train-0000" / "progress.json"

    def kill_in_round_1() -> bool:
        return progress.exists() and kill_processes(f"fedfms.training.worker {state} ") == 1

    job = tiny_job(min_clients=1, missing_structure="mask", local_work={"steps": 30})
    return simulator.run(job, "-n", "3", "-t", "3", meanwhile=kill_in_round_1)


def test_a_hospital_that_cannot_train_keeps_the_model_of_the_others(troubled: Simulation) -> None:
    run = troubled
    report = f"{run.stdout}\n{run.stderr}"
    ready = {line["site"]: line["errors"] for line in run.lines("ready")}
    assert ready == {"site-1": [], "site-2": [], "site-3": ["FMS-D004"]}, report
    # Its reason is told by id; the file's name stays in its own folder.
    assert "p1.png" in (run.site("site-3") / "errors.log").read_text()
    assert "p1.png" not in run.flare_logs() and "p1.png" not in (run.server_app / "ledger.jsonl").read_text()
    # The others go on, and everybody, also who could not train, holds the same final model as the server.
    assert len(run.lines("round")) == 2, report
    best = run.server_app / "models" / "best" / "model.safetensors"
    kept = [run.site(name) / "model.safetensors" for name in ("site-1", "site-2", "site-3")]
    assert all(path.read_bytes() == best.read_bytes() for path in kept)
    digests = {line["report"]["model_sha256"] for line in run.lines("final")}
    assert len(digests) == 1 and len(run.lines("final")) == 3
    assert load_segmenter(best)[1].rounds == run.lines("choice")[0]["rounds"]
    # What a person sees.
    assert "[site-1] round 2/2  " in run.stdout and "[site-2] keeping the final model  done" in run.stdout
    assert "[server] round 2/2: accepted site-1, site-2; received model: Dice organ" in run.stdout
    assert "Round 1 started" not in run.stdout and "Round 1 started" in run.flare_logs()
    # Scalars through FLARE's receiver, under the sites' names.
    (folder,) = (run.workspace / "server" / "simulate_job" / "tb_events").iterdir()
    events = EventAccumulator(str(folder)).Reload()
    assert [item.step for item in events.Scalars("site-1/received/dice/organ")] == [0, 1]
    assert not [tag for tag in events.Tags()["scalars"] if tag.startswith("site-3")]


def test_a_training_process_that_is_killed_costs_its_site_one_round(troubled: Simulation) -> None:
    run = troubled
    rounds = [line["accepted"] for line in run.lines("round")]
    assert rounds == [["site-1"], ["site-1", "site-2"]], f"{run.stdout}\n{run.stderr}"
    refused = [line for line in run.lines("update") if not line["accepted"]]
    assert [(line["site"], line["round"], line["errors"]) for line in refused] == [("site-2", 0, ["FMS-T002"])]
    assert {line["site"] for line in run.lines("final")} == {"site-1", "site-2", "site-3"}


def test_a_hospital_without_a_structure_trains_the_others(troubled: Simulation) -> None:
    cases = {line["site"]: line["cases"] for line in troubled.lines("update") if line["round"] == 1}
    assert cases == {"site-1": {"organ": 4, "lesion": 4}, "site-2": {"organ": 4, "lesion": 0}}
    # What 'fedfms results' reads of a real run.
    sites = open_run(troubled.workspace).result.sites
    assert set(sites["site-2"].dice["lesion"]) == {None} and sites["site-2"].dice["organ"][-1] is not None
    assert sites["site-1"].dice["lesion"][-1] is not None


def test_what_the_sites_recorded_is_what_the_server_received(troubled: Simulation) -> None:
    """Line by line and byte by byte, of every sort of line."""
    run = troubled
    report = f"{run.stdout}\n{run.stderr}"
    ledger = [line for event in ("ready", "update", "validate", "final") for line in run.lines(event)]
    assert len(ledger) == 3 + 4 + 2 + 3, report
    sites = {name: run.workspace / name for name in ("site-1", "site-2", "site-3")}
    assert sent(sites, RUN) == arrived(run.server_app / "ledger.jsonl")
    records = {name: read_record(kit, RUN) for name, kit in sites.items()}
    assert [line.decision for line in records["site-1"]] == ["withheld"] * 4 + ["sent"]
    assert [(line.task, line.decision) for line in records["site-3"]] == [("ready", "refused"), ("final", "sent")]
    # The digest of each tensor is that of the update that was averaged, told in the ledger by its norm.
    (update,) = [line for line in run.lines("update") if (line["site"], line["round"]) == ("site-1", 1)]
    (line,) = [line for line in records["site-1"] if (line.task, line.round) == ("train", 1)]
    assert update["norm"] == line.norm and update["cases"] == line.cases and update["report"] == line.report
    assert update["report"]["loss"] is None and update["report"]["received"]["organ"]["dice"] is not None
    # The page is there for people, and what 'fedfms results' shows does without the withheld figures.
    page = (run.workspace / "site-1" / "egress" / f"{RUN}.html").read_text()
    assert line.sha256 in page and "organ, lesion of task" in page
    assert open_run(run.workspace).result.sites["site-1"].peak_memory_bytes is None


def test_the_sites_own_gate_holds_where_the_jobs_gate_lets_pass(simulator: Simulator) -> None:
    for number in (1, 2):
        write_site(simulator.sites, f"site-{number}", seed=number)
    simulator.policy(min_slices_per_update=100_000)

    # Of epochs, how many slices they are is known only at the gate.
    run = simulator.run({**tiny_job(), "local_work": {"epochs": 1}}, "-n", "2", "-t", "2")

    report = f"{run.stdout}\n{run.stderr}"
    assert all(line["accepted"] for line in run.lines("ready")), report
    refused = run.lines("update")
    assert refused and all(line["errors"] == ["FMS-X009", "FMS-S002"] for line in refused), report
    assert "slices" in (run.site(refused[0]["site"]) / "errors.log").read_text()
    # One refused of two: no quorum, the job stops, nothing was aggregated.
    assert not run.lines("round") and not (run.server_app / "models").exists()
    assert "FMS-X014" in run.flare_logs()


def test_a_class_that_is_not_on_the_list_is_not_loaded(simulator: Simulator) -> None:
    """The allow-list names exact classes: even the stock converter that would stream metrics is not among them."""
    write_site(simulator.sites, "site-1", seed=1)

    def add(content: dict[str, list[object]]) -> None:
        path = "nvflare.app_common.widgets.convert_to_fed_event.ConvertToFedEvent"
        content["components"].append({"id": "c", "path": path, "args": {"events_to_convert": ["x"]}})

    simulator.edit("jobs/fedmsa/app/config/config_fed_server.json", add)
    run = simulator.run(tiny_job(min_clients=1), "-n", "1")
    assert "ConvertToFedEvent' at config path" in run.flare_logs() + run.stdout + run.stderr
    assert not (run.server_app / "ledger.jsonl").exists()
