"""A server that is killed and started again goes on where it was committed last, to the same bytes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.shareable import Shareable

from fedfms.errors import FedfmsError
from fedfms.exchange.messages import JobContract
from fedfms.exchange.replies import LEDGER_FILE
from fedfms.flare.context import run_contract
from fedfms.flare.run_state import Best, RunProgress, RunStore
from fedfms.results.ledger_file import open_ledger
from fedfms.results.run_result import RunResult, read_ledger
from tests.flare.builders import FakeEngine, MakeEngine, make_tensors
from tests.flare.test_server import Federation, good_answer, scores

ROUNDS = 4
#: Dice of the model after 0 to 4 rounds: that after two is the best.
DICE = (0.1, 0.5, 0.8, 0.6, 0.7)


class Killed(BaseException):
    """As of SIGKILL, nothing catches it."""


@pytest.fixture
def make(make_engine: MakeEngine) -> MakeEngine:
    """A server of its own, all with the same job."""

    def server(name: str = "server", **changes: Any) -> FakeEngine:
        return make_engine(name, server=True, **{"rounds": ROUNDS, "server_momentum": 0.5, **changes})

    return server


def process(engine: FakeEngine) -> Federation:
    """The server's job in a process of its own: new components, and what is on the disk."""
    contract = run_contract(engine.new_context())
    return Federation(engine, good_answer(contract, lambda site, number: DICE[number]))


def app(engine: FakeEngine) -> Path:
    return Path(engine.workspace.get_app_dir("job"))


def store(engine: FakeEngine, job: str = "job") -> RunStore:
    return RunStore(Path(engine.workspace.get_run_dir(job)) / "fedfms" / "state")


def models(engine: FakeEngine) -> dict[str, bytes]:
    """All model files of the result."""
    folder = app(engine) / "models"
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.safetensors")}


def rounds_of(federation: Federation) -> list[int]:
    return [number for kind, number, _ in federation.sent if kind == "train"]


def same_result(one: RunResult, other: RunResult) -> bool:
    """Whether two runs had the same outcome; how long their rounds took is left out."""
    return [one.sites, one.rounds, one.chosen_rounds, one.chosen_mean_dice, one.refusals] == [
        other.sites,
        other.rounds,
        other.chosen_rounds,
        other.chosen_mean_dice,
        other.refusals,
    ]


@contextmanager
def killed_before_file(count: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Kill the server when so many files have been put in their places; lists them."""
    placed: list[str] = []
    replace = Path.replace

    def counting(path: Path, target: Any) -> Any:
        if len(placed) == count:
            raise Killed
        placed.append(Path(target).name)
        return replace(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", counting)
        yield placed


def test_an_undisturbed_run_leaves_no_state_and_chooses_the_best(make: MakeEngine) -> None:
    engine = make()
    federation = process(engine).run()
    assert not federation.panics and rounds_of(federation) == [0, 1, 2, 3]
    assert not store(engine).folder.exists()
    assert read_ledger(app(engine) / LEDGER_FILE).chosen_rounds == 2


#: Files that the first two of the rounds put in place, in this order; those of the best model before the commit.
PLACED = [
    *("state-0001.safetensors", "ledger", "commit-0001.json", "exchange.safetensors", "model.safetensors"),
    *("exchange.safetensors", "model.safetensors"),
    *("state-0002.safetensors", "ledger", "commit-0002.json", "exchange.safetensors", "model.safetensors"),
]


@pytest.mark.parametrize("count", range(len(PLACED)))
def test_killed_while_saving(count: int, make: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, undisturbed = make(), make("undisturbed")
    process(undisturbed).run()
    with killed_before_file(count, monkeypatch) as placed, pytest.raises(Killed):
        process(engine).run()
    assert [name if name[:6] != "ledger" else "ledger" for name in placed] == PLACED[:count]
    half = app(engine) / "models" / "last" / ".model.safetensors.7.ab.tmp"
    if committed := sum(name.startswith("commit") for name in placed):
        half.parent.mkdir(parents=True, exist_ok=True)
        half.touch()  # as SIGKILL leaves it; the exception here cleans up
    second = process(engine).run()
    assert committed == sum(name.startswith("commit") for name in PLACED[:count])
    assert not second.panics and rounds_of(second) == list(range(committed, ROUNDS)), "no committed round is lost"
    assert ("ready" in [kind for kind, _, _ in second.sent]) == (committed == 0)
    assert models(engine) == models(undisturbed)
    found = read_ledger(app(engine) / LEDGER_FILE)
    assert same_result(found, read_ledger(app(undisturbed) / LEDGER_FILE))
    assert open_ledger(app(engine) / LEDGER_FILE).last_sha256, "its lines still follow each other"
    assert list(app(engine).rglob("*.tmp")) == []


@pytest.mark.parametrize(
    ("kind", "number"), [("ready", 0), ("train", 0), ("train", 1), ("train", 3), ("validate", 4), ("final", 2)]
)
def test_killed_while_replies_arrive(kind: str, number: int, make: MakeEngine) -> None:
    """The first site's reply is in; the second's is on its way."""
    engine, undisturbed = make(), make("undisturbed")
    process(undisturbed).run()
    first = process(engine)
    reply = first.answer

    def answer(asked: str, site: str, round_number: int, message: dict[str, Any]) -> Shareable | None:
        if (asked, round_number, site) == (kind, number, "site-2"):
            raise Killed
        return reply(asked, site, round_number, message)

    first.answer = answer
    with pytest.raises(Killed):
        first.run()
    second = process(engine).run()
    begun = {"ready": 0, "train": number}.get(kind, ROUNDS)
    assert not second.panics and rounds_of(second) == list(range(begun, ROUNDS))
    assert models(engine) == models(undisturbed)
    assert same_result(read_ledger(app(engine) / LEDGER_FILE), read_ledger(app(undisturbed) / LEDGER_FILE))


def test_killed_again_and_again(make: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, undisturbed = make(), make("undisturbed")
    process(undisturbed).run()
    for count in (3, 3, 7, 4, 5):
        with killed_before_file(count, monkeypatch), pytest.raises(Killed):
            process(engine).run()
    assert not process(engine).run().panics
    assert models(engine) == models(undisturbed)
    assert same_result(read_ledger(app(engine) / LEDGER_FILE), read_ledger(app(undisturbed) / LEDGER_FILE))


def interrupted(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that was killed after two committed rounds."""
    with killed_before_file(len(PLACED), monkeypatch), pytest.raises(Killed):
        process(engine).run()


@pytest.mark.parametrize("name", ["state-0002.safetensors", "commit-0002.json"])
@pytest.mark.parametrize("cut", [True, False], ids=["cut in half", "one byte"])
def test_a_damaged_commit_costs_one_round(
    name: str, cut: bool, make: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, undisturbed = make(), make("undisturbed")
    process(undisturbed).run()
    interrupted(engine, monkeypatch)
    path = store(engine).folder / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content[: len(content) // 2] if cut else content)
    second = process(engine).run()
    assert rounds_of(second) == [1, 2, 3] and not second.panics
    assert [line["errors"] for line in second.lines("resume")] == [["FMS-J007"]]
    assert models(engine) == models(undisturbed)


def test_when_no_commit_is_whole_the_job_stops_and_says_why(make: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make()
    interrupted(engine, monkeypatch)
    for path in store(engine).folder.glob("state-*"):
        path.write_bytes(b"x")
    before = models(engine)
    second = process(engine).run()
    assert len(second.panics) == 1 and second.panics[0].startswith("FMS-J007") and second.sent == []
    assert models(engine) == before


def test_a_ledger_that_was_lost_or_changed_is_that_of_the_commit(
    make: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, undisturbed = make(), make("undisturbed")
    process(undisturbed).run()
    interrupted(engine, monkeypatch)
    ledger = app(engine) / LEDGER_FILE
    ledger.write_bytes(ledger.read_bytes()[:300])
    process(engine).run()
    assert same_result(read_ledger(ledger), read_ledger(app(undisturbed) / LEDGER_FILE))


def test_another_job_is_refused_with_both_digests(make: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make()
    interrupted(engine, monkeypatch)
    other = make(seed=1)  # the same folder
    run_contract.__globals__["_contract"].cache_clear()
    second = process(other).run()
    assert len(second.panics) == 1 and second.panics[0].startswith("FMS-J006") and second.sent == []
    local = (Path(engine.workspace.get_run_dir("job")) / "fedfms" / "errors.log").read_text()
    assert "job_sha256: the state is of " in local and run_contract(other.new_context()).job.sha256 in local


def test_a_clone_goes_on_with_the_state_of_the_job_it_was_made_of(
    make: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its sites do the task ready again: to them it is a new job."""
    engine, undisturbed = make(), make("undisturbed")
    process(undisturbed).run()
    interrupted(engine, monkeypatch)
    store(engine, "old").folder.parent.mkdir(parents=True)
    store(engine).folder.rename(store(engine, "old").folder)
    clone = process(engine)
    (app(engine) / LEDGER_FILE).unlink()
    context = engine.new_context
    monkeypatch.setattr(engine, "new_context", lambda: with_meta(context(), {"cloned_from": "old"}))
    clone.run()
    assert not clone.panics and rounds_of(clone) == [2, 3]
    assert clone.sent[0][0] == "ready"
    assert models(engine) == models(undisturbed)
    (resumed,) = clone.lines("resume")
    assert (resumed["rounds"], resumed["former"]) == (2, "old")
    assert same_result(read_ledger(app(engine) / LEDGER_FILE), read_ledger(app(undisturbed) / LEDGER_FILE))


def with_meta(context: Any, meta: dict[str, Any]) -> Any:
    context.set_prop(FLContextKey.JOB_META, meta, private=True, sticky=False)
    return context


# --- the store by itself ----------------------------------------------------------------------------------


def test_commits_hold_weights_step_and_progress(contract: JobContract, tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.jsonl"
    folder = RunStore(tmp_path / "state")
    assert folder.load(contract) is None and folder.is_empty
    states = {number: make_tensors(contract, seed=number) for number in (1, 2, 3, 4)}
    for number, state in states.items():
        ledger.write_text(f"{number}\n")
        best = Best(rounds=1, scores={"site-1": scores(0.5)}) if number > 1 else None
        progress = RunProgress(best=best, sites=("site-1",), undecided=("site-2",), counted=("site-1",))
        folder.commit(contract, number, state, make_tensors(contract, seed=10 + number), progress, ledger)
    ledger.unlink()
    found = folder.load(contract)
    assert found is not None and found.rounds == 4 and found.progress == progress
    assert found.ledger.read_text() == "4\n" and found.best is not None and found.damaged == ()
    for name in contract.schema.names:
        assert torch.equal(found.weights[name], states[4][name]) and torch.equal(found.best[name], states[1][name])
        assert torch.equal(found.step[name], make_tensors(contract, seed=14)[name])
    # The last two commits and the best state; nothing of the others.
    names = {path.name for path in folder.folder.iterdir()}
    assert {name for name in names if name.startswith("state")} == {f"state-000{n}.safetensors" for n in (1, 3, 4)}
    assert len(names) == 3 + 2 + 2


def test_a_full_disk_leaves_the_commit_before(
    contract: JobContract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = tmp_path / "ledger.jsonl"
    ledger.write_text("x\n")
    folder = RunStore(tmp_path / "state")
    folder.commit(contract, 1, make_tensors(contract, seed=1), {}, RunProgress(), ledger)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(FedfmsError, match="FMS-D011"):
        patch.setattr("fedfms.tensor_files.safetensors.torch.save_file", full)
        folder.commit(contract, 2, make_tensors(contract, seed=2), {}, RunProgress(), ledger)
    found = folder.load(contract)
    assert found is not None and found.rounds == 1


def test_a_commit_of_another_version_is_refused(contract: JobContract, tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.jsonl"
    ledger.write_text("x\n")
    folder = RunStore(tmp_path / "state")
    folder.commit(contract, 1, make_tensors(contract, seed=1), {}, RunProgress(), ledger)
    (path,) = folder.folder.glob("commit-*")
    path.write_text(json.dumps({**json.loads(path.read_text()), "package_version": "0.0.1"}))
    with pytest.raises(FedfmsError, match=r"FMS-J006 .*version 0\.0\.1 of fedfms"):
        folder.load(contract)
