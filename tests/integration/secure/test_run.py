"""Jobs that run: from submission to the model and the records of what left; console, command line and Python.

The order counts: the second test searches what the first one left.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from fedfms.provision.poc import LEAD, SITES, STUDY, approve
from fedfms.provision.submission import COMPLETED, download, submit, wait
from fedfms.results.run_folder import open_run
from fedfms.sam.checkpoint import load_segmenter
from fedfms.site.egress import read_record, record_file
from tests.command import Command
from tests.integration.planting import holders, pixel_words
from tests.integration.records import arrived, sent
from tests.integration.secure.federation import JOB_SECONDS, WORDS, Running
from tests.integration.test_provisioning import is_loopback, listening

# Twice what the longest took on two cores that other work shared.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_a_job_from_submission_to_its_model_and_the_records_of_what_left(running: Running, fedfms: Command) -> None:
    trial = running.trial
    sockets: dict[int, str] = {}
    approve(trial, print)
    job_id = submit(running.lead, trial.job, STUDY)
    word = wait(
        running.lead,
        job_id,
        STUDY,
        JOB_SECONDS,
        poll_seconds=2,
        meanwhile=lambda: sockets.update(listening(running.federation)),
    )
    assert word == COMPLETED, [running.told(name, job_id) for name in SITES]
    # The job's own processes were looked at, too: more than the parents of server and sites listen.
    assert len(sockets) > 4 and all(is_loopback(address) for address in sockets.values()), sockets

    result = download(running.lead, job_id, STUDY, running.folder / "result")
    found = open_run(result)
    assert found.result.rounds == 2 and set(found.result.sites) == set(SITES) and found.result.refusals == []
    assert load_segmenter(found.model_file)[1].rounds == found.result.chosen_rounds

    inspected = fedfms("inspect", found.model_file, "--json")
    assert inspected.code == 0, inspected.err
    assert inspected.json()["rounds"] == found.result.chosen_rounds and inspected.json()["tensors"]

    (ledger_file,) = result.rglob("ledger.jsonl")
    left = sent(trial.sites, job_id)
    assert len(left) == 3 * (1 + 2 + 1 + 1) and left == arrived(ledger_file)
    for kit in trial.sites.values():
        assert record_file(kit, job_id).with_suffix(".html").is_file()


def test_nothing_of_the_sites_data_is_in_any_byte_the_server_holds(running: Running) -> None:
    words = list(WORDS.values())
    for name, word in WORDS.items():
        data = running.trial.folder / "data" / name
        assert pixel_words(data, word) > 0 or name != "hospital-a", "the words are in the pixels"
        assert len(holders(data, [word])[word]) > 60, "the search finds what was planted"
    server = running.server
    known = holders(server, ["hospital-a"])
    assert any("!" in where for where in known["hospital-a"]), "the search looks into the packed job store"
    assert holders(server, words) == {word: [] for word in words}
    assert holders(running.folder / "result", words) == {word: [] for word in words}


def test_submission_through_the_console_and_from_python(running: Running) -> None:
    job = running.job("rounds=1", "local_work.steps=1")
    running.approve(job)
    transfer = running.lead / "transfer"
    transfer.mkdir(exist_ok=True)
    shutil.copytree(job, transfer / "second")
    typed = f"{LEAD}\nsubmit_job second\nlist_jobs\nbye\n"
    shown = subprocess.run(
        ["bash", str(running.lead / "startup" / "fl_admin.sh"), "--study", STUDY],
        input=typed,
        capture_output=True,
        text=True,
        timeout=90,
        cwd=running.lead,
        check=False,
    )
    print(shown.stdout)
    assert "Submitted job" in shown.stdout, shown.stdout + shown.stderr
    job_id = shown.stdout.partition("Submitted job:")[2].split()[0]
    assert running.outcome(job_id) == COMPLETED, shown.stdout

    # An approval is good for one run.
    running.approve(job)
    with running.session() as session:
        again = session.submit_job(str(job))
        session.monitor_job(again, timeout=JOB_SECONDS, poll_interval=1.0)
        assert session.get_job_meta(again)["status"] == COMPLETED
        assert open_run(Path(session.download_job_result(again))).result.rounds == 1
    assert all(len(read_record(kit, again)) == 4 for kit in running.trial.sites.values())
