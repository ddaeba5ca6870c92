"""The doctor tries the notices of a kit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from fedfms.errors import KIT_CHANGED, NOTICES, POLICY_INACTIVE
from fedfms.site.certificates import RENEWAL_DAYS
from tests.command import Command
from tests.doctor.conftest import Patient
from tests.site.receivers import Program, Web, program, web_server, write_notify


@pytest.fixture
def tell(tmp_path: Path) -> Program:
    return program(tmp_path / "program")


@pytest.fixture
def web() -> Iterator[Web]:
    with web_server() as served:
        yield served


def test_a_kit_as_handed_out_tells_nobody_and_says_so(site: Patient, server: Patient) -> None:
    for patient in (site, server):
        assert (patient.kit / "local" / "notify.yaml").is_file()
        line = patient.line(NOTICES)
        assert line.severity == "PASS" and "nobody is notified" in line.what
        assert not (patient.kit / "notices").exists()


def test_what_the_admin_writes_is_not_a_change_of_the_kit(site: Patient, server: Patient, tell: Program) -> None:
    for patient in (site, server):
        write_notify(patient.kit, command={"run": tell.run})
        assert patient.line(KIT_CHANGED).severity == "PASS"
        (patient.kit / "local" / "notify.yaml").unlink()
        assert patient.line(KIT_CHANGED).severity == "PASS"


def test_a_trial_notice_is_sent_once(site: Patient, server: Patient, tell: Program) -> None:
    for patient, name in ((site, "hospital-a"), (server, "localhost")):
        write_notify(patient.kit, command={"run": tell.run})
        line = patient.line(NOTICES)
        assert line.severity == "PASS" and "a trial notice went to command" in line.what
        assert (tell.notices[-1]["event"], tell.notices[-1]["site"]) == ("test", name)
        line = patient.line(NOTICES)
        assert line.severity == "PASS" and "all have worked in the last 30 days" in line.what
    assert len(tell.notices) == 2


def test_offline_nothing_is_sent(site: Patient, tell: Program) -> None:
    write_notify(site.kit, command={"run": tell.run})
    line = site.line(NOTICES, offline=True)
    assert line.severity == "WARN" and "not tried (--offline): command" in line.what and tell.notices == []
    site.line(NOTICES)
    assert site.line(NOTICES, offline=True).severity == "PASS" and len(tell.notices) == 1


def test_a_notice_that_cannot_be_sent_does_not_prevent_the_start(site: Patient, tell: Program, web: Web) -> None:
    web.status = 500
    write_notify(site.kit, command={"run": tell.run}, webhook={"url": f"{web.url}/token-4711"})
    line = site.line(NOTICES)
    assert line.severity == "WARN" and line.what.endswith("webhook FMS-S013") and "4711" not in line.what
    site.line(NOTICES)
    assert len(tell.notices) == 1 and len(web.requests) == 2, "only what failed is tried again"


def test_a_wrong_file_prevents_the_start_and_shows_no_value(site: Patient, fedfms: Command) -> None:
    write_notify(site.kit, webhook={"url": "http://chat.example/token-4711"}, pager=1)
    line = site.line(NOTICES)
    assert line.severity == "FAIL" and "FMS-S012" in line.what and "(2x)" in line.what and "4711" not in line.what
    text = fedfms("notify", "test", "--kit", site.kit).failed_with("FMS-S012")
    assert "notify.yaml: webhook.url" in text and "notify.yaml: pager: unknown key" in text


def test_the_end_of_the_certificate_is_told_once(site: Patient, tell: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    write_notify(site.kit, command={"run": tell.run})
    later = datetime.now(timezone.utc) + timedelta(days=360 - RENEWAL_DAYS + 20)
    monkeypatch.setattr("fedfms.site.notices.utc_now", lambda: later)
    for _ in range(2):
        site.line(NOTICES)
    ends = [told for told in tell.notices if told["event"] == "certificate_ends"]
    assert [told["certificate"] for told in ends] in (["own"], ["own", "root"]), tell.notices
    assert 0 <= ends[0]["days_left"] < RENEWAL_DAYS


def test_a_certificate_that_cannot_be_read_is_another_lines_matter(site: Patient, tell: Program) -> None:
    write_notify(site.kit, command={"run": tell.run})
    (site.kit / "startup" / "rootCA.pem").write_text("no certificate")
    line = site.line(NOTICES)
    assert line.severity == "WARN" and "the end of a certificate could not be told" in line.what


def test_the_trial_of_the_gates_tells_nobody(site: Patient, tell: Program) -> None:
    """What the gates stop in it is no break of a run, and the address of the trial's folder is nobody's business."""
    write_notify(site.kit, command={"run": tell.run})
    started: list[object] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedfms.site.notices._tell", lambda *arguments: started.append(arguments))
        assert site.line(POLICY_INACTIVE).severity == "PASS"
    assert started == []


def test_the_command_tries_every_channel_each_time(site: Patient, tell: Program, web: Web, fedfms: Command) -> None:
    write_notify(site.kit, command={"run": tell.run}, webhook={"url": web.url})
    for count in (1, 2):
        result = fedfms("notify", "test", "--kit", site.kit)
        assert result.code == 0 and result.out.splitlines() == [
            "command: a test notice was accepted",
            "webhook: a test notice was accepted",
        ]
        assert len(tell.notices) == len(web.requests) == count
    web.status = 500
    assert "500" in fedfms("notify", "test", "--kit", site.kit).failed_with("FMS-S013")


def test_the_command_says_when_nobody_is_notified(site: Patient, fedfms: Command, tmp_path: Path) -> None:
    assert "nobody is notified" in fedfms("notify", "test", "--kit", site.kit).failed_with("FMS-S012")
    (site.kit / "local" / "notify.yaml").unlink()
    assert "nobody is notified" in fedfms("notify", "test", "--kit", site.kit).failed_with("FMS-S012")
    fedfms("notify", "test", "--kit", tmp_path).failed_with("FMS-S009")


def test_no_line_shows_what_the_file_contains(site: Patient, tell: Program, fedfms: Command) -> None:
    write_notify(site.kit, command={"run": [*tell.run, "token-4711"]})
    result = fedfms("doctor", site.kit, "--offline", "--quick", "--json")
    assert "token-4711" not in result.out + result.err
    assert {line["severity"] for line in json.loads(result.out)["results"] if line["id"] == NOTICES.id} == {"WARN"}
