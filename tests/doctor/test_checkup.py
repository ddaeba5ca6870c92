"""The whole visit: order, what each kind of kit gets, a broken check, the command, and that it changes nothing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fedfms import errors
from fedfms.doctor.checkup import CHECKS, check_up
from fedfms.doctor.result import Check, failed, passed, skipped
from fedfms.errors import (
    BACKBONE_FILE,
    CATALOGUE,
    JOB,
    SERVER_IDENTITY,
    SERVER_NAME,
    SERVER_PORT,
    TRAINING_STEP,
    FedfmsError,
)
from tests.command import Command
from tests.doctor.conftest import SECRET, Patient
from tests.provision.federations import PROJECT, tree


@pytest.fixture(autouse=True)
def private(site: Patient) -> None:
    for name in ("policy.yaml", "site.yaml"):
        (site.kit / "local" / name).chmod(0o600)


def test_every_id_has_its_check() -> None:
    health = {identifier for identifier in CATALOGUE if identifier.startswith("FMS-H")}
    assert {check.kind.id for checks in CHECKS.values() for check in checks} | {JOB.id} == health


def test_every_check_runs_when_each_of_them_breaks(site: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> None:
        raise ZeroDivisionError("no number")

    checks = tuple(Check(check.kind, broken, check.about_data) for check in CHECKS["site"])  # type: ignore[arg-type]
    monkeypatch.setitem(CHECKS, "site", checks)
    report = check_up(site.kit)
    assert [result.kind for result in report.results] == [check.kind for check in checks] and not report.ok
    for check, result in zip(checks, report.results, strict=True):
        text = "ZeroDivisionError" + ("" if check.about_data else ": no number")
        assert (result.severity, result.what) == ("FAIL", f"the check itself failed: {text}")


def test_nothing_starts_unchecked_without_a_reason(site: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    """A check is skipped for the FAIL of another one, or for one that was skipped for that: else it fails itself."""
    checks = (
        Check(SERVER_NAME, lambda _: failed(SERVER_NAME, "wrong")),
        Check(SERVER_IDENTITY, lambda _: skipped(SERVER_IDENTITY, SERVER_PORT)),
        Check(SERVER_PORT, lambda _: skipped(SERVER_PORT, SERVER_NAME)),
        Check(TRAINING_STEP, lambda _: skipped(TRAINING_STEP, BACKBONE_FILE)),
        Check(BACKBONE_FILE, lambda _: passed(BACKBONE_FILE, "there")),
    )
    monkeypatch.setitem(CHECKS, "site", checks)
    assert [result.severity for result in check_up(site.kit).results] == ["FAIL", "SKIP", "SKIP", "FAIL", "PASS"]


def test_a_ready_site(site: Patient, job: Path, fedfms: Command) -> None:
    before = tree(site.kit)
    result = fedfms("doctor", site.kit, "--job", job, "--offline")
    assert result.code == 0, result.out
    assert " 0 FAIL" in result.out and "FMS-H024" in result.out
    assert SECRET not in result.out + result.err and "p0" not in result.out
    assert tree(site.kit) == before, "the kit is only looked at"


def test_as_json(site: Patient, fedfms: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDFMS_KIT", str(site.kit))
    (site.kit / "local" / "privacy.json").unlink()
    result = fedfms("doctor", "--json", "--offline", "--quick")
    content = result.json()
    assert result.code == 1 and content["ok"] is False and content["name"] == "hospital-a"
    severities = {line["id"]: line["severity"] for line in content["results"]}
    assert severities["FMS-H008"] == severities["FMS-H011"] == "FAIL" and severities["FMS-H001"] == "PASS"
    for line in content["results"]:
        assert bool(line["remedy"]) == (line["severity"] != "PASS"), line


def test_a_refused_start_is_in_the_audit_log(site: Patient, fedfms: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    log = site.kit / "audit.log"
    (site.kit / "local" / "privacy.json").unlink()
    assert fedfms("doctor", site.kit, "--offline", "--quick").code == 1
    assert not log.exists(), "somebody only looked"
    monkeypatch.setenv("FEDFMS_STARTING", "1")
    for _ in range(2):
        assert fedfms("doctor", site.kit, "--offline", "--quick").code == 1
    lines = log.read_text().splitlines()
    assert len(lines) == 2 and all(re.search(r"\[A:start refused\] .*FMS-H008.*FMS-H011", line) for line in lines)
    assert log.stat().st_mode & 0o077 == 0


def test_the_kit_of_a_server_and_of_a_person(server: Patient, fedfms: Command) -> None:
    found = {line["id"] for line in fedfms("doctor", server.kit, "--json").json()["results"]}
    assert not {"FMS-H007", "FMS-H010", "FMS-H011", "FMS-H013", "FMS-H014", "FMS-H015", "FMS-H020"} & found
    assert fedfms("doctor", server.kit).code == 0
    lead = server.kit.parent / "lead@example.org"
    found = {line["id"] for line in fedfms("doctor", lead, "--json", "--offline").json()["results"]}
    assert "FMS-H007" in found and "FMS-H016" not in found


def test_a_folder_that_is_not_a_kit(tmp_path: Path, fedfms: Command) -> None:
    fedfms("doctor", tmp_path).failed_with("FMS-K001")
    with pytest.raises(FedfmsError):
        check_up(tmp_path)


def test_the_guide_explains_every_line() -> None:
    text = (PROJECT / "docs" / "doctor.md").read_text(encoding="utf-8")
    assert set(re.findall(r"FMS-H\d+", text)) == {
        kind.id for kind in vars(errors).values() if isinstance(kind, errors.ErrorKind) and kind.id[4] == "H"
    }
