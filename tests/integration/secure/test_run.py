"""A job that runs: from the console to the model and the records of what left, whatever was tried meanwhile."""

from __future__ import annotations

import json

import pytest

from fedfms.results.run_folder import open_run
from fedfms.sam.checkpoint import load_segmenter
from fedfms.site.egress import read_record, record_file
from fedfms.site.review import pending_jobs
from tests.command import Command
from tests.integration.planting import holders, pixel_words
from tests.integration.records import arrived, sent
from tests.integration.secure.federation import ROUNDS, STOPPED_WORD, WORDS, Finished, Running
from tests.integration.secure.installed.careless import ENCODER_KEY
from tests.integration.test_provisioning import is_loopback

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


def test_the_result_holds_the_model_and_everything_listens_on_loopback_alone(
    finished: Finished, fedfms: Command
) -> None:
    # The job's own processes were looked at, too: more than the parents of server and sites listen.
    assert len(finished.sockets) > 4, finished.sockets
    assert all(is_loopback(address) for address in finished.sockets.values()), finished.sockets
    found = open_run(finished.result)
    assert found.result.rounds == ROUNDS and set(found.result.sites) == {"hospital-b", "hospital-c"}
    assert load_segmenter(found.model_file)[1].rounds == found.result.chosen_rounds
    inspected = fedfms("inspect", found.model_file, "--json")
    assert inspected.code == 0, inspected.err
    assert inspected.json()["rounds"] == found.result.chosen_rounds and inspected.json()["tensors"]


def test_what_the_sites_recorded_is_what_the_server_received(
    running: Running, finished: Finished, fedfms: Command
) -> None:
    """Line by line and byte by byte, of all that left and of all that was refused; also by the lead's own command."""
    kits = running.trial.sites
    left = sent(kits, finished.job_id)
    assert len(left) == 3 * (1 + ROUNDS + 1 + 1) and left == arrived(finished.ledger)
    files = {name: record_file(kit, finished.job_id) for name, kit in kits.items()}
    assert all(file.with_suffix(".html").is_file() for file in files.values())
    egress = [word for name, file in files.items() for word in ("--egress", f"{name}={file}")]
    told = fedfms("ledger", "verify", finished.result, *egress)
    assert told.code == 0 and told.out.count("all replies of") == len(kits), told


def test_nothing_of_the_sites_data_is_in_any_byte_the_server_holds(running: Running, finished: Finished) -> None:
    words = list(WORDS.values())
    for name, word in WORDS.items():
        data = running.trial.folder / "data" / name
        assert pixel_words(data, word) > 0 or name != "hospital-a", "the words are in the pixels"
        assert len(holders(data, [word])[word]) > 60, "the search finds what was planted"
    server = running.server
    known = holders(server, ["hospital-a"])
    assert any("!" in where for where in known["hospital-a"]), "the search looks into the packed job store"
    assert holders(server, words) == {word: [] for word in words}
    assert holders(finished.result, words) == {word: [] for word in words}


def test_encoder_weights_stay(running: Running, finished: Finished) -> None:
    """Of a hospital where something adds them after all filters, nothing but error ids left, in each round."""
    kit, job_id = running.trial.sites["hospital-a"], finished.job_id
    assert "FMS-X001" in running.told("hospital-a", job_id) and ENCODER_KEY in running.told("hospital-a", job_id)
    assert "egress gate closed: FMS-X009 FMS-X001" in running.audit("hospital-a", job_id)
    tried = [line for line in read_record(kit, job_id) if line.task == "train"]
    assert [(line.decision, line.errors) for line in tried] == [("refused", ("FMS-X009", "FMS-X001"))] * ROUNDS
    assert all(line.tensors == () and line.bytes < 500 for line in tried)


def test_a_picture_and_a_text_stay(running: Running, finished: Finished) -> None:
    """The hospital where something streamed them trained all the same."""
    audit = running.audit("hospital-b", finished.job_id)
    for sort in ("IMAGE", "TEXT"):
        assert f"exit gate emptied a federation event: analytics, {sort}" in audit
    assert holders(running.server, [STOPPED_WORD]) == {STOPPED_WORD: []}
    assert STOPPED_WORD not in audit and holders(finished.result, [STOPPED_WORD]) == {STOPPED_WORD: []}


def test_a_hospital_that_approves_late_joins(running: Running, finished: Finished) -> None:
    """It answered that nobody had approved, and was asked again in every round."""
    job_id = finished.job_id
    assert finished.approved_late.startswith("approved until")
    assert "FMS-S004" in running.told("hospital-c", job_id)
    assert "site refused task train: FMS-S004" in running.audit("hospital-c", job_id)
    lines = [json.loads(line) for line in finished.ledger.read_text().splitlines()]
    ready = {line["site"]: line["errors"] for line in lines if line["event"] == "ready"}
    assert ready == {"hospital-a": [], "hospital-b": [], "hospital-c": ["FMS-S004"]}
    rounds = [line["accepted"] for line in lines if line["event"] == "round"]
    assert rounds[0] == ["hospital-b"] and rounds[-1] == ["hospital-b", "hospital-c"], rounds
    refused = [line["site"] for line in lines if line["event"] == "update" and line["errors"] == ["FMS-S004"]]
    assert refused and set(refused) == {"hospital-c"}
    final = [line for line in lines if line["event"] == "final"]
    assert len(final) == 3 and all(line["accepted"] for line in final)
    assert "hospital-c has approved the job and joins" in running.console("localhost")
    assert pending_jobs(running.trial.sites["hospital-c"]) == []
