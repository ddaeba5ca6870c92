"""Studies of a server: shown, registered and changed in its kit, refused with everything that does not fit."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from fedfms.provision.studies import changed_studies_file, open_server, read_studies
from fedfms.site.kit import exposed_kit
from fedfms.site.manifest import verify_manifest
from tests.command import Command
from tests.provision.conftest import Central


@pytest.fixture
def server(central: Central) -> Path:
    return central.kits / "localhost"


def studies(server: Path) -> dict[str, dict[str, object]]:
    return {name: study.model_dump(mode="json") for name, study in read_studies(open_server(server)).items()}


def test_the_studies_of_a_kit_are_shown(server: Path, fedfms: Command) -> None:
    shown = fedfms("kit", "study", server)
    assert shown.code == 0 and "segmentation:\n  hospital_a: hospital-a\n" in shown.out
    assert "people: lead@example.org" in shown.out
    assert fedfms("kit", "study", server, "--json").json() == studies(server)
    assert fedfms("kit", "study", server, "segmentation", "--json").json() == studies(server)
    assert "there are segmentation; to register it: --new" in fedfms("kit", "study", server, "x").failed_with(
        "FMS-K024"
    )


def test_a_site_and_a_person_are_added_and_removed(server: Path, fedfms: Command) -> None:
    change = ("kit", "study", server, "segmentation")
    people = ["lead@example.org", "admin@example.org"]
    added = fedfms(*change, "--add-site", "hospital_d:hospital-d", "--add-person", "other@example.org")
    assert added.code == 0 and "hospital_d: hospital-d" in added.out
    kit = open_server(server)
    assert changed_studies_file(kit).parent == kit.folder, "where FLARE looks first"
    assert verify_manifest(kit) == [] == exposed_kit(kit)
    found = studies(server)["segmentation"]
    assert found["admins"] == [*people, "other@example.org"]
    assert json.loads(changed_studies_file(kit).read_text())["studies"]["segmentation"] == found
    again = fedfms(*change, "--add-site", "hospital_d:hospital-d")
    assert again.code == 0 and studies(server)["segmentation"] == found, "what is so already stays as it is"
    removed = fedfms(*change, "--remove-site", "hospital-d", "--remove-person", "other@example.org")
    assert removed.code == 0 and "hospital_d" not in removed.out, "its org_admin could otherwise add sites again"
    assert studies(server)["segmentation"]["admins"] == people


def test_a_study_is_registered(server: Path, fedfms: Command) -> None:
    new = ("kit", "study", server, "second", "--add-person", "lead@example.org")
    assert "needs at least one site" in fedfms(*new, "--new").failed_with("FMS-K024")
    assert "--new" in fedfms(*new, "--add-site", "hospital_a:hospital-a").failed_with("FMS-K024")
    assert fedfms(*new, "--add-site", "hospital_a:hospital-a", "--new").code == 0
    assert studies(server)["second"] == {
        "site_orgs": {"hospital_a": ["hospital-a"]},
        "admins": ["lead@example.org"],
    }
    assert set(studies(server)) == {"second", "segmentation"}
    twice = fedfms(*new, "--add-site", "hospital_a:hospital-a", "--new")
    assert "registered already" in twice.failed_with("FMS-K024")


def test_all_that_does_not_fit_is_in_one_message(server: Path, fedfms: Command) -> None:
    before = studies(server)
    result = fedfms(
        *("kit", "study", server, "segmentation", "--add-site", "hospital_x:hospital-a", "--remove-site", "hospital-z"),
        *("--add-person", "a@example.org", "--remove-person", "a@example.org"),
    )
    said = result.failed_with("FMS-K024")
    assert "site hospital-a belongs to hospital_a, not to hospital_x" in said
    assert "site hospital-z does not take part" in said and "person a@example.org does not take part" in said
    assert "a@example.org is to be added and removed" in said
    assert studies(server) == before and not changed_studies_file(open_server(server)).exists()


@pytest.mark.parametrize("name", ["Second", "default", "a b"])
def test_a_name_that_flare_does_not_take(name: str, server: Path, fedfms: Command) -> None:
    change = ("kit", "study", server, name, "--new", "--add-site", "hospital_a:hospital-a")
    fedfms(*change).failed_with("FMS-K003")
    site = ("kit", "study", server, "segmentation", "--add-site", "hospital_a:hospital a")
    assert "at most 63 letters" in fedfms(*site).failed_with("FMS-K003")
    assert not changed_studies_file(open_server(server)).exists()


def test_wrong_arguments(server: Path, central: Central, fedfms: Command) -> None:
    assert fedfms("kit", "study", server, "segmentation", "--add-site", "hospital-a").code == 2
    assert fedfms("kit", "study", server, "--add-site", "hospital_a:hospital-a").code == 2
    said = fedfms("kit", "study", central.kits / "hospital-a", "segmentation").failed_with("FMS-K023")
    assert "it is the kit of hospital-a" in said


def test_another_user_writes_nothing_that_the_server_could_not_read(
    server: Path, fedfms: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = os.geteuid()
    monkeypatch.setattr("fedfms.provision.studies.os.geteuid", lambda: user + 1)
    for command in (("study", server), ("block", "hospital-a", "--server", server, "--reason", "x")):
        said = fedfms("kit", *command).failed_with("FMS-K006")
        assert f"belongs to user {user}, this is run by user {user + 1}" in said and "the account that runs" in said


def test_a_list_that_cannot_be_read_is_not_written_over(server: Path, fedfms: Command) -> None:
    path = changed_studies_file(open_server(server))
    path.write_text('{"format_version": "1.0"')
    change = ("kit", "study", server, "segmentation", "--add-site", "hospital_a:hospital-a2")
    fedfms(*change).failed_with("FMS-K001")
    assert path.read_text() == '{"format_version": "1.0"'


def test_a_blocked_participant_is_not_added(server: Path, fedfms: Command) -> None:
    name = "hospital-d"
    block = ("kit", "block", name, "--server", server, "--reason", "no contract")
    assert fedfms(*block, "--in-advance").code == 0
    change = ("kit", "study", server, "segmentation", "--add-site", f"hospital_d:{name}")
    assert "no contract" in fedfms(*change).failed_with("FMS-K016")
    assert fedfms("kit", "unblock", name, "--server", server).code == 0
    assert fedfms(*change).code == 0
