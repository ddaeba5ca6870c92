"""What a job may use up is counted by its content: neither another id nor a deleted folder begins it anew."""

from __future__ import annotations

import secrets
import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from fedfms.errors import FedfmsError
from fedfms.exchange.replies import KINDS
from fedfms.site import admission
from fedfms.site.admission import admit
from fedfms.site.allowance import RUNS_FOLDER
from fedfms.site.egress import EgressLine, record, record_file
from fedfms.site.job_location import JobLocation
from fedfms.site.records import utc_now
from fedfms.site.review import decide
from tests.flare.builders import write_application, write_policy

FIRST, SECOND = "6f1c2a34-0000-4000-8000-000000000001", "6f1c2a34-0000-4000-8000-000000000002"
ROUNDS = 2


@pytest.fixture
def deploy(kit: Path, job_content: dict[str, Any]) -> Any:
    """Lay a job out at the site as FLARE does."""
    assert job_content["rounds"] == ROUNDS

    def lay_out(job_id: str = FIRST, **changes: Any) -> JobLocation:
        run = kit / job_id
        write_application(run / "app_hospital-a", {**job_content, **changes})
        return JobLocation(kit, job_id, run / "app_hospital-a", run / "fedfms", False)

    return lay_out


def approve(location: JobLocation, **changes: Any) -> None:
    application = admission.read_application(location.application)
    decide(location.kit, application, "approve", job=location.job_id, **{"valid_days": 9, **changes})


def send(location: JobLocation, task: str = "train", decision: str = "sent", **changes: Any) -> None:
    """What the exit gate does."""
    digest = admit(location, task, changes.get("round")).application.review_sha256
    content = {"time": utc_now(), "task": task, "decision": decision, "bytes": 9, "sha256": secrets.token_hex(32)}
    content |= changes
    record(location.kit, location.job_id, EgressLine.model_validate({**content, "review_sha256": digest}))


def refused(location: JobLocation, words: str, task: str = "train") -> None:
    with pytest.raises(FedfmsError, match=f"FMS-S007 {words}"):
        admit(location, task)


def test_an_approval_is_good_for_one_run_under_whatever_id(deploy: Any) -> None:
    first = deploy()
    approve(first)
    send(first)
    send(first, decision="refused")
    second = deploy(SECOND)
    send(second)
    for location in (first, second):
        refused(location, "updates: 2 have been sent, the site allows 2")
    other = deploy("6f1c2a34-0000-4000-8000-000000000003", seed=7)
    approve(other)
    send(other)
    refused(second, "updates")
    approve(second)
    send(second)
    send(first)
    refused(second, "updates")


def test_when_all_updates_are_used_up_one_that_left_may_leave_again(deploy: Any) -> None:
    location = deploy()
    approve(location)
    for number in range(ROUNDS):
        assert admit(location, "train", number).only is None
        send(location, round=number, sha256=f"{number}" * 64)
    again = admit(location, "train", ROUNDS - 1)
    assert again.only == {f"{ROUNDS - 1}" * 64}, "and nothing else"
    send(location, round=ROUNDS - 1, sha256=f"{ROUNDS - 1}" * 64)
    assert admit(location, "train", 0).only == {"0" * 64}
    refused(location, "updates: 2 have been sent, the site allows 2")
    with pytest.raises(FedfmsError, match="FMS-S007 updates"):
        admit(location, "train", ROUNDS)


def test_a_deleted_run_folder_changes_nothing(deploy: Any, kit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    location = deploy()
    approve(location)
    send(location)
    send(location)
    shutil.rmtree(kit / FIRST)
    refused(deploy(), "updates")
    now = admission.time.time()
    monkeypatch.setattr(admission.time, "time", lambda: now + 3599)
    admit(deploy(), "validate")
    monkeypatch.setattr(admission.time, "time", lambda: now + 3601)
    shutil.rmtree(kit / FIRST)
    refused(deploy(), "max_hours", "validate")
    refused(deploy(SECOND), "max_hours", "ready")


def test_where_nobody_need_approve_each_id_is_a_run(deploy: Any, kit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_policy(kit)
    location = deploy()
    send(location)
    send(location)
    refused(location, "updates")
    second = deploy(SECOND)
    send(second)
    send(second)
    refused(second, "updates")
    now = admission.time.time()
    with monkeypatch.context() as later:
        later.setattr(admission.time, "time", lambda: now + 3601)
        refused(location, "max_hours", "ready")
    approve(location, now=utc_now() + timedelta(days=1))
    refused(location, "updates")  # a clock that was ahead
    approve(location, now=utc_now() - timedelta(days=30), valid_days=1)
    refused(location, "updates")  # an approval that has ended
    approve(location)
    send(deploy(SECOND))


@pytest.mark.parametrize("file", ["record", "summary"])
def test_what_cannot_be_read_lets_nothing_out(file: str, deploy: Any, kit: Path) -> None:
    location = deploy()
    approve(location)
    send(location)
    (summary,) = (kit / RUNS_FOLDER).glob("*.json")
    path = record_file(kit, FIRST) if file == "record" else summary
    path.write_text(path.read_text().replace("e", "a", 1))
    with pytest.raises(FedfmsError, match="FMS-S008"):
        admit(deploy(SECOND), "train")


@pytest.mark.parametrize("task", sorted(set(KINDS) - {"train"}))
def test_no_task_is_answered_without_end(task: str, deploy: Any) -> None:
    """A server could otherwise have the figures of any model it likes."""
    location = deploy()
    approve(location)
    for _ in range(admission.MOST_REPLIES):
        send(location, task)
    refused(location, f"replies to {task}: 3 have been sent, the site allows 3", task)
    refused(deploy(SECOND), "replies", task)
    send(location)
    admit(location, "train")


def test_ready_is_refused_when_the_rest_of_the_approval_is_too_small_for_the_job(deploy: Any) -> None:
    """The site would otherwise train for a round whose update may not leave."""
    first = deploy()
    approve(first)
    send(first, "ready")
    send(first, "ready")  # asked again, because the reply was lost
    send(first)
    second = deploy(SECOND)
    refused(second, f"{SECOND}: asks for 2 rounds, 1 of 2 updates are left -> .*review show {SECOND}", "ready")
    send(first)
    refused(second, f"{SECOND}: asks for 2 rounds, 0 of 2 updates are left", "ready")
    approve(second)
    admit(second, "ready")
