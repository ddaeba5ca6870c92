"""``fedfms kit list``: every certificate that an authority has made, of both ways."""

from __future__ import annotations

import json
import shutil
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from fedfms.errors import FedfmsError
from fedfms.provision.authority import STATE, open_authority
from fedfms.provision.blocking import block
from fedfms.provision.central import renew
from fedfms.provision.issued import CERTIFICATES, issued_certificates
from fedfms.site.certificates import describe_certificate, load_certificate
from fedfms.site.kit import exposed_files
from tests.command import Command
from tests.provision.conftest import Central
from tests.provision.test_distributed import Distributed, federation, shared
from tests.site.authorities import NOW, SmallAuthority

__all__ = ["federation", "shared"]


def test_a_central_authority(central: Central, fedfms: Command) -> None:
    listed = fedfms("kit", "list", "--ca", central.ca, "--json")
    content = listed.json()
    assert listed.code == 0 and not listed.err and content["way"] == "central" and content["project"] == "fedfms"
    kinds = {entry["name"]: entry["kind"] for entry in content["certificates"]}
    assert kinds == {
        "localhost": "site or server", "hospital-a": "site or server", "hospital-b": "site or server",
        "lead@example.org": "lead", "admin@example.org": "project_admin", "admin@hospital-a.example.org": "org_admin",
        "admin@hospital-b.example.org": "org_admin",
    }  # fmt: skip
    for entry in content["certificates"]:
        (file,) = (central.kits / entry["name"] / "startup").glob("*.crt")
        facts = describe_certificate(load_certificate(file))
        assert entry["fingerprint"] == facts.fingerprint and entry["organisation"] == facts.organisation
        assert datetime.fromisoformat(entry["not_after"]) == facts.not_after
        assert int(entry["serial"], 16) == load_certificate(file).serial_number
        assert 359 < entry["days_left"] <= 360 and not entry["renewed"] and entry["blocked"] is None


def test_a_renewed_certificate_stays_in_the_list_because_it_stays_valid(
    central: Central, tmp_path: Path, fedfms: Command
) -> None:
    old = load_certificate(central.kits / "hospital-a" / "startup" / "client.crt")
    renew(central.project, ["hospital-a"], tmp_path / "new", central.ca)
    new = load_certificate(tmp_path / "new" / "hospital-a" / "client.crt")
    found = [item for item in issued_certificates(open_authority(central.ca)) if item.name == "hospital-a"]
    assert {item.serial: item.renewed for item in found} == {
        f"{old.serial_number:x}": True,
        f"{new.serial_number:x}": False,
    }
    assert exposed_files(central.ca / CERTIFICATES) == []
    shown = fedfms("kit", "list", "--ca", central.ca)
    assert shown.code == 0 and shown.out.count("hospital-a ") == 2 and "renewed by a later one" in shown.out


def test_a_distributed_authority_with_and_without_kept_certificates(federation: Distributed, fedfms: Command) -> None:
    ca = federation.authority.folder
    federation.kit("hospital-a", "hospital_a")
    federation.kit("localhost", "coordinator", "server")
    federation.approve(federation.request("lead@example.org", "coordinator", "lead"), "lead.zip", valid_days=20)
    before = fedfms("kit", "list", "--ca", ca, "--json").json()["certificates"]
    assert {entry["name"]: entry["kind"] for entry in before} == {
        "localhost": "server", "hospital-a": "site", "lead@example.org": "lead",
    }  # fmt: skip
    assert all(entry["fingerprint"] for entry in before)
    shutil.rmtree(ca / CERTIFICATES)  # as an older version left it: only FLARE's records of the approvals
    after = fedfms("kit", "list", "--ca", ca, "--json").json()["certificates"]
    same = ("name", "kind", "organisation", "serial", "renewed")
    assert [[entry[key] for key in same] for entry in after] == [[entry[key] for key in same] for entry in before]
    for one, other in zip(after, before, strict=True):
        assert one["fingerprint"] is None
        ends = [datetime.fromisoformat(entry["not_after"]) for entry in (one, other)]
        assert abs(ends[0] - ends[1]) < timedelta(seconds=2)


def test_what_expires_soon_is_warned_about_unless_it_was_renewed_or_is_blocked(
    federation: Distributed, fedfms: Command
) -> None:
    ca = federation.authority.folder
    for name, days in (("hospital-a", 29), ("hospital-b", 20), ("hospital-c", 31), ("hospital-d", 5)):
        federation.approve(federation.request(name, "org"), f"{name}.zip", valid_days=days)
    federation.approve(federation.request("hospital-d", "org", out="again"), "again.zip", valid_days=300)
    block("hospital-b", "left", authority=federation.authority)
    block("hospital-z", "no contract", authority=federation.authority, in_advance=True)
    listed = fedfms("kit", "list", "--ca", ca)
    assert listed.code == 0 and listed.err == "hospital-a: the certificate expires in 29 days: renew it\n"
    assert "blocked since " in listed.out and ": left" in listed.out
    assert "blocked without a certificate: hospital-z" in listed.out
    content = fedfms("kit", "list", "--ca", ca, "--json").json()
    assert content["blocked_without_certificate"] == ["hospital-z"]
    blocked = {entry["name"]: entry["blocked"] for entry in content["certificates"]}
    assert blocked["hospital-b"]["reason"] == "left" and blocked["hospital-a"] is None


def test_an_expired_certificate_and_an_expiring_root_are_said(tmp_path: Path, fedfms: Command) -> None:
    now = datetime.now(timezone.utc)
    today = (now - NOW) / timedelta(days=1)
    small = SmallAuthority("fedfms", start=now - timedelta(days=380))
    folder = small.issue(tmp_path / "old", days=(today - 370, today - 5))
    ca = tmp_path / "ca"
    ca.mkdir(mode=0o700)
    entry = {"cert": (folder / "client.crt").read_text()}
    (ca / STATE).write_text(json.dumps({"root_cert": (folder / "rootCA.pem").read_text(), "hospital-a": entry}))
    (ca / STATE).chmod(0o600)
    listed = fedfms("kit", "list", "--ca", ca)
    assert listed.code == 0 and " expired" in listed.out
    assert listed.err.splitlines() == [
        "the root certificate expires in 20 days: the project ends with it",
        "hospital-a: the certificate has expired: renew it",
    ]


def test_a_file_that_cannot_be_read_is_named(federation: Distributed, fedfms: Command) -> None:
    ca = federation.authority.folder
    federation.approve(federation.request("hospital-a", "hospital_a"))
    (kept,) = (ca / CERTIFICATES).iterdir()
    content = kept.read_bytes()
    kept.write_text("no certificate")
    assert kept.name in fedfms("kit", "list", "--ca", ca).failed_with("FMS-K005")
    kept.write_bytes(content)
    (record,) = (ca / "approvals").glob("*.json")
    changed = json.loads(record.read_text())
    del changed["approval"]["certificate"]
    record.write_text(json.dumps(changed))
    with pytest.raises(FedfmsError, match=rf"FMS-K005 .*{record.name}"):
        issued_certificates(federation.authority)
