"""Whether a job may do a task at this site: policy, review, hours and updates, in the site's own process.

The executor asks before it works, the exit gate again before anything leaves. Both read policy and decisions afresh, so
what the site changes holds from the next task on.
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

#: Most replies to ready, to validate and to final of one run. A job asks for each once; FLARE may ask again when one
#: is lost. Without an end, a server could have figures of any model it likes.
MOST_REPLIES = 3


@dataclass(frozen=True)
class Admission:
    """A job that may do its task.

    Attributes:
        policy: The site's.
        application: The job, as it lies at the site.
        ends: When its hours are over, in seconds since 1970.
        since: Time of the approval that holds; None if none does, because none is needed.
    """

    policy: SitePolicy
    application: Application
    ends: float
    since: datetime | None


def admit(location: JobLocation, task: str) -> Admission:
    """Let a job do a task, or say why not.

    Args:
        location: The job at the site.
        task: Name of the task.

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
    allowed = min(application.job.rounds, policy.max_rounds) if task == "train" else MOST_REPLIES
    if (sent := used.replies.get(task, 0)) >= allowed:
        what = "updates" if task == "train" else f"replies to {task}"
        raise fail(ALLOWANCE_USED_UP, what, f"{sent} have left, the site allows {allowed}")
    return Admission(policy, application, ends, since)


def hours_over(policy: SitePolicy) -> FedfmsError:
    """FMS-S007."""
    return fail(ALLOWANCE_USED_UP, "max_hours", f"the site allows the job {policy.max_hours:g} hours")


def require_cases(policy: SitePolicy, cases: dict[str, int]) -> None:
    """Refuse to take part with too few cases.

    Raises:
        FedfmsError: FMS-S006 with every structure that has too few training cases.
    """
    problems = [
        Problem(
            FEW_TRAINING_CASES,
            name,
            f"{cases[name]} annotated training cases, the policy demands {policy.min_training_cases}",
        )
        for name in policy.too_few(cases)
    ]
    if problems:
        raise FedfmsError(problems)


def require_slices(policy: SitePolicy, steps: int | None, batch_size: int) -> None:
    """Refuse an update on too few slices. How many steps an epoch or some minutes are is known only afterwards.

    Raises:
        FedfmsError: FMS-S002.
    """
    slices, least = (steps or 0) * batch_size, policy.min_slices_per_update
    if slices < least:
        raise fail(POLICY_OBJECTS, "local_work", f"the update is trained on {slices} slices, the site demands {least}")


def _require_review(location: JobLocation, policy: SitePolicy, application: Application) -> datetime | None:
    """A rejection counts also where no approval is needed. Returns the time of the approval that holds, if one does."""
    state, decision = review_status(location.kit, application.review_sha256, utc_now())
    if state == "rejected":
        assert decision is not None
        raise fail(
            REJECTED, location.job_id, f"rejected by {decision.who} on {decision.time:%Y-%m-%d}: {decision.note}"
        )
    if policy.review.rule == "required" and state != "approved":
        found = "nobody has decided about it"
        if state == "expired":
            assert decision is not None
            found = f"its approval by {decision.who} does not hold any more"
        detail = f"{found}; its digest is {application.review_sha256}"
        remedy = f"Run 'fedfms review show {location.job_id}', then the 'fedfms review approve' that it names."
        raise fail(NOT_APPROVED, location.job_id, detail, remedy)
    # Only one that holds begins the count anew: not one that has ended, nor one from a clock that was ahead.
    return decision.time if state == "approved" and decision is not None else None
