"""The way to the server, against real sockets and TLS."""

from __future__ import annotations

import socket
import threading
import time
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from pathlib import Path

import pytest

from fedfms.errors import CLOCK, SERVER_IDENTITY, SERVER_NAME, SERVER_PORT, SITE_REFUSED
from fedfms.site.admittance import forget_refusal, note_refusal
from fedfms.site.kit import open_kit
from tests.doctor.conftest import Patient
from tests.doctor.servers import tls_server
from tests.provision.federations import free_port
from tests.site.authorities import NOW, SmallAuthority


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)


def port_of(patient: Patient) -> int:
    return open_kit(patient.kit).server.port


def answer(seconds: float) -> bytes:
    moment = datetime.now(timezone.utc) + timedelta(seconds=seconds)
    return f"HTTP/1.1 404 Not Found\r\nDate: {format_datetime(moment, usegmt=True)}\r\n\r\n".encode()


def test_the_servers_own_kit_is_who_is_expected(site: Patient, server: Patient) -> None:
    startup = server.kit / "startup"
    with tls_server(port_of(site), startup, startup / "rootCA.pem"):
        for kind in (SERVER_NAME, SERVER_PORT, SERVER_IDENTITY):
            assert site.line(kind).severity == "PASS"
        clock = site.line(CLOCK)
        assert clock.severity == "WARN" and "NOT compared" in clock.what


@pytest.mark.parametrize(("seconds", "severity"), [(0, "PASS"), (120, "WARN"), (-120, "WARN"), (3600, "FAIL")])
def test_the_servers_clock(seconds: float, severity: str, site: Patient, server: Patient) -> None:
    startup = server.kit / "startup"
    with tls_server(port_of(site), startup, startup / "rootCA.pem", answer(seconds)):
        line = site.line(CLOCK)
    assert line.severity == severity
    if seconds:
        assert ("behind the server" if seconds > 0 else "ahead of the server") in line.what


def test_nobody_listens(site: Patient) -> None:
    assert site.line(SERVER_NAME).severity == "PASS"
    line = site.line(SERVER_PORT)
    assert line.severity == "FAIL" and str(port_of(site)) in line.what
    line = site.line(SERVER_IDENTITY)
    assert (line.severity, line.what) == ("SKIP", "not checked, because of FMS-H006")


def test_behind_a_proxy_a_closed_way_is_only_told(site: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://proxy.invalid:3128")
    assert site.line(SERVER_PORT).severity == "WARN"
    line = site.line(SERVER_IDENTITY)
    assert line.severity == "WARN" and "https_proxy was not tried" in line.what


def test_a_server_that_starts_late_is_waited_for(site: Patient) -> None:
    def listen() -> None:
        time.sleep(1.5)
        with socket.create_server(("127.0.0.1", port_of(site))) as listener:
            listener.accept()[0].close()

    thread = threading.Thread(target=listen)
    thread.start()
    try:
        assert site.line(SERVER_PORT, patience=20.0).severity == "PASS"
    finally:
        thread.join()


def test_a_name_that_does_not_resolve(site: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    line = site.line(SERVER_NAME)
    assert line.severity == "FAIL" and "localhost: Name or service not known" in line.what
    for kind in (SERVER_PORT, SERVER_IDENTITY):
        line = site.line(kind)
        assert (line.severity, line.what) == ("SKIP", "not checked, because of FMS-H005")


@pytest.mark.parametrize(
    ("name", "other", "by"),
    [("client.key", True, "H002"), ("client.key", False, "H002"), ("rootCA.pem", False, "H001")],
)
def test_without_its_own_certificate_the_kit_blames_no_server(
    name: str, other: bool, by: str, site: Patient, server: Patient, tmp_path: Path
) -> None:
    startup = server.kit / "startup"
    foreign = SmallAuthority().issue(tmp_path / "other") / "client.key"
    (site.kit / "startup" / name).write_text(foreign.read_text() if other else "nothing")
    with tls_server(port_of(site), startup, startup / "rootCA.pem"):
        line = site.line(SERVER_IDENTITY)
    assert (line.severity, line.what) == ("SKIP", f"not checked, because of FMS-{by}")


def test_a_server_of_another_authority(site: Patient, server: Patient, tmp_path: Path) -> None:
    authority = SmallAuthority(start=datetime.now(timezone.utc) - timedelta(days=1))
    days = tuple((datetime.now(timezone.utc) - NOW).days + shift for shift in (-1, 9))
    other = authority.issue(tmp_path / "other", "localhost", base="server", days=(days[0], days[1]))
    with tls_server(port_of(site), other, server.kit / "startup" / "rootCA.pem"):
        line = site.line(SERVER_IDENTITY)
    assert line.severity == "FAIL" and "TLS failed" in line.what and "certificate" in line.what


def test_another_participant_at_the_servers_address(site: Patient, server: Patient) -> None:
    startup = server.kit / "startup"
    site.write_json("local/kit.json", lambda content: content["server"].update(identity="server.example.org"))
    with tls_server(port_of(site), startup, startup / "rootCA.pem"):
        line = site.line(SERVER_IDENTITY)
    assert line.severity == "FAIL" and "'localhost' answers, expected 'server.example.org'" in line.what


def test_a_sites_certificate_is_not_the_servers(site: Patient) -> None:
    """Another hospital cannot pose as the server: its certificate is not for the server's name."""
    startup = site.kit.parent / "hospital-b" / "startup"
    with tls_server(port_of(site), startup, startup / "rootCA.pem", base="client"):
        line = site.line(SERVER_IDENTITY)
    assert line.severity == "FAIL" and "TLS failed" in line.what


def test_a_server_that_refuses_this_kit(site: Patient, server: Patient, tmp_path: Path) -> None:
    other = SmallAuthority().issue(tmp_path / "other")
    startup = server.kit / "startup"
    with tls_server(port_of(site), startup, other / "rootCA.pem"):
        line = site.line(SERVER_IDENTITY)
    assert line.severity == "FAIL" and "TLS failed" in line.what


def test_a_server_that_closes_without_a_word(site: Patient, server: Patient) -> None:
    """With TLS 1.3 the handshake says nothing about this kit's certificate."""
    startup = server.kit / "startup"
    with tls_server(port_of(site), startup, startup / "rootCA.pem", silent="closes"):
        line = site.line(SERVER_IDENTITY)
    assert line.severity == "FAIL" and "closed the connection without an answer" in line.what


@pytest.mark.parametrize("scheme", ["http", "tcp"])
def test_a_server_that_says_nothing(
    scheme: str, site: Patient, server: Patient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedfms.doctor.connection.TIMEOUT_SECONDS", 0.5)
    site.write_json("startup/fed_client.json", lambda content: content["servers"][0]["service"].update(scheme=scheme))
    assert open_kit(site.kit).scheme == scheme
    startup = server.kit / "startup"
    with tls_server(port_of(site), startup, startup / "rootCA.pem", silent="waits"):
        line = site.line(SERVER_IDENTITY)
    assert line.severity == "WARN" and "said nothing" in line.what


def test_offline_connects_nowhere(site: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("connected")

    monkeypatch.setattr("fedfms.doctor.examination.make_contact", never)
    for kind in (SERVER_NAME, SERVER_PORT, SERVER_IDENTITY):
        assert site.line(kind, offline=True).severity == "WARN"


def test_the_servers_port(server: Patient) -> None:
    assert server.line(SERVER_PORT).severity == "PASS"
    with socket.create_server(("127.0.0.1", port_of(server))):
        line = server.line(SERVER_PORT)
    assert line.severity == "FAIL" and "is not free" in line.what


def test_the_wrong_port_in_the_kit(site: Patient, server: Patient) -> None:
    startup = server.kit / "startup"
    right, wrong = port_of(site), free_port()
    path = site.kit / "startup" / "fed_client.json"
    path.write_text(path.read_text().replace(str(right), str(wrong)))
    with tls_server(right, startup, startup / "rootCA.pem"):
        line = site.line(SERVER_PORT)
    assert line.severity == "FAIL" and f"localhost:{wrong}" in line.what


def test_a_site_that_the_server_refused(site: Patient) -> None:
    """It may be admitted again, so it may start."""
    assert site.line(SITE_REFUSED).severity == "PASS"
    note_refusal(site.kit, "Client 'hospital-a' is disabled")
    line = site.line(SITE_REFUSED)
    assert line.severity == "WARN" and "Client 'hospital-a' is disabled" in line.what and "stop_fl.sh" in line.remedy
    (site.kit / "refused.json").write_text("{}")
    line = site.line(SITE_REFUSED)
    assert line.severity == "WARN" and line.what.startswith("FMS-K001 refused.json") and "Delete" in line.remedy
    forget_refusal(site.kit)
    assert site.line(SITE_REFUSED).severity == "PASS"
