"""What a job has used up of what its site allows: counted by the job's digest, whatever ids the server gives it.

An approval is good for one run: for as many updates as the job has rounds, and for so many hours from the first task.
Where no approval holds because none is needed, everything counts since ever; an approval begins anew.

Nothing of this lies in a job's run folder, because the server may have that deleted.
"""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from pathlib import Path

from pydantic import AwareDatetime, ValidationError

from fedfms.configuration import Sha256, Strict
from fedfms.errors import RECORD_UNREADABLE, fail
from fedfms.site.egress import EGRESS_FOLDER, read_record
from fedfms.site.records import append_line, read_lines, utc_now

STARTS_FILE = Path("review/starts.jsonl")
RECEIVED_FOLDER = Path("review/received")


class Start(Strict):
    """One line of the starts.

    Attributes:
        time: When a job's first task since its approval was admitted.
        digest: ``Application.review_sha256`` of the job.
        job: The job's id at the site.
    """

    time: AwareDatetime
    digest: Sha256
    job: str


def left(kit: Path, digest: str, since: datetime | None) -> Counter[str]:
    """How many replies of each task have left for a job, under all of its ids.

    Args:
        kit: The site's kit.
        digest: ``Application.review_sha256`` of the job.
        since: Time of the approval that holds; None to count since ever.

    Raises:
        FedfmsError: FMS-S008 when any record of the site is damaged: what it said about this job is not known then.
    """
    counted: Counter[str] = Counter()
    for path in sorted((kit / EGRESS_FOLDER).glob("*.jsonl")):
        for line in read_record(kit, path.stem):
            if line.decision != "refused" and line.review_sha256 == digest and _counts(line.time, since):
                counted[line.task] += 1
    return counted


def started(kit: Path, digest: str, job_id: str, since: datetime | None) -> datetime:
    """When the first task of a job was admitted; now, and written down, if none was yet.

    Raises:
        FedfmsError: FMS-S008 when the starts cannot be read, FMS-D011 when one cannot be written.
    """
    path = kit / STARTS_FILE
    try:
        starts = [Start.model_validate(line) for line in read_lines(path)]
    except ValidationError as error:
        raise fail(RECORD_UNREADABLE, path, str(error)) from error
    if times := [item.time for item in starts if item.digest == digest and _counts(item.time, since)]:
        return min(times)
    start = Start(time=utc_now(), digest=digest, job=job_id)
    append_line(path, start.model_dump(mode="json"))
    return start.time


def received_file(kit: Path, digest: str) -> Path:
    """Where a site keeps the last state that it accepted from the server for a job, to hold the next one against."""
    return kit / RECEIVED_FOLDER / f"{digest}.safetensors"


def _counts(time: datetime, since: datetime | None) -> bool:
    return since is None or time >= since
