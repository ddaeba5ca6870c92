"""Blocking at the authority and at the server, and taking it back."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedfms.provision.authority import open_authority
from fedfms.provision.studies import open_server
from fedfms.site.blocking import SERVER_FILE, read_server_blocks
from fedfms.site.kit import exposed_files
from tests.command import Command
from tests.provision.conftest import Central


@pytest.fixture
def server(central: Central) -> Path:
    return central.kits / "localhost"


def at_server(server: Path) -> dict[str, str]:
    return {name: entry.reason for name, entry in read_server_blocks(open_server(server)).items()}


def test_both_lists_in_one_command(central: Central, server: Path, fedfms: Command) -> None:
    both = ("--ca", central.ca, "--server", server)
    result = fedfms("kit", "block", "hospital-a", *both, "--reason", "left the project")
    assert result.code == 0 and "nvflare" not in result.out and "fedfms kit block" not in result.out
    assert at_server(server) == {"hospital-a": "left the project"}
    assert open_authority(central.ca).blocked["hospital-a"].reason == "left the project"
    assert exposed_files(server / SERVER_FILE) == []
    assert fedfms("kit", "unblock", "hospital-a", *both).code == 0
    assert at_server(server) == {} == dict(open_authority(central.ca).blocked)
    assert "is not blocked" in fedfms("kit", "unblock", "hospital-a", *both).failed_with("FMS-K017")


def test_one_list_says_what_the_other_needs(central: Central, server: Path, fedfms: Command) -> None:
    site, person = "hospital-a", "lead@example.org"
    alone = fedfms("kit", "block", site, "--ca", central.ca, "--reason", "x").out
    assert f"fedfms kit block {site} --server KIT" in alone and "with the kit of a project_admin" in alone
    assert f"nvflare system disable-client {site} --force --startup-kit KIT" in alone
    alone = fedfms("kit", "block", person, "--ca", central.ca, "--reason", "x").out
    assert f"fedfms kit block {person} --server KIT" in alone and "disable-client" not in alone
    alone = fedfms("kit", "block", person, "--server", server, "--reason", "x").out
    assert f"fedfms kit block {person} --ca CA" in alone
    assert at_server(server) == {person: "x"}


@pytest.mark.parametrize(
    ("name", "reason", "ids"),
    [
        ("hospital-z", "left", ["FMS-K017"]),
        ("hospital-z", " ", ["FMS-K017", "FMS-K003"]),
        ("a b", " ", ["FMS-K003"]),
        ("hospital-c", "left", ["FMS-K017"]),
    ],
)
def test_nobody_is_blocked_at_the_server_by_mistake(
    name: str, reason: str, ids: list[str], server: Path, fedfms: Command
) -> None:
    said = fedfms("kit", "block", name, "--server", server, "--reason", reason).failed_with(*ids)
    assert ("is in no study of this server" in said) is ("FMS-K017" in ids)
    assert not (server / SERVER_FILE).exists()


def test_wrong_arguments(central: Central, server: Path, fedfms: Command) -> None:
    assert fedfms("kit", "block", "hospital-a", "--reason", "x").code == 2
    assert fedfms("kit", "unblock", "hospital-a").code == 2
    admin = central.kits / "admin@example.org"
    person = ("kit", "block", "lead@example.org", "--ca", central.ca, "--reason", "x", "--admin", admin)
    assert fedfms(*person).code == 2 and not open_authority(central.ca).blocked
    fedfms("kit", "block", "hospital-a", "--server", admin, "--reason", "x").failed_with("FMS-K023")


def test_flares_own_command_is_run_with_an_admins_kit(
    central: Central, fedfms: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[object] = []
    monkeypatch.setattr("fedfms.provision.local.admin_command", lambda *arguments: given.append(arguments))
    admin = central.kits / "admin@example.org"
    result = fedfms("kit", "block", "hospital-a", "--ca", central.ca, "--reason", "x", "--admin", admin)
    assert result.code == 0 and given == [(admin, "system", "disable-client", "hospital-a", "--force")]
    assert "nvflare" not in result.out


def test_a_site_that_flare_has_disabled_is_named(server: Path, fedfms: Command) -> None:
    arguments = ("hospital-a", "--server", server)
    assert fedfms("kit", "block", *arguments, "--reason", "x").code == 0
    (server / "disabled_clients.json").write_text('{"disabled_clients": ["hospital-a"]}')
    said = fedfms("kit", "unblock", *arguments).out
    assert "nvflare system enable-client hospital-a --force" in said


def test_a_list_that_cannot_be_read_is_not_written_over(server: Path, fedfms: Command) -> None:
    (server / SERVER_FILE).write_text('{"hospital-b": {}}')
    fedfms("kit", "block", "hospital-a", "--server", server, "--reason", "x").failed_with("FMS-K001")
    assert (server / SERVER_FILE).read_text() == '{"hospital-b": {}}'
