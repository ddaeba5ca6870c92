"""What a job has used of what its site allows: the time of its first task, and how many replies have left.

An approval is good for one run: for as many updates as the job has rounds, and for so many hours from the first task.
Usage is counted by the job's digest, whatever ids the server gives the job. Where no approval holds because none is
needed, each job id is a run of its own: a count by digest would limit nothing there, because another seed makes another
digest.

The records of what left (`fedfms.site.egress`) are what counts. They have megabytes for a job of many rounds, so a run
keeps a summary in ``review/runs``: the counts up to a mark in each record, to which the lines after the mark are added.
The cost of a task therefore depends neither on earlier jobs nor on earlier rounds. What can go wrong with the files:

- A summary that was edited, or is not whole, is refused; it holds a SHA-256 of its content.
- A missing summary is recomputed from the records, so deleting one gives a job nothing.
- An old summary that is put back counts the lines after its marks again, which gives the same sum for the job ids that
  it names and for the id at hand.
- A record that was deleted, cut off or edited no longer has its marked line in its place, or a line after the mark does
  not follow the one before, and is refused. (An edit in lines before the mark that changes no length changes no
  count either; `fedfms.site.egress.read_record` detects it.)

None of these files is in a job's run folder, because the server may have that deleted. Whoever may write to the site's
kit can forge all of them, and could as well approve the job.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

from pydantic import AwareDatetime, NonNegativeInt

from fedfms.access import exists, paths_that_fit
from fedfms.configuration import Sha256, Strict, read_json, validated
from fedfms.errors import RECORD_UNREADABLE, fail
from fedfms.files import sha256_json, write_json
from fedfms.site.egress import EGRESS_FOLDER, EgressLine, read_record_after
from fedfms.site.records import Mark, locked, utc_now

RUNS_FOLDER = Path("review/runs")
RECEIVED_FOLDER = Path("review/received")

# Records written this long before an approval are read too when a summary is made: the clock of a network drive, which
# dates files, may differ from the machine's.
_CLOCK_MARGIN = timedelta(hours=1)
#: How many of the last updates may be sent again. A server goes on from its last committed round, or the one before.
_REPEATABLE = 3


@dataclass(frozen=True)
class Run:
    """What is counted together.

    Attributes:
        digest: ``Application.review_sha256`` of the job.
        job: The job's id at the site.
        since: Time of the approval that is valid; None where none is.
    """

    digest: str
    job: str
    since: datetime | None

    def includes(self, digest: str | None, job: str, time: datetime) -> bool:
        """Whether a reply for the job with this digest and id, sent at this time, belongs to the run."""
        return digest == self.digest and (job == self.job if self.since is None else time >= self.since)

    @property
    def file_name(self) -> str:
        """Of the run's summary: one for each approval, or for each job id where no approval is valid."""
        if self.since is None:
            return f"{self.digest}.job.{self.job}.json"
        return f"{self.digest}.approved.{self.since.astimezone(timezone.utc):%Y%m%dT%H%M%S.%f}.json"


class SentUpdate(Strict):
    """Digest of an update that has left, and the round that it was sent in; None when the reply named none."""

    sha256: Sha256
    round: NonNegativeInt | None


class Usage(Strict):
    """What a run has used. Also the content of its summary.

    Attributes:
        started: When the run's first task was admitted.
        replies: Number of replies that have left, by task. An update that left again with the same bytes, because its
            round was repeated after a crash, counts once.
        updates: The last updates that have left: those that may be asked for again after a crash.
        records: For each job id of the run, where its record of what left was last read to; None for one that has no
            line yet.
    """

    started: AwareDatetime
    replies: dict[str, NonNegativeInt]
    updates: tuple[SentUpdate, ...] = ()
    records: dict[str, Mark | None]


class _Summary(Strict):
    """A file in ``review/runs``: the usage, and the SHA-256 of its canonical JSON form."""

    usage: Usage
    sha256: Sha256


def usage(kit: Path, run: Run) -> Usage:
    """What a run has used up to now. The first call for a run notes the time as its start.

    Args:
        kit: The site's kit.
        run: What to count.

    Raises:
        FedfmsError: FMS-S008 when a record or the summary of the run is damaged, FMS-D011 when the summary cannot be
            written.
    """
    path = kit / RUNS_FOLDER / run.file_name
    with locked(path.parent):
        before = _read_summary(path) if exists(path) else _from_records(kit, run)
        # The job's own record belongs to the run from now on.
        now = _advanced(kit, run, before, {run.job: None, **before.records})
        if now != before or not exists(path):
            content = now.model_dump(mode="json")
            write_json(path, {"usage": content, "sha256": sha256_json(content)})
    return now


def usage_so_far(kit: Path, run: Run) -> Usage | None:
    """What a run has used, for people who look: it notes nothing, so it does not start the run either.

    Args:
        kit: The site's kit.
        run: What to count. Its job id counts only where no approval is valid.

    Returns:
        The usage; None when no task of the run was admitted yet.

    Raises:
        FedfmsError: FMS-S008 as `usage`.
    """
    path = kit / RUNS_FOLDER / run.file_name
    if exists(path):
        before = _read_summary(path)
        return _advanced(kit, run, before, before.records)
    found = _from_records(kit, run)
    return found if found.replies else None


def _read_summary(path: Path) -> Usage:
    content = read_json(path, RECORD_UNREADABLE)
    summary = validated(_Summary, content, RECORD_UNREADABLE, path)
    if sha256_json(content["usage"]) != summary.sha256:
        raise fail(RECORD_UNREADABLE, path, "was edited: its SHA-256 differs")
    return summary.usage


def _from_records(kit: Path, run: Run) -> Usage:
    """The usage of a run without a summary: a new run, or one whose summary was deleted."""
    found, started, records = _Count({}, ()), utc_now(), dict[str, Mark | None]()
    for job in _jobs_with_records(kit, run):
        lines, records[job] = read_record_after(kit, job, None)
        for line in _counted(lines, run, job):
            found.add(line)
            started = min(started, line.time)
    return Usage(started=started, replies=found.replies, updates=found.updates, records=records)


def _jobs_with_records(kit: Path, run: Run) -> Iterator[str]:
    """Ids of the jobs whose records may contain replies of a run: those that were written to since the approval."""
    if run.since is None:
        yield run.job
        return
    earliest = (run.since - _CLOCK_MARGIN).timestamp()
    for path in paths_that_fit(kit / EGRESS_FOLDER, "*.jsonl"):
        if path.stat().st_mtime >= earliest:
            yield path.stem


def _advanced(kit: Path, run: Run, before: Usage, marks: Mapping[str, Mark | None]) -> Usage:
    """Add what the records of the named jobs say after their marks."""
    found, records = _Count(before.replies, before.updates), dict(marks)
    for job, mark in marks.items():
        lines, records[job] = read_record_after(kit, job, mark)
        for line in _counted(lines, run, job):
            found.add(line)
    return Usage(started=before.started, replies=found.replies, updates=found.updates, records=records)


class _Count:
    """Replies by task, and the last updates among them."""

    def __init__(self, replies: Mapping[str, int], updates: tuple[SentUpdate, ...]) -> None:
        self.replies, self.updates = Counter(replies), updates

    def add(self, line: EgressLine) -> None:
        if line.task == "train":
            if any(line.sha256 == update.sha256 for update in self.updates):
                return
            self.updates = (*self.updates, SentUpdate(sha256=line.sha256, round=line.round))[-_REPEATABLE:]
        self.replies[line.task] += 1


def _counted(lines: list[EgressLine], run: Run, job: str) -> Iterator[EgressLine]:
    """Replies of the run that left with content; of refused ones only error ids left."""
    for line in lines:
        if line.decision != "refused" and run.includes(line.review_sha256, job, line.time):
            yield line


def received_file(kit: Path, digest: str) -> Path:
    """Where a site keeps the last state that it accepted from the server for a job, to compare the next one with."""
    return kit / RECEIVED_FOLDER / f"{digest}.safetensors"
