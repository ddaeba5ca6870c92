"""What a site believes of a task from the server: the rules and their order, without FLARE and without files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fedfms.errors import CHECKPOINT_UNREADABLE, FedfmsError, fail
from fedfms.exchange.messages import JobContract, Task, task_message
from fedfms.job.aggregation import Aggregation
from fedfms.sam.checkpoint import Checkpoint
from fedfms.site.received_state import KeptState, TrustedTask, of_this_run, trusted_task
from fedfms.training.headers import job_header
from tests.exchange.test_messages import CONTRACT, ORGAN, SHARED, tensors

PATH = Path("/nowhere/kept.safetensors")
NOTHING_KEPT = KeptState(PATH, None)
# Of the job in CONTRACT: a norm of 10 for one update, one structure and the shared tensors, no momentum.
ONE_ROUND = 10 * 2**0.5


def start() -> dict[str, Tensor]:
    """The state of round 0 as the site derives it."""
    return tensors()


def moved(by: float, name: str = SHARED) -> dict[str, Tensor]:
    state = tensors()
    state[name].view(-1)[0] += by
    return state


def message(kind: Any = "train", round_number: int = 1, state: dict[str, Tensor] | None = None) -> dict[str, Any]:
    return task_message(Task(kind, round_number, tensors() if state is None else state), CONTRACT)


def kept(round_number: int = 0, state: dict[str, Tensor] | None = None, contract: JobContract = CONTRACT) -> KeptState:
    return KeptState(PATH, Checkpoint(job_header(contract.job, round_number), tensors() if state is None else state))


def trust(content: object, kind: Any = "train", before: KeptState = NOTHING_KEPT) -> TrustedTask:
    return trusted_task(content, CONTRACT, kind, lambda: before, start)


def refused(content: object, kind: Any = "train", before: KeptState = NOTHING_KEPT) -> tuple[str, ...]:
    with pytest.raises(FedfmsError) as caught:
        trust(content, kind, before)
    return caught.value.ids


def not_read() -> KeptState:
    raise AssertionError("the kept state is not needed")


def no_start() -> dict[str, Tensor]:
    raise AssertionError("the state of round 0 is not needed")


@pytest.mark.parametrize("kind", ["train", "validate", "final"])
def test_a_good_task_is_believed_and_its_state_is_the_next_to_compare_with(kind: str) -> None:
    sent = message(kind)
    trusted = trust(sent, kind, kept())
    assert trusted.keep == (kind != "final") and trusted.warnings == ()
    assert (trusted.task.kind, trusted.task.round) == (kind, 1)
    assert trusted.task.tensors is not None
    for name, tensor in tensors().items():
        assert torch.equal(trusted.task.tensors[name], tensor)
        assert trusted.task.tensors[name].data_ptr() != sent["tensors"][name].data_ptr()
    assert not PATH.exists(), "files are the caller's"


def test_the_task_ready_brings_no_state() -> None:
    ready = task_message(Task("ready", 0, None), CONTRACT)
    assert trusted_task(ready, CONTRACT, "ready", not_read, no_start) == TrustedTask(Task("ready", 0, None))


Fault = Callable[[dict[str, Any]], None]


def unknown_field(content: dict[str, Any]) -> None:
    content["command"] = "rm"


def other_job(content: dict[str, Any]) -> None:
    content["job_sha256"] = "b" * 64


def no_such_round(content: dict[str, Any]) -> None:
    content["round"] = 4


def not_finite(content: dict[str, Any]) -> None:
    content["tensors"][SHARED][1, 1] = float("nan")


def round_before(content: dict[str, Any]) -> None:
    if content["round"] <= CONTRACT.job.rounds:
        content["round"] = 1


def too_far(content: dict[str, Any]) -> None:
    content["tensors"][SHARED][0, 0] += 4 * ONE_ROUND


def untrained(content: dict[str, Any]) -> None:
    # A root mean square of 15, where 10.5 is plausible; a change whose norm three rounds may have.
    content["tensors"][ORGAN][:] = 15


RULES: list[tuple[str, Fault, str]] = [
    ("1: closed list of fields", unknown_field, "FMS-X001"),
    ("1: digests", other_job, "FMS-X005"),
    ("2: a round of the job", no_such_round, "FMS-X006"),
    ("3: finite", not_finite, "FMS-X002"),
    ("4: not before the last round", round_before, "FMS-X006"),
    ("6: bounded change", too_far, "FMS-X003"),
    ("7: plausible", untrained, "FMS-X015"),
]


@pytest.mark.parametrize("number", range(len(RULES)), ids=[rule[0] for rule in RULES])
def test_the_rules_are_applied_in_their_order(number: int) -> None:
    """What breaks a rule and all later ones is refused for the first of them alone; so is what breaks that alone."""
    before = kept(2, moved(1.0)) if number <= 4 else kept(0)
    for faults in (RULES[number:], RULES[number : number + 1]):
        content = message("train", 3)
        for _, fault, _ in faults:
            fault(content)
        assert refused(content, before=before) == (RULES[number][2],)


def test_another_task_than_the_announced_one_is_refused() -> None:
    assert refused(message("validate"), "train") == ("FMS-X001",)


def test_the_state_of_round_0_must_be_the_sites_own() -> None:
    """Whatever was kept, and within every bound of later rounds."""
    for before in (NOTHING_KEPT, kept(2, moved(5.0))):
        assert trust(message("train", 0), before=before).keep
        assert refused(message("train", 0, moved(0.01)), before=before) == ("FMS-X008",)
    assert not trust(message("final", 0), "final", kept(2, moved(5.0))).keep
    assert refused(message("final", 0, moved(0.01)), "final") == ("FMS-X008",)


@pytest.mark.parametrize(("last", "rounds"), [(0, 1), (1, 1), (1, 2), (0, 3)])
def test_the_bound_grows_with_the_rounds_between(last: int, rounds: int) -> None:
    before = kept(last, moved(7.0))
    assert trust(message("train", last + rounds, moved(7.0 + 0.99 * rounds * ONE_ROUND)), before=before).keep
    assert refused(message("train", last + rounds, moved(7.0 + 1.01 * rounds * ONE_ROUND)), before=before) == (
        "FMS-X003",
    )


def test_the_bound_is_that_of_the_jobs_rule() -> None:
    """A median of each element can move further than any update."""
    aggregation = Aggregation(rule="coordinate_median")
    contract = replace(CONTRACT, job=CONTRACT.job.model_copy(update={"aggregation": aggregation}))

    def sent(by: float) -> dict[str, Any]:
        return task_message(Task("train", 1, moved(by)), contract)

    assert trusted_task(sent(1.41 * ONE_ROUND), contract, "train", lambda: NOTHING_KEPT, start).keep
    with pytest.raises(FedfmsError, match="FMS-X003"):
        trusted_task(sent(1.42 * ONE_ROUND), contract, "train", lambda: NOTHING_KEPT, start)


def test_the_same_round_means_the_same_state() -> None:
    before = kept(2, moved(3.0))
    assert trust(message("train", 2, moved(3.0)), before=before).keep
    assert refused(message("train", 2, moved(3.1)), before=before) == ("FMS-X003",)


def test_the_best_model_may_be_an_earlier_one_within_the_bound() -> None:
    before = kept(3, moved(3.0))
    assert not trust(message("final", 1, moved(2.0)), "final", before).keep
    assert refused(message("final", 1, moved(3.0 + 3 * ONE_ROUND)), "final", before) == ("FMS-X003",)
    for kind in ("train", "validate"):
        assert refused(message(kind, 2, moved(3.0)), kind, before) == ("FMS-X006",)


@pytest.mark.parametrize(
    ("before", "warning"),
    [
        (NOTHING_KEPT, None),
        (KeptState(PATH, fail(CHECKPOINT_UNREADABLE, PATH, "torn")), "FMS-M003"),
        (
            kept(2, moved(50.0), replace(CONTRACT, job=CONTRACT.job.model_copy(update={"backbone_sha256": "e" * 64}))),
            "FMS-M004",
        ),
    ],
    ids=["nothing", "unreadable", "another model"],
)
def test_without_a_usable_kept_state_the_change_is_measured_from_round_0(
    before: KeptState, warning: str | None
) -> None:
    trusted = trust(message("train", 2, moved(1.99 * ONE_ROUND)), before=before)
    assert trusted.keep and len(trusted.warnings) == (warning is not None)
    for text in trusted.warnings:
        assert str(PATH) in text and str(warning) in text and "before round 1" in text
    assert refused(message("train", 2, moved(2.01 * ONE_ROUND)), before=before) == ("FMS-X003",)


def test_the_kept_state_is_read_only_when_needed() -> None:
    """A message that breaks an earlier rule costs no reading of a checkpoint."""
    assert trusted_task(message("train", 0), CONTRACT, "train", not_read, start).keep
    with pytest.raises(FedfmsError, match="FMS-X001"):
        trusted_task({"kind": "train"}, CONTRACT, "train", not_read, no_start)


def test_the_state_of_round_0_is_derived_only_when_needed() -> None:
    """It takes seconds and the backbone's file."""
    assert trusted_task(message(), CONTRACT, "train", kept, no_start).keep
    with pytest.raises(AssertionError, match="not needed"):
        trusted_task(message(), CONTRACT, "train", lambda: NOTHING_KEPT, no_start)


def test_a_state_from_before_the_approval_belongs_to_another_run() -> None:
    now = datetime(2027, 3, 1, tzinfo=timezone.utc)
    second = timedelta(seconds=1)
    assert of_this_run(now, None) and of_this_run(now, now) and of_this_run(now, now - second)
    assert not of_this_run(now, now + second)
