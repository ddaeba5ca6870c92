"""The ledger as a file: what was changed, removed or moved in it is found, by itself or by the sites' records."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedfms.errors import FedfmsError
from fedfms.results.ledger_file import open_ledger
from fedfms.results.run_result import read_ledger
from fedfms.site.egress import EgressLine, record, record_file
from fedfms.site.records import append_line, utc_now
from tests.command import Command
from tests.results.test_run import RUN

JOB = "job-1"
SITES = ("north", "south")


def digest(number: int) -> str:
    return f"{number:064x}"


def reply(site: str, event: str, number: int, **fields: Any) -> dict[str, Any]:
    return {"event": event, "site": site, "accepted": True, "message_sha256": digest(number), "bytes_up": 100, **fields}


#: Two sites, two rounds; what each sent has a digest of its own.
LINES = [
    {"event": "start"},
    *(reply(site, "ready", 10 + number) for number, site in enumerate(SITES)),
    *(reply(site, "update", 20 + number, round=0) for number, site in enumerate(SITES)),
    {"event": "round", "round": 0, "accepted": list(SITES)},
    *(reply(site, "update", 30 + number, round=1) for number, site in enumerate(SITES)),
    {"event": "round", "round": 1, "accepted": list(SITES)},
    {"event": "choice", "rounds": 2},
]


def write(path: Path, lines: list[dict[str, Any]]) -> Path:
    """A ledger as the server writes it."""
    for line in lines:
        append_line(path, {"time": 1764547200.5, **line})
    return path


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return write(tmp_path / "run" / "ledger.jsonl", LINES)


@pytest.fixture
def records(tmp_path: Path) -> dict[str, Path]:
    """The sites' records of the replies in `LINES`."""
    tasks = {"ready": "ready", "update": "train"}
    for line in LINES:
        if line["event"] in tasks:
            content = EgressLine(
                time=utc_now(),
                task=tasks[line["event"]],
                round=line.get("round"),
                decision="sent",
                bytes=line["bytes_up"],
                sha256=line["message_sha256"],
            )
            record(tmp_path / line["site"], JOB, content)
    return {site: record_file(tmp_path / site, JOB) for site in SITES}


def egress(records: dict[str, Path]) -> list[str]:
    return [word for site, file in records.items() for word in ("--egress", f"{site}={file}")]


def changed(path: Path, change: Callable[[list[str]], object]) -> None:
    lines = path.read_text().splitlines(keepends=True)
    change(lines)
    path.write_text("".join(lines))


def test_a_ledger_that_nobody_changed(ledger: Path, records: dict[str, Path], fedfms: Command) -> None:
    told = fedfms("ledger", "verify", ledger.parent, *egress(records))
    assert told.code == 0, told
    assert f"{len(LINES)} lines" in told.out and open_ledger(ledger).last_sha256 in told.out
    assert all(f"{site}: all replies" in told.out for site in SITES)
    found = fedfms("ledger", "verify", ledger, *egress(records), "--json").json()
    assert found == {"lines": len(LINES), "last_sha256": open_ledger(ledger).last_sha256, "sites": list(SITES)}


def other_byte(lines: list[str]) -> None:
    lines[3] = lines[3].replace(": 100", ": 101")


def swapped(lines: list[str]) -> None:
    lines[3], lines[4] = lines[4], lines[3]


CHANGES: dict[str, Callable[[list[str]], object]] = {
    "a byte": other_byte,
    "a line taken out": lambda lines: lines.pop(4),
    "two lines swapped": swapped,
    "a line twice": lambda lines: lines.insert(4, lines[3]),
    "the first line taken out": lambda lines: lines.pop(0),
    "a line of another's": lambda lines: lines.insert(5, json.dumps({"event": "round", "time": 1.0}) + "\n"),
    "a line that is no JSON": lambda lines: lines.insert(5, "x\n"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_is_found(change: Callable[[list[str]], object], ledger: Path, fedfms: Command) -> None:
    changed(ledger, change)
    fedfms("ledger", "verify", ledger.parent).failed_with("FMS-R003")
    fedfms("ledger", "show", ledger.parent).failed_with("FMS-R003")
    fedfms("results", ledger.parent).failed_with("FMS-R003")


def test_any_byte_before_the_last_line_counts(ledger: Path) -> None:
    content = ledger.read_bytes()
    before = content.rstrip(b"\n").rindex(b"\n")
    for place in random.Random(1).sample(range(before), 60):
        ledger.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(FedfmsError, match="FMS-R003|FMS-R001"):
            open_ledger(ledger)


def test_all_changes_are_in_one_message(ledger: Path) -> None:
    changed(ledger, lambda lines: [lines.pop(7), lines.pop(2)])
    with pytest.raises(FedfmsError) as caught:
        open_ledger(ledger)
    assert [problem.where for problem in caught.value.problems] == [f"{ledger}, line {number}" for number in (3, 7)]


def test_an_end_that_was_cut_off_is_found_by_a_sites_record(
    ledger: Path, records: dict[str, Path], fedfms: Command
) -> None:
    changed(ledger, lambda lines: lines.__delitem__(slice(-4, None)))
    assert fedfms("ledger", "verify", ledger.parent).code == 0, "nothing in the file shows it"
    said = fedfms("ledger", "verify", ledger.parent, *egress(records)).failed_with("FMS-R004")
    assert "train of round 2 left the site (100 bytes) and is not in the ledger" in said
    assert digest(30) in said and digest(31) in said and digest(20) not in said


def test_a_reply_that_no_site_sent_is_found(ledger: Path, records: dict[str, Path], fedfms: Command) -> None:
    write(ledger, [reply("south", "update", 99, round=2)])
    said = fedfms("ledger", "verify", ledger.parent, *egress(records)).failed_with("FMS-R004")
    assert "south" in said and f"is in the ledger (100 bytes) and not in the site's record: {digest(99)}" in said


def test_a_line_that_a_crash_cut_off_does_not_count(ledger: Path, fedfms: Command) -> None:
    with ledger.open("a") as file:
        file.write('{"previous_sha')
    assert len(open_ledger(ledger).lines) == len(LINES)
    write(ledger, [{"event": "resume", "round": 1}])
    assert [line["event"] for line in open_ledger(ledger).lines[-2:]] == ["choice", "resume"]
    assert fedfms("ledger", "verify", ledger).code == 0


def test_a_ledger_of_version_0_1_is_read_and_called_so(tmp_path: Path, fedfms: Command) -> None:
    old = tmp_path / "ledger.jsonl"
    old.write_text("".join(json.dumps({"time": 1.0, **line}) + "\n" for line in RUN) + '{"torn')
    new = write(tmp_path / "new" / "ledger.jsonl", RUN)
    assert read_ledger(old) == read_ledger(new)
    assert "version 0.1" in fedfms("ledger", "verify", old.parent / "ledger.jsonl").out


def test_show(ledger: Path, fedfms: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    write(ledger, [{"event": "update", "site": "north", "round": 2, "accepted": False, "errors": ["FMS-X003"]}])
    write(ledger, [{"event": "final", "site": "south", "accepted": False, "errors": []}])
    text = " ".join(fedfms("ledger", "show", ledger.parent).out.split())
    assert "2025-12-01 00:00:00 │ update │ 1 │ north │ accepted" in text
    assert "│ round │ 2 │ │ from north, south" in text and "the model after round 2" in text
    assert "│ update │ 3 │ north │ refused FMS-X003" in text and "│ final │ │ south │ no reply" in text
    assert fedfms("ledger", "show", ledger.parent, "--json").json() == open_ledger(ledger).lines


@pytest.mark.parametrize("words", [["north"], ["=x"], ["north="], ["north=a", "north=b"]])
def test_wrong_arguments(words: list[str], ledger: Path, fedfms: Command) -> None:
    told = fedfms("ledger", "verify", ledger, *(part for word in words for part in ("--egress", word)))
    assert told.code == 2 and "--egress" in told.err


def test_a_record_that_is_not_there(ledger: Path, fedfms: Command) -> None:
    fedfms("ledger", "verify", ledger, "--egress", "north=nowhere.jsonl").failed_with("FMS-R001", "no such file")
