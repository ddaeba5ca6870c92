"""What a run has used: the records decide, the summaries only save reading them, and neither can be cheated with."""

from __future__ import annotations

import io
import json
import os
import secrets
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from fedfms.errors import FedfmsError
from fedfms.files import sha256_json
from fedfms.site.admission import admit
from fedfms.site.allowance import RUNS_FOLDER, Run, usage
from fedfms.site.application import read_application
from fedfms.site.egress import EgressLine, record, record_file
from fedfms.site.job_location import JobLocation
from fedfms.site.records import utc_now
from fedfms.site.review import decide
from tests.flare.builders import write_application, write_policy

JOB, OTHER_ID = "job-1", "job-2"
DIGEST, OTHER_DIGEST = "d" * 64, "e" * 64
BEFORE = timedelta(minutes=5)


def send(kit: Path, task: str = "train", *, job: str = JOB, **changes: Any) -> None:
    """What the exit gate writes down for a reply."""
    content = {"time": utc_now(), "task": task, "decision": "sent", "bytes": 9, "sha256": secrets.token_hex(32)}
    content["review_sha256"] = DIGEST
    record(kit, job, EgressLine.model_validate({**content, **changes}))


@pytest.fixture
def run() -> Run:
    """A run that was approved five minutes ago."""
    return Run(DIGEST, JOB, utc_now() - BEFORE)


def summary(kit: Path, run: Run) -> Path:
    return kit / RUNS_FOLDER / run.file_name


def refuses(kit: Path, run: Run, words: str) -> None:
    with pytest.raises(FedfmsError, match=f"FMS-S008 .*{words}"):
        usage(kit, run)


def under_the_id(run: Run, job: str) -> Run:
    return Run(run.digest, job, run.since)


def test_replies_are_counted_by_task_and_refused_ones_are_not(kit: Path, run: Run) -> None:
    assert usage(kit, run).replies == {}
    send(kit, "ready")
    send(kit)
    send(kit, decision="withheld")
    send(kit, decision="refused")
    assert usage(kit, run).replies == {"ready": 1, "train": 2}
    send(kit)
    assert usage(kit, run).replies == usage(kit, run).replies == {"ready": 1, "train": 3}


def test_an_update_that_left_again_with_the_same_bytes_counts_once(kit: Path, run: Run) -> None:
    """A round that was repeated after a crash, also under another id of the same run."""
    send(kit, sha256="1" * 64, round=0)
    assert usage(kit, run).replies == {"train": 1}
    send(kit, sha256="1" * 64, round=0)
    send(kit, sha256="2" * 64, round=1)
    send(kit, sha256="2" * 64, round=1, decision="withheld", job=OTHER_ID)
    send(kit, "validate", sha256="3" * 64)
    send(kit, "validate", sha256="3" * 64)
    for job in (JOB, OTHER_ID):
        assert usage(kit, under_the_id(run, job)).replies == {"train": 2, "validate": 2}
    assert [(update.sha256[0], update.round) for update in usage(kit, run).updates] == [("1", 0), ("2", 1)]
    summary(kit, run).unlink()
    assert usage(kit, run).replies == {"train": 2, "validate": 2}, "from the records as well"


def test_an_approval_counts_all_ids_and_nothing_before_it(kit: Path, run: Run) -> None:
    assert run.since is not None
    send(kit, time=run.since - timedelta(seconds=1))
    send(kit, time=run.since)
    usage(kit, under_the_id(run, OTHER_ID))
    send(kit, job=OTHER_ID)
    send(kit, review_sha256=OTHER_DIGEST)
    for job in (JOB, OTHER_ID, "job-3"):
        assert usage(kit, under_the_id(run, job)).replies == {"train": 2}
    assert usage(kit, Run(OTHER_DIGEST, JOB, run.since)).replies == {"train": 1}
    assert usage(kit, Run(DIGEST, JOB, utc_now() + timedelta(seconds=1))).replies == {}, "the next approval"


def test_without_an_approval_each_id_counts_for_itself(kit: Path, run: Run) -> None:
    send(kit)
    usage(kit, run)
    send(kit, job=OTHER_ID)
    send(kit, job=OTHER_ID)
    assert usage(kit, Run(DIGEST, JOB, None)).replies == {"train": 1}, "also what left while an approval was valid"
    assert usage(kit, Run(DIGEST, OTHER_ID, None)).replies == {"train": 2}


def test_the_start_is_that_of_the_first_call_under_any_id(kit: Path, run: Run) -> None:
    before = utc_now()
    started = usage(kit, run).started
    assert before <= started <= utc_now()
    assert usage(kit, run).started == usage(kit, under_the_id(run, OTHER_ID)).started == started
    assert usage(kit, Run(DIGEST, JOB, None)).started > started


@pytest.mark.parametrize("approved", [True, False])
def test_deleting_the_summary_changes_no_count(approved: bool, kit: Path, run: Run) -> None:
    run = run if approved else Run(DIGEST, JOB, None)
    send(kit)
    usage(kit, run)
    send(kit)
    summary(kit, run).unlink()
    first = EgressLine.model_validate(lines(record_file(kit, JOB))[0])
    assert usage(kit, run).replies == {"train": 2}
    assert usage(kit, run).started == first.time


def lines(path: Path) -> list[dict[str, Any]]:
    contents = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in content.items() if key != "previous_sha256"} for content in contents]


def test_putting_an_old_summary_back_changes_no_count(kit: Path, run: Run) -> None:
    send(kit)
    usage(kit, run)
    old = summary(kit, run).read_bytes()
    send(kit)
    send(kit)
    assert usage(kit, run).replies == {"train": 3}
    summary(kit, run).write_bytes(old)
    assert usage(kit, run).replies == {"train": 3}


def edit_count(path: Path) -> None:
    content = json.loads(path.read_text())
    content["usage"]["replies"]["train"] = 0
    path.write_text(json.dumps(content))


def edit_start(path: Path) -> None:
    content = json.loads(path.read_text())
    content["usage"]["started"] = "2030-01-01T00:00:00Z"
    path.write_text(json.dumps(content))


def forget_the_record(path: Path) -> None:
    content = json.loads(path.read_text())
    content["usage"]["records"] = {}
    path.write_text(json.dumps(content))


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def negative_count(path: Path) -> None:
    """With the right checksum."""
    content = json.loads(path.read_text())
    content["usage"]["replies"]["train"] = -100
    path.write_text(json.dumps({**content, "sha256": sha256_json(content["usage"])}))


@pytest.mark.parametrize(
    ("cheat", "words"),
    [
        (edit_count, "SHA-256 differs"),
        (edit_start, "SHA-256 differs"),
        (forget_the_record, "SHA-256 differs"),
        (cut_off, "JSONDecodeError"),
        (lambda path: path.write_text(""), "JSONDecodeError"),
        (negative_count, "greater than or equal to 0"),
    ],
    ids=["count", "start", "marks", "cut off", "empty", "negative"],
)
def test_an_edited_summary_is_refused(cheat: Callable[[Path], None], words: str, kit: Path, run: Run) -> None:
    send(kit)
    send(kit)
    usage(kit, run)
    cheat(summary(kit, run))
    refuses(kit, run, words)


def without_lines(path: Path, first: int, last: int) -> None:
    kept = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(kept[:first] + kept[last:]))


RECORD_CHEATS: dict[str, tuple[Callable[[Path], object], str]] = {
    "deleted": (Path.unlink, "FileNotFoundError"),
    "empty": (lambda path: path.write_text(""), "cut off"),
    "last counted line cut off": (lambda path: without_lines(path, 2, 9), "cut off"),
    "its newline cut off": (lambda path: path.write_bytes(path.read_bytes()[:-1]), "cut off"),
    "first line taken out": (lambda path: without_lines(path, 0, 1), "cut off"),
    "last counted line edited": (
        lambda path: path.write_text(path.read_text()[::-1].replace('"tnes"', '"dnes"', 1)[::-1]),
        "cut off",
    ),
}


@pytest.mark.parametrize("cheat", list(RECORD_CHEATS))
def test_a_record_that_was_tampered_with_is_refused_under_every_id_of_the_run(cheat: str, kit: Path, run: Run) -> None:
    for task in ("ready", "train", "train"):
        send(kit, task)
    usage(kit, run)
    change, words = RECORD_CHEATS[cheat]
    change(record_file(kit, JOB))
    refuses(kit, run, words)
    refuses(kit, under_the_id(run, OTHER_ID), words)


def test_lines_after_the_mark_must_follow_each_other(kit: Path, run: Run) -> None:
    send(kit)
    usage(kit, run)
    send(kit)
    send(kit)
    without_lines(record_file(kit, JOB), 1, 2)
    refuses(kit, run, "does not follow the line before")


def test_a_torn_last_line_does_not_count(kit: Path, run: Run) -> None:
    send(kit)
    with record_file(kit, JOB).open("a") as file:
        file.write('{"torn')
    assert usage(kit, run).replies == usage(kit, run).replies == {"train": 1}


def test_what_is_kept_is_for_its_owner_alone(kit: Path, run: Run) -> None:
    """The doctor would not let a kit start whose folder of reviews is open."""
    usage(kit, run)
    send(kit)
    assert {path.name for path in kit.iterdir()} >= {"review", "egress"}
    for folder in ("review", "review/runs", "egress"):
        assert (kit / folder).stat().st_mode & 0o077 == 0, folder


@contextmanager
def files_read(below: Path) -> Iterator[Counter[str]]:
    """How often files below a folder are opened for reading, and how many bytes are read from them."""
    counted = Counter[str]()
    root = os.path.realpath(below)

    def is_below(file: Any) -> bool:
        return isinstance(file, (str, os.PathLike)) and os.path.realpath(file).startswith(root)

    class Counting(io.FileIO):
        def readinto(self, buffer: Any) -> Any:
            got = super().readinto(buffer)
            counted["bytes"] += got or 0
            return got

        def readall(self) -> Any:
            got = super().readall()
            counted["bytes"] += len(got)
            return got

    original = io.open

    def opened(file: Any, mode: str = "r", *arguments: Any, **others: Any) -> Any:
        if not is_below(file) or set(mode) & set("wax+"):
            return original(file, mode, *arguments, **others)
        counted["files"] += 1
        buffered = io.BufferedReader(Counting(file))
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding="utf-8")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(io, "open", opened)
        patch.setattr("builtins.open", opened)
        yield counted


def admission_cost(kit: Path, content: dict[str, Any], past_jobs: int, *, past_rounds: int) -> Counter[str]:
    """What one admission reads after a first round, in a kit with past jobs of the same content and of others."""
    write_policy(kit, max_rounds=1000)
    location = JobLocation(kit, JOB, kit / JOB / "app_hospital-a", kit / JOB / "fedfms", False)
    digest = read_application(write_application(location.application, content)).review_sha256
    for number in range(past_jobs):
        for _ in range(past_rounds):
            send(kit, job=f"past-{number}", review_sha256=digest if number % 2 else OTHER_DIGEST)
        usage(kit, Run(digest, f"past-{number}", None))
        long_ago = (datetime.now() - timedelta(days=1)).timestamp()
        os.utime(record_file(kit, f"past-{number}"), (long_ago, long_ago))
    decide(kit, read_application(location.application), "approve", job=JOB, valid_days=1)
    with files_read(kit) as first:
        admit(location, "ready")
    send(kit, "ready", review_sha256=digest)
    admit(location, "train")
    send(kit, "train", review_sha256=digest)
    with files_read(kit) as later:
        admit(location, "train")
    assert later["files"] >= 4, "policy, job, decisions, summary and record"
    return Counter({f"first {key}": value for key, value in first.items()} | later)


def test_past_jobs_cost_an_admission_nothing(kit: Path, tmp_path: Path, job_content: dict[str, Any]) -> None:
    """Neither the first of a run nor a later one opens another file or reads another byte."""
    few = admission_cost(tmp_path / "few" / "kit", job_content, 1, past_rounds=2)
    many = admission_cost(tmp_path / "many" / "kit", job_content, 50, past_rounds=2)
    assert few == many


def test_past_rounds_cost_an_admission_nothing(kit: Path, run: Run) -> None:
    def cost() -> Counter[str]:
        usage(kit, run)
        send(kit, tensors=[{"name": "t" * 1000, "shape": [], "norm": 1.0, "sha256": "a" * 64}])
        with files_read(kit) as counted:
            assert usage(kit, run).replies["train"] > 0
        return counted

    for _ in range(4):
        cost()  # of a record without a marked line; then with as many updates as are remembered
    early = cost()
    for _ in range(40):
        late = cost()
    assert early["files"] == late["files"] == 2
    assert late["bytes"] - early["bytes"] < 16, "offsets and counts have more digits"
