"""What has been used of an approval, in words for those who gave it. Looking starts no job and changes no count."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from fedfms.errors import FedfmsError
from fedfms.site.admission import most_updates
from fedfms.site.allowance import Run, usage_so_far
from fedfms.site.policy import SitePolicy
from fedfms.site.review import Decision, review_status


@dataclass(frozen=True)
class ApprovalUse:
    """How much of an approval has been used.

    Attributes:
        updates: Number of updates that have left under it.
        of_updates: How many may leave; None for an approval by a version that did not note the job's rounds.
        hours: Hours since the first task, at most ``of_hours``; None before the first task.
        of_hours: How many hours the policy allows at present.
    """

    updates: int
    of_updates: int | None
    hours: float | None
    of_hours: float

    @property
    def used_up(self) -> bool:
        """Whether no further update can leave under the approval."""
        over = self.hours is not None and self.hours >= self.of_hours
        return over or (self.of_updates is not None and self.updates >= self.of_updates)

    def __str__(self) -> str:
        if self.hours is None:
            return "not used yet"
        updates = f"{self.updates}" if self.of_updates is None else f"{self.updates} of {self.of_updates}"
        return f"used {updates} updates, {self.hours:.1f} of {self.of_hours:g} h"


def approval_use(kit: Path, approval: Decision, policy: SitePolicy, now: datetime) -> ApprovalUse:
    """What the runs under an approval have used of it.

    Args:
        kit: The site's kit.
        approval: The decision; `fedfms.site.review.review_status` says whether it is valid.
        policy: The site's policy, for the hours and rounds that it allows.
        now: Time to judge for.

    Raises:
        FedfmsError: FMS-S008 when a record that counts is damaged.
    """
    found = usage_so_far(kit, Run(approval.digest, approval.job, approval.time))
    return ApprovalUse(
        updates=found.replies.get("train", 0) if found else 0,
        of_updates=None if approval.rounds is None else most_updates(approval.rounds, policy),
        hours=min((now - found.started).total_seconds() / 3600, policy.max_hours) if found else None,
        of_hours=policy.max_hours,
    )


@dataclass(frozen=True)
class DecisionStatus:
    """What a decision amounts to at present.

    Attributes:
        word: ``approved``, ``used up``, ``rejected``, ``expired``, or ``replaced`` by a later decision about the job.
        use: What was used of an approval that is valid; None for the others, and where it is not known.
        unreadable: Error ids of a record that says what was used and cannot be read; nothing leaves for the job then.
    """

    word: str
    use: ApprovalUse | None = None
    unreadable: tuple[str, ...] = ()

    @property
    def detail(self) -> str:
        """What was used, in brackets; empty where there is nothing to say."""
        if self.unreadable:
            return f" (what was used of it cannot be read: {' '.join(self.unreadable)})"
        return f" ({self.use})" if self.use else ""

    def __str__(self) -> str:
        return self.word + self.detail


def decision_status(kit: Path, decision: Decision, policy: SitePolicy | None, now: datetime) -> DecisionStatus:
    """What a decision amounts to at present.

    Args:
        kit: The site's kit.
        decision: One of `fedfms.site.review.decisions`.
        policy: The site's policy; None if it cannot be read, then nobody knows how much an approval allows.
        now: Time to judge for.

    Raises:
        FedfmsError: FMS-S008 when the record of decisions is damaged.
    """
    state, last = review_status(kit, decision.digest, now)
    if last != decision:
        return DecisionStatus("replaced")
    if state != "approved" or policy is None:
        return DecisionStatus(state)
    try:
        use = approval_use(kit, decision, policy, now)
    except FedfmsError as error:
        return DecisionStatus(state, unreadable=error.ids)
    return DecisionStatus("used up" if use.used_up else state, use)
