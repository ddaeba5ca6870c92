"""The gates fail closed, twice, and let FLARE's own headers through."""

from __future__ import annotations

import copy
import json
import math
import os
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from nvflare.apis.analytix import AnalyticsDataType
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import EventScope, FedEventHeader, FLContextKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.apis.utils.analytix_utils import create_analytic_dxo
from nvflare.apis.utils.event import fire_event_to_components
from nvflare.fuel.utils import fobs

from fedfms.errors import CATALOGUE, FedfmsError
from fedfms.exchange.messages import JobContract
from fedfms.exchange.replies import FIGURES
from fedfms.flare import gates
from fedfms.flare.context import job_location, run_contract
from fedfms.flare.gates import EgressFilter, ExitGate, check_ingress
from fedfms.flare.messages import (
    ERRORS,
    MESSAGE,
    error_ids,
    error_reply,
    receipt,
    register_types,
    serialized_bytes,
    to_shareable,
)
from fedfms.site.application import read_application
from fedfms.site.egress import read_record, record_file
from fedfms.site.policy import SIMULATOR_POLICY, SitePolicy, load_policy
from fedfms.site.review import decide
from tests.flare.builders import MakeEngine, train_message, write_policy

SECRET = "P-0017"


@pytest.fixture
def context(make_engine: MakeEngine) -> FLContext:
    fl_ctx = make_engine("site-1").new_context()
    fl_ctx.set_prop(FLContextKey.TASK_NAME, "train", private=True, sticky=False)
    return fl_ctx


def kit_of(fl_ctx: FLContext) -> Path:
    return Path(fl_ctx.get_engine().get_workspace().get_root_dir())


def through_exit_gate(gate: ExitGate, reply: Shareable, fl_ctx: FLContext) -> Shareable:
    """Fire the event as FLARE's client runner does and return the object that it goes on to send."""
    fl_ctx.set_prop(FLContextKey.TASK_RESULT, reply, private=True, sticky=False)
    for handler, arguments in gate.get_event_handlers()["_after_task_result_filter"]:
        handler("_after_task_result_filter", fl_ctx, **arguments)
    return reply


def through_filter(reply: Shareable, fl_ctx: FLContext) -> Shareable:
    return EgressFilter().process(reply, fl_ctx)


WAYS = {
    "filter": through_filter,
    "exit gate": lambda reply, fl_ctx: through_exit_gate(ExitGate(), reply, fl_ctx),
}
both_ways = pytest.mark.parametrize("way", list(WAYS))


def is_bare(reply: Shareable) -> bool:
    """Nothing but a return code and error ids."""
    headers = reply["__headers__"]
    return (
        set(reply) == {"__headers__"}
        and set(headers) == {"__rc__", ERRORS}
        and headers["__rc__"] in gates.error_reply.__globals__["RETURN_CODES"]
        and all(type(name) is str and name in CATALOGUE for name in headers[ERRORS])
    )


@both_ways
def test_a_good_update_passes_rebuilt(way: str, context: FLContext) -> None:
    contract = run_contract(context)
    message = train_message(contract)
    kept = copy.deepcopy(message)
    reply = to_shareable(message)
    reply.set_header("note", SECRET)
    reply["extra"] = SECRET
    sent = WAYS[way](reply, context)
    assert sent.get_return_code() == ReturnCode.OK
    assert set(sent) == {"__headers__", MESSAGE}
    assert set(sent["__headers__"]) == {"__rc__"}
    for name, tensor in sent[MESSAGE]["update"]["tensors"].items():
        assert torch.equal(tensor, kept["update"]["tensors"][name])
        assert tensor.data_ptr() != message["update"]["tensors"][name].data_ptr()


@both_ways
@pytest.mark.parametrize("part", ["report", "update", "tensors"])
def test_what_is_not_on_the_list_closes_the_gate(way: str, part: str, context: FLContext) -> None:
    message = train_message(run_contract(context))
    {"report": message["report"], "update": message["update"], "tensors": message["update"]["tensors"]}[part][
        "patient"
    ] = SECRET
    sent = WAYS[way](to_shareable(message), context)
    assert is_bare(sent)
    assert sent.get_return_code() == ReturnCode.TASK_RESULT_FILTER_ERROR
    assert error_ids(sent) == ("FMS-X009", "FMS-X001")
    assert SECRET not in repr(sent)


@both_ways
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinity_do_not_leave(way: str, value: float, context: FLContext) -> None:
    message = train_message(run_contract(context))
    next(iter(message["update"]["tensors"].values())).view(-1)[0] = value
    sent = WAYS[way](to_shareable(message), context)
    assert is_bare(sent) and error_ids(sent) == ("FMS-X009", "FMS-X002")


class Evil(Shareable):
    """A reply whose methods lie; FLARE only asks for a Shareable."""

    def get_return_code(self, default: Any = None) -> Any:
        return ReturnCode.OK

    def clear(self) -> None:
        pass

    def update(self, *arguments: Any, **others: Any) -> None:
        pass


@both_ways
@pytest.mark.parametrize("failure", [RuntimeError(SECRET), KeyboardInterrupt(), SystemExit(0), MemoryError()])
def test_a_gate_that_throws_sends_nothing(
    way: str, failure: BaseException, context: FLContext, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def throw(*arguments: Any, **others: Any) -> None:
        raise failure

    message = train_message(run_contract(context))
    monkeypatch.setattr(gates, "check_reply", throw)
    sent = WAYS[way](to_shareable(message), context)
    assert is_bare(sent) and error_ids(sent) == ("FMS-X009",)
    assert SECRET not in repr(sent)
    assert type(failure).__name__ in capsys.readouterr().err


@both_ways
def test_a_record_that_cannot_be_written_does_not_open_the_gate(
    way: str, context: FLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    def throw(*arguments: Any, **others: Any) -> None:
        raise OSError("disk full")

    message = train_message(run_contract(context))
    message["report"]["patient"] = SECRET
    monkeypatch.setattr(gates, "report_locally", throw)
    assert is_bare(WAYS[way](to_shareable(message), context))


def test_a_lying_reply_is_emptied_all_the_same(context: FLContext) -> None:
    reply = Evil()
    dict.__setitem__(reply, "patient", SECRET)
    sent = through_exit_gate(ExitGate(), reply, context)
    assert SECRET not in repr(dict(sent))
    assert error_ids(Shareable.get_header and sent) == ("FMS-X009", "FMS-X001")


@both_ways
def test_a_failed_reply_becomes_a_bare_return_code(way: str, context: FLContext) -> None:
    reply = make_reply(ReturnCode.EXECUTION_EXCEPTION)
    reply.set_header(ERRORS, ["FMS-D004", SECRET, 7])
    reply.set_header("__error__", SECRET)
    reply["traceback"] = SECRET
    sent = WAYS[way](reply, context)
    assert is_bare(sent)
    assert sent.get_return_code() == ReturnCode.EXECUTION_EXCEPTION and error_ids(sent) == ("FMS-D004",)


@both_ways
@pytest.mark.parametrize("code", [SECRET, 17, ["OK"], None])
def test_an_invented_return_code_does_not_leave(way: str, code: Any, context: FLContext) -> None:
    sent = WAYS[way](make_reply(code), context)
    assert is_bare(sent) and SECRET not in repr(sent)


@both_ways
def test_another_kind_than_the_task_is_refused(way: str, context: FLContext) -> None:
    context.set_prop(FLContextKey.TASK_NAME, "validate", private=True, sticky=False)
    assert is_bare(WAYS[way](to_shareable(train_message(run_contract(context))), context))


@both_ways
def test_a_task_of_another_job_is_refused(way: str, context: FLContext) -> None:
    context.set_prop(FLContextKey.TASK_NAME, "collect_everything", private=True, sticky=False)
    reply = make_reply(ReturnCode.OK)
    reply["weights"] = SECRET
    assert is_bare(WAYS[way](reply, context))


@both_ways
def test_a_site_without_a_readable_job_sends_nothing(way: str, make_engine: MakeEngine, contract: JobContract) -> None:
    engine = make_engine("site-2", rounds="three")
    fl_ctx = engine.new_context()
    fl_ctx.set_prop(FLContextKey.TASK_NAME, "train", private=True, sticky=False)
    sent = WAYS[way](to_shareable(train_message(contract, "site-2")), fl_ctx)
    assert is_bare(sent) and error_ids(sent) == ("FMS-X009", "FMS-J002")


def test_the_site_decides_about_scopes(context: FLContext) -> None:
    write_policy(kit_of(context), scopes=["decoder"])
    sent = through_exit_gate(ExitGate(), to_shareable(train_message(run_contract(context))), context)
    assert is_bare(sent) and error_ids(sent) == ("FMS-X009", "FMS-S002")


def test_the_scope_is_looked_at_twice(context: FLContext, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault in the policy's objections alone must not let another scope out."""
    write_policy(kit_of(context), scopes=["decoder"])
    monkeypatch.setattr(SitePolicy, "objections", lambda self, job: [])
    sent = through_exit_gate(ExitGate(), to_shareable(train_message(run_contract(context))), context)
    assert is_bare(sent) and error_ids(sent) == ("FMS-X009", "FMS-X012")


def test_the_sites_norm_limit_holds_beside_the_jobs(context: FLContext, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also should the policy's objections alone fail."""
    monkeypatch.setattr(SitePolicy, "objections", lambda self, job: [])
    message = train_message(run_contract(context))
    assert through_filter(to_shareable(message), context).get_return_code() == ReturnCode.OK
    write_policy(kit_of(context), update_norm_limit=1e-3)
    sent = through_exit_gate(ExitGate(), to_shareable(message), context)
    assert is_bare(sent) and error_ids(sent) == ("FMS-X009", "FMS-X003")


@pytest.mark.parametrize(("text", "identifier"), [(None, "FMS-S003"), ("scopes: [everything]", "FMS-S001")])
def test_a_real_site_without_a_valid_policy_sends_nothing(
    text: str | None, identifier: str, make_engine: MakeEngine
) -> None:
    fl_ctx = make_engine("site-1", simulated=False).new_context()
    fl_ctx.set_prop(FLContextKey.TASK_NAME, "train", private=True, sticky=False)
    message = train_message(run_contract(fl_ctx))
    assert through_exit_gate(ExitGate(), to_shareable(message), fl_ctx).get_return_code() == ReturnCode.OK
    path = kit_of(fl_ctx) / "local" / "policy.yaml"
    path.unlink() if text is None else path.write_text(text)
    sent = through_exit_gate(ExitGate(), to_shareable(message), fl_ctx)
    assert is_bare(sent) and error_ids(sent) == ("FMS-X009", identifier)


def test_an_unapproved_job_gets_nothing_out_whatever_the_executor_did(context: FLContext) -> None:
    write_policy(kit_of(context), review={"rule": "required", "hold_minutes": 0, "valid_days": 1})
    message = train_message(run_contract(context))
    sent = through_exit_gate(ExitGate(), to_shareable(message), context)
    assert is_bare(sent) and error_ids(sent) == ("FMS-X009", "FMS-S004")
    application = read_application(job_location(context).application)
    decide(kit_of(context), application, "approve", job="job", valid_days=1)
    assert through_exit_gate(ExitGate(), to_shareable(message), context).get_return_code() == ReturnCode.OK
    decide(kit_of(context), application, "reject", job="job", valid_days=1)
    sent = through_exit_gate(ExitGate(), to_shareable(message), context)
    assert error_ids(sent) == ("FMS-X009", "FMS-S005"), "withdrawn while the job runs"


def test_a_job_without_its_filter_gets_nothing_out(context: FLContext) -> None:
    path = job_location(context).application / "config" / "config_fed_client.json"
    content = json.loads(path.read_text())
    del content["task_result_filters"]
    path.write_text(json.dumps(content))
    sent = through_exit_gate(ExitGate(), to_shareable(train_message(run_contract(context))), context)
    assert is_bare(sent) and error_ids(sent) == ("FMS-X009", "FMS-J005")


def test_a_job_file_changed_while_it_runs_closes_the_gate(context: FLContext) -> None:
    message = train_message(run_contract(context))
    path = job_location(context).application / "config" / "training.yaml"
    path.write_text(path.read_text().replace("update_norm_limit: 100.0", "update_norm_limit: 1000.0"))
    sent = through_exit_gate(ExitGate(), to_shareable(message), context)
    assert is_bare(sent) and error_ids(sent) == ("FMS-X009", "FMS-X005")


def test_too_few_cases_do_not_leave(context: FLContext) -> None:
    write_policy(kit_of(context), min_training_cases=4)  # the message has five of one structure, three of the other
    sent = through_exit_gate(ExitGate(), to_shareable(train_message(run_contract(context))), context)
    assert is_bare(sent) and error_ids(sent) == ("FMS-X009", "FMS-S006")


@pytest.mark.parametrize(("lesions", "leaves"), [(4, True), (3, False)])
def test_a_site_with_too_few_cases_is_not_ready(lesions: int, leaves: bool, context: FLContext) -> None:
    """The gate counts by itself: the executor, which counts before, is only the job's."""
    write_policy(kit_of(context), min_training_cases=4)
    context.set_prop(FLContextKey.TASK_NAME, "ready", private=True, sticky=False)
    report = {
        "cases": {"organ": 9, "lesion": lesions},
        "cases_left_out": 0,
        "slices": {"train": 20, "validation": 5},
        "fingerprint_sha256": "f" * 64,
    }
    contract = run_contract(context)
    message = {"kind": "ready", "site": "site-1", "round": 0, **contract.digests, "report": report}
    sent = through_exit_gate(ExitGate(), to_shareable(message), context)
    if leaves:
        assert sent[MESSAGE]["report"] == report
    else:
        assert is_bare(sent) and error_ids(sent) == ("FMS-X009", "FMS-S006")


def test_no_more_updates_leave_than_the_job_has_rounds(context: FLContext) -> None:
    """A server that asks for one round again and again would otherwise get as many updates as it likes."""
    contract = run_contract(context)
    messages = [train_message(contract, seed=seed) for seed in range(contract.job.rounds + 1)]
    for message in messages[:-1]:
        assert through_exit_gate(ExitGate(), to_shareable(message), context).get_return_code() == ReturnCode.OK
    sent = through_exit_gate(ExitGate(), to_shareable(messages[-1]), context)
    assert is_bare(sent) and error_ids(sent) == ("FMS-X009", "FMS-S007")
    # After a crash of the server: the same bytes of the same round tell it nothing new.
    again = through_exit_gate(ExitGate(), to_shareable(messages[-2]), context)
    assert again.get_return_code() == ReturnCode.OK
    other_round = train_message(contract, round_number=1, seed=0)
    assert error_ids(through_exit_gate(ExitGate(), to_shareable(other_round), context)) == ("FMS-X009", "FMS-S007")


def test_the_policy_withholds_figures(context: FLContext) -> None:
    allowed = [name for name in FIGURES if name not in ("loss", "iou")]
    write_policy(kit_of(context), metrics={"allowed": allowed, "min_slices": 1})
    message = train_message(run_contract(context))
    assert message["report"]["loss"] == 0.7
    report = through_exit_gate(ExitGate(), to_shareable(message), context)[MESSAGE]["report"]
    assert report["loss"] is None and report["steps"] == 2
    assert report["received"]["organ"] == {"dice": 0.5, "iou": None, "n": 7}
    write_policy(kit_of(context), metrics={"allowed": list(FIGURES), "min_slices": 8})
    report = through_exit_gate(ExitGate(), to_shareable(message), context)[MESSAGE]["report"]
    assert report["received"]["organ"] == {"dice": None, "iou": None, "n": None}
    assert report["received"]["lesion"] == {"dice": None, "iou": None, "n": 0}
    (_, line) = read_record(kit_of(context), "job")
    assert line.decision == "withheld"
    assert set(line.withheld) == {
        f"{m}.organ.{figure}" for m in ("received", "local") for figure in ("dice", "iou", "n")
    }


def test_what_leaves_is_recorded_before_it_leaves(context: FLContext, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[bool] = []
    original = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (original(descriptor), synced.append(True)))
    contract = run_contract(context)
    sent = through_exit_gate(ExitGate(), to_shareable(train_message(contract)), context)
    assert synced
    (line,) = read_record(kit_of(context), "job")
    assert (line.task, line.round, line.decision, line.errors) == ("train", 0, "sent", ())
    # The server's ledger measures what arrives by the same function.
    arrived = fobs.loads(fobs.dumps(sent))
    assert receipt(arrived) == {"message_sha256": line.sha256, "bytes_up": line.bytes}
    assert line.bytes == serialized_bytes(arrived[MESSAGE]) > contract.schema.bytes
    assert [(item.name, item.shape) for item in line.tensors] == [
        (item.name, item.shape) for item in contract.schema.tensors
    ]
    assert line.norm == pytest.approx(math.hypot(*(item.norm for item in line.tensors)))
    assert line.report == sent[MESSAGE]["report"] and line.cases == {"organ": 5, "lesion": 3}
    assert stat.S_IMODE(record_file(kit_of(context), "job").stat().st_mode) == 0o600


def test_a_refusal_is_recorded_with_what_still_left(context: FLContext) -> None:
    sent = through_exit_gate(ExitGate(), error_reply("EXECUTION_EXCEPTION", ["FMS-D004"]), context)
    closed = through_exit_gate(ExitGate(), make_reply(ReturnCode.OK), context)
    lines = read_record(kit_of(context), "job")
    assert [(line.decision, line.errors) for line in lines] == [
        ("refused", ("FMS-D004",)),
        ("refused", ("FMS-X009", "FMS-X001")),
    ]
    assert [receipt(reply)["message_sha256"] for reply in (sent, closed)] == [line.sha256 for line in lines]


def test_without_a_record_nothing_leaves(context: FLContext, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    message = train_message(run_contract(context))
    through_exit_gate(ExitGate(), to_shareable(message), context)
    monkeypatch.setattr(os, "fsync", full)
    sent = through_exit_gate(ExitGate(), to_shareable(message), context)
    assert is_bare(sent) and error_ids(sent) == ("FMS-X009", "FMS-D011")


def test_a_damaged_record_lets_no_update_out(context: FLContext) -> None:
    """How many updates have left is not known then."""
    message = train_message(run_contract(context))
    through_exit_gate(ExitGate(), to_shareable(message), context)
    path = record_file(kit_of(context), "job")
    path.write_text(path.read_text().replace('"task"', '"tusk"'))
    sent = through_exit_gate(ExitGate(), to_shareable(message), context)
    assert is_bare(sent) and error_ids(sent) == ("FMS-X009", "FMS-S008")


def test_the_end_of_the_run_writes_the_page(context: FLContext) -> None:
    gate = ExitGate()
    page = record_file(kit_of(context), "job").with_suffix(".html")
    fire_event_to_components(EventType.END_RUN, [gate], context)
    assert not page.exists(), "nothing left, no page"
    through_exit_gate(gate, to_shareable(train_message(run_contract(context))), context)
    fire_event_to_components(EventType.END_RUN, [gate], context)
    assert "organ, lesion of task" in page.read_text()


def test_the_audit_log_says_that_the_gate_closed(make_engine: MakeEngine) -> None:
    engine = make_engine("site-1")
    fl_ctx = engine.new_context()
    fl_ctx.set_prop(FLContextKey.TASK_NAME, "train", private=True, sticky=False)
    through_filter(make_reply(ReturnCode.OK), fl_ctx)
    assert engine.audit == ["egress gate closed: FMS-X009 FMS-X001"]
    log = Path(engine.workspace.get_run_dir("job")) / "fedfms" / "errors.log"
    assert "FMS-X001 message" in log.read_text()


def test_a_federation_event_is_emptied_at_the_exit(context: FLContext) -> None:
    data = Shareable()
    data["tag"] = SECRET
    context.set_prop(FLContextKey.EVENT_DATA, data, private=True, sticky=False)
    gate = ExitGate()
    context.set_prop(FLContextKey.EVENT_SCOPE, EventScope.LOCAL, private=True, sticky=False)
    gate.handle_event("analytix_log_stats", context)
    assert data["tag"] == SECRET, "what stays at the site is left alone"
    data.set_header(FedEventHeader.DIRECTION, "in")
    context.set_prop(FLContextKey.EVENT_SCOPE, EventScope.FEDERATION, private=True, sticky=False)
    gate.handle_event("fed.analytix_log_stats", context)
    assert data["tag"] == SECRET, "what comes in is left alone"
    data.set_header(FedEventHeader.DIRECTION, "out")
    gate.handle_event("fed.analytix_log_stats", context)
    assert SECRET not in repr(data)


def test_on_the_server_the_exit_gate_is_idle(make_engine: MakeEngine) -> None:
    fl_ctx = make_engine("server", server=True).new_context()
    reply = make_reply(ReturnCode.OK)
    reply["anything"] = 1
    assert through_exit_gate(ExitGate(), reply, fl_ctx)["anything"] == 1


def test_what_passed_survives_flares_headers_and_the_wire(context: FLContext, contract: JobContract) -> None:
    register_types()
    sent = through_exit_gate(ExitGate(), to_shareable(train_message(contract)), context)
    sent.set_cookie_jar({"workflow": "federation"})
    sent.set_header("__task_id__", "17")
    back = fobs.loads(fobs.dumps(sent))
    assert back.get_cookie("workflow") == "federation"
    reply = check_ingress(back, contract, task="train", site="site-1", round_number=0)
    assert reply.update is not None
    for name, tensor in sent[MESSAGE]["update"]["tensors"].items():
        assert reply.update.tensors[name].dtype == torch.float32
        assert torch.equal(reply.update.tensors[name], tensor)


def test_the_ingress_gate_names_the_sites_reasons(contract: JobContract) -> None:
    with pytest.raises(FedfmsError) as caught:
        check_ingress(
            error_reply("EXECUTION_EXCEPTION", ["FMS-D004", "FMS-D003"]),
            contract,
            task="ready",
            site="s",
            round_number=0,
        )
    assert caught.value.ids == ("FMS-D004", "FMS-D003")
    with pytest.raises(FedfmsError) as caught:
        check_ingress(make_reply(ReturnCode.EXECUTION_EXCEPTION), contract, task="ready", site="s", round_number=0)
    assert caught.value.ids == ("FMS-T999",)


def test_the_ingress_gate_refuses_another_round_site_and_schema(contract: JobContract) -> None:
    arguments = {"task": "train", "site": "site-1", "round_number": 0}
    for changes, identifier in (
        ({"round": 1}, "FMS-X006"),
        ({"site": "site-2"}, "FMS-X001"),
        ({"schema_sha256": "0" * 64}, "FMS-X001"),
    ):
        with pytest.raises(FedfmsError) as caught:
            check_ingress(to_shareable({**train_message(contract), **changes}), contract, **arguments)
        assert identifier in caught.value.ids


@pytest.mark.parametrize(
    ("kind", "words"), [(AnalyticsDataType.IMAGE, "analytics, IMAGE"), (AnalyticsDataType.TEXT, "analytics, TEXT")]
)
def test_the_audit_log_tells_the_sort_of_an_emptied_event_and_not_its_content(
    kind: AnalyticsDataType, words: str, make_engine: MakeEngine
) -> None:
    engine = make_engine("site-1")
    context = engine.new_context()
    data = create_analytic_dxo(SECRET, SECRET, kind).to_shareable()
    context.set_prop(FLContextKey.EVENT_DATA, data, private=True, sticky=False)
    context.set_prop(FLContextKey.EVENT_SCOPE, EventScope.FEDERATION, private=True, sticky=False)
    ExitGate().handle_event(SECRET, context)
    assert engine.audit == [f"exit gate emptied a federation event: {words}"]
    assert SECRET not in repr(data)


def test_the_simulators_policy_is_valid() -> None:
    local = Path(__file__).parents[2] / "simulator_workspace" / "local"
    policy = json.loads((local / "privacy.json").read_text())
    (component,) = policy["components"]
    assert component["path"] == f"{ExitGate.__module__}.{ExitGate.__qualname__}"
    ExitGate(**component["args"])
    # FLARE loads the components only when a scope is defined, and starts a job only in a known scope.
    assert policy["default_scope"] in [scope["name"] for scope in policy["scopes"]]
    assert load_policy(local / "policy.yaml") == SIMULATOR_POLICY


def test_two_replies_at_once_do_not_share_the_last_allowance(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine("site-1", rounds=1)
    original = gates.record
    monkeypatch.setattr(gates, "record", lambda *arguments: (time.sleep(0.5), original(*arguments)))

    def send(seed: int) -> tuple[str, ...]:
        fl_ctx = engine.new_context()
        fl_ctx.set_prop(FLContextKey.TASK_NAME, "train", private=True, sticky=False)
        message = train_message(run_contract(fl_ctx), seed=seed)
        return error_ids(through_exit_gate(ExitGate(), to_shareable(message), fl_ctx))

    with ThreadPoolExecutor(3) as pool:
        assert sorted(pool.map(send, range(3))) == [(), ("FMS-X009", "FMS-S007"), ("FMS-X009", "FMS-S007")]


def test_an_update_on_too_few_slices_does_not_leave(make_engine: MakeEngine) -> None:
    """Of epochs and minutes the policy cannot say before how many slices they are."""
    fl_ctx = make_engine("site-1", local_work={"epochs": 0.01}).new_context()
    fl_ctx.set_prop(FLContextKey.TASK_NAME, "train", private=True, sticky=False)
    write_policy(kit_of(fl_ctx), min_slices_per_update=4)  # the message tells of two steps of two slices
    message = train_message(run_contract(fl_ctx))
    assert through_exit_gate(ExitGate(), to_shareable(message), fl_ctx).get_return_code() == ReturnCode.OK
    write_policy(kit_of(fl_ctx), min_slices_per_update=5)
    sent = through_exit_gate(ExitGate(), to_shareable(message), fl_ctx)
    assert is_bare(sent) and error_ids(sent) == ("FMS-X009", "FMS-S002")
    message["report"]["steps"] = None
    write_policy(kit_of(fl_ctx), min_slices_per_update=1)
    assert is_bare(through_exit_gate(ExitGate(), to_shareable(message), fl_ctx)), "not told is none"
