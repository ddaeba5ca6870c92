"""Notices: what is in them, how they are sent, that each is sent once, and that they never cost a task anything."""

from __future__ import annotations

import json
import stat
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from fedfms.errors import FedfmsError
from fedfms.site import notices
from fedfms.site.job_location import JobLocation
from fedfms.site.kit import Kit, ServerAddress
from fedfms.site.notices import (
    certificate_notices,
    deliver,
    tell_certificates,
    tell_review_waits,
    tell_run_broke,
    try_channels,
    untried,
)
from fedfms.site.notify_channels import Notice
from fedfms.site.notify_config import load_notify
from fedfms.site.records import utc_now
from fedfms.site.review import decide
from tests.flare.builders import write_application
from tests.site.authorities import NOW, SmallAuthority
from tests.site.receivers import ACCOUNT, Program, Web, mail_server, program, web_server, write_notify

JOB = "6f1c2a34-0000-4000-8000-000000000001"
SECRET = "P-0017"


def broke(**changes: Any) -> Notice:
    content = {"event": "run_broke", "site": "hospital-a", "time": utc_now(), "job_id": JOB, "errors": ["FMS-T002"]}
    return Notice.model_validate({**content, **changes})


@pytest.fixture
def tell(tmp_path: Path) -> Program:
    return program(tmp_path / "program")


@pytest.fixture
def kit(tmp_path: Path, tell: Program) -> Path:
    """A kit that tells a program everything."""
    folder = tmp_path / "kit"
    write_notify(folder, command={"run": tell.run})
    return folder


@pytest.fixture
def web() -> Iterator[Web]:
    with web_server() as served:
        yield served


def log(kit: Path) -> list[str]:
    path = kit / "notices" / "failures.log"
    return path.read_text().splitlines() if path.exists() else []


# --- what is in a notice


def test_a_notice_holds_a_closed_list_of_things(kit: Path, tell: Program) -> None:
    assert deliver(kit, "x", broke()) == []
    (told,) = tell.notices
    assert set(told) == {"program", "event", "site", "time", "job_id", "errors", "text"}
    assert (told["program"], told["event"], told["site"], told["job_id"]) == ("fedfms", "run_broke", "hospital-a", JOB)
    assert told["errors"] == ["FMS-T002"] and "FMS-T002: the training process ended without a result." in told["text"]
    assert str(kit) not in json.dumps(told) and "/" not in told["text"]


@pytest.mark.parametrize(
    "changes",
    [
        {"job_id": f"/data/{SECRET}"},
        {"job_id": f"{SECRET} tumour"},
        {"errors": [SECRET]},
        {"site": "a\nBcc: b@c"},
        {"event": SECRET},
        {"patient": SECRET},
    ],
)
def test_what_could_hold_a_name_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        broke(**changes)


# --- the channels


def test_the_web_address_gets_json(kit: Path, web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # nobody listens there
    write_notify(kit, webhook={"url": web.url})
    assert deliver(kit, "x", broke()) == []
    ((method, path, kind, content),) = web.requests
    assert (method, path, kind) == ("POST", "/hook", "application/json") and content["job_id"] == JOB


def test_an_answer_that_is_an_error(kit: Path, web: Web) -> None:
    web.status = 500
    write_notify(kit, webhook={"url": web.url})
    (problem,) = deliver(kit, "x", broke())
    assert problem.kind.id == "FMS-S013" and problem.where.endswith("notify.yaml: webhook")
    assert "500" in problem.detail


def test_a_redirection_is_not_followed(kit: Path, web: Web) -> None:
    web.status, web.location = 302, f"{web.url}/elsewhere"
    write_notify(kit, webhook={"url": web.url})
    (problem,) = deliver(kit, "x", broke())
    assert "302" in problem.detail and len(web.requests) == 1


def test_a_slow_web_server_costs_its_seconds_and_no_more(kit: Path, web: Web) -> None:
    web.delay = 3.0
    write_notify(kit, webhook={"url": web.url, "seconds": 0.3})
    begin = time.monotonic()
    (problem,) = deliver(kit, "x", broke())
    assert time.monotonic() - begin < 2.0
    assert "TimeoutError" in problem.detail or "timed out" in problem.detail


def mail_channel(mail: Any, security: str, **changes: Any) -> dict[str, Any]:
    account = {} if security == "none" else {"user": ACCOUNT[0], "password_variable": "WORD"}
    return {
        "host": "localhost",
        "port": mail.port,
        "security": security,
        "from": "fedfms@hospital.example",
        "to": ["it@hospital.example", "research@hospital.example"],
        **account,
        **changes,
    }


@pytest.mark.parametrize("security", ["starttls", "tls", "none"])
def test_a_mail_arrives(security: str, kit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with mail_server(tmp_path / "mail", security) as mail:
        monkeypatch.setenv("SSL_CERT_FILE", str(mail.root))
        monkeypatch.setenv("WORD", ACCOUNT[1])
        write_notify(kit, smtp=mail_channel(mail, security))
        assert deliver(kit, "x", broke()) == []
    ((recipients, message, encrypted, known),) = mail.mails
    assert recipients == ["it@hospital.example", "research@hospital.example"]
    assert encrypted == known == (security != "none")
    assert message["From"] == "fedfms@hospital.example" and message["Auto-Submitted"] == "auto-generated"
    assert message["Subject"] == "fedfms at hospital-a: a run broke"
    body = message.get_payload(decode=True)
    assert isinstance(body, bytes) and f"Job {JOB}." in body.decode()


def test_the_password_comes_from_a_file(kit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (kit / "mail-password").write_text(f"{ACCOUNT[1]}\n")
    (kit / "mail-password").chmod(0o600)
    with mail_server(tmp_path / "mail", "starttls") as mail:
        monkeypatch.setenv("SSL_CERT_FILE", str(mail.root))
        channel = mail_channel(mail, "starttls", password_file="mail-password")
        del channel["password_variable"]
        write_notify(kit, smtp=channel)
        assert deliver(kit, "x", broke()) == []
    assert mail.mails[0][3]


@pytest.mark.parametrize("fault", ["wrong password", "no password", "unknown certificate", "wrong name"])
@pytest.mark.parametrize("security", ["starttls", "tls"])
def test_a_mail_that_is_not_taken(
    fault: str, security: str, kit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with mail_server(tmp_path / "mail", security) as mail:
        if fault != "unknown certificate":
            monkeypatch.setenv("SSL_CERT_FILE", str(mail.root))
        if fault != "no password":
            monkeypatch.setenv("WORD", "wrong" if fault == "wrong password" else ACCOUNT[1])
        host = "127.0.0.1" if fault == "wrong name" else "localhost"
        write_notify(kit, smtp=mail_channel(mail, security, host=host))
        (problem,) = deliver(kit, "x", broke())
    assert mail.mails == []
    said = {"wrong password": "535", "no password": "WORD is not set"}.get(fault, "CERTIFICATE_VERIFY_FAILED")
    assert said in problem.detail and ACCOUNT[1] not in str(problem)


def test_an_address_that_is_refused_is_found_when_it_is_tried(kit: Path, tmp_path: Path) -> None:
    with mail_server(tmp_path / "mail", "none") as mail:
        mail.refused = ("research@hospital.example",)
        write_notify(kit, smtp=mail_channel(mail, "none"))
        tried = try_channels(kit, "hospital-a", again=True)
        assert tried["smtp"] is not None and "research@hospital.example" in tried["smtp"].detail
        assert deliver(kit, "x", broke()) == [], "somebody got it, and must not get it with every task"
    assert [recipients for recipients, *_ in mail.mails] == [["it@hospital.example"]] * 2


def test_a_program_that_fails(kit: Path, tmp_path: Path) -> None:
    write_notify(kit, command={"run": program(tmp_path / "failing", exit_code=3).run})
    (problem,) = deliver(kit, "x", broke())
    assert "the program ended with 3" in problem.detail


def test_a_program_that_hangs_is_killed_with_what_it_started(kit: Path, tmp_path: Path) -> None:
    code = f"pid = os.fork()\nif pid:\n    open({str(tmp_path / 'pid')!r}, 'w').write(str(pid))\ntime.sleep(60)"
    hanging = program(tmp_path / "hanging", code=code)
    write_notify(kit, command={"run": hanging.run, "seconds": 5})
    begin = time.monotonic()
    (problem,) = deliver(kit, "x", broke())
    assert time.monotonic() - begin < 20 and "killed after 5 seconds" in problem.detail
    child = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 5
    while is_running(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(child)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


# --- once


def test_each_thing_is_told_once_to_each_channel(kit: Path, tell: Program, web: Web) -> None:
    for _ in range(3):
        deliver(kit, "x", broke())
    assert len(tell.notices) == 1
    deliver(kit, "y", broke())
    assert len(tell.notices) == 2
    write_notify(kit, command={"run": tell.run}, webhook={"url": web.url})
    deliver(kit, "x", broke())
    assert len(tell.notices) == 2 and len(web.requests) == 1, "who is new has not been told"
    assert stat.S_IMODE((kit / "notices").stat().st_mode) == 0o700


def test_a_channel_that_failed_is_tried_again_alone_and_logged_once(kit: Path, tell: Program, web: Web) -> None:
    web.status = 503
    write_notify(kit, command={"run": tell.run}, webhook={"url": web.url})
    for _ in range(3):
        deliver(kit, "x", broke())
    assert len(tell.notices) == 1 and len(web.requests) == 3
    (line,) = log(kit)
    assert "FMS-S013" in line and "webhook: HTTPError" in line and "503" in line
    web.status = 204
    for _ in range(2):
        deliver(kit, "x", broke())
    assert len(web.requests) == 4 and len(log(kit)) == 1
    web.status = 503
    deliver(kit, "y", broke())
    assert len(log(kit)) == 2, "it had worked meanwhile"
    assert stat.S_IMODE((kit / "notices" / "failures.log").stat().st_mode) == 0o600


def test_events_that_nobody_chose_are_not_told(kit: Path, tell: Program) -> None:
    write_notify(kit, events=["review_waits"], command={"run": tell.run})
    deliver(kit, "x", broke())
    assert tell.notices == [] and not (kit / "notices").exists()


def test_a_damaged_memory_costs_one_repetition(kit: Path, tell: Program) -> None:
    deliver(kit, "x", broke())
    (kit / "notices" / "memory.json").write_text('{"told"')
    for _ in range(2):
        deliver(kit, "x", broke())
    assert len(tell.notices) == 2


def test_without_a_memory_nothing_is_sent(kit: Path, tell: Program) -> None:
    (kit / "notices" / "memory.json").mkdir(parents=True)
    with pytest.raises(FedfmsError, match="FMS-D011"):
        deliver(kit, "x", broke())
    assert tell.notices == []


def test_what_was_told_long_ago_is_forgotten(kit: Path, tell: Program) -> None:
    for number in range(2):
        deliver(kit, f"old {number}", broke())
    path = kit / "notices" / "memory.json"
    content = json.loads(path.read_text())
    content["told"]["old 0"]["command"] = "2020-01-01T00:00:00Z"
    path.write_text(json.dumps(content))
    deliver(kit, "new", broke())
    assert set(json.loads(path.read_text())["told"]) == {"old 1", "new"}


# --- trials


def test_a_trial_is_marked_and_repeated_only_on_demand(kit: Path, tell: Program) -> None:
    assert try_channels(kit, "hospital-a", again=False) == {"command": None}
    (told,) = tell.notices
    assert told["event"] == "test" and "TEST, nothing has happened" in told["text"] and "job_id" not in told
    assert try_channels(kit, "hospital-a", again=False) == {} and len(tell.notices) == 1
    assert try_channels(kit, "hospital-a", again=True) == {"command": None} and len(tell.notices) == 2


@pytest.mark.parametrize("change", ["settings", "month", "failure"])
def test_when_a_channel_is_tried_again(change: str, kit: Path, tell: Program) -> None:
    try_channels(kit, "hospital-a", again=True)
    config = load_notify(kit)
    assert config is not None and untried(kit, config) == []
    if change == "settings":
        write_notify(kit, command={"run": [*tell.run, "loud"]})
    elif change == "month":
        path = kit / "notices" / "memory.json"
        content = json.loads(path.read_text())
        content["tried"]["command"]["time"] = (utc_now() - timedelta(days=31)).isoformat()
        path.write_text(json.dumps(content))
    else:
        script = Path(tell.run[0])
        good = script.read_text()
        script.write_text(good.replace("sys.exit(0)", "sys.exit(1)"))
        deliver(kit, "x", broke())
        script.write_text(good)
    config = load_notify(kit)
    assert config is not None and untried(kit, config) == ["command"]
    assert try_channels(kit, "hospital-a", again=False) == {"command": None}


# --- in the background


def test_a_task_does_not_wait_for_its_notice(kit: Path, tmp_path: Path) -> None:
    slow = program(tmp_path / "slow", code="time.sleep(20)")
    write_notify(kit, command={"run": slow.run})
    begin = time.monotonic()
    tell_run_broke(kit, "hospital-a", JOB, ["FMS-T002", "FMS-T002"])
    assert time.monotonic() - begin < 5
    (told,) = slow.wait_for(1)
    assert told["errors"] == ["FMS-T002"] and told["site"] == "hospital-a"


def test_the_same_break_is_told_once_another_one_again(
    kit: Path, tell: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notices, "_tell", deliver)
    for ids in (["FMS-T002", "FMS-X009"], ["FMS-X009", "FMS-T002"], ["FMS-T003"]):
        tell_run_broke(kit, "hospital-a", JOB, ids)
    tell_run_broke(kit, "hospital-a", "another-job", ["FMS-T003"])
    assert [told["errors"] for told in tell.notices] == [["FMS-T002", "FMS-X009"], ["FMS-T003"], ["FMS-T003"]]


def test_a_break_at_a_server_names_the_server_not_the_project(
    kit: Path, tell: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FLARE's identity in a server's job is the project's name."""
    monkeypatch.setattr(notices, "_tell", deliver)
    (kit / "startup").mkdir()
    (kit / "startup" / "fed_server.json").write_text("no JSON")
    tell_run_broke(kit, "consortium", JOB, ["FMS-X010"])
    server = Kit(kit, "server", "server.example.org", "o", "consortium", ServerAddress(host="h", port=1, identity="h"))
    monkeypatch.setattr(notices, "open_kit", lambda _: server)
    tell_run_broke(kit, "consortium", "another-job", ["FMS-X010"])
    assert [told["site"] for told in tell.notices] == ["consortium", "server.example.org"]


def location(kit: Path, job_content: dict[str, Any]) -> JobLocation:
    application = write_application(kit / JOB / "app_site", job_content)
    return JobLocation(kit, JOB, application, kit / JOB / "fedfms", simulated=False)


def test_a_waiting_job_is_told_again_only_after_a_decision(
    kit: Path, tell: Program, job_content: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedfms.site.application import read_application

    monkeypatch.setattr(notices, "_tell", deliver)
    place = location(kit, job_content)
    for _ in range(3):
        tell_review_waits(place, "hospital-a")
    assert [told["event"] for told in tell.notices] == ["review_waits"]
    assert f"fedfms review show {JOB}" in tell.notices[0]["text"]
    decide(kit, read_application(place.application), "approve", job=JOB, valid_days=1)
    for _ in range(2):
        tell_review_waits(place, "hospital-a")  # its approval has expired
    assert len(tell.notices) == 2


@pytest.mark.parametrize("fault", ["bad file", "bad id", "damaged decisions", "no process"])
def test_nothing_is_raised_and_the_fault_is_logged_once(
    fault: str, kit: Path, job_content: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_process(*_: Any, **__: Any) -> None:
        raise OSError("no more processes")

    place = location(kit, job_content)
    errors, told = ["FMS-T002"], "FMS-S013"
    if fault == "bad file":
        write_notify(kit, command={"run": ["relative"]})
        monkeypatch.setattr(notices, "_tell", lambda *arguments: notices.deliver(*arguments))
        told = "FMS-S012"
    elif fault == "bad id":
        errors = ["FMS-Z001"]
    elif fault == "damaged decisions":
        (kit / "review").mkdir()
        (kit / "review" / "decisions.jsonl").write_text("{\n")
        told = "FMS-S008"
    else:
        monkeypatch.setattr("fedfms.site.notices.subprocess.Popen", no_process)
    for _ in range(3):
        if fault == "damaged decisions":
            tell_review_waits(place, "hospital-a")
        else:
            tell_run_broke(kit, "hospital-a", JOB, errors)
    (line,) = [line for line in log(kit) if told in line]
    assert len([line for line in log(kit) if "FMS-" in line]) == 1, line


def test_a_log_that_cannot_be_written_stops_nothing(kit: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (kit / "notices").write_text("a file")
    tell_run_broke(kit, "hospital-a", JOB, ["FMS-Z001"])
    assert "FMS-S013" in capsys.readouterr().err


def test_the_process_that_sends_logs_what_is_wrong_with_the_file(kit: Path) -> None:
    content = {"events": ["run_broke"], "command": {"run": ["relative"]}}
    (kit / "local" / "notify.yaml").write_text(yaml.safe_dump(content))
    tell_run_broke(kit, "hospital-a", JOB, ["FMS-T002"])
    deadline = time.monotonic() + 60
    while not log(kit) and time.monotonic() < deadline:
        time.sleep(0.05)
    (line,) = log(kit)
    assert "FMS-S012" in line and "command.run" in line


def test_without_a_file_no_process_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []
    monkeypatch.setattr("fedfms.site.notices.subprocess.Popen", started.append)
    tell_run_broke(tmp_path, "hospital-a", JOB, ["FMS-T002"])
    tell_certificates(tmp_path)
    tell_review_waits(JobLocation(tmp_path, JOB, tmp_path / "none", tmp_path / "none", simulated=False), "hospital-a")
    assert started == [] and list(tmp_path.iterdir()) == []


# --- certificates


@pytest.fixture
def certified(kit: Path) -> Kit:
    """A kit whose certificate ends 100 days after `NOW`, the root 290 days later."""
    SmallAuthority().issue(kit / "startup")
    return Kit(kit, "site", "hospital-a", "o", "p", ServerAddress(host="h", port=1, identity="h"))


def test_the_end_of_a_certificate_is_told_four_times(certified: Kit, tell: Program) -> None:
    for day in [10, 69, 70, 71, 80, 93, 94, 99, 99.5, 101, 150]:
        for key, notice in certificate_notices(certified, NOW + timedelta(days=day, seconds=1)):
            deliver(certified.folder, key, notice)
    assert [told["days_left"] for told in tell.notices] == [29, 6, 0, -2]
    assert {told["certificate"] for told in tell.notices} == {"own"}
    assert "has expired" in tell.notices[-1]["text"] and "ends soon" in tell.notices[0]["text"]


def test_the_root_is_told_too(certified: Kit, tell: Program) -> None:
    found = certificate_notices(certified, NOW + timedelta(days=380))
    assert [notice.certificate for _, notice in found] == ["own", "root"]


def test_a_kit_tells_the_end_of_its_certificate(kit: Path, tell: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notices, "_tell", deliver)
    left = (datetime.now(timezone.utc) - NOW) / timedelta(days=1) + 20.5
    SmallAuthority(start=datetime.now(timezone.utc) - timedelta(days=1)).issue(kit / "startup", days=(-4000, left))
    server = {"name": "p", "service": {"target": "h:1", "scheme": "grpc"}, "identity": "h"}
    (kit / "startup" / "fed_client.json").write_text(json.dumps({"servers": [server]}))
    for _ in range(2):
        tell_certificates(kit)
    (told,) = tell.notices
    assert (told["event"], told["certificate"], told["days_left"]) == ("certificate_ends", "own", 20)
    assert log(kit) == []
