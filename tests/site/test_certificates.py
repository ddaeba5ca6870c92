"""Certificates: what they say, how long they hold, whether they belong together."""

from __future__ import annotations

import subprocess
from datetime import timedelta
from pathlib import Path

import pytest

from fedfms.errors import FedfmsError
from fedfms.site.certificates import (
    certificate_problems,
    describe_certificate,
    key_matches,
    load_certificate,
    parse_fingerprint,
)
from tests.site.authorities import NOW, SmallAuthority


def ids(folder: Path, *, key: bool = True, days: float = 0) -> list[str]:
    problems = certificate_problems(
        folder / "client.crt",
        folder / "rootCA.pem",
        folder / "client.key" if key else None,
        now=NOW + timedelta(days=days),
    )
    return [problem.kind.id for problem in problems]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return SmallAuthority().issue(tmp_path / "a", role="client")


def test_a_certificate_says_whom_it_names_and_until_when(folder: Path) -> None:
    facts = describe_certificate(load_certificate(folder / "client.crt"))
    assert (facts.name, facts.organisation, facts.role) == ("hospital-a", "hospital_a", "client")
    assert facts.host_names == ("localhost",)
    assert facts.days_left(NOW) == pytest.approx(100)
    assert facts.days_left(NOW + timedelta(days=101)) == pytest.approx(-1)
    assert describe_certificate(load_certificate(folder / "rootCA.pem")).host_names == ()


def test_the_fingerprint_is_openssls(folder: Path) -> None:
    command = ["openssl", "x509", "-in", folder / "rootCA.pem", "-noout", "-fingerprint", "-sha256"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    own = describe_certificate(load_certificate(folder / "rootCA.pem")).fingerprint
    assert printed.lower().startswith("sha256 fingerprint=")
    for form in (printed, own, own.removeprefix("SHA256:").replace(":", "").lower(), own.replace("SHA256:", "sha256=")):
        assert parse_fingerprint(form) == own


@pytest.mark.parametrize("text", ["", "SHA256:", "SHA256:AB", "MD5:" + "AB" * 32, "g" * 64, "A" * 65])
def test_what_is_no_fingerprint_is_refused(text: str) -> None:
    with pytest.raises(FedfmsError, match="FMS-K008"):
        parse_fingerprint(text)


def test_certificate_key_and_root_belong_together(folder: Path) -> None:
    assert ids(folder) == []


def test_another_root_another_key_and_no_root_are_seen(folder: Path, tmp_path: Path) -> None:
    other = SmallAuthority().issue(tmp_path / "b")
    (folder / "client.key").write_bytes((other / "client.key").read_bytes())
    assert ids(folder) == ["FMS-K010"] and ids(folder, key=False) == []
    (folder / "rootCA.pem").write_bytes((other / "rootCA.pem").read_bytes())
    assert ids(folder) == ["FMS-K010", "FMS-K010"]
    (folder / "rootCA.pem").write_bytes((folder / "client.crt").read_bytes())
    assert ids(folder, key=False) == ["FMS-K010", "FMS-K010"], "neither its issuer nor a root"


def test_a_self_signed_certificate_that_may_not_sign_is_no_root(tmp_path: Path) -> None:
    assert ids(SmallAuthority(ca=False).issue(tmp_path / "a")) == ["FMS-K010"]


@pytest.mark.parametrize(("days", "expected"), [(-2, 1), (0, 0), (99, 0), (101, 1), (500, 2)])
def test_validity_is_checked_on_both_ends(folder: Path, days: float, expected: int) -> None:
    assert ids(folder, days=days) == ["FMS-K011"] * expected


def test_an_unreadable_file_is_an_error(folder: Path) -> None:
    (folder / "client.key").write_text("x")
    with pytest.raises(FedfmsError, match="FMS-K010"):
        ids(folder)
    (folder / "client.crt").write_text("x")
    with pytest.raises(FedfmsError, match="FMS-K010"):
        ids(folder, key=False)


def test_a_key_that_cannot_be_read_says_why(folder: Path) -> None:
    (folder / "client.key").write_text("not a key")
    with pytest.raises(FedfmsError, match=r"FMS-K010.*cannot be read: ValueError: \w"):
        key_matches(folder / "client.key", load_certificate(folder / "client.crt"))
