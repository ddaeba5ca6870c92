"""What a site believes of a task that the server sends, and in which order it may come to believe it.

The server is not trusted: it may send another model than the one agreed on, or one built to read images out of updates.
A task is believed only after all of these rules, in this order. Each rule relies on those before it.

1. Its fields are on the closed list, and its three digests (exchange schema, backbone file, job) are those that the
   site derives from its own copy of the job: FMS-X001, FMS-X004, FMS-X005.
2. It is the task that FLARE announced, and of a round that the job has: FMS-X001, FMS-X006.
3. Its tensors are exactly those of the schema, by name, shape and dtype, and finite: FMS-X001, FMS-X002.
   Rules 1 to 3 are `fedfms.exchange.messages.check_task`, which builds new objects and returns none of the message's.
4. Its round is not before the last accepted one: FMS-X006. Steps up and down between rounds, each within the bound of
   rule 6, would otherwise add up to any distance. Two states may come from before: that of round 0, to which rule 5
   applies in place of this one, and that of the task ``final``, because the best model may be an earlier one.
5. The state of round 0 is the one that the site derives itself from backbone and seed: FMS-X008
   (`fedfms.exchange.state.require_same_start`).
6. A later state has moved no further than accepted updates can have moved it in the rounds between:
   FMS-X003 (`fedfms.exchange.state.require_bounded_change`).
7. A later state does not look untrained or tampered with: FMS-X015 (`fedfms.sam.plausibility`, with the signs of the
   attack published as PEFTLeak, arXiv 2506.04453).

Rules 6 and 7 compare with the last accepted state. A site that has none (it joined late, or lost the file) compares
with the state of round 0. An accepted state is the one to compare with next, but for that of the task ``final``.

docs/security.md, "A malicious server", says what the rules stop and what they do not; docs/decisions/0006 why they are
as they are.

This module reads and writes no files and prints nothing: its caller loads the kept state and stores the new one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from torch import Tensor

from fedfms.errors import STALE_ROUND, FedfmsError, fail
from fedfms.exchange.messages import JobContract, Task, check_task
from fedfms.exchange.replies import TaskKind
from fedfms.exchange.state import check_tensors, require_bounded_change, require_same_start
from fedfms.sam.checkpoint import Checkpoint, require_same_model
from fedfms.sam.plausibility import require_plausible_state


@dataclass(frozen=True)
class KeptState:
    """The file with the last state that a site accepted for a job, as its caller found it.

    Attributes:
        path: The file; for the texts of warnings.
        content: Its content, or the error that reading it gave; None if there is no file.
    """

    path: Path
    content: Checkpoint | FedfmsError | None


@dataclass(frozen=True)
class TrustedTask:
    """A task that passed all rules.

    Attributes:
        task: The task, rebuilt.
        keep: Whether its state is the one to compare the next with, and has to be stored.
        warnings: What a person at the site should know, one sentence each.
    """

    task: Task
    keep: bool = False
    warnings: tuple[str, ...] = ()


def of_this_run(stored: datetime, approved: datetime | None) -> bool:
    """Whether a kept state belongs to the run that is going on, so that the next one may be compared with it.

    Args:
        stored: When the state was stored.
        approved: Time of the approval that is valid; None where none is needed.

    Returns:
        False if the approval is newer: it began a new run, whose states the old one would refuse.
    """
    return approved is None or stored >= approved


def trusted_task(
    message: object,
    contract: JobContract,
    kind: TaskKind,
    kept_state: Callable[[], KeptState],
    initial_state: Callable[[], Mapping[str, Tensor]],
) -> TrustedTask:
    """Apply the rules of this module to a message from the server.

    Args:
        message: What arrived.
        contract: The site's own derivation from the job.
        kind: The task that FLARE announced.
        kept_state: Reads the state accepted last in this run; called only when it is needed.
        initial_state: Derives the exchanged tensors of round 0 from backbone and seed; called only when they are
            needed, because it builds the model.

    Raises:
        FedfmsError: the id that the violated rule names.
    """
    task = check_task(message, contract, kind=kind)
    if task.tensors is None:
        return TrustedTask(task)
    if task.round == 0:
        require_same_start(task.tensors, check_tensors(initial_state(), contract.schema))
        return TrustedTask(task, keep=kind != "final")
    last, warnings = _usable(kept_state(), contract)
    if last is not None:
        tensors, rounds = last.tensors, last.header.rounds
        if task.round < rounds and kind != "final":
            raise fail(
                STALE_ROUND,
                "round",
                f"found the model after {task.round} rounds, the site has had the one after {rounds}",
            )
    else:
        tensors, rounds = check_tensors(initial_state(), contract.schema), 0
    require_bounded_change(
        task.tensors,
        tensors,
        rounds=abs(task.round - rounds),
        structures=len(contract.job.structures),
        norm_limit=contract.job.update_norm_limit,
        momentum=contract.job.server_momentum,
        largest_step=contract.job.aggregation.largest_step,
    )
    require_plausible_state(task.tensors, tensors)
    return TrustedTask(task, keep=kind != "final", warnings=warnings)


def _usable(kept: KeptState, contract: JobContract) -> tuple[Checkpoint | None, tuple[str, ...]]:
    """The kept checkpoint, or None and why it cannot be compared with."""
    content = kept.content
    if isinstance(content, Checkpoint):
        try:
            require_same_model(kept.path, content.header.model, contract.job.model)
        except FedfmsError as error:
            content = error
    if isinstance(content, FedfmsError):
        reason = f"{kept.path} cannot be used ({' '.join(content.ids)})"
        return None, (f"{reason}; the change is measured from the state before round 1",)
    return content, ()
