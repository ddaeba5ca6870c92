"""Review before start: a person at the site approves or rejects what a job would do.

A decision is bound to the digest of the job, this package's version and the backbone
(`fedfms.site.application.Application.review_sha256`): an approved job folder is approved when it arrives, and a changed
one is not. Decisions are appended to ``review/decisions.jsonl`` in the site's kit; the last one counts.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AwareDatetime, StringConstraints, ValidationError

from fedfms import __version__
from fedfms.configuration import Sha256, Strict
from fedfms.errors import JOB_UNKNOWN, RECORD_UNREADABLE, fail, reason_of
from fedfms.files import write_json
from fedfms.site.application import Application
from fedfms.site.records import account_name, append_line, read_lines, utc_now

DECISIONS_FILE = Path("review/decisions.jsonl")
PENDING_FOLDER = Path("review/waiting")

#: How a job stands: ``expired`` was approved once, ``none`` was never decided about.
ReviewStatus = Literal["approved", "rejected", "expired", "none"]

# A job's id becomes part of file names: FLARE's are UUIDs, the simulator's is 'simulate_job'.
JobId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,127}$")]


class Decision(Strict):
    """One line of the decisions.

    Attributes:
        time: When.
        decision: What.
        digest: ``Application.review_sha256`` of the job.
        job: The job's id at the site, or the job folder's path.
        who: Name of the account that decided.
        package_version: Of fedfms.
        backbone_sha256: Of the job.
        expires: End of an approval.
        note: Why, in the words of who decided.
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


class PendingJob(Strict):
    """A job that holds until somebody decides."""

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
    """Write a decision down.

    Args:
        kit: The site's kit.
        application: What was looked at.
        decision: What was decided.
        job: The job's id or folder, for people who read the record.
        valid_days: How long an approval holds.
        note: Why.
        now: The time of the decision.

    Raises:
        FedfmsError: FMS-D011 when it cannot be written; nothing is decided then.
    """
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
    )
    append_line(kit / DECISIONS_FILE, made.model_dump(mode="json"))
    return made


def decisions(kit: Path) -> list[Decision]:
    """All decisions, oldest first.

    Raises:
        FedfmsError: FMS-S008 when the record is damaged: what it said is not known then, so nothing is approved.
    """
    try:
        return [Decision.model_validate(line) for line in read_lines(kit / DECISIONS_FILE)]
    except ValidationError as error:
        raise fail(RECORD_UNREADABLE, kit / DECISIONS_FILE, str(error)) from error


def review_status(kit: Path, digest: str, now: datetime) -> tuple[ReviewStatus, Decision | None]:
    """How the job with this digest stands at a time, and the decision behind that.

    Raises:
        FedfmsError: FMS-S008.
    """
    last = next((item for item in reversed(decisions(kit)) if item.digest == digest), None)
    if last is None:
        return "none", None
    if last.decision == "reject":
        return "rejected", last
    # An approval from the future is a clock that was wrong; it must not hold longer than was meant.
    if last.expires is None or not last.time <= now < last.expires:
        return "expired", last
    return "approved", last


def write_pending(kit: Path, waiting: PendingJob) -> None:
    """Let ``fedfms review list`` show a job that holds.

    Raises:
        FedfmsError: FMS-D011.
    """
    write_json(kit / PENDING_FOLDER / f"{waiting.job_id}.json", waiting.model_dump(mode="json"))


def clear_pending(kit: Path, job_id: str) -> None:
    """The job holds no longer: it was decided about, or is over."""
    with suppress(OSError):
        (kit / PENDING_FOLDER / f"{job_id}.json").unlink()


def pending_jobs(kit: Path) -> list[PendingJob]:
    """Jobs that hold, longest first. Whatever else lies there is left alone.

    Raises:
        FedfmsError: FMS-S008 when one cannot be read.
    """
    found = []
    for path in sorted((kit / PENDING_FOLDER).glob("[!.]*.json")):
        try:
            found.append(PendingJob.model_validate_json(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            continue  # decided about meanwhile
        except (OSError, ValueError) as error:
            raise fail(RECORD_UNREADABLE, path, reason_of(error)) from error
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
    if (folder / "meta.json").is_file() and not list(folder.glob("app_*")):
        return application_folder(folder)
    run = kit / name
    if folder.name == name and (deployed := sorted(run.glob("app_*/config"))):
        return deployed[0].parent
    raise fail(JOB_UNKNOWN, name, f"neither a job folder nor a job below {kit}")
