"""Review before start: a person at the site approves or rejects a job.

A decision is bound to the digest of the job, this package's version and the backbone
(`fedfms.site.application.Application.review_sha256`): an approved job folder is approved when it arrives as a job, a
changed one is not. Decisions are appended to ``review/decisions.jsonl`` in the site's kit; the last one counts.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AwareDatetime, StringConstraints, ValidationError

from fedfms import __version__
from fedfms.access import is_file, paths_that_fit, unreadable
from fedfms.configuration import Sha256, Strict, in_words
from fedfms.errors import JOB_UNKNOWN, RECORD_UNREADABLE, fail
from fedfms.files import write_json
from fedfms.moved import former_names
from fedfms.site.application import Application
from fedfms.site.job_location import require_owner
from fedfms.site.records import account_name, append_line, read_lines, utc_now

DECISIONS_FILE = Path("review/decisions.jsonl")
PENDING_FOLDER = Path("review/waiting")

#: State of the review of a job: ``expired`` was approved once, about ``none`` nobody has decided yet.
ReviewStatus = Literal["approved", "rejected", "expired", "none"]

# A job's id becomes part of file names: FLARE's are UUIDs, the simulator's is 'simulate_job'.
JobId = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,127}$"),
    in_words("a job's id, at most 128 letters, digits, '_' and '-'"),
]


class Decision(Strict):
    """One line of ``review/decisions.jsonl``.

    Attributes:
        time: When it was decided.
        decision: What was decided.
        digest: ``Application.review_sha256`` of the job.
        job: The job's id at the site, or the job folder's path.
        who: Name of the account that decided.
        package_version: Version of fedfms.
        backbone_sha256: SHA-256 of the job's backbone file.
        expires: When an approval expires; None for a rejection.
        note: Why, in the words of who decided.
        rounds: Rounds of the job; None in a line of a version that did not write them.
    """

    time: AwareDatetime
    decision: Literal["approve", "reject"]
    digest: Sha256
    job: str
    who: str
    package_version: str
    backbone_sha256: Sha256
    expires: AwareDatetime | None
    note: str
    rounds: int | None = None


class PendingJob(Strict):
    """A job that waits for a decision, as a file in ``review/waiting``.

    Attributes:
        job_id: The job's id at the site.
        digest: ``Application.review_sha256`` of the job.
        since: When it began to wait.
        task: The job's task.
        submitter: Who submitted it, as the server says.
    """

    job_id: JobId
    digest: Sha256
    since: AwareDatetime
    task: str
    submitter: str


def decide(
    kit: Path,
    application: Application,
    decision: Literal["approve", "reject"],
    *,
    job: str,
    valid_days: float,
    note: str = "",
    now: datetime | None = None,
) -> Decision:
    """Record a decision.

    Args:
        kit: The site's kit.
        application: The job's files that were reviewed.
        decision: What was decided.
        job: The job's id or folder, for people who read the record.
        valid_days: For how many days an approval is valid.
        note: Why.
        now: Time of the decision; the present if None.

    Returns:
        The decision as it was recorded.

    Raises:
        FedfmsError: FMS-D011 when it cannot be written, or this account is not the kit's owner; then nothing is
            decided.
    """
    require_owner(kit, f"review {decision} ... --kit {kit}")
    now = now or utc_now()
    made = Decision(
        time=now,
        decision=decision,
        digest=application.review_sha256,
        job=job,
        who=account_name(),
        package_version=__version__,
        backbone_sha256=application.job.backbone_sha256,
        expires=now + timedelta(days=valid_days) if decision == "approve" else None,
        note=note,
        rounds=application.job.rounds,
    )
    append_line(kit / DECISIONS_FILE, made.model_dump(mode="json"))
    return made


def decisions(kit: Path) -> list[Decision]:
    """All decisions, oldest first.

    Raises:
        FedfmsError: FMS-S008 when the record is damaged: what it said is unknown then, so nothing is approved.
    """
    try:
        return [Decision.model_validate(line) for line in read_lines(kit / DECISIONS_FILE)]
    except ValidationError as error:
        raise fail(RECORD_UNREADABLE, kit / DECISIONS_FILE, str(error)) from error


def review_status(kit: Path, digest: str, now: datetime) -> tuple[ReviewStatus, Decision | None]:
    """The state of a job's review, and the decision that it follows from.

    Args:
        kit: The site's kit.
        digest: ``Application.review_sha256`` of the job.
        now: Time to judge for.

    Returns:
        The status, and the last decision about this digest; None if there is none.

    Raises:
        FedfmsError: FMS-S008 when the record of decisions is damaged.
    """
    last = next((item for item in reversed(decisions(kit)) if item.digest == digest), None)
    if last is None:
        return "none", None
    if last.decision == "reject":
        return "rejected", last
    # An approval from the future was made with a wrong clock; it must not be valid for longer than was meant.
    if last.expires is None or not last.time <= now < last.expires:
        return "expired", last
    return "approved", last


def write_pending(kit: Path, waiting: PendingJob) -> None:
    """Note that a job waits for a decision, so that ``fedfms review list`` shows it.

    Raises:
        FedfmsError: FMS-D011.
    """
    write_json(kit / PENDING_FOLDER / f"{waiting.job_id}.json", waiting.model_dump(mode="json"))


def clear_pending(kit: Path, job_id: str) -> None:
    """Note that a job no longer waits, because it was decided about or is over."""
    with suppress(OSError):
        (kit / PENDING_FOLDER / f"{job_id}.json").unlink()


def pending_jobs(kit: Path) -> list[PendingJob]:
    """Jobs that wait for a decision, the longest waiting first. Other files in the folder are ignored.

    Raises:
        FedfmsError: FMS-S008 when a file cannot be read, FMS-D019 when it or the folder may not be read.
    """
    found = []
    for path in paths_that_fit(kit / PENDING_FOLDER, "*.json"):
        try:
            found.append(PendingJob.model_validate_json(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            continue  # decided about meanwhile
        except (OSError, ValueError) as error:
            raise unreadable(RECORD_UNREADABLE, path, error) from error
    return sorted(found, key=lambda item: item.since)


def find_application(kit: Path, name: str) -> Path:
    """The application folder of a job folder, or of a job that has reached this site.

    Args:
        kit: The site's kit.
        name: A job folder, or a job's id.

    Raises:
        FedfmsError: FMS-S010 when it is neither, FMS-J004 or FMS-J005 for a job folder.
    """
    from fedfms.site.job_check import application_folder

    folder = Path(name)
    if is_file(folder / "meta.json") and not list(folder.glob("app_*")):
        return application_folder(folder)
    if folder.name == name and (deployed := paths_that_fit(kit / name, "app_*/config")):
        return deployed[0].parent
    raise fail(JOB_UNKNOWN, name, f"neither a job folder nor a job below {kit}")


if not TYPE_CHECKING:  # type checkers know the new names only
    __getattr__ = former_names(__name__)
