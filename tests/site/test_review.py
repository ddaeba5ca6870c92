"""Approvals are bound to content, end, are logged, and the commands say in words what a job does."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import stat
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from fedfms.datasets.phantom import write_demo_site
from fedfms.errors import FedfmsError
from fedfms.sam.model import schema_of
from fedfms.site import records
from fedfms.site.admission import admit
from fedfms.site.allowance import RUNS_FOLDER
from fedfms.site.application import Application, read_application
from fedfms.site.egress import EgressLine, record, record_file
from fedfms.site.job_location import JobLocation
from fedfms.site.review import (
    DECISIONS_FILE,
    PendingJob,
    clear_pending,
    decide,
    decisions,
    pending_jobs,
    review_status,
    write_pending,
)
from tests.command import Command
from tests.flare.builders import write_application, write_policy

NOW = datetime(2027, 3, 1, 12, 0, tzinfo=timezone.utc)
JOB_ID = "6f1c2a34-0000-4000-8000-000000000001"


@pytest.fixture
def application(job_folder: Path) -> Application:
    return read_application(job_folder / "app")


@pytest.fixture
def deployed(kit: Path, job_folder: Path) -> Path:
    """The run folder of the job as FLARE lays it out at the site."""
    run = kit / JOB_ID
    shutil.copytree(job_folder / "app", run / "app_hospital-a")
    meta = {"submitter_name": "lead@coord.org", "submitter_org": "coord", "submitter_role": "lead", "job_id": JOB_ID}
    (run / "meta.json").write_text(json.dumps(meta))
    return run


def test_a_decision_holds_for_its_digest_until_it_ends(kit: Path, application: Application) -> None:
    digest = application.review_sha256
    assert review_status(kit, digest, NOW) == ("none", None)
    made = decide(kit, application, "approve", job="x", valid_days=2, note="board of 3 May", now=NOW)
    assert review_status(kit, digest, NOW) == ("approved", made)
    assert review_status(kit, digest, NOW + timedelta(days=1.99))[0] == "approved"
    assert review_status(kit, digest, NOW + timedelta(days=2))[0] == "expired"
    assert review_status(kit, "a" * 64, NOW)[0] == "none"
    assert (made.who, made.note, made.backbone_sha256) != ("", "", "") and made.note == "board of 3 May"


def test_an_approval_from_a_wrong_clock_does_not_hold(kit: Path, application: Application) -> None:
    decide(kit, application, "approve", job="x", valid_days=2, now=NOW + timedelta(hours=1))
    assert review_status(kit, application.review_sha256, NOW)[0] == "expired"


def test_the_last_decision_counts_and_all_stay_on_record(kit: Path, application: Application) -> None:
    for number, word in enumerate(("approve", "reject", "approve", "reject")):
        decide(kit, application, word, job="x", valid_days=9, now=NOW + timedelta(minutes=number))  # type: ignore[arg-type]
    later = NOW + timedelta(hours=1)
    assert review_status(kit, application.review_sha256, later)[0] == "rejected"
    assert [item.decision for item in decisions(kit)] == ["approve", "reject", "approve", "reject"]
    assert stat.S_IMODE((kit / DECISIONS_FILE).stat().st_mode) == 0o600


def test_a_decision_is_on_the_disk_or_not_made(
    kit: Path, application: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    decide(kit, application, "reject", job="x", valid_days=9)
    with monkeypatch.context() as patch, pytest.raises(FedfmsError, match="FMS-D011"):
        patch.setattr(os, "fsync", full)
        decide(kit, application, "approve", job="x", valid_days=9)
    assert [item.decision for item in decisions(kit)] == ["reject"]


def test_a_torn_line_counts_for_nothing_and_spoils_no_other(kit: Path, application: Application) -> None:
    decide(kit, application, "approve", job="x", valid_days=9, now=NOW)
    path = kit / DECISIONS_FILE
    whole = path.read_text()
    path.write_text(whole + whole[:40])
    assert len(decisions(kit)) == 1, "a line without its end was never written"
    decide(kit, application, "reject", job="x", valid_days=9, now=NOW)
    assert [item.decision for item in decisions(kit)] == ["approve", "reject"]
    first, second = path.read_text().splitlines()
    assert first == whole.strip() and json.loads(second)["torn_bytes"] == 40, "what was taken away is told"


@pytest.mark.parametrize("text", ["no JSON\n", "7\n", '{"decision": "approve"}\n'])
def test_a_damaged_record_is_an_error(text: str, kit: Path) -> None:
    (kit / "review").mkdir()
    (kit / DECISIONS_FILE).write_text(text)
    with pytest.raises(FedfmsError, match="FMS-S008"):
        review_status(kit, "a" * 64, NOW)


def test_waiting_jobs_are_listed_until_they_are_cleared(kit: Path) -> None:
    for number in (2, 1):
        since = NOW + timedelta(minutes=number)
        write_pending(kit, PendingJob(job_id=f"job-{number}", digest="a" * 64, since=since, task="t", submitter="s"))
    assert [item.job_id for item in pending_jobs(kit)] == ["job-1", "job-2"]
    clear_pending(kit, "job-1")
    clear_pending(kit, "job-1")
    assert [item.job_id for item in pending_jobs(kit)] == ["job-2"]
    (kit / "review" / "waiting" / "job-2.json").write_text("{")
    with pytest.raises(FedfmsError, match="FMS-S008"):
        pending_jobs(kit)


def test_a_jobs_id_cannot_leave_the_folder() -> None:
    with pytest.raises(ValueError, match="job_id"):
        PendingJob(job_id="../../local/policy", digest="a" * 64, since=NOW, task="t", submitter="s")


def test_a_folder_approved_before_submission_is_approved_when_it_arrives(
    fedfms: Command, kit: Path, job_folder: Path, deployed: Path
) -> None:
    digest = read_application(deployed / "app_hospital-a").review_sha256
    assert review_status(kit, digest, records.utc_now())[0] == "none"
    result = fedfms("review", "approve", job_folder, "--kit", kit, "--note", "ethics vote 12/27")
    assert result.code == 0 and digest in result.out
    # As FLARE submits it: JSON written anew, signatures beside it.
    client = deployed / "app_hospital-a" / "config" / "config_fed_client.json"
    client.write_text(json.dumps(json.loads(client.read_text()), sort_keys=True))
    (client.parent / ".__nvfl_sig.json").write_text("{}")
    assert read_application(deployed / "app_hospital-a").review_sha256 == digest
    assert review_status(kit, digest, records.utc_now())[0] == "approved"
    assert "ethics vote 12/27" in fedfms("review", "list", "--kit", kit).out


def test_show_says_it_in_plain_words(
    fedfms: Command, kit: Path, deployed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_demo_site(kit / "local", "hospital-a")
    monkeypatch.setenv("FEDFMS_KIT", str(kit))
    facts = fedfms("review", "show", JOB_ID, "--json").json()
    assert facts["trains"] == "organ, lesion of task 'organ-lesion'"
    assert facts["submitted by"] == "lead@coord.org, coord, lead"
    assert facts["rounds"] == "2; in each 2 training steps"
    assert facts["slices in an update"] == (
        "4, with repetitions: 2 steps of 2 slices each; the site requires at least 4"
    )
    assert facts["augmentation"].endswith("variants of each image, itself included")
    assert facts["on this site's data"] == "none: site.yaml offers the tasks segmentation"
    assert facts["review"] == "nobody has decided about it yet" and facts["objections"] == []
    schema_bytes = int(facts["bytes out"].split()[0].replace(",", ""))
    assert facts["bytes out"].split(" in each round, ")[1].startswith(f"{2 * schema_bytes:,} in all")
    assert facts["digest for review"] == read_application(deployed / "app_hospital-a").review_sha256
    assert "adapters" in facts["what leaves"]
    training = deployed / "app_hospital-a" / "config" / "training.yaml"
    training.write_text(training.read_text().replace("task: organ-lesion", "task: segmentation"))
    shown = fedfms("review", "show", JOB_ID, "--json").json()["on this site's data"]
    assert shown.startswith("demo") and shown.endswith("with organ, lesion"), shown


@pytest.mark.parametrize("rule", ["error", "mask"])
@pytest.mark.parametrize("least", [1, 2])
def test_show_says_which_weights_are_averaged_over_how_many_sites(
    rule: str, least: int, fedfms: Command, kit: Path, job_folder: Path, job_content: dict[str, Any]
) -> None:
    write_application(job_folder / "app", {**job_content, "missing_structure": rule, "min_clients": least})
    facts = fedfms("review", "show", job_folder, "--kit", kit, "--json").json()
    shared, own = facts["averaged over"], facts["one structure's weights"]
    assert f"over the updates of at least {least} sites in each round" in shared
    assert ("can be one site's own update" in shared) == (least == 1)
    assert ("the same sites" in own) == (rule == "error")
    assert ("which can be one site; the average is then that site's own update" in own) == (rule == "mask")
    assert facts["missing_structure"].startswith(f"{rule}: a site ")
    numbers = [int(words.split()[0].replace(",", "")) for words in (shared, own)]
    schema = schema_of(read_application(job_folder / "app").job.model)
    assert numbers[0] + numbers[1] * len(job_content["structures"]) == schema.parameters and numbers[1] > 0


@pytest.mark.parametrize(
    ("aggregation", "words"),
    [
        ({}, ""),
        ({"rule": "coordinate_median"}, "not the mean but the median of each number, which can be one site's own"),
        ({"rule": "geometric_median"}, "not the mean but the median of the whole, which can be one site's own"),
        ({"rule": "trimmed_mean", "trim": 0.25}, "without 25% of the weight at each end of each number"),
    ],
)
def test_show_says_when_the_rule_is_not_the_mean(
    aggregation: dict[str, Any], words: str, fedfms: Command, kit: Path, job_folder: Path, job_content: dict[str, Any]
) -> None:
    write_application(job_folder / "app", {**job_content, "aggregation": aggregation})
    shared = fedfms("review", "show", job_folder, "--kit", kit, "--json").json()["averaged over"]
    assert words in shared and ("median" in shared or "without" in shared) == bool(words)


def test_the_table_of_show_and_the_objections(fedfms: Command, kit: Path, job_folder: Path) -> None:
    out = fedfms("review", "show", job_folder, "--kit", kit).out
    assert "not submitted yet: this is a job folder" in out and "what leaves" in out
    write_policy(kit, scopes=["decoder"])
    result = fedfms("review", "show", job_folder, "--kit", kit)
    assert result.code == 1 and "FMS-S002 scope" in result.err and "what leaves" in result.out


def test_what_the_policy_forbids_cannot_be_approved(fedfms: Command, kit: Path, job_folder: Path) -> None:
    write_policy(kit, max_rounds=1)
    fedfms("review", "approve", job_folder, "--kit", kit).failed_with("FMS-S002", "rounds")
    assert decisions(kit) == []
    assert fedfms("review", "reject", job_folder, "--kit", kit).code == 0


def test_list_shows_who_waits_and_what_was_decided(fedfms: Command, kit: Path, deployed: Path) -> None:
    assert "No job is waiting" in fedfms("review", "list", "--kit", kit).out
    waiting = PendingJob(job_id=JOB_ID, digest="a" * 64, since=NOW, task="organ-lesion", submitter="lead@coord.org")
    write_pending(kit, waiting)
    digest = read_application(deployed / "app_hospital-a").review_sha256[:12]
    assert fedfms("review", "approve", JOB_ID, "--kit", kit, "--digest", digest).code == 0
    fedfms("review", "reject", JOB_ID, "--kit", kit, "--note", "withdrawn")
    assert "status now: rejected; note: withdrawn\n" in fedfms("review", "list", "--kit", kit).out
    out = fedfms("review", "list", "--kit", kit).out
    for words in (
        f"job {JOB_ID} has been waiting for a decision since",
        f"review show {JOB_ID}",
        "lead@coord.org",
        "a" * 12,
        "replaced",
        "rejected",
        "withdrawn",
    ):
        assert words in out
    content = fedfms("review", "list", "--kit", kit, "--json").json()
    assert [item["job_id"] for item in content["waiting"]] == [JOB_ID] and len(content["decisions"]) == 2


def left(location: JobLocation, task: str = "train") -> None:
    """What the exit gate writes down for a reply."""
    digest = admit(location, task).application.review_sha256
    content = {"time": records.utc_now(), "task": task, "decision": "sent", "bytes": 9, "sha256": secrets.token_hex(32)}
    record(location.kit, location.job_id, EgressLine.model_validate({**content, "review_sha256": digest}))


def test_list_and_show_say_what_was_used_of_an_approval(fedfms: Command, kit: Path, deployed: Path) -> None:
    location = JobLocation(kit, JOB_ID, deployed / "app_hospital-a", deployed / "fedfms", False)
    digest = read_application(location.application).review_sha256

    def listed() -> str:
        return fedfms("review", "list", "--kit", kit).out

    def approve() -> None:
        assert fedfms("review", "approve", JOB_ID, "--kit", kit, "--digest", digest).code == 0

    approve()
    assert "status now: approved (not used yet)" in listed()
    assert not (kit / RUNS_FOLDER).exists(), "looking does not start the job's hours"
    left(location, "ready")
    assert "status now: approved (used 0 of 2 updates, 0.0 of 1 h)" in listed()
    left(location)
    assert "status now: approved (used 1 of 2 updates, 0.0 of 1 h)" in listed()
    left(location)
    assert "status now: used up (used 2 of 2 updates, 0.0 of 1 h)" in listed()
    (summary,) = (kit / RUNS_FOLDER).glob("*.json")
    before = summary.read_bytes()
    assert "used 2 of 2" in listed() and summary.read_bytes() == before, "looking changes no count"
    summary.unlink()
    assert "status now: used up (used 2 of 2 updates" in listed(), "the records say it too"
    shown = fedfms("review", "show", JOB_ID, "--kit", kit, "--json").json()["review"]
    assert shown.startswith("approval is used up; approved ") and "(used 2 of 2 updates" in shown
    (entry,) = fedfms("review", "list", "--kit", kit, "--json").json()["decisions"]
    assert entry["status"] == "used up"
    assert entry["used"] == {"updates": 2, "of_updates": 2, "hours": pytest.approx(0, abs=0.1), "of_hours": 1.0}
    approve()
    assert "status now: replaced" in listed() and "status now: approved (not used yet)" in listed()


def test_an_approval_whose_hours_are_over_is_used_up(
    fedfms: Command, kit: Path, deployed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    location = JobLocation(kit, JOB_ID, deployed / "app_hospital-a", deployed / "fedfms", False)
    decide(kit, read_application(location.application), "approve", job=JOB_ID, valid_days=9)
    left(location)
    now = records.utc_now()
    for passed, words in (
        (0.5, "approved (used 1 of 2 updates, 0.5 of 1 h)"),
        (7, "used up (used 1 of 2 updates, 1.0"),
    ):
        monkeypatch.setattr(records, "utc_now", lambda passed=passed: now + timedelta(hours=passed))
        assert f"status now: {words}" in fedfms("review", "list", "--kit", kit).out


def test_an_approval_by_an_earlier_version_has_no_number_of_rounds(
    fedfms: Command, kit: Path, application: Application
) -> None:
    decide(kit, application, "approve", job="x", valid_days=9)
    path = kit / DECISIONS_FILE
    line = json.loads(path.read_text())
    del line["rounds"]
    path.write_text(json.dumps(line) + "\n")
    content = {"time": records.utc_now(), "task": "train", "decision": "sent", "bytes": 9, "sha256": "c" * 64}
    record(kit, JOB_ID, EgressLine.model_validate({**content, "review_sha256": application.review_sha256}))
    assert "status now: approved (used 1 updates, 0.0 of 1 h)" in fedfms("review", "list", "--kit", kit).out


def test_a_policy_that_cannot_be_read_hides_no_decision(fedfms: Command, kit: Path, application: Application) -> None:
    decide(kit, application, "approve", job="x", valid_days=9)
    (kit / "local" / "policy.yaml").write_text("scopes: 7\n")
    out = fedfms("review", "list", "--kit", kit).out
    assert "status now: approved\n" in out and "cannot be read (FMS-S001): the site takes part in no job" in out


def test_a_damaged_record_does_not_hide_who_waits(fedfms: Command, kit: Path, deployed: Path) -> None:
    location = JobLocation(kit, JOB_ID, deployed / "app_hospital-a", deployed / "fedfms", False)
    decide(kit, read_application(location.application), "approve", job=JOB_ID, valid_days=9)
    left(location)
    admit(location, "train")
    path = record_file(kit, JOB_ID)
    path.write_text(path.read_text().replace("sent", "dent"))
    words = "what was used of it cannot be read: FMS-S008"
    out = fedfms("review", "list", "--kit", kit).out
    assert "No job is waiting" in out and f"status now: approved ({words})" in out
    assert words in fedfms("review", "show", JOB_ID, "--kit", kit, "--json").json()["review"]


def test_commands_say_what_they_did_not_find(
    fedfms: Command, kit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FEDFMS_KIT", raising=False)
    monkeypatch.chdir(tmp_path)
    fedfms("review", "list").failed_with("FMS-S009", "FEDFMS_KIT")
    monkeypatch.chdir(kit)
    assert fedfms("review", "list").code == 0, "the current folder"
    fedfms("review", "show", "unknown-job").failed_with("FMS-S010", "unknown-job")
    fedfms("review", "show", "../hospital-a").failed_with("FMS-S010")
    (kit / "local" / "policy.yaml").unlink()
    (kit / "job" / "app_x" / "config").mkdir(parents=True)
    fedfms("review", "approve", "job").failed_with("FMS-J001")


def test_a_submitters_name_cannot_rewrite_the_screen(fedfms: Command, kit: Path, deployed: Path) -> None:
    """It comes from the server."""
    name = "[bold]lead[/bold]\x1b[2J\nreview: approved" + "x" * 500
    (deployed / "meta.json").write_text(json.dumps({"submitter_name": name}))
    out = fedfms("review", "show", JOB_ID, "--kit", kit).out
    assert "\x1b" not in out and "[bold]lead[/bold]?[2J?review: approvedx" in out and "x" * 101 not in out


def test_a_job_that_arrived_is_approved_as_it_was_shown_or_not_at_all(
    fedfms: Command, kit: Path, deployed: Path, job_folder: Path
) -> None:
    """The server may lay down another job under the same id between looking and approving."""

    def approve(*words: object) -> None:
        fedfms("review", "approve", *words, "--kit", kit).failed_with("FMS-S011")

    shown = fedfms("review", "show", JOB_ID, "--kit", kit).out
    command = shown.partition("To approve exactly this: fedfms ")[2].split()
    digest = command[4]
    assert command == ["review", "approve", JOB_ID, "--digest", digest, "--kit", str(kit)]
    assert read_application(deployed / "app_hospital-a").review_sha256.startswith(digest) and len(digest) == 12
    approve(JOB_ID)
    approve(JOB_ID, "--digest", digest[:11])
    approve(JOB_ID, "--digest", "0" * 64)
    training = deployed / "app_hospital-a" / "config" / "training.yaml"
    before = training.read_text()
    training.write_text(before.replace("seed: 0", "seed: 1"))
    assert training.read_text() != before
    approve(JOB_ID, "--digest", digest)
    approve(job_folder, "--digest", "0" * 64)
    assert decisions(kit) == []
    training.write_text(before)
    assert fedfms(*command, "--kit", kit).code == 0
    assert fedfms("review", "approve", job_folder, "--kit", kit).code == 0
    assert len(decisions(kit)) == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives a kit to another account")
@pytest.mark.parametrize("word", ["approve", "reject"])
def test_another_account_than_the_kits_decides_nothing(
    word: str, kit: Path, deployed: Path, job_folder: Path, fedfms: Command
) -> None:
    """What root writes, the account of the site could not read: it would refuse every later job."""
    write_policy(kit)
    decide(kit, read_application(job_folder / "app"), "reject", job="x", valid_days=2)
    write_egress_record(kit)
    before = (kit / DECISIONS_FILE).read_bytes()
    os.chown(kit, 4711, 4712)
    text = fedfms("review", word, job_folder, "--kit", kit).failed_with("FMS-D011")
    assert "nothing was written: what account " in text and "it belongs to uid 4711, group gid 4712" in text
    assert f"""sudo -u '#4711' "$(command -v fedfms)" review {word} ... --kit {kit}""" in text
    text = fedfms("egress", JOB_ID, "--kit", kit).failed_with("FMS-D011")
    assert f"egress {JOB_ID} --kit {kit}" in text
    assert (kit / DECISIONS_FILE).read_bytes() == before and not list((kit / "egress").glob("*.html"))


def write_egress_record(kit: Path) -> None:
    line = EgressLine(time=NOW, task="ready", decision="sent", bytes=1, sha256="a" * 64)
    record(kit, JOB_ID, line)
