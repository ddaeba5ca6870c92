"""What a trial federation refuses before anything starts, and what it prepares."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from fedfms.data.description.site import load_site
from fedfms.errors import FedfmsError
from fedfms.provision import poc
from fedfms.provision.local import undisturbed
from fedfms.provision.poc import GENERATED, SITES, Trial, approve, prepare
from fedfms.provision.project import load_project
from fedfms.site.job_check import check_job_folder
from fedfms.site.policy import site_policy
from fedfms.site.records import utc_now
from fedfms.site.review import review_status
from tests.provision.federations import PROJECT, free_port

JOB = PROJECT / "jobs" / "fedmsa"


def test_prepared_sites_have_data_and_a_policy_and_approve_the_job(tmp_path: Path) -> None:
    trial = prepare(tmp_path, JOB, ["backbone=vit_test", "rounds=1"], port=free_port())
    assert load_project(trial.folder / "project.yml").server.name == "localhost", "so that it listens on loopback alone"
    job = check_job_folder(trial.job)
    digest = job.application.review_sha256
    for kit in trial.sites.values():
        load_site(kit / "local" / "site.yaml")
        policy = site_policy(kit)
        assert policy.review.rule == "required" and policy.objections(job.application.job) == []
        assert (kit / "local" / "site.yaml").stat().st_mode & 0o077 == 0
        assert review_status(kit, digest, utc_now())[0] == "none"
    said: list[str] = []
    approve(trial, said.append)
    assert [review_status(kit, digest, utc_now())[0] for kit in trial.sites.values()] == ["approved"] * 3
    assert [line.split(":")[0] for line in said if "review approve" in line] == list(SITES)
    # A second time everything is made anew; what was approved is gone with the kits.
    again = prepare(tmp_path, JOB, port=free_port())
    assert again.job == JOB.resolve()
    assert review_status(again.sites["hospital-a"], digest, utc_now())[0] == "none"


def test_what_a_site_objects_to_is_not_approved(tmp_path: Path) -> None:
    trial = prepare(tmp_path, JOB, ["scope=full"], port=free_port())
    with pytest.raises(FedfmsError, match="FMS-S002 scope: found full"):
        approve(trial, print)


def test_a_port_in_use(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(FedfmsError, match=f"FMS-K020 {port}: port {port} of 127.0.0.1 cannot be used"):
            prepare(tmp_path, JOB, port=port)
    assert not (tmp_path / GENERATED).exists()


def test_an_earlier_trial_that_still_runs_is_left_alone(tmp_path: Path) -> None:
    kit = tmp_path / GENERATED / "kits" / "hospital-a"
    kit.mkdir(parents=True)
    (tmp_path / GENERATED / "project.yml").write_text(yaml.safe_dump({}))
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", str(kit)])
    try:
        (kit / "pid.fl").write_text(str(process.pid))
        with pytest.raises(FedfmsError, match=rf"FMS-K020 .*still runs here: hospital-a \(process {process.pid}\)"):
            prepare(tmp_path, JOB, port=free_port())
        assert kit.is_dir()
    finally:
        process.kill()
        process.wait()


def test_a_folder_of_somebody_else_is_not_removed(tmp_path: Path) -> None:
    (tmp_path / GENERATED).mkdir()
    (tmp_path / GENERATED / "mine.txt").write_text("mine")
    with pytest.raises(FedfmsError, match="FMS-K020 .*was not made by this command"):
        prepare(tmp_path, JOB, port=free_port())
    assert (tmp_path / GENERATED / "mine.txt").read_text() == "mine"


def test_a_failed_job_is_told_with_what_the_sites_wrote_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trial = Trial(tmp_path, tmp_path / "job")
    log = trial.sites["hospital-b"] / "job-1" / "fedfms" / "errors.log"
    log.parent.mkdir(parents=True)
    log.write_text("refused ready\nFMS-D008 site.yaml: no dataset -> Add one.\n")
    monkeypatch.setattr(poc, "submit", lambda *_: "job-1")
    monkeypatch.setattr(poc, "wait", lambda *_, **__: "FINISHED:EXECUTION_EXCEPTION")
    with pytest.raises(FedfmsError) as caught:
        poc.run(trial, print, seconds=1)
    assert [problem.where for problem in caught.value.problems] == ["job-1", "hospital-b"]
    assert "FINISHED:EXECUTION_EXCEPTION" in str(caught.value) and "FMS-D008 site.yaml: no dataset" in str(caught.value)


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Whoever runs the tests in the background of a shell has made them ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_waits_until_all_is_stopped() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), undisturbed():
        signal.raise_signal(signal.SIGINT)
        done.append("stopped")
    assert done == ["stopped"]
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
