"""The record of what left, and its page."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

from fedfms.errors import FedfmsError
from fedfms.exchange.messages import message_digest
from fedfms.site.application import read_application
from fedfms.site.egress import EgressLine, describe_tensors, read_record, record, record_file, totals
from fedfms.site.page import figures, write_egress_page
from fedfms.site.records import append_line, last_digest, read_lines
from fedfms.site.review import decide
from tests.command import Command
from tests.flare.builders import write_application

JOB = "a-job"
DIGEST = "d" * 64
NOW = datetime(2027, 3, 1, 12, 0, tzinfo=timezone.utc)
TENSOR = torch.tensor([[1.0, -2.0], [3.5, 0.0]])


def line(task: str = "train", decision: str = "sent", **changes: object) -> EgressLine:
    content = {"time": NOW, "task": task, "decision": decision, "bytes": 1000, "sha256": "c" * 64, "round": 1}
    content["review_sha256"] = DIGEST
    return EgressLine.model_validate({**content, **changes})


@pytest.fixture
def full(kit: Path) -> Path:
    """A kit with a record in which every sort of line occurs."""
    record(kit, JOB, line("ready", report={"cases": {"organ": 4}, "slices": None}, withheld=("slices",)))
    tensors = describe_tensors({"decoder.<b>": TENSOR})
    record(kit, JOB, line(norm=4.15, cases={"organ": 4}, tensors=tensors, report={"loss": 0.5}))
    record(kit, JOB, line(decision="withheld", report={"loss": None}, withheld=("loss",), tensors=tensors))
    record(kit, JOB, line(decision="refused", errors=("FMS-X009", "FMS-X003"), round=None, bytes=10))
    return kit


def test_the_digest_is_as_written_down() -> None:
    """By hand, after the words of the docstring, so that others can check a record without this program."""
    message = {"kind": "train", "round": 2, "update": {"cases": {"b": 1}, "tensors": {"t": TENSOR}}}
    text = b'{"kind":"train","round":2,"update":{"cases":{"b":1}}}\n' + b'["t", [2, 2]]\n'
    values = np.array([[1.0, -2.0], [3.5, 0.0]], dtype="<f4").tobytes()
    assert message_digest(message) == hashlib.sha256(text + values).hexdigest()
    assert describe_tensors({"t": TENSOR})[0].sha256 == hashlib.sha256(values).hexdigest()
    assert describe_tensors({"t": TENSOR})[0].norm == pytest.approx(float(TENSOR.norm()))


@pytest.mark.parametrize("change", ["value", "name", "shape", "order", "field"])
def test_any_change_changes_the_digest(change: str) -> None:
    tensors = {"a": TENSOR, "b": TENSOR + 1}
    before = message_digest({"round": 1, "tensors": tensors})
    after = {
        "value": {"round": 1, "tensors": {**tensors, "b": TENSOR + 1.000001}},
        "name": {"round": 1, "tensors": {"a": TENSOR, "c": TENSOR + 1}},
        "shape": {"round": 1, "tensors": {**tensors, "b": (TENSOR + 1).reshape(4)}},
        "order": {"round": 1, "tensors": {"b": TENSOR + 1, "a": TENSOR}},
        "field": {"round": 2, "tensors": tensors},
    }[change]
    assert message_digest(after) != before
    # A view of the same values in another memory layout is the same message.
    assert message_digest({"round": 1, "tensors": {"a": TENSOR.T.contiguous().T, "b": TENSOR + 1}}) == before


def test_a_record_is_read_as_it_was_written(full: Path) -> None:
    lines = read_record(full, JOB)
    assert [item.decision for item in lines] == ["sent", "sent", "withheld", "refused"]
    total = totals(lines)
    assert (total.messages, total.updates, total.refusals, total.bytes) == (3, 2, 1, 3010)


def test_a_damaged_record_is_an_error(full: Path) -> None:
    path = record_file(full, JOB)
    path.write_text(path.read_text().replace('"bytes": 10,', '"bytes": "ten",'))
    with pytest.raises(FedfmsError, match="FMS-S008"):
        read_record(full, JOB)


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("change", ["edit", "take out"])
def test_a_line_that_was_changed_or_taken_out_is_noticed(change: str, number: int, full: Path) -> None:
    path = record_file(full, JOB)
    lines = path.read_text().splitlines(keepends=True)
    lines[number : number + 1] = [lines[number].replace('"bytes": 1', '"bytes": 2')] if change == "edit" else []
    path.write_text("".join(lines))
    after = number + (2 if change == "edit" else 1)
    with pytest.raises(FedfmsError, match=rf"FMS-S008 .*line {after}: does not follow"):
        read_record(full, JOB)


def test_what_no_later_line_can_tell_the_kept_digest_of_the_last_one_does(full: Path) -> None:
    path = record_file(full, JOB)
    kept, lines = last_digest(path), path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]))
    assert len(read_record(full, JOB)) == 3 and last_digest(path) != kept
    assert last_digest(full / "absent.jsonl") == "0" * 64


class Page(HTMLParser):
    """Checks that tags close in order, and collects tags and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_the_page_holds_everything_and_loads_nothing(full: Path, job_content: dict[str, object]) -> None:
    write_application(full / JOB / "app_hospital-a", {**job_content, "missing_structure": "mask"})
    path = write_egress_page(full, JOB)
    page = Page(path.read_text())
    text = " ".join(" ".join(page.words).split())
    assert not [tag for tag, attributes in page.tags if tag in ("script", "link", "img") or "src" in attributes]
    assert "http" not in path.read_text().replace("http-equiv", "")
    for words in (
        "3,010",
        "decoder.<b>",
        "2 \u00d7 2",
        "4.15",
        "FMS-X003",
        "an update is larger than the limit allows",
        "organ, lesion of task",
        "sent, figures withheld",
        "decoder.structures.NAME. belong to the structure NAME alone",
        "which can be one site",
        "training cases: organ 4",
        "c" * 64,
        describe_tensors({"t": TENSOR})[0].sha256,
    ):
        assert words in text, words
    assert path.stat().st_mode & 0o077 == 0


def test_the_page_names_who_decided_and_shows_hostile_text_as_text(full: Path, job_content: dict[str, object]) -> None:
    application = read_application(write_application(full / JOB / "app_hospital-a", job_content))
    assert "Nobody here has approved or rejected" in write_egress_page(full, JOB).read_text()
    note = "<script>alert(1)</script><img src=x>"
    decide(full, application, "approve", job="a folder", valid_days=30, note=note, now=NOW)
    decide(full, application, "reject", job=JOB, valid_days=30, note="no contract", now=NOW)
    page = Page(write_egress_page(full, JOB).read_text())
    text = " ".join(" ".join(page.words).split())
    assert not [tag for tag, _ in page.tags if tag in ("script", "img")]
    for words in (note, "until 2027-03-31 12:00", "rejected", "no contract", "1 \u00d7 FMS-X009"):
        assert words in text, words


def test_a_page_whose_job_is_gone_says_so(full: Path) -> None:
    assert "no longer at this site" in write_egress_page(full, JOB).read_text()


def test_figures_are_flat_and_null_stays_null() -> None:
    report = {"received": {"organ": {"dice": 0.5, "n": None}}, "seconds": 2.0}
    assert figures(report) == [("received.organ.dice", "0.5"), ("received.organ.n", "null"), ("seconds", "2.0")]


def test_the_command_prints_the_record_and_writes_the_page(fedfms: Command, full: Path) -> None:
    result = fedfms("egress", JOB, "--kit", full)
    assert result.code == 0
    for words in (
        "refused",
        "FMS-X009 FMS-X003",
        "sent, figures withheld",
        "1 of its figures withheld",
        "3 replies sent, 2 of them with an update; 1 refused",
    ):
        assert words in result.out, result.out
    assert f"so it vouches for all:\n  {last_digest(record_file(full, JOB))}" in result.out
    assert last_digest(record_file(full, JOB)) in record_file(full, JOB).with_suffix(".html").read_text()
    assert str(record_file(full, JOB).with_suffix(".html")) in result.out.replace("\n", "")
    content = fedfms("egress", JOB, "--kit", full, "--json").json()
    assert content["totals"]["bytes"] == 3010
    assert content["lines"] == read_lines(record_file(full, JOB))
    assert content["last_line_sha256"] == last_digest(record_file(full, JOB))


def test_a_job_of_which_nothing_left_is_told(fedfms: Command, kit: Path) -> None:
    fedfms("egress", "nothing", "--kit", kit).failed_with("FMS-S010", "nothing.jsonl")


def test_lines_that_are_written_at_once_follow_each_other(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: append_line(path, {"number": number}), range(100)))
    assert sorted(line["number"] for line in read_lines(path)) == list(range(100))
