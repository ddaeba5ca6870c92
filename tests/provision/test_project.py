"""project.yml and profile.yaml are checked in full before FLARE sees them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedfms.errors import FedfmsError
from fedfms.provision.project import load_profile, load_project
from tests.provision.federations import PROJECT, profile_content, project_content, write_yaml


def test_the_projects_own_files_are_valid() -> None:
    project = load_project(PROJECT / "provision" / "project.yml")
    profile = load_profile(PROJECT / "provision" / "profile.yaml")
    roles = [item.role for item in project.participants if item.type == "admin"]
    assert roles.count("project_admin") == 1 and roles.count("lead") == 1
    sites = {item.org for item in project.participants if item.type == "client"}
    admins = {item.org for item in project.participants if item.type == "admin" and item.role == "org_admin"}
    assert sites == admins and len(sites) == 3, "one org_admin for each site"
    assert (profile.server.host, profile.name) == (project.server.name, project.name)


def change(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def apply(content: dict[str, Any]) -> None:
        where: Any = content
        *parents, last = [int(part) if part.isdecimal() else part for part in path.split("/")]
        for part in parents:
            where = where[part]
        where[last] = value

    return apply


WRONG = [
    ("api_version", change("api_version", 3), "4"),
    ("name", change("name", "a/b"), "write a"),
    ("server's name", change("participants/0/name", "no host"), "write a"),
    ("name too long for a certificate", change("participants/0/name", "x" * 65), "64"),
    ("port", change("participants/0/fed_learn_port", 70000), "65535"),
    ("port as text", change("participants/0/fed_learn_port", "8002"), "integer"),
    ("unknown key", change("participants/1/allow_log_streaming", True), "unknown key"),
    ("site's name", change("participants/1/name", "hospital.a"), "write a"),
    ("person's name", change("participants/4/name", "admin"), "write an e-mail address"),
    ("role", change("participants/4/role", "chief"), "project_admin"),
    ("org", change("participants/1/org", "hospital-a"), "letters, digits and '_'"),
    ("type", change("participants/1/type", "relay"), "relay"),
    ("name twice", change("participants/2/name", "hospital-a"), "more than once"),
    ("no server", lambda content: content["participants"].pop(0), "expected one server, found 0"),
    ("no lead", change("participants/5/role", "member"), "nobody could submit a job"),
    ("no project_admin", change("participants/4/role", "member"), "block a site"),
    ("builder missing", lambda content: content["builders"].pop(), "CertBuilder once, found 0"),
    ("no mutual TLS", change("builders/1/args/connection_security", "tls"), "only mtls"),
    ("study default", lambda content: content["studies"].update(default={"site_orgs": {}}), "FLARE's own"),
    ("study's org", change("studies/segmentation/site_orgs", {"nobody": []}), "no participant belongs to nobody"),
    ("study's site", change("studies/segmentation/site_orgs/hospital_a", ["x"]), "x is not a participant"),
    ("site under another org", change("studies/segmentation/site_orgs/hospital_a", ["hospital-b"]), "belongs to"),
    ("study's person", change("studies/segmentation/admins", ["x@example.org"]), "x@example.org is no"),
]


@pytest.mark.parametrize(("apply", "said"), [item[1:] for item in WRONG], ids=[item[0] for item in WRONG])
def test_a_wrong_project_is_refused(apply: Callable[[dict[str, Any]], None], said: str, tmp_path: Path) -> None:
    content = copy.deepcopy(project_content())
    apply(content)
    with pytest.raises(FedfmsError, match="FMS-K003") as caught:
        load_project(write_yaml(tmp_path / "project.yml", content))
    assert said in str(caught.value)


def test_all_problems_stand_in_one_message(tmp_path: Path) -> None:
    content = project_content(name="a b")
    content["participants"][1]["org"] = "-"
    content["extra"] = 1
    with pytest.raises(FedfmsError) as caught:
        load_project(write_yaml(tmp_path / "project.yml", content))
    places = [problem.where.rpartition(": ")[2] for problem in caught.value.problems]
    assert set(places) == {"name", "participants.1.org", "extra"}
    roles = project_content()
    roles["participants"] = [item for item in roles["participants"] if item["type"] != "admin"]
    with pytest.raises(FedfmsError) as caught:
        load_project(write_yaml(tmp_path / "project.yml", roles))
    assert len(caught.value.problems) >= 4  # no project_admin, no lead, and two persons of the study


def test_an_unreadable_project_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FedfmsError, match="FMS-K002"):
        load_project(tmp_path / "absent.yml")
    (tmp_path / "a.yml").write_text("name: a\nname: b\n")
    with pytest.raises(FedfmsError, match="appears twice"):
        load_project(tmp_path / "a.yml")


@pytest.mark.parametrize(
    ("key", "value"),
    [("connection_security", "clear"), ("scheme", "udp"), ("server", {"host": "x"}), ("studies", {"X": {}}), ("a", 1)],
)
def test_a_wrong_profile_is_refused(key: str, value: object, tmp_path: Path) -> None:
    with pytest.raises(FedfmsError, match=f"FMS-K003 .*: {key}"):
        load_profile(write_yaml(tmp_path / "profile.yaml", profile_content(**{key: value})))
