"""The aggregator and the job's rule: what is kept until the round is closed, and which updates are then left out."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from nvflare.apis.shareable import Shareable
from nvflare.app_common.app_constant import AppConstants

from fedfms.cli.ledger import _outcome
from fedfms.exchange.messages import JobContract, Reply, reply_message
from fedfms.exchange.replies import LEDGER_FILE
from fedfms.flare import aggregator as aggregator_module
from fedfms.flare.aggregator import DIFFERENCE, SITE, FedfmsAggregator
from fedfms.flare.ledger import Ledger
from fedfms.flare.messages import MESSAGE, to_shareable
from fedfms.results.ledger_file import differences, open_ledger
from fedfms.results.run_result import read_ledger
from fedfms.sam.checkpoint import load_checkpoint
from fedfms.site.egress import EgressLine
from tests.flare.builders import FakeEngine, MakeEngine, make_update, train_report
from tests.flare.test_server import SITES, Federation, good_answer, scores, terms_of

# Large enough that the limit on single norms lets a thousandfold update pass.
LIMIT = 1e6


def scaled(contract: JobContract, factors: dict[str, float], rounds: set[int] | None = None) -> Callable[..., Any]:
    """Answers of sites whose updates are multiplied; their Dice is 1, that of the others 0.5."""
    good = good_answer(contract, lambda site, number: 1.0 if site in factors else 0.5)

    def answer(kind: str, site: str, number: int, message: dict[str, Any]) -> Shareable | None:
        reply = good(kind, site, number, message)
        if kind == "train" and site in factors and (rounds is None or number in rounds) and reply is not None:
            tensors = reply[MESSAGE]["update"]["tensors"]
            for name in tensors:
                tensors[name] = factors[site] * tensors[name]
        return reply

    return answer


def test_an_update_that_is_a_thousand_times_too_large_does_not_count(
    make_engine: MakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    server = make_engine("server", server=True, update_norm_limit=LIMIT)
    contract = terms_of(server)
    federation = Federation(server, scaled(contract, {"site-3": -1000.0}, rounds={1})).run()
    assert federation.panics == []
    assert [line["accepted"] for line in federation.lines("round")] == [SITES, SITES[:2], SITES]
    (line,) = federation.lines("excluded")
    assert (line["round"], line["site"], line["errors"]) == (1, "site-3", ["FMS-X016"])
    assert line["norm"] > 500 * line["median_norm"] > 0 and "message_sha256" not in line
    # The others' mean, and nothing of the third.
    for name, tensor in federation.states["train", 1].items():
        updates = [make_update(contract, seed=index + 10).tensors[name] for index in range(2)]
        assert torch.allclose(federation.states["train", 2][name], tensor + torch.stack(updates).mean(0), atol=1e-8)
    # Its scores are not heard.
    assert federation.lines("round")[1]["received_mean_dice"] == pytest.approx(0.5)
    assert federation.lines("round")[2]["received_mean_dice"] == pytest.approx(2 / 3)
    out = capsys.readouterr().out
    assert "[server] round 2: site-3 is left out: FMS-X016 an update is much larger" in out
    assert "round 2/3: accepted site-1, site-2; received model" in out


def test_results_and_ledger_verify_understand_the_line(make_engine: MakeEngine) -> None:
    server = make_engine("server", server=True, update_norm_limit=LIMIT)
    Federation(server, scaled(terms_of(server), {"site-3": 1000.0}, rounds={1})).run()
    path = Path(server.workspace.get_app_dir("job")) / LEDGER_FILE
    result = read_ledger(path)
    assert [(item.site, item.phase, item.ids) for item in result.refusals] == [("site-3", "round 2", ("FMS-X016",))]
    assert result.sites["site-3"].dice["organ"] == [1.0, None, 1.0, 1.0]
    assert len(result.sites["site-3"].bytes_up) == len(result.sites["site-3"].bytes_down) == 2
    assert [_outcome(line) for line in open_ledger(path).lines if line["event"] == "excluded"] == ["left out FMS-X016"]
    # The reply arrived once, so it is compared once with the site's record.
    ledger = open_ledger(path)
    tasks = {"ready": "ready", "update": "train", "validate": "validate", "final": "final"}
    record = [
        EgressLine.model_construct(
            task=tasks[line["event"]], sha256=line["message_sha256"], bytes=line["bytes_up"], round=0
        )
        for line in ledger.lines
        if line["event"] in tasks and line["site"] == "site-3"
    ]
    assert len(record) == 6 and differences(ledger, {"site-3": record}) == []


def test_honest_sites_whose_norms_differ_by_their_size_all_count(make_engine: MakeEngine) -> None:
    server = make_engine("server", server=True, update_norm_limit=LIMIT)
    federation = Federation(server, scaled(terms_of(server), {"site-1": 0.05, "site-3": 9.0})).run()
    assert [line["accepted"] for line in federation.lines("round")] == [SITES] * 3
    assert federation.lines("excluded") == []


def test_the_check_can_be_switched_off(make_engine: MakeEngine) -> None:
    server = make_engine("server", server=True, update_norm_limit=LIMIT, aggregation={"norm_factor": None})
    federation = Federation(server, scaled(terms_of(server), {"site-3": 1000.0})).run()
    assert [line["accepted"] for line in federation.lines("round")] == [SITES] * 3


def test_a_round_that_keeps_too_few_updates_stops_the_job(make_engine: MakeEngine) -> None:
    server = make_engine("server", server=True, update_norm_limit=LIMIT, min_clients=3)
    federation = Federation(server, scaled(terms_of(server), {"site-3": 1000.0}, rounds={1})).run()
    (panic,) = federation.panics
    assert panic.startswith("FMS-X014") and panic.endswith("round 2: 2 sites are left, the job needs 3")
    assert [line["errors"] for line in federation.lines("stop")] == [["FMS-X014"]]
    assert [line["round"] for line in federation.lines("round")] == [0]
    last = load_checkpoint(federation.persistor.folder("last", server.new_context()) / "exchange.safetensors")
    assert last.header.rounds == 1, "the last good model stays"


@pytest.mark.parametrize(
    "aggregation",
    [
        {"rule": "coordinate_median"},
        {"rule": "trimmed_mean", "trim": 0.34},
        {"rule": "geometric_median"},
        {"max_share": 0.34},
    ],
)
def test_a_federation_runs_with_every_rule(make_engine: MakeEngine, aggregation: dict[str, Any]) -> None:
    """Also without the check of norms, a site that sends the opposite moves the model less than with the mean."""
    moved = {}
    for name, settings in (("mean", {}), ("rule", aggregation)):
        server = make_engine(name, server=True, aggregation={**settings, "norm_factor": None}, server_momentum=0.3)
        contract = terms_of(server)
        federation = Federation(server, scaled(contract, {"site-3": -8.0})).run()
        assert federation.panics == [] and federation.sent[-1][0] == "final"
        first, second = federation.states["train", 0], federation.states["train", 1]
        honest = [make_update(contract, seed=index).tensors for index in range(2)]
        moved[name] = sum(
            float((second[key] - first[key] - (honest[0][key] + honest[1][key]) / 2).square().sum()) for key in first
        )
    if "rule" in aggregation:
        assert moved["rule"] < moved["mean"] / 4
    else:
        assert moved["rule"] == pytest.approx(moved["mean"], rel=0.1), "equal sites are not capped"


# --- the aggregator alone -------------------------------------------------------------------------------


@pytest.fixture
def server(make_engine: MakeEngine) -> FakeEngine:
    engine = make_engine("server", server=True, aggregation={"rule": "trimmed_mean", "trim": 0.3})
    engine.components["ledger"] = Ledger()
    return engine


def replies(contract: JobContract, count: int = 3) -> list[tuple[str, Shareable]]:
    found = []
    for number in range(count):
        site = f"site-{number}"
        update = make_update(contract, site, seed=number, cases={"organ": 3 + number, "lesion": 9 - number})
        report = train_report(received=scores(0.5), local=scores(0.5))
        found.append((site, to_shareable(reply_message(Reply("train", site, 0, report, update), contract))))
    return found


def accept(aggregator: FedfmsAggregator, engine: FakeEngine, site: str, reply: Shareable) -> bool:
    fl_ctx = engine.new_context()
    fl_ctx.set_prop(SITE, site, private=True, sticky=False)
    fl_ctx.set_prop(AppConstants.CURRENT_ROUND, 0, private=True, sticky=True)
    return aggregator.accept(reply, fl_ctx)


def files(engine: FakeEngine) -> set[str]:
    return {path.name for path in Path(engine.workspace.get_root_dir()).rglob("*") if path.is_file()}


def unnamed_files() -> Iterator[str]:
    for entry in Path("/proc/self/fd").iterdir():
        try:
            target = str(entry.readlink())
        except FileNotFoundError:
            continue
        if target.endswith("(deleted)"):
            yield target


def test_the_order_of_arrival_does_not_change_a_bit(server: FakeEngine) -> None:
    contract = terms_of(server)
    found = set()
    for order in itertools.permutations(replies(contract)):
        aggregator = FedfmsAggregator()
        assert all(accept(aggregator, server, site, reply) for site, reply in order)
        result = aggregator.aggregate(server.new_context())[MESSAGE][DIFFERENCE]
        assert list(result) == list(contract.schema.names)
        found.add(b"".join(tensor.numpy().tobytes() for tensor in result.values()))
    assert len(found) == 1


@pytest.mark.parametrize("end", ["aggregate", "reset"])
def test_kept_updates_are_freed_with_the_round_and_never_have_a_name(server: FakeEngine, end: str) -> None:
    before, open_before = files(server), len(list(unnamed_files()))
    aggregator = FedfmsAggregator()
    for site, reply in replies(terms_of(server)):
        assert accept(aggregator, server, site, reply)
    assert files(server) - before == {LEDGER_FILE}
    assert len(list(unnamed_files())) == open_before + 1
    getattr(aggregator, end)(server.new_context())
    assert len(list(unnamed_files())) == open_before
    assert files(server) - before == {LEDGER_FILE}


def test_a_failure_while_combining_frees_them_too(server: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    open_before = len(list(unnamed_files()))
    aggregator = FedfmsAggregator()
    for site, reply in replies(terms_of(server)):
        accept(aggregator, server, site, reply)

    def broken(*arguments: object) -> None:
        raise MemoryError

    monkeypatch.setattr(aggregator_module, "combine", broken)
    with pytest.raises(MemoryError):
        aggregator.aggregate(server.new_context())
    assert len(list(unnamed_files())) == open_before


def test_a_full_disk_refuses_an_update_and_nothing_else(
    server: FakeEngine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    contract, aggregator = terms_of(server), FedfmsAggregator()
    (first, one), (second, other), (third, last) = replies(contract)
    assert accept(aggregator, server, first, one)
    with monkeypatch.context() as patch:

        def full(descriptor: int, content: Any, offset: int) -> int:
            raise OSError(28, "No space left on device")

        patch.setattr(os, "pwrite", full)
        assert not accept(aggregator, server, second, other)
    assert accept(aggregator, server, third, last)
    assert set(aggregator.reports) == {first, third}
    lines = open_ledger(Path(server.workspace.get_app_dir("job")) / LEDGER_FILE).lines
    assert [(line["site"], line["accepted"], line["errors"]) for line in lines] == [
        (first, True, []),
        (second, False, ["FMS-D011"]),
        (third, True, []),
    ]
    assert "site-1: the update of round 1 was refused" in capsys.readouterr().err
    # It may try again, and counts then.
    assert accept(aggregator, server, second, other)
    assert set(aggregator.aggregate(server.new_context())[MESSAGE][DIFFERENCE]) == set(contract.schema.names)


def test_a_cap_narrows_the_range_that_is_checked_on_arrival(make_engine: MakeEngine) -> None:
    accepted = {}
    for name, aggregation in (("plain", {}), ("capped", {"max_share": 0.41})):
        engine = make_engine(name, server=True, update_norm_limit=LIMIT, aggregation=aggregation)
        engine.components["ledger"] = Ledger()
        contract = terms_of(engine)
        update = make_update(contract, cases={"organ": 1_000_000, "lesion": 1_000_000})
        tensors = {key: torch.full_like(tensor, 0.1) for key, tensor in update.tensors.items()}
        reply = Reply("train", "site-1", 0, train_report(), replace(update, tensors=tensors))
        accepted[name] = accept(FedfmsAggregator(), engine, "site-1", to_shareable(reply_message(reply, contract)))
    assert accepted == {"plain": True, "capped": False}
