"""What a job has used up of what its site allows.

An approval is good for one run: for as many updates as the job has rounds, and for so many hours from the first task.
It is counted by the job's digest, whatever ids the server gives it. Where no approval holds because none is needed,
each id is a run of its own: a count by digest would bound nothing there, because another seed makes another digest.

Nothing of this lies in a job's run folder, because the server may have that deleted.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
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
        time: When a run's first task was admitted.
        digest: ``Application.review_sha256`` of the job.
        job: The job's id at the site.
    """

    time: AwareDatetime
    digest: Sha256
    job: str


@dataclass(frozen=True)
class Run:
    """What counts together.

    Attributes:
        digest: ``Application.review_sha256`` of the job.
        job: The job's id at the site.
        since: Time of the approval that holds; None where none does.
    """

    digest: str
    job: str
    since: datetime | None

    def includes(self, digest: str | None, job: str, time: datetime) -> bool:
        """Whether something that was written down belongs to this run."""
        return digest == self.digest and (job == self.job if self.since is None else time >= self.since)


def replies_sent(kit: Path, run: Run) -> Counter[str]:
    """How many replies of each task have left for a run.

    Raises:
        FedfmsError: FMS-S008 when any record of the site is damaged: what it said about this job is not known then.
    """
    counted: Counter[str] = Counter()
    for path in sorted((kit / EGRESS_FOLDER).glob("*.jsonl")):
        for line in read_record(kit, path.stem):
            if line.decision != "refused" and run.includes(line.review_sha256, path.stem, line.time):
                counted[line.task] += 1
    return counted


def started(kit: Path, run: Run) -> datetime:
    """When the first task of a run was admitted; now, and written down, if none was yet.

    Raises:
        FedfmsError: FMS-S008 when the starts cannot be read, FMS-D011 when one cannot be written.
    """
    path = kit / STARTS_FILE
    try:
        starts = [Start.model_validate(line) for line in read_lines(path)]
    except ValidationError as error:
        raise fail(RECORD_UNREADABLE, path, str(error)) from error
    if times := [item.time for item in starts if run.includes(item.digest, item.job, item.time)]:
        return min(times)
    start = Start(time=utc_now(), digest=run.digest, job=run.job)
    append_line(path, start.model_dump(mode="json"))
    return start.time


def received_file(kit: Path, digest: str) -> Path:
    """Where a site keeps the last state that it accepted from the server for a job, to hold the next one against."""
    return kit / RECEIVED_FOLDER / f"{digest}.safetensors"
