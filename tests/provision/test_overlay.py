"""What is added to FLARE's kits: the same allow-list as in the simulator, closed defaults, modes, a manifest."""

from __future__ import annotations

import json
import stat
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedfms.errors import FedfmsError
from fedfms.provision.certificate_request import KINDS
from fedfms.provision.overlay import _RIGHTS, overlay_kit, package_versions
from fedfms.sam.backbones import published_sha256
from fedfms.site.allowed_classes import SERVER_CLASSES, SITE_CLASSES
from fedfms.site.certificates import describe_certificate, load_certificate
from fedfms.site.kit import exposed_files, identity_problems, open_kit, read_record
from fedfms.site.manifest import EDITED, read_manifest, verify_manifest
from tests.provision.conftest import Central
from tests.provision.federations import PROJECT

LOCAL = PROJECT / "simulator_workspace" / "local"


def content(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


@pytest.mark.parametrize("name", ["hospital-a", "hospital-b", "localhost"])
def test_a_kit_allows_the_classes_of_its_side_alone(shared_central: Central, name: str) -> None:
    local = shared_central.kits / name / "local"
    for file in ("resources.json", "resources.json.default"):
        kit = content(local / file)
        assert kit["class_allow_list"] == list(SERVER_CLASSES if name == "localhost" else SITE_CLASSES)
        assert kit["class_list_enforcement_mode"] == "enforce"


def test_a_site_streams_no_logs_and_tells_the_server_nothing_more(shared_central: Central) -> None:
    from nvflare.private.fed.utils.site_config import project_site_config

    kit = content(shared_central.kits / "hospital-a" / "local" / "resources.json")
    assert project_site_config(kit) == {"allow_log_streaming": False}, "what FLARE sends of it to the server"
    assert not any("log" in component["path"].lower() for component in kit["components"])


def test_the_exit_gate_stands_in_every_sites_privacy_file(shared_central: Central) -> None:
    simulator = content(LOCAL / "privacy.json")
    kit = content(shared_central.kits / "hospital-a" / "local" / "privacy.json")
    assert kit["scopes"] == simulator["scopes"] and kit["default_scope"] == simulator["default_scope"]
    gates = [component["path"] for component in kit["components"]]
    assert gates == [component["path"] for component in simulator["components"]]
    assert "full" not in json.dumps(kit), "a real site starts with the smaller scopes"


def test_the_servers_store_is_in_its_own_kit(shared_central: Central) -> None:
    text = (shared_central.kits / "localhost" / "local" / "resources.json").read_text()
    assert tempfile.gettempdir() not in text
    assert text.count("{$FEDFMS_STORE}/") == 2
    assert "FEDFMS_STORE=" in (shared_central.kits / "localhost" / "startup" / "start.sh").read_text()


def test_no_default_of_flare_is_left_that_is_weaker(shared_central: Central) -> None:
    local = shared_central.kits / "hospital-a" / "local"
    assert {path.name for path in local.iterdir()} == {
        "authorization.json", "authorization.json.default", "kit.json", "log_config.json.default", "notify.yaml",
        "policy.yaml", "privacy.json", "resources.json", "resources.json.default", "site.yaml",
    }  # fmt: skip
    for name in ("authorization.json", "resources.json"):
        assert (local / name).read_bytes() == (local / f"{name}.default").read_bytes()


def test_a_site_without_description_takes_part_in_nothing(shared_central: Central) -> None:
    from fedfms.data.description.site import load_site

    with pytest.raises(FedfmsError, match="FMS-D001"):
        load_site(shared_central.kits / "hospital-a" / "local" / "site.yaml")


def test_the_site_template_is_valid_once_uncommented(shared_central: Central, tmp_path: Path) -> None:
    from fedfms.data.description.site import load_site

    lines = (shared_central.kits / "hospital-a" / "local" / "site.yaml").read_text().splitlines()
    start = lines.index("# compute:")
    (tmp_path / "site.yaml").write_text("\n".join(line[2:] for line in lines[start:]))
    assert load_site(tmp_path / "site.yaml").datasets[0].task == "liver"


def test_the_policy_template_is_cautious(shared_central: Central) -> None:
    policy = yaml.safe_load((shared_central.kits / "hospital-a" / "local" / "policy.yaml").read_text())
    keys = (
        "scopes backbones update_norm_limit min_training_cases min_slices_per_update "
        "metrics max_rounds max_hours review"
    )
    assert list(policy) == keys.split()
    assert policy["scopes"] == ["adapters+decoder", "decoder"]
    assert policy["backbones"] == [published_sha256(name) for name in ("vit_t", "vit_b", "vit_l", "vit_h")]
    assert policy["review"]["rule"] == "required"


def test_a_kit_says_what_it_was_made_for(shared_central: Central) -> None:
    for folder in shared_central.kits.iterdir():
        kit = open_kit(folder)
        record = read_record(kit)
        assert (record.project, record.name, record.server) == ("fedfms", folder.name, kit.server)
        assert record.root_fingerprint == shared_central.made.root_fingerprint
        assert describe_certificate(load_certificate(kit.root_file)).fingerprint == record.root_fingerprint
        assert record.packages == package_versions() and {"fedfms", "nvflare"} <= set(record.packages)
        assert record.server.identity == record.server.host == "localhost"
        assert str(shared_central.kits) not in (folder / "local" / "kit.json").read_text()


def test_every_kit_is_closed_to_others_and_intact(shared_central: Central) -> None:
    kits = list(shared_central.kits.iterdir())
    assert {open_kit(folder).kind for folder in kits} == {"site", "server", "admin"}
    for folder in kits:
        kit = open_kit(folder)
        assert exposed_files(folder) == [] == verify_manifest(kit) == identity_problems(kit)
        scripts = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*.sh")}
        assert scripts and set(scripts.values()) == {0o700}
    assert exposed_files(shared_central.ca) == []


def test_the_manifest_leaves_to_the_site_what_is_the_sites(shared_central: Central) -> None:
    manifest = read_manifest(open_kit(shared_central.kits / "hospital-a"))
    assert EDITED["site"] == ("local/notify.yaml", "local/policy.yaml", "local/site.yaml")
    assert EDITED["server"] == ("local/notify.yaml",) and EDITED["admin"] == ()
    assert not set(EDITED["site"]) & set(manifest.files)
    assert {"startup/client.key", "startup/start.sh", "local/privacy.json", "local/kit.json"} <= set(manifest.files)
    digests = {kit.folder.name: kit.manifest_sha256 for kit in shared_central.made.kits}
    printed = subprocess.run(
        ["sha256sum", shared_central.kits / "hospital-a" / "manifest.json"], capture_output=True, text=True, check=True
    )
    assert printed.stdout.split()[0] == digests["hospital-a"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("hospital-a", ["site hospital-a, project fedfms", "fedfms egress JOB", "stop_fl.sh"]),
        ("localhost", ["server localhost, project fedfms", "fedfms kit study .", "stop_fl.sh"]),
        ("lead@example.org", ["lead@example.org (lead)", "the role lead may do: submit jobs"]),
        ("admin@example.org", ["(project_admin)", "the role project_admin may do: stop jobs and the server"]),
        ("admin@hospital-a.example.org", ["(org_admin)", "the role org_admin may do: stop and start the own sites"]),
    ],
)
def test_the_readme_says_what_the_kit_is_for(shared_central: Central, name: str, words: list[str]) -> None:
    text = (shared_central.kits / name / "readme.txt").read_text()
    assert all(word in text for word in words) and len(text.splitlines()) < 25
    assert f"localhost:{open_kit(shared_central.kits / name).server.port}" in text
    assert "*****" not in text and "safeguard" not in text, "FLARE's own"
    assert max(map(len, text.splitlines())) <= 120


def test_the_readme_has_a_line_for_every_role() -> None:
    roles = {"project_admin", *KINDS} - {"site", "server"}
    assert set(_RIGHTS) == roles


def test_a_folder_that_is_no_kit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FedfmsError, match="FMS-K001"):
        overlay_kit(tmp_path)
