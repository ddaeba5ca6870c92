"""Central provisioning: all kits, later ones, renewed and blocked ones; kits do not contain the authority."""

from __future__ import annotations

import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from pathlib import Path

import pytest

from fedfms.errors import FedfmsError
from fedfms.provision import central as module
from fedfms.provision.authority import BLOCKED_FILE, STATE, open_authority
from fedfms.provision.blocking import block
from fedfms.provision.central import add_participants, provision, renew
from fedfms.provision.renewal import install_certificate
from fedfms.site.certificates import describe_certificate, load_certificate
from fedfms.site.kit import exposed_files, identity_problems, open_kit
from fedfms.site.manifest import verify_manifest
from tests.command import Command
from tests.provision.conftest import Central
from tests.provision.federations import project_content, tree, write_yaml
from tests.site.authorities import SmallAuthority

LATE = ("hospital-c", "admin@hospital-c.example.org")


def private_keys(text: str) -> set[str]:
    return set(re.findall(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?-----END", text, re.DOTALL))


def test_every_kit_holds_its_own_key_and_no_other(shared_central: Central) -> None:
    state = json.loads((shared_central.ca / STATE).read_text())
    root_key = private_keys(state["root_pri_key"])
    keys = {}
    for folder in shared_central.kits.iterdir():
        text = "".join(path.read_text() for path in folder.rglob("*") if path.is_file())
        keys[folder.name] = private_keys(text)
        assert len(keys[folder.name]) == 1 and not keys[folder.name] & root_key
    assert len(set.union(*keys.values())) == len(keys) == 7
    assert not [path for path in shared_central.kits.rglob("*") if path.name in (STATE, "rootCA.key")]


def test_the_authority_is_closed_and_says_where_to_keep_it(shared_central: Central) -> None:
    assert {path.name for path in shared_central.ca.iterdir()} == {STATE, "README.txt"}
    assert exposed_files(shared_central.ca) == []
    assert "encrypted" in (shared_central.ca / "README.txt").read_text()
    authority = open_authority(shared_central.ca)
    assert authority.project == "fedfms" and authority.root_fingerprint == shared_central.made.root_fingerprint


def test_nothing_is_left_beside_what_was_made(shared_central: Central) -> None:
    beside = {path.name for path in shared_central.kits.parent.iterdir()}
    assert beside == {"kits", "ca", "full.yml", "project.yml"}


def test_nothing_is_overwritten(central: Central, tmp_path: Path) -> None:
    before = tree(tmp_path)
    with pytest.raises(FedfmsError) as caught:
        provision(central.project, central.kits, central.ca)
    assert caught.value.ids == ("FMS-K007",) and len(caught.value.problems) == 2
    assert tree(tmp_path) == before


@pytest.mark.parametrize(("out", "ca"), [("k", "k/ca"), ("k", "k"), ("ca/k", "ca")])
def test_an_authority_inside_the_kits_is_refused(out: str, ca: str, shared_central: Central, tmp_path: Path) -> None:
    with pytest.raises(FedfmsError, match="FMS-K005"):
        provision(shared_central.project, tmp_path / out, tmp_path / ca)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_of_flare_leaves_nothing(tmp_path: Path) -> None:
    content = project_content()
    content["builders"][2]["args"]["root_valid_days"] = -1
    with pytest.raises(FedfmsError, match="root_valid_days must be a positive integer") as caught:
        provision(write_yaml(tmp_path / "project.yml", content), tmp_path / "kits", tmp_path / "ca")
    assert caught.value.ids == ("FMS-K004",)
    assert [path.name for path in tmp_path.iterdir()] == ["project.yml"]


def test_a_failure_of_the_overlay_leaves_nothing(
    shared_central: Central, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(folder: Path) -> str:
        raise OSError("no space")

    monkeypatch.setattr(module, "overlay_kit", broken)
    with pytest.raises(FedfmsError):
        provision(shared_central.project, tmp_path / "kits", tmp_path / "ca")
    assert list(tmp_path.iterdir()) == []


def test_nothing_of_the_users_own_home_is_read_or_written(
    shared_central: Central, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    provision(shared_central.project, tmp_path / "kits", tmp_path / "ca")
    assert list((tmp_path / "home").iterdir()) == []


def test_a_later_site_leaves_all_kits_as_they_are(central: Central, tmp_path: Path) -> None:
    before = tree(central.kits)
    state = open_authority(central.ca).state()
    made = add_participants(central.full_project, LATE, central.kits, central.ca)
    after = tree(central.kits)
    assert {name: after[name] for name in before} == before
    assert {name.split("/")[0] for name in set(after) - set(before)} == set(LATE)
    for folder in (kit.folder for kit in made.kits):
        assert identity_problems(open_kit(folder)) == [] == verify_manifest(open_kit(folder)) == exposed_files(folder)
    new = open_authority(central.ca).state()
    assert set(new) - set(state) == set(LATE) and {name: new[name] for name in state} == state
    assert exposed_files(central.ca) == []
    assert {path.name for path in tmp_path.iterdir()} == {"kits", "ca"}


def test_only_the_sites_named_are_added(central: Central, tmp_path: Path) -> None:
    add_participants(central.full_project, LATE[:1], tmp_path / "new", central.ca)
    assert [path.name for path in (tmp_path / "new").iterdir()] == [LATE[0]]
    assert LATE[1] not in open_authority(central.ca).participants()
    add_participants(central.full_project, LATE[1:], tmp_path / "new", central.ca)


def test_a_name_that_stands_twice_is_meant_once(central: Central, fedfms: Command, tmp_path: Path) -> None:
    new = tmp_path / "new"
    renewed = fedfms("kit", "renew", central.project, "hospital-a", "hospital-a", "--out", new, "--ca", central.ca)
    assert renewed.code == 0 and renewed.out.count("hospital-a: there") == 1
    late = (LATE[0], LATE[0])
    added = fedfms("kit", "add-site", central.full_project, *late, "--out", new, "--ca", central.ca)
    assert added.code == 0 and added.out.count("study add-site") == 1
    assert {path.name for path in new.iterdir()} == {"hospital-a", LATE[0]}


@pytest.mark.parametrize("inside", ["", "kits"])
def test_nothing_is_made_in_the_authoritys_folder(inside: str, central: Central, tmp_path: Path) -> None:
    before = tree(tmp_path)
    out = central.ca / inside
    with pytest.raises(FedfmsError, match="FMS-K005 .*outside the authority"):
        renew(central.project, ["hospital-a"], out, central.ca)
    with pytest.raises(FedfmsError, match="FMS-K005 .*outside the authority"):
        add_participants(central.full_project, LATE, out, central.ca)
    link = tmp_path / "link"
    link.symlink_to(central.ca)
    with pytest.raises(FedfmsError, match="FMS-K005"):
        renew(central.project, ["hospital-a"], link, central.ca)
    link.unlink()
    assert tree(tmp_path) == before
    # A kit that would hold the authority.
    holder = tmp_path / "new" / "hospital-a"
    holder.mkdir(parents=True)
    shutil.copytree(central.ca, holder / "ca")
    with pytest.raises(FedfmsError, match="FMS-K005 .*not contain it"):
        renew(central.project, ["hospital-a"], tmp_path / "new", holder / "ca")


def test_two_commands_at_once_lose_nothing(central: Central, tmp_path: Path) -> None:
    with ThreadPoolExecutor() as pool:
        jobs = [
            pool.submit(add_participants, central.full_project, [name], tmp_path / "new", central.ca) for name in LATE
        ]
        assert all(job.result() for job in jobs)
    assert set(LATE) <= open_authority(central.ca).participants()


def test_a_command_waits_for_the_authority(central: Central) -> None:
    authority = open_authority(central.ca)
    with ThreadPoolExecutor() as pool:
        with authority.locked():
            job = pool.submit(block, "hospital-a", "left the project", authority=authority)
            with pytest.raises(FutureTimeout):
                job.result(timeout=0.5)
            assert not authority.blocked
        job.result(timeout=10)
    assert set(authority.blocked) == {"hospital-a"}


def test_adding_says_all_that_is_wrong_at_once(central: Central, tmp_path: Path) -> None:
    with pytest.raises(FedfmsError) as caught:
        add_participants(central.project, ["hospital-a", "hospital-x"], tmp_path / "new", central.ca)
    assert [problem.where for problem in caught.value.problems] == ["hospital-a", "hospital-x"]
    assert caught.value.ids == ("FMS-K017",) and not (tmp_path / "new").exists()


def test_a_certificate_is_renewed_into_a_kit_that_is_in_use(central: Central, kit: Path, tmp_path: Path) -> None:
    (kit / "local" / "site.yaml").write_text("datasets: [mine]")
    (kit / "log.txt").write_text("kept")
    before, old = tree(kit), open_kit(kit)
    others = {name: entry for name, entry in open_authority(central.ca).state().items() if name != "hospital-a"}
    made = renew(central.project, ["hospital-a"], tmp_path / "new", central.ca)
    assert {path.name for path in made.kits[0].folder.iterdir()} == {"client.crt", "client.key", "rootCA.pem"}
    assert exposed_files(tmp_path / "new" / "hospital-a") == []
    result = install_certificate(kit, made.kits[0].folder)
    after = tree(kit)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"startup/client.key", "startup/client.crt", "manifest.json"} and set(before) == set(after)
    assert result.after.not_after > result.before.not_after
    assert result.after.fingerprint == describe_certificate(load_certificate(old.certificate_file)).fingerprint
    assert identity_problems(old) == [] == verify_manifest(old) == exposed_files(kit / "startup", kit / "local")
    state = open_authority(central.ca).state()
    assert {name: entry for name, entry in state.items() if name != "hospital-a"} == others
    # The next renewal starts from this one.
    renew(central.project, ["hospital-a"], tmp_path / "next", central.ca)


def test_a_renewal_interrupted_after_any_step_is_repaired_by_another_try(
    central: Central, kit: Path, tmp_path: Path
) -> None:
    source = renew(central.project, ["hospital-a"], tmp_path / "new", central.ca).kits[0].folder
    fresh = tree(kit)
    for steps in (["left over"], ["client.key"], ["client.key", "client.crt"]):
        for name, (content, _) in fresh.items():
            (kit / name).write_bytes(content)
        for step in steps:
            if step == "left over":
                (kit / "startup" / ".client.key.1.ab.tmp").write_text("half a key")
            else:
                shutil.copy(source / step, kit / "startup" / step)
        assert verify_manifest(open_kit(kit)), "not as it was"
        install_certificate(kit, source)
        assert identity_problems(open_kit(kit)) == [] == verify_manifest(open_kit(kit))
        assert set(tree(kit)) == set(fresh)
    before = tree(kit)
    with pytest.raises(FedfmsError, match="is valid until"):
        install_certificate(kit, source)
    assert tree(kit) == before, "it is done, there is nothing to repair"


def test_a_renewal_does_not_cover_up_a_changed_file(central: Central, kit: Path, tmp_path: Path) -> None:
    source = renew(central.project, ["hospital-a"], tmp_path / "new", central.ca).kits[0].folder
    (kit / "local" / "privacy.json").write_text("{}")
    before = tree(kit)
    with pytest.raises(FedfmsError, match="FMS-K013"):
        install_certificate(kit, source)
    assert tree(kit) == before


def test_another_participants_certificate_is_not_installed(central: Central, kit: Path, tmp_path: Path) -> None:
    source = renew(central.project, ["hospital-b"], tmp_path / "new", central.ca).kits[0].folder
    before = tree(kit)
    with pytest.raises(FedfmsError) as caught:
        install_certificate(kit, source)
    text = str(caught.value)
    assert "name is hospital-b" in text and "organisation is hospital_b" in text
    assert tree(kit) == before


def test_another_authoritys_certificate_is_not_installed(kit: Path, tmp_path: Path) -> None:
    source = SmallAuthority("fedfms").issue(tmp_path / "new", days=(-10_000, 10_000))
    with pytest.raises(FedfmsError) as caught:
        install_certificate(kit, source)
    assert "FMS-K008" in caught.value.ids


def test_the_same_certificate_again_is_no_renewal(kit: Path, tmp_path: Path) -> None:
    shutil.copytree(kit / "startup", tmp_path / "same")
    with pytest.raises(FedfmsError, match="FMS-K010 .*is valid until"):
        install_certificate(kit, tmp_path / "same")


def test_a_blocked_participant_gets_no_certificate(central: Central, fedfms: Command, tmp_path: Path) -> None:
    result = fedfms("kit", "block", "hospital-a", "--ca", central.ca, "--reason", "left the project")
    assert result.code == 0 and "disable-client hospital-a" in result.out
    person = fedfms("kit", "block", "lead@example.org", "--ca", central.ca, "--reason", "key lost").out
    assert "fedfms kit block lead@example.org --server KIT" in person and "disable-client" not in person
    late = ("kit", "block", "hospital-c", "--ca", central.ca, "--reason", "no contract")
    assert "--in-advance" in fedfms(*late).failed_with("FMS-K017")
    assert set(open_authority(central.ca).blocked) == {"hospital-a", "lead@example.org"}
    assert fedfms(*late, "--in-advance").code == 0
    assert exposed_files(central.ca / BLOCKED_FILE) == []
    with pytest.raises(FedfmsError, match="FMS-K016 hospital-a: .*left the project"):
        renew(central.project, ["hospital-a"], tmp_path / "new", central.ca)
    with pytest.raises(FedfmsError, match="FMS-K016 hospital-c"):
        add_participants(central.full_project, LATE, tmp_path / "new", central.ca)
    renew(central.project, ["hospital-b"], tmp_path / "new", central.ca)


def test_kit_bar_is_an_old_name_of_kit_block(central: Central, fedfms: Command) -> None:
    arguments = ("hospital-a", "--ca", central.ca, "--reason", "left the project")
    old = fedfms("kit", "bar", *arguments)
    assert old.code == 0 and old.err == "'fedfms kit bar' is now called 'fedfms kit block'\n"
    assert open_authority(central.ca).blocked["hospital-a"].reason == "left the project"
    new = fedfms("kit", "block", *arguments)
    assert (new.out, new.err) == (old.out, "")
    listed = fedfms("kit", "--help").out
    assert re.search(r"\bblock\b", listed) and not re.search(r"\bbar\b", listed)
    assert "--in-advance" in fedfms("kit", "bar", "hospital-z", *arguments[1:]).failed_with("FMS-K017")
    assert fedfms("kit", "bar", "hospital-z", *arguments[1:], "--in-advance").code == 0


@pytest.mark.parametrize(
    ("name", "reason", "identifier"),
    [
        ("", "left", "FMS-K003"),
        ("hospital a", "left", "FMS-K003"),
        ("hospital-a", " ", "FMS-K003"),
        ("hospital-A", "left", "FMS-K017"),
        ("root_cert", "left", "FMS-K017"),
    ],
)
def test_nobody_is_blocked_by_mistake(
    name: str, reason: str, identifier: str, central: Central, fedfms: Command
) -> None:
    fedfms("kit", "block", name, "--ca", central.ca, "--reason", reason).failed_with(identifier)
    assert not (central.ca / BLOCKED_FILE).exists()


def test_an_authority_that_others_can_read_is_not_used(central: Central, tmp_path: Path) -> None:
    (central.ca / STATE).chmod(0o640)
    with pytest.raises(FedfmsError, match="FMS-K006 .*0640"):
        renew(central.project, ["hospital-a"], tmp_path / "new", central.ca)


def test_another_projects_authority_is_not_used(central: Central, tmp_path: Path) -> None:
    other = write_yaml(tmp_path / "other.yml", project_content(name="other"))
    with pytest.raises(FedfmsError, match="FMS-K005 .*belongs to project fedfms"):
        renew(other, ["hospital-a"], tmp_path / "new", central.ca)
    with pytest.raises(FedfmsError, match="FMS-K005"):
        renew(central.project, ["hospital-a"], tmp_path / "new", central.kits)


def test_the_commands_say_what_to_do_next(central: Central, fedfms: Command, tmp_path: Path) -> None:
    added = fedfms("kit", "add-site", central.full_project, *LATE, "--out", central.kits, "--ca", central.ca)
    assert added.code == 0
    assert "nvflare study add-site segmentation --site-org hospital_c:hospital-c" in added.out
    assert "fedfms kit study KIT segmentation --add-site hospital_c:hospital-c" in added.out
    new = tmp_path / "new"
    renewed = fedfms("kit", "renew", central.project, "hospital-a", "--out", new, "--ca", central.ca)
    assert renewed.code == 0 and "fedfms kit install" in renewed.out
    installed = fedfms("kit", "install", central.kits / "hospital-a", new / "hospital-a")
    assert installed.code == 0 and "until" in installed.out
    refused = fedfms("kit", "provision", central.project, "--out", central.kits, "--ca", central.ca)
    refused.failed_with("FMS-K007")


def test_a_new_lead_is_told_how_to_get_into_the_study(central: Central, fedfms: Command, tmp_path: Path) -> None:
    content = project_content()
    person = {"name": "second@example.org", "type": "admin", "org": "coordinator", "role": "lead"}
    content["participants"].append(person)
    content["studies"]["segmentation"]["admins"].append(person["name"])
    project = write_yaml(tmp_path / "more.yml", content)
    added = fedfms("kit", "add-site", project, person["name"], "--out", tmp_path / "new", "--ca", central.ca)
    assert added.code == 0 and "nvflare study add-user segmentation second@example.org" in added.out
    assert "fedfms kit study KIT segmentation --add-person second@example.org" in added.out


def test_verify_prints_expiry_and_ends_with_1_after_a_change(kit: Path, fedfms: Command) -> None:
    good = fedfms("kit", "verify", kit, "--json")
    content = good.json()
    assert good.code == 0 and content["problems"] == []
    assert 350 < content["certificate_days_left"] < 361 and content["server"].startswith("localhost:")
    assert fedfms("kit", "verify", kit).code == 0
    (kit / "startup" / "start.sh").chmod(0o755)
    (kit / "local" / "resources.json").unlink()
    fedfms("kit", "verify", kit).failed_with("FMS-K006", "FMS-K014")
    bad = fedfms("kit", "verify", kit, "--json")
    assert bad.code == 1 and len(bad.json()["problems"]) == 2
    (kit / "manifest.json").unlink()
    fedfms("kit", "verify", kit).failed_with("FMS-K012")


def test_a_kit_without_one_of_its_folders(kit: Path, fedfms: Command) -> None:
    shutil.rmtree(kit / "local")
    fedfms("kit", "verify", kit).failed_with("FMS-K014")


def test_verify_compares_the_manifests_own_digest(central: Central, kit: Path, fedfms: Command, tmp_path: Path) -> None:
    """Who can write into the kit can write a manifest for it; the digest that was kept elsewhere tells."""
    digest = next(made.manifest_sha256 for made in central.made.kits if made.folder.name == "hospital-a")
    assert fedfms("kit", "verify", kit, "--manifest-sha256", digest.upper()).code == 0
    assert fedfms("kit", "verify", kit, "--manifest-sha256", digest[:-1]).code == 2
    renew(central.project, ["hospital-a"], tmp_path / "new", central.ca)
    installed = fedfms("kit", "install", kit, tmp_path / "new" / "hospital-a")
    assert fedfms("kit", "verify", kit).code == 0
    fedfms("kit", "verify", kit, "--manifest-sha256", digest).failed_with("FMS-K013", "manifest.json", digest)
    new = installed.out.partition("manifest SHA-256 ")[2].split()[0]
    assert fedfms("kit", "verify", kit, "--manifest-sha256", new).code == 0
