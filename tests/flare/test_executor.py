"""The executor: what it trusts, what it replies, and what stays at the site."""

from __future__ import annotations

import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey, ReturnCode
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal
from nvflare.apis.utils.event import fire_event_to_components
from safetensors.torch import load_file
from torch import Tensor

from fedfms.errors import LOSS_NOT_FINITE, fail
from fedfms.exchange.messages import JobContract, Task, check_reply, message_digest, task_message
from fedfms.exchange.state import l2_norm
from fedfms.files import write_json
from fedfms.flare.context import job_location, run_contract
from fedfms.flare.executor import FedfmsExecutor
from fedfms.flare.messages import MESSAGE, error_ids, to_shareable
from fedfms.sam.model import initial_state
from fedfms.site.allowance import received_file
from fedfms.site.application import Application, read_application
from fedfms.site.egress import EgressLine, record
from fedfms.site.records import utc_now
from fedfms.site.review import decide, pending_jobs
from fedfms.tensor_files import write_tensors
from fedfms.training import process as process_module
from fedfms.training.process import TaskAborted, WorkerResult
from fedfms.training.task import Progress, WorkerTask
from tests.flare.builders import FakeEngine, MakeEngine, make_tensors, train_report, write_policy
from tests.sam.test_plausibility import attacked

SECRET = "/data/patients/P-0017.dcm"


class FakeWorker:
    """Stands for `fedfms.training.process.TaskRunner.run`; notes what it was given."""

    def __init__(self, contract: JobContract, failure: Exception | None = None) -> None:
        self.contract = contract
        self.failure = failure
        self.calls: list[tuple[WorkerTask, dict[str, Tensor] | None, Path]] = []

    def __call__(self, task: WorkerTask, received: Any, folder: Path, aborted: Any, on_progress: Any) -> WorkerResult:
        assert not folder.exists(), "a task starts in an empty folder"
        folder.mkdir(parents=True)
        self.calls.append((task, received, folder))
        on_progress(Progress(stage="training", step=2, steps=2, loss=0.5))
        if self.failure:
            raise self.failure
        cases = {"organ": 5, "lesion": 3}
        if task.kind == "ready":
            ready = {"cases": cases, "cases_left_out": 2, "slices": {"train": 9, "validation": 4}}
            ready |= {"fingerprint_sha256": "f" * 64, "fingerprint": {"patients": 3}}
            return WorkerResult({**ready, **self.contract.digests}, None)
        if task.kind == "train":
            report = {**train_report().model_dump(mode="json"), "cases": cases, "file": SECRET}
            return WorkerResult(report, make_tensors(self.contract, seed=3))
        if task.kind == "validate":
            scores = train_report().model_dump(mode="json")["received"]
            return WorkerResult({"received": scores, "seconds": 1.0, "peak_memory_bytes": 5}, None)
        return WorkerResult({"model_sha256": "a" * 64}, None)


class Site:
    """A site with a fake worker; every task gets a new executor, as in the simulator with few threads."""

    def __init__(self, engine: FakeEngine, failure: Exception | None = None) -> None:
        self.engine = engine
        self.contract = run_contract(engine.new_context())
        self.worker = FakeWorker(self.contract, failure)
        (Path(engine.workspace.get_site_config_dir()) / "site.yaml").write_text("the fake worker does not read it")
        self.folder = Path(engine.workspace.get_run_dir("job")) / "fedfms"
        self.kit = Path(engine.workspace.get_root_dir())

    def do(self, kind: str, content: Any, *, task_name: str | None = None) -> Shareable:
        executor = FedfmsExecutor()
        executor.run_task = self.worker
        fl_ctx = self.engine.new_context()
        fl_ctx.set_prop(FLContextKey.TASK_NAME, kind, private=True, sticky=False)
        return executor.execute(task_name or kind, to_shareable(content), fl_ctx, Signal())

    def send(self, kind: Any, round_number: int = 0, tensors: dict[str, Tensor] | None = None) -> Shareable:
        return self.do(kind, task_message(Task(kind, round_number, tensors), self.contract))

    def start(self) -> dict[str, Tensor]:
        return initial_state(self.contract.job.model, self.contract.job.seed)


@pytest.fixture
def site(make_engine: MakeEngine) -> Site:
    return Site(make_engine("site-1"))


def received(site: Site) -> Path:
    return received_file(site.kit, application(site).review_sha256)


def test_the_four_tasks_give_replies_that_pass_the_gate(site: Site) -> None:
    start = site.start()
    for kind, number, state in (("ready", 0, None), ("train", 0, start), ("validate", 3, start), ("final", 2, start)):
        reply = site.send(kind, number, state)
        assert reply.get_return_code() == ReturnCode.OK
        checked = check_reply(reply[MESSAGE], site.contract, kind=kind, site="site-1", norm_limit=100.0)
        assert (checked.kind, checked.round) == (kind, number)
    task, received, folder = site.worker.calls[1]
    assert (task.kind, task.site, task.round) == ("train", "site-1", 0)
    assert received is not None and all(torch.equal(received[name], start[name]) for name in start)
    assert task.state_folder == site.folder and folder.parent.parent == site.folder


def test_what_no_reply_has_a_place_for_stays_at_the_site(site: Site) -> None:
    report = site.send("ready")[MESSAGE]["report"]
    assert report["fingerprint_sha256"] == "f" * 64 and "fingerprint" not in report
    assert SECRET not in repr(site.send("train", 0, site.start()))


def test_cases_left_out_are_told_with_the_place_of_the_reasons(site: Site, capsys: Any) -> None:
    assert site.send("ready")[MESSAGE]["report"]["cases_left_out"] == 2
    assert f"2 cases with bad files are left out, see {site.folder / 'left_out.txt'}" in capsys.readouterr().out


def test_the_update_travels_as_it_is(site: Site) -> None:
    sent = site.send("train", 0, site.start())[MESSAGE]["update"]["tensors"]
    for name, tensor in make_tensors(site.contract, seed=3).items():
        assert torch.equal(sent[name], tensor)


def test_a_failure_tells_its_id_and_keeps_its_text(make_engine: MakeEngine, capsys: Any, caplog: Any) -> None:
    site = Site(make_engine("site-1"), failure=fail(LOSS_NOT_FINITE, SECRET, "loss nan"))
    reply = site.send("train", 0, site.start())
    assert reply.get_return_code() == ReturnCode.EXECUTION_EXCEPTION
    assert error_ids(reply) == ("FMS-T001",)
    assert SECRET not in repr(reply) and SECRET not in caplog.text
    assert SECRET in capsys.readouterr().err
    assert SECRET in (site.folder / "errors.log").read_text()


def test_an_unexpected_failure_has_an_id_too(make_engine: MakeEngine, caplog: Any) -> None:
    site = Site(make_engine("site-1"), failure=ZeroDivisionError(SECRET))
    reply = site.send("ready")
    assert error_ids(reply) == ("FMS-T999",)
    assert SECRET not in repr(reply) and SECRET not in caplog.text
    assert "ZeroDivisionError" in (site.folder / "errors.log").read_text()


def test_an_abort_is_told_as_such(make_engine: MakeEngine) -> None:
    site = Site(make_engine("site-1"), failure=TaskAborted())
    assert site.send("ready").get_return_code() == ReturnCode.TASK_ABORTED


def test_the_workers_stop_follows_flares_signal(make_engine: MakeEngine) -> None:
    engine = make_engine("site-1")
    site = Site(engine)
    signal, seen = Signal(), []

    def run(task: Any, received: Any, folder: Path, aborted: Any, on_progress: Any) -> WorkerResult:
        seen.append(aborted())
        signal.trigger(True)
        seen.append(aborted())
        raise TaskAborted

    executor = FedfmsExecutor()
    executor.run_task = run
    executor.execute(
        "ready", to_shareable(task_message(Task("ready", 0, None), site.contract)), engine.new_context(), signal
    )
    assert seen == [False, True]


def test_a_task_of_another_job_is_refused_with_both_digests_kept_here(site: Site, capsys: Any) -> None:
    for key, identifier in (
        ("schema_sha256", "FMS-X001"),
        ("backbone_sha256", "FMS-X004"),
        ("job_sha256", "FMS-X005"),
    ):
        content = task_message(Task("ready", 0, None), site.contract)
        content[key] = "d" * 64
        reply = site.do("ready", content)
        assert error_ids(reply) == (identifier,)
        local = capsys.readouterr().err
        assert "d" * 64 in local and site.contract.digests[key] in local
        assert "d" * 64 not in repr(reply)
    assert not site.worker.calls


def test_an_unknown_task_is_not_done(site: Site) -> None:
    reply = site.do("ready", task_message(Task("ready", 0, None), site.contract), task_name="shell")
    assert reply.get_return_code() == ReturnCode.TASK_UNSUPPORTED and not site.worker.calls


def test_the_start_is_not_taken_on_trust(site: Site) -> None:
    other = site.start()
    name = next(iter(other))
    other[name] = other[name] + 0.01
    assert error_ids(site.send("train", 0, other)) == ("FMS-X008",)
    assert not site.worker.calls


def test_a_later_state_may_move_only_so_far(make_engine: MakeEngine) -> None:
    site = Site(make_engine("site-1", update_norm_limit=1.0))
    start = site.start()
    assert site.send("train", 0, start).get_return_code() == ReturnCode.OK
    name = next(iter(start))

    def moved(by: float) -> dict[str, Tensor]:
        state = {key: tensor.clone() for key, tensor in start.items()}
        state[name].view(-1)[0] += by
        return state

    # Two structures and the shared tensors: the root of three times the limit in a round.
    assert error_ids(site.send("train", 1, moved(1.8))) == ("FMS-X003",)
    assert site.send("train", 1, moved(1.7)).get_return_code() == ReturnCode.OK
    # The yardstick is now the state of round 1, kept on disk.
    assert received(site).is_file()
    shutil.rmtree(site.folder)  # as the server may have it done; the yardstick stays
    assert error_ids(site.send("train", 2, moved(3.6))) == ("FMS-X003",)
    assert site.send("train", 2, moved(3.4)).get_return_code() == ReturnCode.OK
    assert error_ids(site.send("final", 2, moved(3.3))) == ("FMS-X003",), "the same round means the same state"


@pytest.mark.parametrize("damaged", [False, True])
def test_a_site_that_joins_late_or_lost_its_file_measures_from_the_start(
    damaged: bool, make_engine: MakeEngine
) -> None:
    site = Site(make_engine("site-1", update_norm_limit=1.0))
    if damaged:
        received(site).parent.mkdir(parents=True)
        received(site).write_bytes(b"torn")
    state = site.start()
    name = next(iter(state))
    state[name].view(-1)[0] += 3.6
    assert error_ids(site.send("train", 2, state)) == ("FMS-X003",)
    state[name].view(-1)[0] -= 0.2
    assert site.send("train", 2, state).get_return_code() == ReturnCode.OK


def test_a_state_built_to_read_images_out_is_refused_within_the_norm(site: Site) -> None:
    """Round 0 is the site's own; from then on the bound on the norm alone would leave room for the attack."""
    start = site.start()
    assert site.send("train", 0, start).get_return_code() == ReturnCode.OK
    state = attacked(start)
    assert l2_norm({name: state[name] - start[name] for name in start}) < site.contract.job.update_norm_limit
    assert error_ids(site.send("train", 1, state)) == ("FMS-X015",)
    assert error_ids(site.send("validate", 3, state)) == ("FMS-X015",), "it has not become the yardstick"


def test_nan_from_the_server_is_refused(site: Site) -> None:
    state = site.start()
    next(iter(state.values())).view(-1)[0] = float("nan")
    assert error_ids(site.send("train", 0, state)) == ("FMS-X002",)


def test_a_worker_with_another_backbone_is_not_ready(site: Site) -> None:
    site.worker.contract = JobContract(
        site.contract.job.model_copy(update={"backbone_sha256": "e" * 64}), site.contract.schema
    )
    assert "FMS-X004" in error_ids(site.send("ready"))


def test_the_tensors_of_a_task_do_not_fill_the_disk(site: Site) -> None:
    original = site.worker.__call__

    def run(task: Any, received: Any, folder: Path, aborted: Any, on_progress: Any) -> WorkerResult:
        result = original(task, received, folder, aborted, on_progress)
        (folder / "update.safetensors").write_bytes(b"large")
        (folder / "worker.log").write_text("kept")
        return result

    site.worker = run  # type: ignore[assignment]
    site.send("train", 0, site.start())
    left = site.folder / "tasks" / "train-0000"
    assert sorted(path.name for path in left.iterdir()) == ["update.safetensors", "worker.log"], "until the next task"
    site.send("train", 1, site.start())
    assert [path.name for path in left.iterdir()] == ["worker.log"]
    site.send("validate", 3, site.start())
    assert [path.name for path in (site.folder / "tasks" / "train-0001").iterdir()] == ["worker.log"]


def keeping(site: Site) -> list[int]:
    """Let the worker leave the training process' files, and each time another update; lists its rounds."""
    original, calls = site.worker.__call__, list[int]()

    def run(task: Any, received: Any, folder: Path, aborted: Any, on_progress: Any) -> WorkerResult:
        shutil.rmtree(folder, ignore_errors=True)
        result = original(task, received, folder, aborted, on_progress)
        calls.append(task.round)
        if task.kind == "train":
            write_tensors(folder / "received.safetensors", received)
            write_tensors(folder / "update.safetensors", make_tensors(site.contract, seed=len(calls)))
            write_json(folder / "report.json", result.report)
            result = WorkerResult(result.report, load_file(folder / "update.safetensors"))
        return result

    site.worker = run  # type: ignore[assignment]
    return calls


def test_a_round_that_is_asked_for_again_gets_the_same_bytes(site: Site) -> None:
    calls = keeping(site)
    site.send("ready")
    calls.clear()
    first = message_digest(site.send("train", 0, site.start())[MESSAGE])
    assert message_digest(site.send("train", 0, site.start())[MESSAGE]) == first and calls == [0]
    moved = {name: tensor + 1e-4 for name, tensor in site.start().items()}
    second = message_digest(site.send("train", 1, moved)[MESSAGE])
    assert second != first and calls == [0, 1]
    other = {name: tensor + 2e-4 for name, tensor in site.start().items()}
    assert error_ids(site.send("train", 1, other)) == ("FMS-X003",), "another state of the same round"
    assert calls == [0, 1]


def test_a_kept_update_that_was_cut_off_is_trained_again(site: Site) -> None:
    calls = keeping(site)
    site.send("ready")
    calls.clear()
    site.send("train", 0, site.start())
    path = site.folder / "tasks" / "train-0000" / "update.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert site.send("train", 0, site.start()).get_return_code() == ReturnCode.OK and calls == [0, 0]


def test_no_training_begins_whose_update_could_not_leave(make_engine: MakeEngine) -> None:
    """All updates are used up, and what was sent in this round is no longer kept."""
    site = Site(make_engine("site-1", simulated=False, rounds=1))
    decide(site.kit, application(site), "approve", job="job", valid_days=1)
    content = {"time": utc_now(), "task": "train", "round": 0, "decision": "sent", "bytes": 9, "sha256": "c" * 64}
    (site.folder.parent / "fedfms").mkdir(parents=True, exist_ok=True)
    (site.folder / "ready.json").write_text("{}")
    record(site.kit, "job", EgressLine.model_validate({**content, "review_sha256": application(site).review_sha256}))
    assert error_ids(site.send("train", 0, site.start())) == ("FMS-S007",) and not site.worker.calls


def test_a_site_without_site_yaml_says_so(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEDFMS_SITES", raising=False)
    site = Site(make_engine("site-1", simulated=False))
    (Path(site.engine.workspace.get_site_config_dir()) / "site.yaml").unlink()
    assert error_ids(site.send("ready")) == ("FMS-D012",)


def test_what_goes_wrong_after_the_work_does_not_lose_the_reply(make_engine: MakeEngine) -> None:
    """A file that cannot be deleted: the training of a round is worth more."""
    engine = make_engine("site-1")
    site = Site(engine)

    def run(*arguments: Any) -> WorkerResult:
        result = site.worker(*arguments)
        (arguments[2] / "update.safetensors").mkdir()  # cannot be unlinked
        return result

    executor = FedfmsExecutor()
    executor.run_task = run
    state = initial_state(site.contract.job.model, site.contract.job.seed)
    for number in (0, 1):
        message = to_shareable(task_message(Task("train", number, state), site.contract))
        reply = executor.execute("train", message, engine.new_context(), Signal())
        assert reply.get_return_code() == ReturnCode.OK
    log = (site.folder / "errors.log").read_text()
    assert "round 1/3: after the task" in log and "round 2/3: after the task" in log
    assert "IsADirectoryError" in log or "PermissionError" in log


def test_the_end_of_the_run_ends_the_training_process(make_engine: MakeEngine, tmp_path: Path) -> None:
    """It would otherwise hold its memory, waiting for a task that never comes, for as long as FLARE's process lives."""
    executor = FedfmsExecutor()
    process = process_module._start(tmp_path, tmp_path)
    executor._runner._process = process
    try:
        assert process.poll() is None
        fire_event_to_components(EventType.END_RUN, [executor], make_engine("site-1").new_context())
        assert process.returncode is not None
    finally:
        process.kill()
        process.wait()


REVIEW = {"rule": "required", "hold_minutes": 0, "valid_days": 1}


def application(site: Site) -> Application:
    return read_application(job_location(site.engine.new_context()).application)


def test_a_real_site_without_a_policy_does_nothing(make_engine: MakeEngine) -> None:
    site = Site(make_engine("site-1", simulated=False))
    policy = site.kit / "local" / "policy.yaml"
    assert site.send("ready").get_return_code() == ReturnCode.OK
    policy.unlink()
    assert error_ids(site.send("train", 0, site.start())) == ("FMS-S003",)
    assert [task.kind for task, _, _ in site.worker.calls] == ["ready"]


def test_the_simulators_own_policy_is_told_once(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    site.send("ready")
    site.send("train", 0, site.start())
    assert capsys.readouterr().out.count("no policy.yaml") == 1
    write_policy(site.kit)
    (site.folder / "tasks" / "ready-0000").rename(site.folder / "done")
    site.send("ready")
    assert "no policy.yaml" not in capsys.readouterr().out


def test_a_job_that_asks_for_too_much_starts_no_work_and_is_audited(make_engine: MakeEngine) -> None:
    site = Site(make_engine("site-1", simulated=False))
    write_policy(site.kit, scopes=["decoder"], max_rounds=1)
    assert error_ids(site.send("ready")) == ("FMS-S002",)
    assert not site.worker.calls
    assert site.engine.audit == ["site refused task ready: FMS-S002"]
    text = (site.folder / "errors.log").read_text()
    assert "scope: found adapters+decoder, the site allows decoder" in text and "rounds: found 3" in text


def test_an_unapproved_job_waits_for_the_decision(make_engine: MakeEngine, capsys: pytest.CaptureFixture[str]) -> None:
    site = Site(make_engine("site-1", simulated=False))
    write_policy(site.kit, review={**REVIEW, "hold_minutes": 1})
    (site.folder.parent / "meta.json").write_text('{"submitter_name": "lead@coord.org", "submitter_org": "coord"}')
    looked: list[int] = []

    def approve(seconds: float) -> None:
        looked.append(len(pending_jobs(site.kit)))
        (waiting,) = pending_jobs(site.kit)
        assert (waiting.job_id, waiting.submitter) == ("job", "lead@coord.org, coord")
        assert waiting.digest == application(site).review_sha256 and not site.worker.calls
        if len(looked) == 3:
            decide(site.kit, application(site), "approve", job="job", valid_days=1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedfms.flare.executor.time.sleep", approve)
        assert site.send("ready").get_return_code() == ReturnCode.OK
    assert looked == [1, 1, 1] and pending_jobs(site.kit) == []
    assert capsys.readouterr().out.count("fedfms review show job") == 1


def test_a_job_approved_too_late_joins_after_the_checks_of_ready(make_engine: MakeEngine) -> None:
    site = Site(make_engine("site-1", simulated=False))
    write_policy(site.kit, review=REVIEW)
    assert error_ids(site.send("ready")) == ("FMS-S004",)
    assert error_ids(site.send("train", 0, site.start())) == ("FMS-S004",)
    assert not site.worker.calls and len(pending_jobs(site.kit)) == 1
    decide(site.kit, application(site), "approve", job="job", valid_days=1)
    assert site.send("train", 1, site.start()).get_return_code() == ReturnCode.OK
    assert [(task.kind, task.round) for task, _, _ in site.worker.calls] == [("ready", 0), ("train", 1)]
    assert pending_jobs(site.kit) == []
    site.send("train", 2, site.start())
    assert [task.kind for task, _, _ in site.worker.calls] == ["ready", "train", "train"], "once"


def test_a_second_submission_under_a_used_approval_starts_no_work(make_engine: MakeEngine) -> None:
    """It neither trains for nothing nor waits for a decision."""
    site = Site(make_engine("site-1", simulated=False))
    write_policy(site.kit, review={**REVIEW, "hold_minutes": 60})
    decide(site.kit, application(site), "approve", job="job", valid_days=1)
    content = {"time": utc_now(), "task": "train", "decision": "sent", "bytes": 9, "sha256": "c" * 64}
    digest = application(site).review_sha256
    record(site.kit, "earlier", EgressLine.model_validate({**content, "review_sha256": digest}))
    assert error_ids(site.send("ready")) == ("FMS-S007",)
    assert not site.worker.calls
    assert "asks for 3 rounds, 2 of 3 updates are left" in (site.folder / "errors.log").read_text()
    decide(site.kit, application(site), "approve", job="job", valid_days=1)
    assert site.send("ready").get_return_code() == ReturnCode.OK


def test_a_rejected_job_does_not_wait(make_engine: MakeEngine) -> None:
    site = Site(make_engine("site-1", simulated=False))
    write_policy(site.kit, review={**REVIEW, "hold_minutes": 60})
    decide(site.kit, application(site), "reject", job="job", valid_days=1, note="no contract")
    assert error_ids(site.send("ready")) == ("FMS-S005",)
    assert "no contract" in (site.folder / "errors.log").read_text()


def test_a_waiting_job_can_be_aborted(make_engine: MakeEngine) -> None:
    site = Site(make_engine("site-1", simulated=False))
    write_policy(site.kit, review={**REVIEW, "hold_minutes": 60})
    signal = Signal()
    executor = FedfmsExecutor()
    executor.run_task = site.worker
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedfms.flare.executor.time.sleep", lambda seconds: signal.trigger(True))
        message = to_shareable(task_message(Task("ready", 0, None), site.contract))
        reply = executor.execute("ready", message, site.engine.new_context(), signal)
    assert reply.get_return_code() == ReturnCode.TASK_ABORTED
    fire_event_to_components(EventType.END_RUN, [executor], site.engine.new_context())
    assert pending_jobs(site.kit) == [], "the job is over"


def test_too_few_cases_are_found_before_training(make_engine: MakeEngine) -> None:
    site = Site(make_engine("site-1", simulated=False))
    write_policy(site.kit, min_training_cases=4)  # the fake worker has five of one structure, three of the other
    assert error_ids(site.send("ready")) == ("FMS-S006",)
    (site.folder / "tasks" / "ready-0000").rename(site.folder / "done")
    assert error_ids(site.send("train", 0, site.start())) == ("FMS-S006",)
    assert {task.kind for task, _, _ in site.worker.calls} == {"ready"}
    assert "lesion: 3 annotated training cases" in (site.folder / "errors.log").read_text()


def test_the_hours_of_a_job_end_also_in_the_middle_of_a_task(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site(make_engine("site-1", simulated=False))
    assert site.send("ready").get_return_code() == ReturnCode.OK
    now = time.time()

    def long_work(task: Any, received: Any, folder: Path, aborted: Any, on_progress: Any) -> WorkerResult:
        assert not aborted()
        monkeypatch.setattr("fedfms.flare.executor.time.time", lambda: now + 3601)
        assert aborted()
        raise TaskAborted

    site.worker = long_work  # type: ignore[assignment]
    assert error_ids(site.send("train", 0, site.start())) == ("FMS-S007",)
    site.worker = FakeWorker(site.contract)
    assert error_ids(site.send("train", 1, site.start())) == ("FMS-S007",)
    assert not site.worker.calls


def test_a_damaged_record_of_decisions_approves_nothing(make_engine: MakeEngine) -> None:
    site = Site(make_engine("site-1", simulated=False))
    decide(site.kit, application(site), "approve", job="job", valid_days=1)
    path = site.kit / "review" / "decisions.jsonl"
    path.write_text("{\n" + path.read_text())
    assert error_ids(site.send("ready")) == ("FMS-S008",)


def test_the_state_of_an_earlier_run_is_no_yardstick(make_engine: MakeEngine) -> None:
    """A new approval is a new run; the state kept from the last one would refuse the new one's states."""
    site = Site(make_engine("site-1", simulated=False, update_norm_limit=1.0))
    write_policy(site.kit, review=REVIEW)
    decide(site.kit, application(site), "approve", job="job", valid_days=1)
    state = site.start()
    assert site.send("train", 0, state).get_return_code() == ReturnCode.OK
    next(iter(state.values())).view(-1)[0] += 1.7
    assert site.send("train", 1, state).get_return_code() == ReturnCode.OK
    assert error_ids(site.send("train", 1, site.start())) == ("FMS-X003",)
    decide(site.kit, application(site), "approve", job="job", valid_days=1)
    shutil.rmtree(site.folder / "tasks")
    assert site.send("train", 1, site.start()).get_return_code() == ReturnCode.OK


def shifted(state: dict[str, Tensor], by: float) -> dict[str, Tensor]:
    """The state with one value moved; L2 norm of the change is ``by``."""
    moved = {name: tensor.clone() for name, tensor in state.items()}
    next(iter(moved.values())).view(-1)[0] += by
    return moved


def test_going_back_and_forth_between_rounds_gives_no_new_bound(make_engine: MakeEngine) -> None:
    site = Site(make_engine("site-1", update_norm_limit=1.0))
    start = site.start()
    assert site.send("train", 0, start).get_return_code() == ReturnCode.OK
    assert site.send("train", 2, shifted(start, 3.4)).get_return_code() == ReturnCode.OK
    assert error_ids(site.send("train", 1, shifted(start, 5.0))) == ("FMS-X006",)
    assert error_ids(site.send("validate", 1, shifted(start, 5.0))) == ("FMS-X006",)
    shutil.rmtree(site.folder / "tasks")
    assert site.send("train", 2, shifted(start, 3.4)).get_return_code() == ReturnCode.OK, "the same again"
    # Going back to the start does not count as a step: the next one is measured from there.
    shutil.rmtree(site.folder / "tasks")
    assert site.send("train", 0, start).get_return_code() == ReturnCode.OK
    assert error_ids(site.send("train", 1, shifted(start, 3.4))) == ("FMS-X003",)


def test_the_best_model_may_be_an_earlier_one_and_is_no_yardstick(make_engine: MakeEngine) -> None:
    site = Site(make_engine("site-1", update_norm_limit=1.0))
    start = site.start()
    assert site.send("train", 2, shifted(start, 3.4)).get_return_code() == ReturnCode.OK
    assert site.send("final", 1, shifted(start, 1.7)).get_return_code() == ReturnCode.OK
    assert error_ids(site.send("validate", 2, shifted(start, 1.7))) == ("FMS-X003",)


def test_a_site_does_one_task_at_a_time(make_engine: MakeEngine) -> None:
    engine = make_engine("site-1")
    site = Site(engine)
    executor = FedfmsExecutor()
    executor.poll_seconds = 0.05
    entered, go_on, abort = threading.Event(), threading.Event(), Signal()
    message = to_shareable(task_message(Task("ready", 0, None), site.contract))

    def hold(*arguments: Any) -> WorkerResult:
        entered.set()
        assert go_on.wait(20)
        return site.worker(*arguments)

    with ThreadPoolExecutor(1) as pool:
        executor.run_task = hold
        first = pool.submit(executor.execute, "ready", message, engine.new_context(), Signal())
        assert entered.wait(20)
        executor.run_task = site.worker
        abort.trigger(True)
        second = executor.execute("ready", message, engine.new_context(), abort)
        go_on.set()
        assert first.result(20).get_return_code() == ReturnCode.OK
    assert second.get_return_code() == ReturnCode.TASK_ABORTED and len(site.worker.calls) == 1
