"""No path through the checks returns what was put in, and each fault has its own reason."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedfms.errors import CATALOGUE, FedfmsError
from fedfms.exchange.messages import (
    JobContract,
    Reply,
    Task,
    Update,
    check_reply,
    check_task,
    reply_message,
    task_message,
)
from fedfms.exchange.replies import TrainReport
from fedfms.exchange.state import l2_norm, require_bounded_change, require_same_start
from fedfms.job.training import parse_job
from fedfms.sam.backbones import published_sha256
from fedfms.sam.scope import Schema, TensorSpec

SHARED, ORGAN = "decoder.shared.weight", "decoder.structures.organ.token"
SCHEMA = Schema((TensorSpec(SHARED, (2, 3)), TensorSpec(ORGAN, (4,))))


def make_contract() -> JobContract:
    content = {
        "task": "organ",
        "structures": ["organ"],
        "missing_structure": "error",
        "backbone": "vit_test",
        "backbone_sha256": published_sha256("vit_test"),
        "scope": "decoder",
        "preprocessing": {"input_size": 64, "intensity": {"rule": "range"}, "slice_axis": "axial"},
        "rounds": 3,
        "min_clients": 1,
        "straggler_minutes": 0,
        "local_work": {"steps": 1},
        "batch_size": 1,
        "learning_rate": 1e-3,
        "weight_decay": 0,
        "warmup": 0,
        "gradient_clip": 1,
        "server_momentum": 0.0,
        "augmentation": {"variants": 1},
        "update_norm_limit": 10,
        "precision": "fp32",
        "seed": 0,
    }
    return JobContract(parse_job(content, __file__), SCHEMA)  # type: ignore[arg-type]


CONTRACT = make_contract()
SCORES = {"organ": {"dice": 0.25, "iou": 0.125, "n": 4}}
REPORTS: dict[str, dict[str, Any]] = {
    "ready": {
        "cases": {"organ": 5},
        "cases_left_out": 2,
        "slices": {"train": 9, "validation": 3},
        "fingerprint_sha256": "d" * 64,
    },
    "train": {
        "steps": 3,
        "training_seconds": 1.5,
        "seconds": 2.5,
        "loss": 0.5,
        "learning_rate": 5e-4,
        "peak_memory_bytes": 123456789,
        "received": SCORES,
        "local": SCORES,
    },
    "validate": {"received": SCORES, "seconds": 1.0, "peak_memory_bytes": 1},
    "final": {"model_sha256": "a" * 64},
}


def tensors() -> dict[str, Tensor]:
    return {SHARED: torch.arange(6.0).reshape(2, 3), ORGAN: torch.ones(4)}


def message(kind: str = "train") -> dict[str, Any]:
    """A good reply; no two places of it share an object."""
    built = {
        "kind": kind,
        "site": "site-1",
        "round": 1,
        **CONTRACT.digests,
        # Through JSON: deepcopy would keep one object for the two places that hold SCORES.
        "report": json.loads(json.dumps(REPORTS[kind])),
    }
    if kind == "train":
        built["update"] = {"encoding": "fp32-difference", "cases": {"organ": 5}, "tensors": tensors()}
    return built


def check(content: object, kind: str = "train", **changes: Any) -> Reply:
    arguments = {"kind": kind, "site": "site-1", "norm_limit": 10.0, "round_number": 1, **changes}
    return check_reply(content, CONTRACT, **arguments)


@pytest.mark.parametrize("kind", list(REPORTS))
def test_a_good_reply_passes_and_travels_unchanged(kind: str) -> None:
    reply = check(message(kind), kind)
    again = reply_message(reply, CONTRACT)
    want = message(kind)
    for part in ("update",):
        got_update, want_update = again.pop(part, None), want.pop(part, None)
        assert (got_update is None) == (want_update is None)
        if got_update:
            assert got_update["cases"] == want_update["cases"]
            assert all(torch.equal(got_update["tensors"][name], want_update["tensors"][name]) for name in tensors())
    assert again == want


def test_tensors_are_built_in_schema_order_with_their_own_memory() -> None:
    content = message()
    large = torch.arange(100.0)
    content["update"]["tensors"] = {ORGAN: large[:4], SHARED: large[10:22:2].reshape(2, 3)}
    reply = check(content, norm_limit=1e6)
    assert reply.update is not None
    built = reply.update.tensors
    assert list(built) == list(SCHEMA.names)
    for tensor in built.values():
        assert tensor.untyped_storage().nbytes() == tensor.numel() * 4
        assert tensor.is_contiguous() and not tensor.requires_grad
    large.zero_()
    assert float(built[SHARED][0, 0]) == 10.0


def put(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        *folders, last = path.split("/")
        for name in folders:
            content = content[name]
        content[last] = value

    return change


def drop(path: str) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        *folders, last = path.split("/")
        for name in folders:
            content = content[name]
        del content[last]

    return change


NAN = torch.tensor([1.0, float("nan"), 0.0, 0.0])
FAULTS: list[tuple[str, Callable[[dict[str, Any]], None], str]] = [
    ("unknown field", put("patient", "P-17"), "FMS-X001"),
    ("unknown field in the report", put("report/note", "text"), "FMS-X001"),
    ("unknown field in the update", put("update/meta", {}), "FMS-X001"),
    ("unknown metric", put("report/received/organ/hd95", 1.0), "FMS-X001"),
    ("unknown structure", put("report/received/liver", SCORES["organ"]), "FMS-X001"),
    ("unknown structure of the local model", put("report/local/liver", SCORES["organ"]), "FMS-X001"),
    ("unknown structure in cases", put("update/cases/liver", 3), "FMS-X001"),
    ("missing structure", put("report/local", {}), "FMS-X001"),
    ("missing structure of the received model", put("report/received", {}), "FMS-X001"),
    ("missing structure in cases", put("update/cases", {}), "FMS-X001"),
    ("missing field", drop("report/loss"), "FMS-X001"),
    ("missing report", drop("report"), "FMS-X001"),
    ("missing update", drop("update"), "FMS-X001"),
    ("text for a number", put("report/loss", "0.5"), "FMS-X001"),
    ("truth value for a number", put("report/steps", True), "FMS-X001"),
    ("number out of range", put("report/received/organ/dice", 1.5), "FMS-X001"),
    ("number beyond all bounds", put("report/peak_memory_bytes", 2**60), "FMS-X001"),
    ("report not finite", put("report/loss", float("inf")), "FMS-X002"),
    ("object for a number", put("report/loss", object()), "FMS-X001"),
    ("no cases at all", put("update/cases/organ", 0), "FMS-X001"),
    ("another encoding", put("update/encoding", "bf16"), "FMS-X001"),
    ("unknown tensor", put(f"update/tensors/{ORGAN}.extra", torch.zeros(1)), "FMS-X001"),
    ("missing tensor", drop(f"update/tensors/{ORGAN}"), "FMS-X001"),
    ("wrong shape", put(f"update/tensors/{ORGAN}", torch.zeros(5)), "FMS-X001"),
    ("wrong dtype", put(f"update/tensors/{ORGAN}", torch.zeros(4, dtype=torch.float64)), "FMS-X001"),
    ("not a tensor", put(f"update/tensors/{ORGAN}", [0.0] * 4), "FMS-X001"),
    ("a subclass that can carry attributes", put(f"update/tensors/{ORGAN}", nn.Parameter(torch.ones(4))), "FMS-X001"),
    ("sparse", put(f"update/tensors/{ORGAN}", torch.zeros(4).to_sparse()), "FMS-X001"),
    ("without values", put(f"update/tensors/{ORGAN}", torch.zeros(4, device="meta")), "FMS-X001"),
    ("tensors are not a mapping", put("update/tensors", 3), "FMS-X001"),
    ("NaN", put(f"update/tensors/{ORGAN}", NAN), "FMS-X002"),
    ("infinity", put(f"update/tensors/{ORGAN}", torch.full((4,), float("-inf"))), "FMS-X002"),
    ("norm", put(f"update/tensors/{ORGAN}", torch.full((4,), 5.0)), "FMS-X003"),
    ("another backbone", put("backbone_sha256", "b" * 64), "FMS-X004"),
    ("another job", put("job_sha256", "b" * 64), "FMS-X005"),
    ("another schema", put("schema_sha256", "b" * 64), "FMS-X001"),
    ("another round", put("round", 2), "FMS-X006"),
    ("another kind", put("kind", "validate"), "FMS-X001"),
    ("another site", put("site", "site-2"), "FMS-X001"),
]


OTHER_KINDS: list[tuple[str, str, Callable[[dict[str, Any]], None]]] = [
    ("ready", "report.cases", put("report/cases/liver", 3)),
    ("ready", "report.cases", put("report/cases", {})),
    ("validate", "report.received", put("report/received/liver", SCORES["organ"])),
    ("validate", "report.received", put("report/received", {})),
    ("train", "report.received", put("report/received", {"liver": SCORES["organ"]})),
    ("train", "report.local", put("report/local", {"liver": SCORES["organ"]})),
    ("train", "update.cases", put("update/cases", {"liver": 3})),
]


@pytest.mark.parametrize(("kind", "where", "change"), OTHER_KINDS)
def test_every_list_of_structures_is_exactly_the_jobs(
    kind: str, where: str, change: Callable[[dict[str, Any]], None]
) -> None:
    content = message(kind)
    change(content)
    with pytest.raises(FedfmsError) as caught:
        check(content, kind)
    assert [(problem.kind.id, problem.where) for problem in caught.value.problems] == [("FMS-X001", where)]


@pytest.mark.parametrize("kind", sorted(REPORTS))
def test_only_a_reply_to_train_has_an_update(kind: str) -> None:
    content = message(kind)
    if kind == "train":
        del content["update"]
    else:
        content["update"] = message()["update"]
    with pytest.raises(FedfmsError, match="FMS-X001 update: "):
        check(content, kind)


@pytest.mark.parametrize("kind", sorted(REPORTS))
def test_a_good_message_of_another_kind_is_refused(kind: str) -> None:
    """What was asked for decides, and not what the message says about itself."""
    for other in set(REPORTS) - {kind}:
        with pytest.raises(FedfmsError) as caught:
            check(message(other), kind)
        assert "kind" in {problem.where for problem in caught.value.problems}
        sent = task_message(Task(other, 1, None if other == "ready" else tensors()), CONTRACT)  # type: ignore[arg-type]
        with pytest.raises(FedfmsError) as caught:
            check_task(sent, CONTRACT, kind=kind)
        assert "kind" in {problem.where for problem in caught.value.problems}


def test_a_round_is_one_of_the_job_or_the_one_after_the_last() -> None:
    """The last aggregate is validated as the state of the round after the last."""
    after = CONTRACT.job.rounds
    for number in (0, after):
        sent = {**message("validate"), "round": number}
        assert check(sent, "validate", round_number=None).round == number, "at the exit of a site"
        assert check_task(task_message(Task("validate", number, tensors()), CONTRACT), CONTRACT, kind="validate")
    for number, where in ((after + 1, "round"), (-1, "reply.round")):
        with pytest.raises(FedfmsError) as caught:
            check({**message("validate"), "round": number}, "validate", round_number=None)
        assert [problem.where for problem in caught.value.problems] == [where]
        with pytest.raises(FedfmsError):
            check_task(task_message(Task("validate", number, tensors()), CONTRACT), CONTRACT, kind="validate")


def test_an_error_counts_rounds_as_people_do() -> None:
    """From 1, although messages count from 0; a model is named by the rounds that it has seen."""
    with pytest.raises(FedfmsError, match="FMS-X006 round: expected round 2, found round 3"):
        check({**message(), "round": 2}, "train", round_number=1)
    with pytest.raises(FedfmsError, match="expected the model after 2 rounds, found the model after 3 rounds"):
        check({**message("validate"), "round": 3}, "validate", round_number=2)


LIMIT = 1 << 18


def filled(place: str, characters: int) -> dict[str, Any]:
    """A message in which the JSON text of one part has this length, through a field that is on no list."""
    content = message()
    part = content[place] if place else content
    others = {key: value for key, value in part.items() if key not in ("report", "update", "tensors")}
    part["note"] = "x" * (characters - len(json.dumps({**others, "note": ""})))
    return content


@pytest.mark.parametrize(("place", "where"), [("", "reply"), ("report", "report"), ("update", "update")])
def test_a_text_longer_than_any_report_is_not_even_read(place: str, where: str) -> None:
    with pytest.raises(FedfmsError) as caught:
        check(filled(place, LIMIT))
    assert [problem.where for problem in caught.value.problems] == [f"{where}.note"], "read, and the field refused"
    with pytest.raises(FedfmsError) as caught:
        check(filled(place, LIMIT + 1))
    (problem,) = caught.value.problems
    assert (problem.where, problem.detail) == (where, f"{LIMIT + 1} characters, allowed {LIMIT}")


@pytest.mark.parametrize(("change", "identifier"), [item[1:] for item in FAULTS], ids=[item[0] for item in FAULTS])
def test_each_fault_is_refused_with_its_reason(change: Callable[[dict[str, Any]], None], identifier: str) -> None:
    content = message()
    change(content)
    with pytest.raises(FedfmsError) as caught:
        check(content)
    assert identifier in caught.value.ids


def test_the_error_names_both_digests() -> None:
    content = message("ready")
    content["backbone_sha256"] = "b" * 64
    with pytest.raises(FedfmsError) as caught:
        check(content, "ready")
    assert "b" * 64 in str(caught.value) and CONTRACT.job.backbone_sha256 in str(caught.value)
    assert "b" * 64 not in caught.value.public


def test_all_wrong_fields_stand_in_one_error() -> None:
    content = message()
    content["report"].update({"loss": "x", "steps": -1, "note": "y"})
    with pytest.raises(FedfmsError) as caught:
        check(content)
    assert {problem.where for problem in caught.value.problems} == {"report.loss", "report.steps", "report.note"}


def test_ready_must_not_carry_tensors() -> None:
    content = message("ready")
    content["update"] = message()["update"]
    with pytest.raises(FedfmsError):
        check(content, "ready")


def test_figures_keep_six_digits_and_nothing_below() -> None:
    content = message()
    content["report"]["loss"] = 0.12345678912345
    report = check(content).report
    assert isinstance(report, TrainReport) and report.loss == 0.123457


class Carrier(str):
    """A string with an attribute: equal to a permitted value, and yet more than it."""

    note = "secret"


def test_equal_objects_of_other_classes_do_not_survive() -> None:
    content = message()
    content["site"] = Carrier("site-1")
    content["update"]["cases"] = {Carrier("organ"): 5}
    content["report"]["received"] = {Carrier("organ"): dict(SCORES["organ"])}
    reply = check(content)
    assert reply.update is not None and isinstance(reply.report, TrainReport)
    assert type(reply.site) is str
    assert [type(name) for name in reply.update.cases] == [str]
    assert [type(name) for name in reply.report.received] == [str]


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
PLACES = [
    "kind", "site", "round", "job_sha256", "report", "report/steps", "report/received", "report/received/organ",
    "report/received/organ/dice", "update", "update/cases", "update/cases/organ", "update/encoding",
    "update/tensors", f"update/tensors/{ORGAN}", "extra", "report/extra", "update/extra", "update/tensors/extra",
]  # fmt: skip


def objects(value: object) -> Iterator[object]:
    """All mutable objects and tensors reachable in a message."""
    if isinstance(value, dict):
        yield value
        for item in value.values():
            yield from objects(item)
    elif isinstance(value, list | set | bytearray | Tensor):
        yield value


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from(PLACES), anything, max_size=3))
def test_whatever_is_put_in_comes_out_rebuilt_or_not_at_all(changes: dict[str, Any]) -> None:
    content = message()
    for path, value in changes.items():
        try:
            put(path, value)(content)
        except (TypeError, KeyError):
            continue  # an earlier change replaced the place it belongs to
    given_objects = {id(item) for item in objects(content)}
    storages = {item.untyped_storage().data_ptr() for item in objects(content) if isinstance(item, Tensor)}
    try:
        reply = check(content)
    except FedfmsError as error:
        assert all(name in CATALOGUE for name in error.ids)
        return
    out = reply_message(reply, CONTRACT)
    assert set(out) == {"kind", "site", "round", *CONTRACT.digests, "report", "update"}
    assert set(out["report"]) == set(REPORTS["train"])
    assert set(out["update"]) == {"encoding", "cases", "tensors"}
    assert list(out["update"]["tensors"]) == list(SCHEMA.names)
    assert not given_objects & {id(item) for item in objects(out)}
    assert not storages & {item.untyped_storage().data_ptr() for item in objects(out) if isinstance(item, Tensor)}
    plain = {**out, "update": {**out["update"], "tensors": None}}
    json.dumps(plain)  # numbers and names only


@settings(max_examples=100, deadline=None)
@given(anything)
def test_something_else_than_a_message_is_refused(content: object) -> None:
    with pytest.raises(FedfmsError):
        check(content)
    with pytest.raises(FedfmsError):
        check_task(content, CONTRACT, kind="train")


def test_a_task_passes_rebuilt_and_its_faults_are_refused() -> None:
    state = tensors()
    content = task_message(Task("train", 1, state), CONTRACT)
    task = check_task(content, CONTRACT, kind="train")
    assert task.tensors is not None
    assert all(torch.equal(task.tensors[name], state[name]) for name in state)
    assert task.tensors[ORGAN].data_ptr() != state[ORGAN].data_ptr()
    for change, identifier in (
        (put("command", "rm"), "FMS-X001"),
        (put("round", 4), "FMS-X006"),
        (drop("tensors"), "FMS-X001"),
        (put("job_sha256", "c" * 64), "FMS-X005"),
        (put(f"tensors/{ORGAN}", NAN), "FMS-X002"),
    ):
        bad = task_message(Task("train", 1, tensors()), CONTRACT)
        change(bad)
        with pytest.raises(FedfmsError) as caught:
            check_task(bad, CONTRACT, kind="train")
        assert identifier in caught.value.ids
    ready = task_message(Task("ready", 0, None), CONTRACT)
    assert check_task(ready, CONTRACT, kind="ready").tensors is None
    ready["tensors"] = tensors()
    with pytest.raises(FedfmsError):
        check_task(ready, CONTRACT, kind="ready")


def test_the_norm_is_that_of_all_tensors_together() -> None:
    assert l2_norm({"a": torch.tensor([3.0]), "b": torch.tensor([0.0, 4.0])}) == pytest.approx(5.0)


def test_the_start_must_be_the_own_one_up_to_the_last_bits() -> None:
    own = tensors()
    require_same_start({name: tensor * (1 + 1e-7) for name, tensor in own.items()}, own)
    other = tensors()
    other[ORGAN][2] += 1e-3
    with pytest.raises(FedfmsError) as caught:
        require_same_start(other, own)
    assert caught.value.ids == ("FMS-X008",)
    assert [problem.where for problem in caught.value.problems] == [ORGAN]


@pytest.mark.parametrize(
    ("rounds", "momentum", "moved", "passes"),
    [
        (1, 0.0, 1.41, True),
        (1, 0.0, 1.43, False),
        (2, 0.0, 2.8, True),
        (2, 0.0, 2.9, False),
        (0, 0.0, 0.0, True),
        (0, 0.0, 0.01, False),
        (1, 0.5, 2.8, True),
        (1, 0.5, 2.9, False),
    ],
)
def test_a_state_moves_no_further_than_accepted_updates_can_move_it(
    rounds: int, momentum: float, moved: float, passes: bool
) -> None:
    # One structure and the shared tensors: two groups, so at most sqrt(2) times the limit a round.
    last = tensors()
    received = tensors()
    received[ORGAN][0] += moved
    arguments = {"rounds": rounds, "structures": 1, "norm_limit": 1.0, "momentum": momentum}
    if passes:
        require_bounded_change(received, last, **arguments)  # type: ignore[arg-type]
    else:
        with pytest.raises(FedfmsError) as caught:
            require_bounded_change(received, last, **arguments)  # type: ignore[arg-type]
        assert caught.value.ids == ("FMS-X003",)


def test_a_rule_that_can_move_further_widens_the_bound() -> None:
    received = tensors()
    received[ORGAN][0] += 2.8
    arguments: dict[str, Any] = {"rounds": 1, "structures": 1, "norm_limit": 1.0, "momentum": 0.0}
    require_bounded_change(received, tensors(), **arguments, largest_step=2.0)
    with pytest.raises(FedfmsError, match="FMS-X003"):
        require_bounded_change(received, tensors(), **arguments, largest_step=1.9)


def test_an_update_may_have_exactly_the_norm_that_is_allowed() -> None:
    content = message()
    content["update"]["tensors"] = {SHARED: torch.zeros(2, 3), ORGAN: torch.tensor([6.0, 0.0, 8.0, 0.0])}
    assert check(content, norm_limit=10.0).update is not None
    with pytest.raises(FedfmsError, match="FMS-X003 update: norm 10, allowed 9.999"):
        check(content, norm_limit=9.999)


def test_an_update_says_all_that_the_design_names() -> None:
    update = check(message()).update
    assert isinstance(update, Update)
    assert (update.site, update.round, update.encoding, update.cases) == ("site-1", 1, "fp32-difference", {"organ": 5})
    assert {name: getattr(update, name) for name in CONTRACT.digests} == CONTRACT.digests
