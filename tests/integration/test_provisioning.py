"""Federations from nothing to connected sites: FLARE's real processes, mutual TLS, on this machine's loopback only."""

from __future__ import annotations

import ipaddress
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from nvflare.fuel.flare_api.flare_api import new_secure_session

from fedfms.errors import FedfmsError
from fedfms.provision.central import add_participants, provision
from fedfms.provision.local import LocalFederation, admin_command, connected_sites, local_federation
from fedfms.site.kit import open_kit
from fedfms.site.manifest import verify_manifest
from tests.provision.federations import project_content, tree, without, write_yaml

# The doctor looks at the site's data too; these sites have none.
UNCHECKED = {"FEDFMS_SKIP_DOCTOR": "1", "OMP_NUM_THREADS": "1"}
LATE = ("hospital-c", "admin@hospital-c.example.org")
ADMIN, LEAD = "admin@example.org", "lead@example.org"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@contextmanager
def running(kits: Path, sites: list[str], admin: str) -> Iterator[LocalFederation]:
    """The federation; afterwards nothing of it runs any more."""
    try:
        with local_federation(kits / "localhost", [kits / name for name in sites], kits / admin, UNCHECKED) as found:
            yield found
    finally:
        assert left_behind(kits) == []


def left_behind(folder: Path) -> list[list[str]]:
    commands = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
    return [command for command in commands if any(str(folder) in argument for argument in command)]


def listening(federation: LocalFederation) -> dict[int, str]:
    """Port and address of every listening socket of the federation's processes."""
    found = {}
    for process in federation.processes():
        try:
            connections = process.net_connections(kind="inet")
        except psutil.NoSuchProcess:
            continue  # a job's process that has ended meanwhile
        for connection in connections:
            if connection.status == psutil.CONN_LISTEN:
                found[connection.laddr.port] = connection.laddr.ip
    return found


def is_loopback(address: str) -> bool:
    parsed = ipaddress.ip_address(address)
    return (getattr(parsed, "ipv4_mapped", None) or parsed).is_loopback


def handed_out(kits: Path, *names: str) -> dict[str, dict[str, tuple[bytes, int]]]:
    """What was laid down in kits: FLARE writes its logs beside it."""
    return {f"{name}/{part}": tree(kits / name / part) for name in names for part in ("startup", "local")}


def read_at(site: str, file: str, admin: Path) -> str:
    """Ask a site for a file, as FLARE's console does with ``cat``."""
    session = new_secure_session(admin.name, str(admin))
    try:
        return str(session.cat_target(site, file=file))
    finally:
        session.close()


def wait_until_gone(admin: Path, name: str, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if name not in connected_sites(admin):
            return True
        time.sleep(1)
    return False


def test_central_provisioning_then_a_later_site_then_a_blocked_one(tmp_path: Path) -> None:
    content = project_content()
    port = content["participants"][0]["fed_learn_port"]
    kits, ca = tmp_path / "kits", tmp_path / "ca"
    provision(write_yaml(tmp_path / "project.yml", without(content, *LATE)), kits, ca)
    everyone = [path.name for path in kits.iterdir()]
    before = handed_out(kits, *everyone)
    with running(kits, ["hospital-a", "hospital-b"], ADMIN) as federation:
        assert connected_sites(kits / ADMIN) == {"hospital-a", "hospital-b"}
        sockets = listening(federation)
        assert port in sockets and all(is_loopback(address) for address in sockets.values()), sockets
        server = (kits / "localhost" / "pid.fl").read_text()

        full = write_yaml(tmp_path / "full.yml", content)
        add_participants(full, LATE, kits, ca)
        federation.start(kits / "hospital-c")
        federation.wait_connected(["hospital-a", "hospital-b", "hospital-c"])
        assert (kits / "localhost" / "pid.fl").read_text() == server, "the server was not started again"
        assert handed_out(kits, *everyone) == before, "the kits handed out before are the same to the byte"

        admin_command(kits / ADMIN, "study", "add-site", "segmentation", "--site-org", "hospital_c:hospital-c")
        registry = json.loads((kits / "localhost" / "study_registry.json").read_text())
        assert registry["studies"]["segmentation"]["site_orgs"]["hospital_c"] == ["hospital-c"]
        for name in (*everyone, *LATE):
            changed = [Path(problem.where).name for problem in verify_manifest(open_kit(kits / name))]
            assert changed == [], "running changes nothing"

        owner = {site: kits / f"admin@{site}.example.org" for site in ("hospital-a", "hospital-b")}
        # Not even a site's own administrator: the command gate refuses, whatever the server lets pass.
        for site in owner:
            assert read_at(site, "readme.txt", owner[site]) == "invalid_request"

        for command in (("shutdown", "all"), ("disable-client", "hospital-a")):
            with pytest.raises(FedfmsError, match=r"FMS-K019"):
                admin_command(kits / LEAD, "system", *command, "--force")
        with pytest.raises(FedfmsError, match=r"FMS-K019"):
            admin_command(kits / "admin@hospital-a.example.org", "system", "shutdown", "server", "--force")

        admin_command(kits / ADMIN, "system", "disable-client", "hospital-c", "--force")
        assert wait_until_gone(kits / ADMIN, "hospital-c", 180)
        blocked = open_kit(kits / "hospital-c")
        federation.stop([blocked])
        federation.start(kits / "hospital-c")
        with pytest.raises(FedfmsError, match=r"FMS-K018 .*hospital-c"):
            federation.wait_connected(["hospital-c"], 15)
        assert connected_sites(kits / ADMIN) == {"hospital-a", "hospital-b"}

        assert (kits / "localhost" / "store" / "jobs").is_dir() and (
            kits / "localhost" / "store" / "snapshots"
        ).is_dir()


def test_a_kit_that_cannot_start_is_told_and_nothing_is_left(tmp_path: Path) -> None:
    kits = tmp_path / "kits"
    provision(write_yaml(tmp_path / "project.yml", project_content()), kits, tmp_path / "ca")
    (kits / "localhost" / "startup" / "start.sh").write_text("echo this is why; exit 3\n")
    with pytest.raises(FedfmsError, match="FMS-K018 .*start.sh ended with 3: this is why"), running(kits, [], ADMIN):
        pass
    # No server: the site runs and waits, the time is up, all is stopped.
    federation = LocalFederation(kits / ADMIN, UNCHECKED)
    try:
        federation.start(kits / "hospital-a")
        with pytest.raises(FedfmsError, match="FMS-K018 .*running already"):
            federation.start(kits / "hospital-a")
        with pytest.raises(FedfmsError, match="FMS-K018 .*not connected: hospital-a"):
            federation.wait_connected(["hospital-a"], 1)
    finally:
        federation.stop()
    assert left_behind(kits) == []
