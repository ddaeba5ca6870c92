"""Certificate, key, record and clock: each made to fail."""

from __future__ import annotations

import shutil
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from fedfms.doctor.examination import Examination
from fedfms.errors import CERTIFICATE_CHAIN, CERTIFICATE_KEY, CERTIFICATE_VALIDITY, CLOCK, KIT_RECORD, VERSIONS
from fedfms.site.certificates import RENEWAL_DAYS, fingerprint
from tests.accounts import shut
from tests.doctor.conftest import Patient
from tests.site.authorities import NOW, SmallAuthority


def at(moment: datetime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Examination, "now", moment)


def replace_certificates(site: Patient, authority: SmallAuthority, **options: object) -> None:
    authority.issue(site.kit / "startup", **options)  # type: ignore[arg-type]
    root = fingerprint(authority.certificate)
    site.write_json("local/kit.json", lambda content: content.update(root_fingerprint=root))


def test_a_kit_as_handed_out_passes(site: Patient) -> None:
    for kind in (KIT_RECORD, CERTIFICATE_CHAIN, CERTIFICATE_KEY):
        assert site.line(kind).severity == "PASS"
    own, root = site.lines(CERTIFICATE_VALIDITY)
    assert (own.severity, root.severity) == ("PASS", "PASS")
    assert "client.crt: 3" in own.what and "rootCA.pem: 18" in root.what
    clock = site.line(CLOCK, offline=True)
    assert clock.severity == "WARN" and "NOT compared" in clock.what


def test_the_servers_own_clock_is_the_one_that_counts(server: Patient) -> None:
    assert server.line(CLOCK).severity == "PASS"


def test_the_root_of_another_authority(site: Patient, tmp_path: Path) -> None:
    other = SmallAuthority().issue(tmp_path / "other")
    shutil.copyfile(other / "rootCA.pem", site.kit / "startup" / "rootCA.pem")
    line = site.line(CERTIFICATE_CHAIN)
    assert line.severity == "FAIL" and "not signed by" in line.what


def test_a_whole_other_authority(site: Patient) -> None:
    SmallAuthority().issue(site.kit / "startup")
    line = site.line(CERTIFICATE_CHAIN)
    assert line.severity == "FAIL" and "the kit was made for" in line.what


def test_a_root_that_is_not_an_authority(site: Patient) -> None:
    replace_certificates(site, SmallAuthority(ca=False))
    assert "not a self-signed root" in site.line(CERTIFICATE_CHAIN).what


def test_the_key_of_another_request(site: Patient, tmp_path: Path) -> None:
    other = SmallAuthority().issue(tmp_path / "other")
    shutil.copyfile(other / "client.key", site.kit / "startup" / "client.key")
    assert site.line(CERTIFICATE_KEY).severity == "FAIL"


@pytest.mark.parametrize(
    ("days", "severity", "text"),
    [
        ((-20, -1), "FAIL", "expired on"),
        ((1, 20), "FAIL", "valid only from"),
        ((-1, RENEWAL_DAYS - 1), "WARN", f"expires in {RENEWAL_DAYS - 1} days"),
        ((-1, RENEWAL_DAYS + 1), "PASS", f"{RENEWAL_DAYS + 1} days left"),
    ],
)
def test_the_end_of_a_certificate(
    days: tuple[int, int], severity: str, text: str, site: Patient, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_certificates(site, SmallAuthority(), days=days)
    at(NOW, monkeypatch)
    own, root = site.lines(CERTIFICATE_VALIDITY)
    assert (own.severity, root.severity) == (severity, "PASS") and text in own.what


def test_the_end_of_the_root(site: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_certificates(site, SmallAuthority(start=NOW - timedelta(days=401)))
    at(NOW, monkeypatch)
    assert [line.severity for line in site.lines(CERTIFICATE_VALIDITY)] == ["PASS", "FAIL"]


def test_a_clock_before_the_kit_was_made(site: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    at(datetime.now(timezone.utc) - timedelta(days=2), monkeypatch)
    line = site.line(CLOCK, offline=True)
    assert line.severity == "FAIL" and "the kit was made on" in line.what


def test_a_kit_that_points_to_another_server(site: Patient) -> None:
    site.write_json("local/kit.json", lambda content: content["server"].update(port=1))
    line = site.line(KIT_RECORD)
    assert line.severity == "FAIL" and "server is" in line.what and "port=1" in line.what


def test_a_kit_without_its_record(site: Patient) -> None:
    (site.kit / "local" / "kit.json").unlink()
    line = site.line(KIT_RECORD)
    assert line.severity == "FAIL" and line.what.startswith("FMS-K001 local/kit.json")
    for kind in (CERTIFICATE_CHAIN, CLOCK, VERSIONS):
        line = site.line(kind, offline=True)
        assert (line.severity, line.what) == ("SKIP", "not checked, because of FMS-H025")
    assert site.line(CERTIFICATE_KEY).severity == "PASS", "the others go on"


def test_a_root_or_key_that_cannot_be_read(site: Patient) -> None:
    (site.kit / "startup" / "rootCA.pem").write_text("no certificate")
    assert site.line(CERTIFICATE_CHAIN).severity == "FAIL"
    line = site.line(CERTIFICATE_VALIDITY)
    assert (line.severity, line.what) == ("SKIP", "not checked, because of FMS-H001")
    with shut(site.kit / "startup" / "client.key"):
        line = site.line(CERTIFICATE_KEY)
    assert line.severity == "FAIL" and "FMS-D019 startup/client.key: account " in line.what and "chown" in line.remedy
