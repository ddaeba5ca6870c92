"""When a site or the server tells its people something: a job waits, a run broke, a certificate ends."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from nvflare.apis.fl_constant import FLContextKey, ReturnCode

from fedfms.errors import FILE_UNWRITABLE, LOSS_NOT_FINITE, fail
from fedfms.flare.context import job_location, public_errors, run_contract
from fedfms.flare.gates import EgressFilter
from fedfms.flare.messages import error_ids, error_reply, to_shareable
from fedfms.site import notices
from fedfms.site.application import read_application
from fedfms.site.notices import deliver
from fedfms.site.review import decide
from fedfms.training.process import TaskAborted
from tests.flare.builders import FakeEngine, MakeEngine, train_message, write_policy
from tests.flare.test_commands import UUID, NamedJobs, Reached, TrainingTopic, deployed
from tests.flare.test_executor import REVIEW, SECRET, Site
from tests.flare.test_server import Federation
from tests.site.receivers import Program, program, write_notify


@pytest.fixture
def tell(tmp_path: Path) -> Program:
    return program(tmp_path / "program")


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Send in this process and wait for it."""
    monkeypatch.setattr(notices, "_tell", deliver)


def told(tell: Program) -> list[tuple[str, str, str | None, list[str]]]:
    return [(item["event"], item["site"], item["job_id"], item.get("errors", [])) for item in tell.notices]


def real_site(make_engine: MakeEngine, tell: Program, failure: Exception | None = None) -> Site:
    site = Site(make_engine("site-1", simulated=False), failure=failure)
    write_notify(site.kit, command={"run": tell.run})
    return site


def test_a_process_of_its_own_tells_that_a_job_waits(make_engine: MakeEngine, tell: Program) -> None:
    site = real_site(make_engine, tell)
    write_policy(site.kit, review=REVIEW)
    assert error_ids(site.send("ready")) == ("FMS-S004",)
    tell.wait_for(1)
    assert told(tell) == [("review_waits", "site-1", "job", [])]


def test_a_waiting_job_is_told_once_in_all_its_rounds(make_engine: MakeEngine, tell: Program, at_once: None) -> None:
    site = real_site(make_engine, tell)
    write_policy(site.kit, review=REVIEW)
    for kind, number in (("ready", 0), ("train", 0), ("train", 1)):
        assert error_ids(site.send(kind, number)) == ("FMS-S004",)
    assert told(tell) == [("review_waits", "site-1", "job", [])]


def test_a_failure_tells_its_ids_and_nothing_of_its_text(make_engine: MakeEngine, tell: Program, at_once: None) -> None:
    site = real_site(make_engine, tell, failure=fail(LOSS_NOT_FINITE, SECRET, "loss nan"))
    for number in range(3):
        site.send("train", number, site.start())
        shutil.rmtree(site.folder / "tasks")
    assert told(tell) == [("run_broke", "site-1", "job", ["FMS-T001"])]
    site.worker.failure = ZeroDivisionError(SECRET)
    site.send("train", 0, site.start())
    assert told(tell)[1:] == [("run_broke", "site-1", "job", ["FMS-T999"])]
    assert SECRET not in tell.file.read_text()


def test_nobody_is_told_what_they_decided_or_what_was_stopped(
    make_engine: MakeEngine, tell: Program, at_once: None
) -> None:
    site = real_site(make_engine, tell, failure=TaskAborted())
    assert site.send("ready").get_return_code() == ReturnCode.TASK_ABORTED
    application = read_application(job_location(site.engine.new_context()).application)
    decide(site.kit, application, "reject", job="job", valid_days=1)
    assert error_ids(site.send("ready")) == ("FMS-S005",)
    assert tell.notices == []


def test_a_closed_gate_is_told(make_engine: MakeEngine, tell: Program, at_once: None) -> None:
    site = real_site(make_engine, tell)
    fl_ctx = site.engine.new_context()
    fl_ctx.set_prop(FLContextKey.TASK_NAME, "train", private=True, sticky=False)
    message = train_message(run_contract(fl_ctx))
    message["kind"] = SECRET
    sent = EgressFilter().process(to_shareable(message), fl_ctx)
    assert sent.get_return_code() == ReturnCode.TASK_RESULT_FILTER_ERROR
    ((event, name, job, ids),) = told(tell)
    assert (event, name, job) == ("run_broke", "site-1", "job") and set(ids) == set(error_ids(sent))


def test_a_job_that_no_site_trains_is_told_when_it_arrives(tmp_path: Path, tell: Program, at_once: None) -> None:
    (tmp_path / "kit").mkdir()
    message, engine = deployed(tmp_path / "kit", "rounds: 0\n")
    write_notify(tmp_path / "kit", command={"run": tell.run})
    NamedJobs(Reached(TrainingTopic.DEPLOY)).process(message, engine)
    assert told(tell) == [("run_broke", "hospital-a", UUID, ["FMS-J002"])]


def the_server(make_engine: MakeEngine, tell: Program) -> FakeEngine:
    engine = make_engine("server", server=True)
    write_notify(Path(engine.workspace.get_root_dir()), command={"run": tell.run})
    return engine


def test_a_job_that_stops_is_told_at_the_server(make_engine: MakeEngine, tell: Program, at_once: None) -> None:
    federation = Federation(the_server(make_engine, tell), lambda *_: error_reply("X", ["FMS-D004"])).run()
    assert len(federation.panics) == 1
    assert told(tell) == [("run_broke", "server", "job", ["FMS-X010"])]


def test_a_full_disk_of_the_server_is_told(make_engine: MakeEngine, tell: Program, at_once: None) -> None:
    fl_ctx = the_server(make_engine, tell).new_context()
    with pytest.raises(RuntimeError), public_errors(fl_ctx, "The model could not be saved:"):
        raise fail(FILE_UNWRITABLE, SECRET, "disk full")
    assert told(tell) == [("run_broke", "server", "job", ["FMS-D011"])]


def test_site_and_server_look_at_their_certificates_when_a_job_starts(
    make_engine: MakeEngine, tell: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[Path] = []
    monkeypatch.setattr("fedfms.flare.executor.tell_certificates", looked.append)
    monkeypatch.setattr("fedfms.flare.controller.tell_certificates", looked.append)
    site = real_site(make_engine, tell)
    site.send("ready")
    site.send("train", 0, site.start())
    assert looked == [site.kit]
    engine = the_server(make_engine, tell)
    Federation(engine, lambda *_: error_reply("X", ["FMS-D004"])).run()
    assert looked[1:] == [Path(engine.workspace.get_root_dir())]


@pytest.mark.parametrize("fault", ["file", "memory", "program"])
def test_a_notice_that_fails_costs_a_task_nothing(
    fault: str, make_engine: MakeEngine, tell: Program, tmp_path: Path
) -> None:
    site = real_site(make_engine, tell, failure=fail(LOSS_NOT_FINITE, SECRET, "loss nan"))
    if fault == "file":
        (site.kit / "local" / "notify.yaml").write_text("[")
    elif fault == "memory":
        (site.kit / "notices").write_text("a file")
    else:
        write_notify(site.kit, command={"run": program(tmp_path / "slow", code="time.sleep(30)").run})
    begin = time.monotonic()
    assert error_ids(site.send("train", 0, site.start())) == ("FMS-T001",)
    assert time.monotonic() - begin < 10


def test_the_reply_of_a_good_task_needs_no_notice(make_engine: MakeEngine, tell: Program, at_once: None) -> None:
    site = real_site(make_engine, tell)
    results: list[Any] = [site.send("ready"), site.send("train", 0, site.start())]
    assert all(reply.get_return_code() == ReturnCode.OK for reply in results)
    assert tell.notices == []
