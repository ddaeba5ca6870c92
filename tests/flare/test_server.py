"""The server's side without the network: the real components, FLARE's task broadcast replaced by given replies."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from nvflare.apis.client import Client
from nvflare.apis.controller_spec import ClientTask, TaskCompletionStatus
from nvflare.apis.event_type import EventType
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal

from fedfms.errors import FILE_UNWRITABLE, fail
from fedfms.exchange.messages import JobContract, Reply, check_reply, check_task, reply_message
from fedfms.exchange.replies import LEDGER_FILE, FinalReport, ReadyReport, Score, Slices, ValidateReport
from fedfms.exchange.state import l2_norm
from fedfms.flare.aggregator import FedfmsAggregator
from fedfms.flare.context import run_contract
from fedfms.flare.controller import FedfmsController
from fedfms.flare.generator import ExchangeGenerator
from fedfms.flare.ledger import Ledger
from fedfms.flare.messages import MESSAGE, error_reply, receipt, serialized_bytes, to_shareable
from fedfms.flare.persistor import FedfmsPersistor
from fedfms.flare.selection import is_better, mean_dice, pooled_dice
from fedfms.results.run_result import read_ledger
from fedfms.results.run_tables import rounds_table, run_table
from fedfms.sam.checkpoint import load_checkpoint, load_segmenter
from fedfms.sam.model import initial_state
from fedfms.site.policy import SIMULATOR_POLICY, MetricsPolicy
from tests.flare.builders import FakeEngine, MakeEngine, make_update, train_report

SITES = ["site-1", "site-2", "site-3"]
Answer = Callable[[str, str, int, dict[str, Any]], Shareable | None]


class Federation:
    """A server whose sites answer at once.

    Args:
        engine: The server's engine.
        answer: Gives the reply of a site to a task (kind, site, round, message); None means no reply.
    """

    def __init__(self, engine: FakeEngine, answer: Answer) -> None:
        self.engine = engine
        self.answer = answer
        self.sent: list[tuple[str, int, tuple[str, ...]]] = []
        self.states: dict[tuple[str, int], dict[str, torch.Tensor]] = {}
        self.panics: list[str] = []
        self.signal = Signal()
        self.aggregator, self.persistor = FedfmsAggregator(), FedfmsPersistor()
        engine.components = {
            "aggregator": self.aggregator,
            "persistor": self.persistor,
            "shareable_generator": ExchangeGenerator(),
            "ledger": Ledger(),
        }
        engine.get_clients = lambda: [Client(name, "token") for name in SITES]  # type: ignore[attr-defined]
        engine.fire_event = self.on_event  # type: ignore[method-assign]
        self.controller = FedfmsController()
        self.controller._task_check_period = 0.01
        self.controller._engine = engine
        self.controller.broadcast = self.broadcast

    @property
    def contract(self) -> JobContract:
        return run_contract(self.engine.new_context())

    def on_event(self, event_type: str, fl_ctx: Any) -> None:
        if event_type == EventType.FATAL_SYSTEM_ERROR:
            self.panics.append(fl_ctx.get_prop("__event_data__"))
            self.signal.trigger(True)

    def broadcast(self, task: Any, fl_ctx: Any, targets: list[str], min_responses: int) -> None:
        assert min_responses == 0, "only then FLARE waits for all"
        message = task.data[MESSAGE]
        received = check_task(message, self.contract, kind=task.name)
        self.sent.append((task.name, received.round, tuple(targets)))
        if received.tensors is not None:
            self.states[task.name, received.round] = received.tensors
        replied = 0
        for name in targets:
            client_task = ClientTask(Client(name, "token"), task)
            task.client_tasks.append(client_task)
            client_task.result = self.answer(task.name, name, received.round, message)
            if client_task.result is not None:
                replied += 1
                task.result_received_cb(client_task=client_task, fl_ctx=self.engine.new_context())
        if replied == len(targets):
            task.completion_status = TaskCompletionStatus.OK

    def run(self) -> Federation:
        self.controller.cancel_task = lambda task, status, fl_ctx: setattr(task, "completion_status", status)
        fl_ctx = self.engine.new_context()
        self.controller.start_controller(fl_ctx)
        self.controller.control_flow(self.signal, self.engine.new_context())
        return self

    @property
    def ledger(self) -> list[dict[str, Any]]:
        path = Path(self.engine.workspace.get_app_dir("job")) / LEDGER_FILE
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def lines(self, event: str) -> list[dict[str, Any]]:
        return [line for line in self.ledger if line["event"] == event]


def scores(dice: float, n: int = 10) -> dict[str, Score]:
    score = Score(dice=dice, iou=dice / 2, n=n)
    return {"organ": score, "lesion": score}


def good_answer(contract: JobContract, dice: Callable[[str, int], float] = lambda site, number: 0.5) -> Answer:
    def answer(kind: str, site: str, number: int, message: dict[str, Any]) -> Shareable:
        update = None
        if kind == "ready":
            slices = Slices(train=9, validation=4)
            without = 2 if site == "site-2" else 0
            report: Any = ReadyReport(
                cases={"organ": 5, "lesion": 3}, cases_left_out=without, slices=slices, fingerprint_sha256="f" * 64
            )
        elif kind == "train":
            report = train_report(received=scores(dice(site, number)), local=scores(0.9))
            update = make_update(contract, site, round_number=number, seed=SITES.index(site) + 10 * number)
        elif kind == "validate":
            report = ValidateReport(received=scores(dice(site, number)), seconds=1, peak_memory_bytes=1)
        else:
            report = FinalReport(model_sha256="a" * 64)
        return to_shareable(reply_message(Reply(kind, site, number, report, update), contract))  # type: ignore[arg-type]

    return answer


@pytest.fixture
def server(make_engine: MakeEngine) -> FakeEngine:
    return make_engine("server", server=True)


def terms_of(engine: FakeEngine) -> JobContract:
    return run_contract(engine.new_context())


def test_a_federation_from_ready_to_final(server: FakeEngine, capsys: pytest.CaptureFixture[str]) -> None:
    contract = terms_of(server)
    federation = Federation(server, good_answer(contract)).run()
    assert federation.panics == []
    assert federation.sent == [
        ("ready", 0, tuple(SITES)),
        ("train", 0, tuple(SITES)),
        ("train", 1, tuple(SITES)),
        ("train", 2, tuple(SITES)),
        ("validate", 3, tuple(SITES)),
        ("final", 1, tuple(SITES)),
    ]
    assert [line["accepted"] for line in federation.lines("round")] == [SITES] * 3
    assert len(federation.lines("update")) == 9 and all(line["accepted"] for line in federation.lines("update"))
    assert {line["site"] for line in federation.lines("final")} == set(SITES)
    out = capsys.readouterr().out
    assert "site-1 is ready: 9 slices to train, 4 to validate; cases: organ 5, lesion 3\n" in out
    assert "site-2 is ready: 9 slices to train, 4 to validate; cases: organ 5, lesion 3; 2 left out" in out
    assert "round 3/3: accepted site-1, site-2, site-3; received model: Dice organ 0.500, lesion 0.500" in out
    assert "[server] model after round 3: Dice organ 0.500, lesion 0.500, mean 0.500\n" in out
    assert "[server] the best model by Dice (mean 0.500), after round 1, goes to every site\n" in out
    assert "nvflare job download job -o result --study default --startup-kit KIT" in out
    assert str(server.workspace.get_root_dir()) not in out


def test_the_state_is_the_start_plus_the_weighted_means(server: FakeEngine) -> None:
    contract = terms_of(server)
    federation = Federation(server, good_answer(contract)).run()
    start = initial_state(contract.job.model, contract.job.seed)
    for name, tensor in start.items():
        assert torch.equal(federation.states["train", 0][name], tensor)
        # All sites have the same number of cases, so the mean is the plain one.
        updates = [make_update(contract, seed=index).tensors[name] for index in range(3)]
        want = tensor + torch.stack(updates).mean(0)
        assert torch.allclose(federation.states["train", 1][name], want, atol=1e-8)


@pytest.mark.parametrize(
    ("dice", "best"), [([0.1, 0.4, 0.8, 0.6], 2), ([0.9, 0.4, 0.5, 0.6], 3), ([0.1, 0.7, 0.7, 0.7], 1)]
)
def test_the_best_aggregate_is_chosen_the_last_one_included(server: FakeEngine, dice: list[float], best: int) -> None:
    federation = Federation(server, good_answer(terms_of(server), lambda site, number: dice[number])).run()
    (choice,) = federation.lines("choice")
    assert (choice["rounds"], choice["mean_dice"]) == (best, pytest.approx(dice[best]))
    assert federation.sent[-1][:2] == ("final", best)
    sent = federation.states["final", best]
    seen = federation.states["train" if best < 3 else "validate", best]
    assert all(torch.equal(sent[name], seen[name]) for name in seen)
    model, header = load_segmenter(federation.persistor.folder("best", server.new_context()) / "model.safetensors")
    assert header.rounds == best
    assert all(torch.equal(tensor, sent[name]) for name, tensor in model.exchanged().items())


def test_only_sites_whose_update_counted_have_a_say(server: FakeEngine) -> None:
    contract = terms_of(server)
    good = good_answer(contract, lambda site, number: 1.0 if site == "site-3" else 0.1 * (number + 1))

    def answer(kind: str, site: str, number: int, message: dict[str, Any]) -> Shareable | None:
        reply = good(kind, site, number, message)
        if kind == "train" and site == "site-3" and reply is not None:
            next(iter(reply[MESSAGE]["update"]["tensors"].values())).view(-1)[0] = float("nan")
        return reply

    federation = Federation(server, answer).run()
    assert federation.panics == []
    assert [line["received_mean_dice"] for line in federation.lines("round")] == pytest.approx([0.1, 0.2, 0.3])
    assert federation.lines("choice")[0]["last_mean_dice"] == pytest.approx(0.4)
    refused = [line for line in federation.lines("update") if not line["accepted"]]
    assert [(line["site"], line["errors"]) for line in refused] == [("site-3", ["FMS-X002"])] * 3


def test_aggregates_are_compared_by_the_sites_that_validated_both(server: FakeEngine) -> None:
    """An easy hospital that was absent when the first aggregate was judged must not make the second look better."""
    dice = {"site-1": [0.1, 0.5, 0.4, 0.4], "site-2": [0.1, 0.5, 0.4, 0.4], "site-3": [0.9, 0.9, 0.9, 0.9]}
    good = good_answer(terms_of(server), lambda site, number: dice[site][number])

    def answer(kind: str, site: str, number: int, message: dict[str, Any]) -> Shareable | None:
        if (kind, site, number) == ("train", "site-3", 1):
            return error_reply("EXECUTION_EXCEPTION", ["FMS-T002"])
        return good(kind, site, number, message)

    federation = Federation(server, answer).run()
    assert [line["received_mean_dice"] for line in federation.lines("round")][1] == pytest.approx(0.5)
    (choice,) = federation.lines("choice")
    assert choice["last_mean_dice"] > 0.5
    assert (choice["rounds"], choice["mean_dice"]) == (1, pytest.approx(0.5))


def test_without_a_common_site_the_later_aggregate_is_taken() -> None:
    low, high = ({"organ": Score(dice=value, iou=value, n=5)} for value in (0.2, 0.8))
    assert is_better({"b": low}, {"a": high}, ["organ"])
    assert is_better({"a": high, "b": low}, {"a": low}, ["organ"])
    assert not is_better({"a": low, "b": high}, {"a": high}, ["organ"])


def test_the_server_keeps_a_part_of_its_last_step(make_engine: MakeEngine) -> None:
    states = {}
    for momentum in (0.0, 0.5):
        server = make_engine(f"server-{momentum}", server=True, server_momentum=momentum)
        federation = Federation(server, good_answer(terms_of(server))).run()
        assert federation.panics == []
        states[momentum] = {number: state for (kind, number), state in federation.states.items() if kind != "final"}
    plain, moved = states[0.0], states[0.5]
    for name, start in plain[0].items():
        first, second, third = (plain[number + 1][name] - plain[number][name] for number in range(3))
        torch.testing.assert_close(moved[1][name], plain[1][name], rtol=0, atol=0)
        torch.testing.assert_close(moved[2][name], plain[2][name] + 0.5 * first)
        torch.testing.assert_close(moved[3][name], start + 1.75 * first + 1.5 * second + third)


def test_a_site_that_is_not_ready_is_left_out_and_still_named(
    server: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    good = good_answer(terms_of(server))

    def answer(kind: str, site: str, number: int, message: dict[str, Any]) -> Shareable | None:
        if site == "site-2":
            assert kind in ("ready", "final"), "a site that is not ready gets the final model, and no other task"
        if site == "site-2" and kind == "ready":
            return error_reply("EXECUTION_EXCEPTION", ["FMS-D004", "FMS-D007"])
        return good(kind, site, number, message)

    federation = Federation(server, answer).run()
    assert federation.panics == [] and federation.sent[-1] == ("final", 1, tuple(SITES))
    ready = {line["site"]: line["errors"] for line in federation.lines("ready")}
    assert ready == {"site-1": [], "site-2": ["FMS-D004", "FMS-D007"], "site-3": []}
    assert "site-2 is NOT ready: FMS-D004 an image or mask file" in capsys.readouterr().out


def test_a_site_that_approves_late_joins(server: FakeEngine, capsys: pytest.CaptureFixture[str]) -> None:
    good = good_answer(terms_of(server))

    def answer(kind: str, site: str, number: int, message: dict[str, Any]) -> Shareable | None:
        if site == "site-2" and (kind == "ready" or (kind == "train" and number == 0)):
            return error_reply("EXECUTION_EXCEPTION", ["FMS-S004"])
        return good(kind, site, number, message)

    federation = Federation(server, answer).run()
    assert federation.panics == []
    assert federation.sent[1] == ("train", 0, tuple(SITES)), "it is asked in every round"
    assert [line["accepted"] for line in federation.lines("round")] == [["site-1", "site-3"], SITES, SITES]
    refused = [(line["site"], line["errors"]) for line in federation.lines("update") if not line["accepted"]]
    assert refused == [("site-2", ["FMS-S004"])]
    out = capsys.readouterr().out
    assert "site-2 is NOT ready: FMS-S004" in out and out.count("site-2 has approved the job and joins in round 2") == 1


def test_undecided_sites_make_no_quorum(server: FakeEngine) -> None:
    good = good_answer(terms_of(server))

    def answer(kind: str, site: str, number: int, message: dict[str, Any]) -> Shareable | None:
        return good(kind, site, number, message) if site == "site-1" else error_reply("X", ["FMS-S004"])

    federation = Federation(server, answer).run()
    (panic,) = federation.panics
    assert panic.startswith("FMS-X010") and "1 of 3 sites" in panic
    assert federation.sent == [("ready", 0, tuple(SITES))]


@pytest.mark.parametrize("ids", [["FMS-S005"], ["FMS-S004", "FMS-D004"]])
def test_a_site_that_rejected_or_lacks_more_than_approval_is_left_out(server: FakeEngine, ids: list[str]) -> None:
    good = good_answer(terms_of(server))

    def answer(kind: str, site: str, number: int, message: dict[str, Any]) -> Shareable | None:
        assert not (site == "site-2" and kind == "train")
        return error_reply("X", ids) if (site, kind) == ("site-2", "ready") else good(kind, site, number, message)

    assert Federation(server, answer).run().panics == []


def test_withheld_figures_cost_their_site_its_say_and_nothing_else(
    server: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = SIMULATOR_POLICY.model_copy(update={"metrics": MetricsPolicy(allowed=(), min_slices=1)})
    contract = terms_of(server)
    good = good_answer(contract, lambda site, number: 0.9 if site == "site-1" else 0.2)

    def answer(kind: str, site: str, number: int, message: dict[str, Any]) -> Shareable | None:
        reply = good(kind, site, number, message)
        if site == "site-1" and reply is not None:
            checked = check_reply(reply[MESSAGE], contract, kind=kind, site=site, norm_limit=100.0)
            report, withheld = policy.withhold(checked.report)
            assert withheld or kind == "final"
            reply = to_shareable(reply_message(replace(checked, report=report), contract))
        return reply

    federation = Federation(server, answer).run()
    assert federation.panics == []
    assert [line["accepted"] for line in federation.lines("round")] == [SITES] * 3
    assert [line["received_mean_dice"] for line in federation.lines("round")] == pytest.approx([0.2] * 3)
    assert "site-1 is ready: number of slices withheld; cases: organ 5, lesion 3\n" in capsys.readouterr().out
    result = read_ledger(Path(server.workspace.get_app_dir("job")) / LEDGER_FILE)
    assert result.sites["site-1"].dice["organ"] == [None] * 4 and result.sites["site-1"].seconds == [None] * 3
    assert result.sites["site-1"].peak_memory_bytes is None and result.sites["site-2"].peak_memory_bytes == 10**8
    assert run_table(result).row_count == 6 and rounds_table(result).row_count == 6


def test_when_all_scores_are_withheld_the_last_model_is_kept_and_not_called_the_best(
    server: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    contract = terms_of(server)
    nothing = Score(dice=None, iou=None, n=None)
    good = good_answer(contract)

    def answer(kind: str, site: str, number: int, message: dict[str, Any]) -> Shareable | None:
        reply = good(kind, site, number, message)
        if reply is not None and kind in ("train", "validate"):
            hidden = {name: nothing.model_dump() for name in contract.job.structures}
            reply[MESSAGE]["report"]["received"] = hidden
        return reply

    federation = Federation(server, answer).run()
    (choice,) = federation.lines("choice")
    assert federation.panics == [] and (choice["rounds"], choice["mean_dice"]) == (contract.job.rounds, None)
    out = capsys.readouterr().out
    assert "no Dice was reported, so none is the best: the last model, after round 3, goes to every site\n" in out
    assert "best model" not in out and out.count("received model: no Dice: ") == 3


def test_the_ledger_holds_digest_and_bytes_of_every_reply(server: FakeEngine) -> None:
    contract = terms_of(server)
    good = good_answer(contract)
    sent: list[tuple[str, dict[str, Any]]] = []

    def answer(kind: str, site: str, number: int, message: dict[str, Any]) -> Shareable | None:
        broken = (kind, site) in {("ready", "site-3"), ("final", "site-2")}
        reply = error_reply("EXECUTION_EXCEPTION", ["FMS-D004"]) if broken else good(kind, site, number, message)
        assert reply is not None
        sent.append((site, receipt(reply)))
        return reply

    federation = Federation(server, answer).run()
    arrived = [
        (line["site"], {key: line[key] for key in ("message_sha256", "bytes_up")})
        for line in federation.ledger
        if line["event"] in ("ready", "update", "validate", "final")
    ]
    key = lambda item: (item[0], item[1]["message_sha256"])  # noqa: E731
    assert sorted(arrived, key=key) == sorted(sent, key=key) and all(item["bytes_up"] for _, item in arrived)


@pytest.mark.parametrize("content", [None, "text", {"tensors": 7}, {"a": object()}])
def test_what_cannot_be_measured_is_recorded_as_such(content: Any) -> None:
    assert receipt(to_shareable({})) != {"message_sha256": None, "bytes_up": None}
    reply = Shareable()
    reply[MESSAGE] = content
    assert receipt(reply) == {"message_sha256": None, "bytes_up": None}
    assert receipt(None) == {"message_sha256": None, "bytes_up": None}  # type: ignore[arg-type]


def test_too_few_ready_sites_stop_the_job_with_the_reasons_of_all(server: FakeEngine) -> None:
    good = good_answer(terms_of(server))

    def answer(kind: str, site: str, number: int, message: dict[str, Any]) -> Shareable | None:
        if site == "site-1":
            return good(kind, site, number, message)
        if site == "site-2":
            return error_reply("EXECUTION_EXCEPTION", ["FMS-D004"])
        reply = good(kind, site, number, message)
        assert reply is not None
        reply[MESSAGE]["backbone_sha256"] = "f" * 64
        return reply

    federation = Federation(server, answer).run()
    assert federation.sent == [("ready", 0, tuple(SITES))]
    (panic,) = federation.panics
    for part in ("FMS-X010", "1 of 3 sites", "needs 2", "site-2: FMS-D004", "site-3: FMS-X004"):
        assert part in panic
    assert "f" * 64 not in panic


def test_a_failing_site_does_not_stop_the_round_while_the_quorum_holds(server: FakeEngine) -> None:
    good = good_answer(terms_of(server))

    def answer(kind: str, site: str, number: int, message: dict[str, Any]) -> Shareable | None:
        if kind == "train" and number == 1 and site == "site-2":
            return error_reply("EXECUTION_EXCEPTION", ["FMS-T001"])
        return good(kind, site, number, message)

    federation = Federation(server, answer).run()
    assert federation.panics == []
    assert [line["accepted"] for line in federation.lines("round")] == [SITES, ["site-1", "site-3"], SITES]


def test_a_lost_quorum_stops_the_job_and_the_last_good_model_stays(server: FakeEngine) -> None:
    good = good_answer(terms_of(server))

    def answer(kind: str, site: str, number: int, message: dict[str, Any]) -> Shareable | None:
        if kind == "train" and number == 1 and site != "site-1":
            return error_reply("EXECUTION_EXCEPTION", ["FMS-T001"])
        return good(kind, site, number, message)

    federation = Federation(server, answer).run()
    assert len(federation.panics) == 1 and "FMS-X014" in federation.panics[0]
    assert "round 2: 1 sites are left" in federation.panics[0], "counted from 1, as the progress is"
    assert [line["errors"] for line in federation.lines("stop")] == [["FMS-X014"]]
    assert federation.sent[-1][:2] == ("train", 1)
    last = load_checkpoint(federation.persistor.folder("last", server.new_context()) / "exchange.safetensors")
    assert last.header.rounds == 1


def test_sites_that_died_without_a_reply_do_not_lower_the_quorum(server: FakeEngine) -> None:
    """FLARE ends the task when no living site is left that could reply; one update of two must not become the model."""
    contract = terms_of(server)
    good = good_answer(contract)
    federation = Federation(
        server,
        lambda kind, site, number, message: (
            None if kind == "train" and number == 1 and site != "site-1" else good(kind, site, number, message)
        ),
    )
    broadcast = federation.controller.broadcast

    def dead(task: Any, **options: Any) -> None:
        broadcast(task, **options)
        if task.completion_status is None:
            task.completion_status = TaskCompletionStatus.CLIENT_DEAD

    federation.controller.broadcast = dead
    federation.run()
    assert len(federation.panics) == 1 and federation.panics[0].startswith("FMS-X014")
    assert [line["round"] for line in federation.lines("round")] == [0]
    assert federation.sent[-1][:2] == ("train", 1)


def test_a_full_disk_while_judging_a_round_stops_with_the_public_text(
    server: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = Federation(server, good_answer(terms_of(server)))

    def full(fl_ctx: Any) -> None:
        raise fail(FILE_UNWRITABLE, "/secret/place", "No space left")

    monkeypatch.setattr(federation.persistor, "keep_best", full)
    federation.run()
    assert federation.panics and federation.panics[0].startswith("FMS-D011")
    assert "/secret/place" not in " ".join(federation.panics)


def test_a_straggler_is_not_waited_for_when_the_job_says_so(server: FakeEngine) -> None:
    good = good_answer(terms_of(server))

    def answer(kind: str, site: str, number: int, message: dict[str, Any]) -> Shareable | None:
        silent = kind == "train" and site == "site-3"
        return None if silent else good(kind, site, number, message)

    federation = Federation(server, answer).run()
    assert [line["accepted"] for line in federation.lines("round")] == [["site-1", "site-2"]] * 3


def test_a_failed_reply_does_not_end_the_wait_for_good_ones(server: FakeEngine) -> None:
    """Two replies, one of them failed, are not two good ones: the third site must still be waited for."""
    good = good_answer(terms_of(server))
    federation = Federation(server, good)
    late: list[Any] = []

    def answer(kind: str, site: str, number: int, message: dict[str, Any]) -> Shareable | None:
        if kind == "train" and number == 0 and site == "site-1":
            return error_reply("EXECUTION_EXCEPTION", ["FMS-T001"])
        if kind == "train" and number == 0 and site == "site-3":
            late.append(message)
            return None
        return good(kind, site, number, message)

    federation.answer = answer
    waits = 0

    def sleep(seconds: float) -> None:
        nonlocal waits
        waits += 1
        if waits == 3 and late:  # the third site's reply comes after a while
            reply = good("train", "site-3", 0, late.pop())
            federation.controller._accept_train_result("site-3", reply, server.new_context())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedfms.flare.collecting.time.sleep", sleep)
        federation.run()
    assert federation.lines("round")[0]["accepted"] == ["site-2", "site-3"]


def test_a_second_update_and_a_late_one_are_refused_with_the_reason(
    server: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    contract = terms_of(server)
    good = good_answer(contract)
    federation = Federation(server, good)
    extra: list[bool] = []

    def answer(kind: str, site: str, number: int, message: dict[str, Any]) -> Shareable | None:
        if kind == "train" and number == 1 and site == "site-2":
            for late in (good("train", "site-1", 1, message), good("train", "site-3", 0, message)):
                sender = late[MESSAGE]["site"]  # type: ignore[index]
                accept = federation.controller._accept_train_result
                extra.append(accept(sender, late, server.new_context(), is_unknown_task=True))
        return good(kind, site, number, message)

    federation.answer = answer
    federation.run()
    assert federation.panics == [] and extra == [False, False]
    refused = [(line["site"], line["errors"]) for line in federation.lines("update") if not line["accepted"]]
    assert refused == [("site-1", ["FMS-X007"]), ("site-3", ["FMS-X006"])]
    local = capsys.readouterr().err
    assert "site-1: the update of round 2 was refused" in local and "second update for round 2" in local
    assert "expected round 2, found round 1" in local, "counted from 1, as the progress is"


def test_an_update_between_judging_and_averaging_is_refused(server: FakeEngine) -> None:
    """What was judged and recorded is what is averaged: a reply that arrives in between must not slip in."""
    contract = terms_of(server)
    good = good_answer(contract)

    def answer(kind: str, site: str, number: int, message: dict[str, Any]) -> Shareable | None:
        return None if kind == "train" and site == "site-3" else good(kind, site, number, message)

    federation = Federation(server, answer)
    consider = federation.controller._consider
    late: list[bool] = []

    def judge(rounds: int, scores: Any, fl_ctx: Any) -> None:
        if rounds < contract.job.rounds:
            reply = good("train", "site-3", rounds, {})
            assert reply is not None
            accept = federation.controller._accept_train_result
            late.append(accept("site-3", reply, server.new_context(), is_unknown_task=True))
        consider(rounds, scores, fl_ctx)

    federation.controller._consider = judge
    federation.run()
    assert federation.panics == [] and late == [False] * 3
    refused = [(line["site"], line["errors"]) for line in federation.lines("update") if not line["accepted"]]
    assert refused == [("site-3", ["FMS-X006"])] * 3
    assert [line["accepted"] for line in federation.lines("round")] == [["site-1", "site-2"]] * 3
    for name, tensor in federation.states["train", 0].items():
        updates = [make_update(contract, seed=index).tensors[name] for index in range(2)]
        assert torch.allclose(federation.states["train", 1][name], tensor + torch.stack(updates).mean(0), atol=1e-8)


def test_no_accepted_update_stops_the_job(server: FakeEngine) -> None:
    aggregator = FedfmsAggregator()
    panics: list[str] = []
    aggregator.system_panic = lambda reason, fl_ctx: panics.append(reason)
    assert MESSAGE not in aggregator.aggregate(server.new_context())
    assert len(panics) == 1 and panics[0].startswith("FMS-X011")


def test_wrong_jobs_stop_before_anything_is_built(make_engine: MakeEngine, capsys: pytest.CaptureFixture[str]) -> None:
    engine = make_engine("server", server=True, rounds=0, batch_size="many", colour="blue")
    federation = Federation(engine, lambda *arguments: None).run()
    (panic,) = federation.panics
    assert panic == "FMS-J002 the job's training.yaml has wrong, missing or unknown keys (3x)"
    local = capsys.readouterr().err
    assert all(key in local for key in ("rounds", "batch_size", "colour"))
    assert federation.sent == []


def test_a_missing_backbone_stops_at_the_start(make_engine: MakeEngine) -> None:
    engine = make_engine("server", server=True, backbone_sha256="1" * 64)
    federation = Federation(engine, lambda *arguments: None).run()
    (panic,) = federation.panics
    assert panic.startswith("FMS-M002") and "1" * 64 not in panic


def test_a_full_disk_stops_the_job_and_the_previous_model_stays_whole(
    server: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = Federation(server, good_answer(terms_of(server)))
    original, calls = os.fsync, []

    def fsync(descriptor: int) -> None:
        name = str(Path(f"/proc/self/fd/{descriptor}").readlink())
        if "safetensors" in name and "models/last" in name:
            calls.append(name)
            if len(calls) > 2:
                raise OSError(28, "No space left on device")
        original(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    federation.run()
    assert len(federation.panics) == 1 and "FMS-D011" in federation.panics[0]
    assert str(server.workspace.get_root_dir()) not in federation.panics[0]
    folder = federation.persistor.folder("last", server.new_context())
    assert load_checkpoint(folder / "exchange.safetensors").header.rounds == 1
    assert load_segmenter(folder / "model.safetensors")[1].rounds == 1


def test_the_ledger_counts_what_travels(server: FakeEngine) -> None:
    contract = terms_of(server)
    federation = Federation(server, good_answer(contract)).run()
    update, (first, *_) = federation.lines("update")[0], federation.lines("round")
    reply = federation.answer("train", "site-1", 0, {})
    assert reply is not None
    assert update["bytes_up"] == serialized_bytes(reply[MESSAGE])
    assert update["bytes_up_tensors"] == contract.schema.bytes == first["bytes_down_tensors_each"]
    assert first["bytes_down"] == 3 * first["bytes_down_each"] > 3 * contract.schema.bytes
    assert update["norm"] == pytest.approx(l2_norm(make_update(contract).tensors))
    assert update["cases"] == {"organ": 5, "lesion": 3}
    assert update["report"]["peak_memory_bytes"] == 10**8


def test_scalars_start_at_the_server_under_the_sites_names(server: FakeEngine) -> None:
    federation = Federation(server, good_answer(terms_of(server)))
    tags: list[tuple[str, Any]] = []

    def on_event(event_type: str, fl_ctx: Any) -> None:
        if event_type == "analytix_log_stats":
            data = fl_ctx.get_prop("__event_data__")
            tags.append((data["DXO"]["data"]["track_key"], fl_ctx.get_prop("__event_scope__")))
        federation.on_event(event_type, fl_ctx)

    server.fire_event = on_event  # type: ignore[method-assign]
    federation.run()
    names = {name for name, _ in tags}
    assert {
        "site-1/loss",
        "site-2/received/dice/organ",
        "site-3/local/iou/lesion",
        "server/received/dice/mean",
    } <= names
    assert {scope for _, scope in tags} == {"local"}


def test_dice_is_pooled_by_slices_with_a_reference_and_averaged_over_structures() -> None:
    none = Score(dice=None, iou=None, n=0)
    first = {"organ": Score(dice=0.9, iou=0.8, n=30), "lesion": Score(dice=0.2, iou=0.1, n=1)}
    second = {"organ": Score(dice=0.5, iou=0.4, n=10), "lesion": none}
    pooled = pooled_dice([first, second], ["organ", "lesion", "vessel"])
    assert pooled == {"organ": pytest.approx(0.8), "lesion": pytest.approx(0.2), "vessel": None}
    assert mean_dice(pooled) == pytest.approx(0.5)
    assert mean_dice(pooled_dice([], ["organ"])) is None
