"""Whether a job may do a task at this site: its policy, its review, and the hours and replies it has left.

The executor asks before it works, the exit gate asks again before anything leaves. Both read policy and decisions from
the files each time, so a change that the site makes is effective from the next task on.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime

from fedfms.errors import (
    ALLOWANCE_USED_UP,
    FEW_TRAINING_CASES,
    NOT_APPROVED,
    POLICY_OBJECTS,
    REJECTED,
    FedfmsError,
    Problem,
    fail,
)
from fedfms.site.allowance import Run, usage
from fedfms.site.application import Application, read_application
from fedfms.site.job_location import JobLocation
from fedfms.site.policy import SitePolicy, site_policy
from fedfms.site.records import utc_now
from fedfms.site.review import review_status

#: Most replies of one run to each of ready, validate and final. A job asks for each once; FLARE may ask again when a
#: reply is lost. Without a limit, a server could obtain the figures of any model it likes.
MOST_REPLIES = 3


@dataclass(frozen=True)
class Admission:
    """A job that may do its task.

    Attributes:
        policy: The site's policy, as it is now.
        application: The job's files, as they are at the site.
        ends: When the job's hours are used up, in seconds since 1970.
        since: Time of the approval that is valid; None if there is none, because the policy needs none.
        only: When the updates are used up, the digests of those that left in this round: one of them may leave again,
            with the same bytes. None while there are updates left.
    """

    policy: SitePolicy
    application: Application
    ends: float
    since: datetime | None
    only: frozenset[str] | None = None


def admit(location: JobLocation, task: str, round_number: int | None = None) -> Admission:
    """Admit a job to a task, or raise the reason why not.

    The first admitted task of a run starts its hours (`fedfms.site.allowance.usage`). The task ready is admitted only
    when so many updates are left as the job has rounds; a site that joins late begins with another task.

    Args:
        location: The job at the site.
        task: Name of the task: ready, train, validate or final.
        round_number: Of the task train, its round. Once its update has left, it may leave again.

    Raises:
        FedfmsError: FMS-S003 or FMS-S001 for the policy; FMS-J001, FMS-J002, FMS-J005 for the job's files; FMS-S002
            with all of the policy's objections; FMS-S005 or FMS-S004 for the review; FMS-S007 when hours or replies are
            used up; FMS-S008 when a record cannot be read, FMS-D011 when one cannot be written.
    """
    policy = site_policy(location.kit, simulated=location.simulated)
    application = read_application(location.application)
    if objections := policy.objections(application.job):
        raise FedfmsError(objections)
    since = _require_review(location, policy, application)
    used = usage(location.kit, Run(application.review_sha256, location.job_id, since))
    ends = used.started.timestamp() + 3600 * policy.max_hours
    if time.time() > ends:
        raise hours_over(policy)
    rounds = application.job.rounds
    updates = most_updates(rounds, policy)
    if task == "ready":
        _require_updates_left(location, rounds, updates, updates - used.replies.get("train", 0))
    allowed = updates if task == "train" else MOST_REPLIES
    again = frozenset(update.sha256 for update in used.updates if update.round == round_number is not None)
    over = (sent := used.replies.get(task, 0)) >= allowed
    if over and not (task == "train" and again):
        what = "updates" if task == "train" else f"replies to {task}"
        raise fail(ALLOWANCE_USED_UP, what, f"{sent} have been sent, the site allows {allowed}")
    return Admission(policy, application, ends, since, again if over else None)


def updates_used_up() -> FedfmsError:
    """The error FMS-S007 of another update than one that has left already, when no further one may leave."""
    return fail(
        ALLOWANCE_USED_UP, "updates", "all updates that the site allows have been sent, and this is another one"
    )


def most_updates(rounds: int, policy: SitePolicy) -> int:
    """How many updates a run of so many rounds may send."""
    return min(rounds, policy.max_rounds)


def hours_over(policy: SitePolicy) -> FedfmsError:
    """The error FMS-S007 that says how many hours the site allows a job."""
    return fail(ALLOWANCE_USED_UP, "max_hours", f"the site allows the job {policy.max_hours:g} hours")


def _require_updates_left(location: JobLocation, rounds: int, allowed: int, left: int) -> None:
    """Refuse a job at its first task when an earlier submission of it has used a part of the approval.

    The site would otherwise train for rounds whose updates may not leave.
    """
    if left < rounds:
        raise fail(
            ALLOWANCE_USED_UP,
            location.job_id,
            f"asks for {rounds} rounds, {max(left, 0)} of {allowed} updates are left",
            f"For another run: 'fedfms review show {location.job_id}', then the 'fedfms review approve' that it names; "
            "the study lead then submits the job again.",
        )


def require_cases(policy: SitePolicy, cases: dict[str, int]) -> None:
    """Refuse to take part with too few cases: an update on few cases reveals much about each.

    Args:
        policy: The site's policy.
        cases: Number of annotated training cases of each structure.

    Raises:
        FedfmsError: FMS-S006 with every structure that has too few training cases.
    """
    problems = [
        Problem(
            FEW_TRAINING_CASES,
            name,
            f"{cases[name]} annotated training cases, the policy requires {policy.min_training_cases}",
        )
        for name in policy.too_few(cases)
    ]
    if problems:
        raise FedfmsError(problems)


def require_slices(policy: SitePolicy, steps: int | None, batch_size: int) -> None:
    """Refuse an update that was trained on too few slices.

    For work given in epochs or minutes, the number of steps is known only after the training.

    Args:
        policy: The site's policy.
        steps: Optimizer steps that were done; None if they are not known, which counts as none.
        batch_size: Slices in each step.

    Raises:
        FedfmsError: FMS-S002.
    """
    slices, least = (steps or 0) * batch_size, policy.min_slices_per_update
    if slices < least:
        raise fail(POLICY_OBJECTS, "local_work", f"the update is trained on {slices} slices, the site requires {least}")


def _require_review(location: JobLocation, policy: SitePolicy, application: Application) -> datetime | None:
    """The time of the approval that is valid, if there is one. A rejection counts even where no approval is needed."""
    state, decision = review_status(location.kit, application.review_sha256, utc_now())
    if state == "rejected":
        assert decision is not None
        raise fail(
            REJECTED, location.job_id, f"rejected by {decision.who} on {decision.time:%Y-%m-%d}: {decision.note}"
        )
    if policy.review.rule == "required" and state != "approved":
        found = "nobody has decided about it yet"
        if state == "expired":
            assert decision is not None
            found = f"its approval by {decision.who} has expired"
        detail = f"{found}; its digest is {application.review_sha256}"
        remedy = f"Run 'fedfms review show {location.job_id}', then the 'fedfms review approve' that it names."
        raise fail(NOT_APPROVED, location.job_id, detail, remedy)
    # Only a valid approval starts a new count: not an expired one, nor one made with a clock that was ahead.
    return decision.time if state == "approved" and decision is not None else None
