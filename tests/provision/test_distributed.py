"""Distributed provisioning: keys stay where they were made, the coordinator decides who is admitted."""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from fedfms.errors import FedfmsError
from fedfms.provision.authority import Authority, open_authority
from fedfms.provision.blocking import block
from fedfms.provision.certificate_request import Applicant, ParticipantKind, Request, read_request
from fedfms.provision.distributed import applicant_of, approve, make_authority, package, request
from fedfms.provision.renewal import renew_from_approval
from fedfms.provision.studies import read_studies, studies_file
from fedfms.site.certificates import describe_certificate, load_certificate
from fedfms.site.kit import exposed_files, identity_problems, open_kit, read_record
from fedfms.site.manifest import verify_manifest
from tests.command import Command
from tests.provision.federations import profile_content, tree, write_yaml


@dataclass
class Distributed:
    folder: Path
    profile: Path
    authority: Authority

    def request(self, name: str, org: str, kind: ParticipantKind = "site", out: str | None = None) -> Request:
        return request(Applicant("fedfms", name, org, kind), self.folder / (out or f"request-{name}"))

    def approve(self, made: Request, out: str = "signed.zip", **options: object) -> Path:
        file = self.folder / out
        given = {"host_names": made.host_names, **options}
        approve(made.file, made.applicant, self.profile, self.authority.folder, file, **given)  # type: ignore[arg-type]
        return file

    def kit(self, name: str, org: str, kind: ParticipantKind = "site") -> Path:
        made = self.request(name, org, kind)
        signed = self.approve(made, f"{name}.zip")
        profile = self.profile if kind == "server" else None
        fingerprint = self.authority.root_fingerprint
        return package(signed, made.file.parent, fingerprint, self.folder / "kits", profile).folder


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Distributed:
    """Do not change its files."""
    folder = tmp_path_factory.mktemp("distributed")
    profile = write_yaml(folder / "profile.yaml", profile_content())
    return Distributed(folder, profile, make_authority(profile, folder / "ca"))


@pytest.fixture
def federation(shared: Distributed, tmp_path: Path) -> Distributed:
    """A copy to change."""
    shutil.copytree(shared.folder / "ca", tmp_path / "ca")
    shutil.copy(shared.profile, tmp_path)
    return Distributed(tmp_path, tmp_path / "profile.yaml", open_authority(tmp_path / "ca"))


def test_the_authority_is_closed(federation: Distributed) -> None:
    assert exposed_files(federation.authority.folder) == []
    names = {path.name for path in federation.authority.folder.iterdir()}
    assert names == {"rootCA.key", "rootCA.pem", "ca.json", "README.txt"}
    with pytest.raises(FedfmsError, match="FMS-K007"):
        make_authority(federation.profile, federation.authority.folder)
    with pytest.raises(FedfmsError, match="FMS-K007 .*a file of this name exists"):
        make_authority(federation.profile, federation.profile)


@pytest.mark.parametrize(
    ("name", "org", "kind", "folder_kind"),
    [
        ("hospital-a", "hospital_a", "site", "site"),
        ("localhost", "coordinator", "server", "server"),
        ("lead@example.org", "coordinator", "lead", "admin"),
        ("it@example.org", "coordinator", "org_admin", "admin"),
    ],
)
def test_from_request_to_kit(
    federation: Distributed, name: str, org: str, kind: ParticipantKind, folder_kind: str
) -> None:
    kit = open_kit(federation.kit(name, org, kind))
    assert (kit.kind, kit.name, kit.organisation, kit.project) == (folder_kind, name, org, "fedfms")
    assert kit.server.host == "localhost"
    assert identity_problems(kit) == [] == verify_manifest(kit) == exposed_files(kit.folder)
    assert read_record(kit).root_fingerprint == federation.authority.root_fingerprint
    assert 364 < describe_certificate(load_certificate(kit.certificate_file)).days_left() <= 365
    if folder_kind == "site":
        assert {"policy.yaml", "site.yaml", "privacy.json"} <= {path.name for path in kit.local.iterdir()}
    if folder_kind == "server":
        studies = json.loads((kit.local / "study_registry.json").read_text())["studies"]
        assert studies["segmentation"]["site_orgs"]["hospital_a"] == ["hospital-a"]
    if kind != "member":
        assert applicant_of(kit) == Applicant("fedfms", name, org, kind)
    left = {path.name for path in federation.folder.iterdir()}
    assert left == {"ca", "profile.yaml", "kits", f"request-{name}", f"{name}.zip"}
    assert [path.name for path in (federation.folder / "kits").iterdir()] == [name]


def test_a_servers_kit_is_not_packaged_without_its_studies(federation: Distributed, fedfms: Command) -> None:
    """It would pass every check, start, and refuse each job of a study."""
    made = federation.request("localhost", "coordinator", "server")
    signed, kits = federation.approve(made), federation.folder / "kits"
    options = ("--request", made.file.parent, "--fingerprint", federation.authority.root_fingerprint, "--out", kits)
    said = fedfms("kit", "package", signed, *options).failed_with("FMS-K022")
    assert "--profile profile.yaml" in said and list(kits.iterdir()) == []
    other = write_yaml(federation.folder / "other.yaml", profile_content(name="other"))
    said = fedfms("kit", "package", signed, *options, "--profile", other).failed_with("FMS-K003")
    assert "is other, the certificate's is fedfms" in said and list(kits.iterdir()) == []
    none = write_yaml(federation.folder / "none.yaml", {**profile_content(), "studies": {}})
    assert fedfms("kit", "package", signed, *options, "--profile", none).code == 0
    assert read_studies(open_kit(kits / "localhost")) == {}
    assert studies_file(open_kit(kits / "localhost")) is not None, "an empty list is a decision"


def test_who_is_in_no_study_is_told_how_to_get_in(federation: Distributed, fedfms: Command) -> None:
    def approve(name: str, org: str, kind: ParticipantKind) -> str:
        made = federation.request(name, org, kind)
        options = ("--name", name, "--org", org, "--kind", kind, "--ca", federation.authority.folder)
        options = (*options, "--profile", federation.profile, "--out", federation.folder / f"{name}.zip")
        return fedfms("kit", "approve", made.file, *options).out

    assert "fedfms kit study" not in approve("hospital-a", "hospital_a", "site")
    assert "fedfms kit study KIT STUDY --add-site hospital_d:hospital-d" in approve("hospital-d", "hospital_d", "site")
    assert "fedfms kit study KIT STUDY --add-person new@example.org" in approve("new@example.org", "c", "lead")
    assert "fedfms kit study" not in approve("it@example.org", "coordinator", "org_admin")


def test_a_request_does_not_use_the_name_of_the_file_about_the_data(federation: Distributed, fedfms: Command) -> None:
    made = federation.request("hospital-a", "hospital_a")
    folder = made.file.parent
    assert {path.name for path in folder.iterdir()} == {
        "hospital-a.csr", "hospital-a.key", "hospital-a.request.zip", "participant.yaml", "request.json",
    }  # fmt: skip
    before = tree(folder)
    signed = federation.approve(made)
    options = ("--request", folder, "--fingerprint", federation.authority.root_fingerprint)
    new = fedfms("kit", "package", signed, *options, "--out", federation.folder / "kits")
    assert new.code == 0 and not new.err and tree(folder) == before
    (folder / "participant.yaml").rename(folder / "site.yaml")  # as version 0.1 wrote it
    old = fedfms("kit", "package", signed, *options, "--out", federation.folder / "others")
    assert old.code == 0 and "site.yaml: is called participant.yaml now" in old.err
    (folder / "site.yaml").unlink()
    fedfms("kit", "package", signed, *options, "--out", federation.folder / "more").failed_with("FMS-K004")
    shutil.rmtree(folder)
    said = fedfms("kit", "package", signed, *options, "--out", federation.folder / "more").failed_with("FMS-K004")
    assert "FileNotFoundError" in said


def test_no_answer_is_written_into_the_authoritys_folder(federation: Distributed) -> None:
    made = federation.request("hospital-a", "hospital_a")
    before = tree(federation.authority.folder)
    with pytest.raises(FedfmsError, match="FMS-K005 .*outside the authority"):
        federation.approve(made, "ca/signed.zip")
    assert tree(federation.authority.folder) == before


def test_the_key_never_leaves_its_folder(federation: Distributed) -> None:
    made = federation.request("hospital-a", "hospital_a")
    signed = federation.approve(made)
    key = (made.file.parent / "hospital-a.key").read_bytes()
    assert b"PRIVATE KEY" in key and exposed_files(made.file.parent) == []
    body = b"".join(key.splitlines()[1:-1])
    for archive in (made.file, signed):
        with zipfile.ZipFile(archive) as content:
            members = b"".join(content.read(name) for name in content.namelist())
        assert b"PRIVATE" not in members and body[:64] not in members.replace(b"\n", b"")
    for path in federation.authority.folder.rglob("*"):
        assert path.is_dir() or body[:64] not in path.read_bytes().replace(b"\n", b"")


def test_another_fingerprint_of_the_root_stops_packaging(federation: Distributed) -> None:
    made = federation.request("hospital-a", "hospital_a")
    signed = federation.approve(made)
    other = "SHA256:" + ":".join(["AB"] * 32)
    with pytest.raises(FedfmsError, match="FMS-K008") as caught:
        package(signed, made.file.parent, other, federation.folder / "kits")
    assert other in str(caught.value) and federation.authority.root_fingerprint in str(caught.value)
    assert "FMS-K004" not in str(caught.value) and str(caught.value).count(" -> ") == 1
    with pytest.raises(FedfmsError, match="FMS-K008"):
        package(signed, made.file.parent, "", federation.folder / "kits")
    assert not list((federation.folder / "kits").glob("*"))


def test_an_answer_of_a_false_coordinator_is_seen(federation: Distributed, tmp_path: Path) -> None:
    """Somebody between site and coordinator signs with a root of the same name."""
    made = federation.request("hospital-a", "hospital_a")
    false = make_authority(federation.profile, tmp_path / "false")
    signed = federation.folder / "false.zip"
    approve(made.file, made.applicant, federation.profile, false.folder, signed)
    with pytest.raises(FedfmsError, match="FMS-K008"):
        package(signed, made.file.parent, federation.authority.root_fingerprint, federation.folder / "kits")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": "hospital-b"}, "asks for hospital-a, expected hospital-b"),
        ({"organisation": "coordinator"}, "asks for hospital_a, expected coordinator"),
        ({"kind": "lead"}, "asks for site, expected lead"),
    ],
)
def test_a_request_for_something_else_is_not_approved(
    federation: Distributed, change: dict[str, str], said: str
) -> None:
    made = federation.request("hospital-a", "hospital_a")
    expected = replace(made.applicant, **change)  # type: ignore[arg-type]
    with pytest.raises(FedfmsError, match="FMS-K009") as caught:
        approve(made.file, expected, federation.profile, federation.authority.folder, federation.folder / "s.zip")
    assert said in str(caught.value) and not (federation.folder / "s.zip").exists()


@pytest.mark.parametrize(
    ("asked", "meant", "said"),
    [
        (["192.0.2.10"], [], "asks for 192.0.2.10, expected none"),
        ([], ["192.0.2.10"], "asks for none, expected 192.0.2.10"),
        (["b.example.org", "a.example.org"], ["a.example.org"], "asks for a.example.org, b.example.org, expected a.ex"),
    ],
)
def test_a_server_gets_no_name_that_is_not_meant(
    asked: list[str], meant: list[str], said: str, federation: Distributed, fedfms: Command
) -> None:
    """With a certificate for another host's name it could pose as that."""
    made = request(Applicant("fedfms", "localhost", "coordinator", "server"), federation.folder / "r", asked)
    options = ("--name", "localhost", "--org", "coordinator", "--kind", "server", "--ca", federation.authority.folder)
    options = (*options, "--profile", federation.profile, "--out", federation.folder / "s.zip")
    wrong = [part for name in meant for part in ("--host-name", name)]
    assert said in fedfms("kit", "approve", made.file, *options, *wrong).failed_with("FMS-K009")
    assert not (federation.folder / "s.zip").exists()
    right = fedfms("kit", "approve", made.file, *options, *(part for n in asked for part in ("--host-name", n)))
    assert right.code == 0 and ("also for: " in right.out) is bool(asked)


@pytest.mark.parametrize("text", ["[]", "participants: []", "participants: [{host_names: [1]}]", "host_names: x", "{"])
def test_a_request_with_an_unreadable_description_is_refused(text: str, federation: Distributed) -> None:
    made = federation.request("localhost", "coordinator", "server")
    forged = federation.folder / "forged.zip"
    with zipfile.ZipFile(made.file) as true, zipfile.ZipFile(forged, "w") as out:
        for name in true.namelist():
            out.writestr(name, text if name == "site.yaml" else true.read(name))
    with pytest.raises(FedfmsError, match="FMS-K009"):
        read_request(forged)


def test_a_request_exchanged_on_the_way_is_seen_by_its_key(federation: Distributed) -> None:
    theirs = federation.request("hospital-a", "hospital_a")
    exchanged = federation.request("hospital-a", "hospital_a", out="attacker")
    with pytest.raises(FedfmsError, match="FMS-K008"):
        federation.approve(exchanged, key=theirs.key)
    federation.approve(theirs, key=theirs.key.lower())


def test_a_request_whose_description_differs_from_its_signature_is_refused(federation: Distributed) -> None:
    """The description says hospital-a, the signed part asks for another organisation."""
    made = federation.request("hospital-a", "hospital_a")
    other = federation.request("hospital-a", "coordinator", out="other")
    forged = federation.folder / "forged.zip"
    with zipfile.ZipFile(made.file) as true, zipfile.ZipFile(other.file) as false, zipfile.ZipFile(forged, "w") as out:
        out.writestr("request.json", true.read("request.json"))
        out.writestr("site.yaml", true.read("site.yaml"))
        out.writestr("hospital-a.csr", false.read("hospital-a.csr"))
    assert read_request(forged).applicant.organisation == "coordinator"
    with pytest.raises(FedfmsError, match="FMS-K009"):
        federation.approve(replace(made, file=forged))


def damaged(kind: str) -> bytes:
    """A zip file whose request.json cannot be read."""
    method = zipfile.ZIP_DEFLATED if kind == "broken data" else zipfile.ZIP_STORED
    text = "[" * 200_000 if kind == "deeply nested" else json.dumps({"name": "a" * 400})
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        archive.writestr("request.json", text)
    content = bytearray(file.getvalue())
    central = content.index(b"PK\x01\x02")
    if kind == "password":
        content[6] |= 1
        content[central + 8] |= 1
    if kind == "other compression":
        content[8] = content[central + 10] = 97
    if kind == "broken data":
        start = 30 + len("request.json")
        content[start : start + 4] = b"\xff\xff\xff\xff"
    return bytes(content)


@pytest.mark.parametrize(
    "content",
    [b"", b"PK no zip", *(damaged(kind) for kind in ("password", "other compression", "broken data", "deeply nested"))],
    ids=["empty", "no zip", "password", "other compression", "broken data", "deeply nested"],
)
def test_what_is_no_request_is_refused(federation: Distributed, content: bytes) -> None:
    file = federation.folder / "x.zip"
    file.write_bytes(content)
    with pytest.raises(FedfmsError, match="FMS-K009"):
        read_request(file)


def test_a_blocked_site_is_not_approved(federation: Distributed) -> None:
    made = federation.request("hospital-a", "hospital_a")
    with pytest.raises(FedfmsError, match="FMS-K017 hospital-a"):
        block("hospital-a", "left the project", authority=federation.authority)
    federation.approve(made)
    block("hospital-a", "left the project", authority=federation.authority)
    with pytest.raises(FedfmsError, match="FMS-K016"):
        federation.approve(made, "again.zip")


def test_the_coordinators_record_of_approvals_is_kept_with_the_authority(federation: Distributed) -> None:
    federation.approve(federation.request("hospital-a", "hospital_a"))
    records = list((federation.authority.folder / "approvals").glob("*.json"))
    assert len(records) == 1 and json.loads(records[0].read_text())["approval"]["name"] == "hospital-a"
    assert exposed_files(federation.authority.folder) == []


def test_all_wrong_values_of_a_request_stand_in_one_message(tmp_path: Path) -> None:
    applicant = Applicant("a b", "hospital.a", "-", "site")
    with pytest.raises(FedfmsError) as caught:
        request(applicant, tmp_path / "r", ["x.example.org"])
    assert [problem.where for problem in caught.value.problems] == ["project", "name", "organisation", "host_names"]
    assert list(tmp_path.iterdir()) == []


def test_the_coordinators_versions_come_into_the_kit(federation: Distributed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the site's own machine would always agree with themselves."""
    versions = {"fedfms": "9.9.9", "nvflare": "9.9.8"}
    made = federation.request("hospital-a", "hospital_a")
    with monkeypatch.context() as coordinator:
        coordinator.setattr("fedfms.provision.distributed.package_versions", lambda: versions)
        signed = federation.approve(made)
    root = federation.authority.root_fingerprint
    kit = package(signed, made.file.parent, root, federation.folder / "kits").folder
    assert read_record(open_kit(kit)).packages == versions
    silent, false = federation.folder / "silent.zip", federation.folder / "false.zip"
    with zipfile.ZipFile(signed) as told, zipfile.ZipFile(silent, "w") as less, zipfile.ZipFile(false, "w") as other:
        for name in told.namelist():
            if name != "packages.json":
                less.writestr(name, told.read(name))
            other.writestr(name, "[1]" if name == "packages.json" else told.read(name))
    kit = package(silent, made.file.parent, root, federation.folder / "others").folder
    assert read_record(open_kit(kit)).packages == {}
    with pytest.raises(FedfmsError, match="FMS-K004"):
        package(false, made.file.parent, root, federation.folder / "more")


def test_a_certificate_is_renewed_with_a_new_key(federation: Distributed) -> None:
    made = federation.request("hospital-a", "hospital_a")
    kit = package(
        federation.approve(made, valid_days=10), made.file.parent, federation.authority.root_fingerprint,
        federation.folder / "kits",
    ).folder  # fmt: skip
    (kit / "local" / "policy.yaml").write_text("mine: true")
    before = tree(kit)
    again = request(applicant_of(open_kit(kit)), federation.folder / "again")
    assert again.key != made.key
    signed = federation.approve(again, "again.zip")
    result = renew_from_approval(kit, signed, again.file.parent, federation.authority.root_fingerprint)
    after = tree(kit)
    assert {name for name in before if before[name] != after[name]} == {
        "startup/client.key", "startup/client.crt", "manifest.json",
    }  # fmt: skip
    assert set(after) == set(before)
    assert result.after.days_left() - result.before.days_left() == pytest.approx(355, abs=0.1)
    assert identity_problems(open_kit(kit)) == [] == verify_manifest(open_kit(kit))
    assert [path.name for path in (federation.folder / "kits").iterdir()] == ["hospital-a"]


def test_a_servers_further_names_stand_in_its_certificate(federation: Distributed) -> None:
    applicant = Applicant("fedfms", "localhost", "coordinator", "server")
    made = request(applicant, federation.folder / "r", ["192.0.2.10", "fl.example.org"])
    root = federation.authority.root_fingerprint
    kits = federation.folder / "kits"
    kit = package(federation.approve(made), made.file.parent, root, kits, federation.profile).folder
    names = describe_certificate(load_certificate(open_kit(kit).certificate_file)).host_names
    assert set(names) == {"localhost", "192.0.2.10", "fl.example.org"}


def test_a_renewed_server_keeps_its_further_names(federation: Distributed, fedfms: Command) -> None:
    applicant = Applicant("fedfms", "localhost", "coordinator", "server")
    made = request(applicant, federation.folder / "r", ["192.0.2.10", "fl.example.org"])
    root = federation.authority.root_fingerprint
    signed = federation.approve(made, valid_days=10)
    kit = package(signed, made.file.parent, root, federation.folder / "kits", federation.profile).folder
    before = tree(kit)
    less = request(applicant, federation.folder / "less", ["192.0.2.10"])
    with pytest.raises(FedfmsError, match="FMS-K010 .*not for fl.example.org, for which"):
        renew_from_approval(kit, federation.approve(less, "less.zip"), less.file.parent, root)
    assert tree(kit) == before
    again = federation.folder / "again"
    asked = fedfms("kit", "request", "--renew", kit, "--host-name", "192.0.2.11", "--out", again)
    assert asked.code == 0, asked.err
    signed = federation.approve(read_request(again / "localhost.request.zip"), "again.zip")
    facts = renew_from_approval(kit, signed, again, root).after
    assert set(facts.host_names) == {"localhost", "192.0.2.10", "192.0.2.11", "fl.example.org"}


def test_through_the_commands(federation: Distributed, fedfms: Command) -> None:
    folder, ca, profile = federation.folder, federation.authority.folder, federation.profile
    asked = fedfms("kit", "request", "hospital-a", "--org", "hospital_a", "--project", "fedfms", "--out", folder / "r")
    assert asked.code == 0
    key = next(line.removeprefix("key: ") for line in asked.out.splitlines() if line.startswith("key: "))
    options = ("--name", "hospital-a", "--org", "hospital_a", "--ca", ca, "--profile", profile)
    zipped = folder / "r" / "hospital-a.request.zip"
    unsure = fedfms("kit", "approve", zipped, *options, "--out", folder / "unsure.zip")
    assert unsure.code == 0 and "NOT compared" in unsure.err
    signed = folder / "signed.zip"
    approved = fedfms("kit", "approve", zipped, *options, "--out", signed, "--key", key)
    assert approved.code == 0 and key in approved.out and not approved.err
    root = federation.authority.root_fingerprint
    packed = fedfms("kit", "package", signed, "--request", folder / "r", "--fingerprint", root, "--out", folder / "k")
    assert packed.code == 0 and "delete" in packed.out
    kit = folder / "k" / "hospital-a"
    assert fedfms("kit", "request", "--renew", kit, "--out", folder / "r2").code == 0
    again = folder / "r2" / "hospital-a.request.zip"
    options = (*options, "--valid-days", 400)
    assert fedfms("kit", "approve", again, *options, "--out", folder / "s2.zip").code == 0
    into = ("--request", folder / "r2", "--fingerprint", root, "--into", kit)
    assert fedfms("kit", "package", folder / "s2.zip", *into).code == 0
    assert fedfms("kit", "verify", kit).code == 0
    assert fedfms("kit", "request", "--out", folder / "r3").code == 2
    assert fedfms("kit", "package", signed, "--request", folder / "r", "--fingerprint", root).code == 2
