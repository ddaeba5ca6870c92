"""A changed, missing or added file of a kit is seen; what the site edits is not compared."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedfms.errors import FedfmsError
from fedfms.site.kit import Kit, ServerAddress
from fedfms.site.manifest import MANIFEST, read_manifest, replace_entries, verify_manifest, write_manifest


@pytest.fixture
def kit(tmp_path: Path) -> Kit:
    for name in ("startup/client.key", "startup/sub/a.txt", "local/site.yaml", "local/privacy.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    found = Kit(tmp_path, "site", "a", "o", "p", ServerAddress(host="h", port=1, identity="h"))
    write_manifest(found)
    return found


def found(kit: Kit) -> list[tuple[str, str]]:
    problems = verify_manifest(kit)
    return sorted((item.kind.id, Path(item.where).relative_to(kit.folder).as_posix()) for item in problems)


def test_an_untouched_kit_is_intact(kit: Kit) -> None:
    assert found(kit) == []
    assert set(read_manifest(kit).files) == {"startup/client.key", "startup/sub/a.txt", "local/privacy.json"}


def test_every_difference_is_listed(kit: Kit) -> None:
    (kit.startup / "client.key").write_text("other")
    (kit.local / "privacy.json").unlink()
    (kit.local / "x__resources.json").write_text("{}")
    (kit.local / "custom").mkdir()
    (kit.local / "custom" / "torch.py").write_text("")
    (kit.startup / "sub" / "link").symlink_to("nowhere")
    assert found(kit) == [
        ("FMS-K013", "startup/client.key"),
        ("FMS-K014", "local/privacy.json"),
        ("FMS-K015", "local/custom/torch.py"),
        ("FMS-K015", "local/x__resources.json"),
        ("FMS-K015", "startup/sub/link"),
    ]


def test_a_link_in_a_files_place_is_a_change(kit: Kit, tmp_path: Path) -> None:
    path = kit.local / "privacy.json"
    path.rename(tmp_path / "elsewhere.json")
    path.symlink_to(tmp_path / "elsewhere.json")
    assert found(kit) == [("FMS-K013", "local/privacy.json")]


def test_what_the_site_edits_may_change_or_be_absent(kit: Kit) -> None:
    (kit.local / "site.yaml").unlink()
    (kit.local / "policy.yaml").write_text("new")
    (kit.folder / "log.txt").write_text("FLARE writes beside the two folders")
    assert found(kit) == []


def test_the_manifest_does_not_say_what_may_change(kit: Kit) -> None:
    """Otherwise a single line in it would let local/custom in."""
    path = kit.folder / MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), "edited_by_site": ["local/privacy.json"]}))
    with pytest.raises(FedfmsError, match="FMS-K012 .*edited_by_site"):
        verify_manifest(kit)


def test_replacing_an_entry_covers_up_no_other_change(kit: Kit) -> None:
    (kit.startup / "client.key").write_text("renewed")
    (kit.local / "privacy.json").write_text("weakened")
    replace_entries(kit, kit.startup / "client.key")
    assert found(kit) == [("FMS-K013", "local/privacy.json")]


@pytest.mark.parametrize("text", [None, "{", "[]", '{"files": {"a": "no digest"}}', "{}"])
def test_a_missing_or_damaged_manifest_is_an_error(kit: Kit, text: str | None) -> None:
    (kit.folder / MANIFEST).unlink() if text is None else (kit.folder / MANIFEST).write_text(text)
    with pytest.raises(FedfmsError, match="FMS-K012"):
        verify_manifest(kit)
