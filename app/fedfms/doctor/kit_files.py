"""Checks of the kit's files: manifest, modes, what FLARE may load, folders to write to."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from fedfms.configuration import read_json
from fedfms.doctor.examination import Examination
from fedfms.doctor.result import Result, failed, listed, passed
from fedfms.errors import ALLOW_LIST, FOLDERS, KIT_CHANGED, KIT_MODES, KIT_UNREADABLE, FedfmsError, reason_of
from fedfms.provision.overlay import resources
from fedfms.site.kit import NOTICES_FOLDER, exposed_kit
from fedfms.site.manifest import read_manifest, verify_manifest

# FLARE takes the default where the file itself is missing.
_RESOURCES = ("resources.json", "resources.json.default")
_OURS = {
    "server": ("transfer", "store", NOTICES_FOLDER),
    "site": ("transfer", "review", "egress", NOTICES_FOLDER),
    "admin": ("transfer",),
}


def manifest(examination: Examination) -> Result:
    """No file of the kit was changed, removed or added."""
    problems = verify_manifest(examination.kit)
    if problems:
        return failed(KIT_CHANGED, listed(problems, examination))
    return passed(KIT_CHANGED, f"{len(read_manifest(examination.kit).files)} files as handed out")


def modes(examination: Examination) -> Result:
    """No other user can read or change the kit."""
    problems = exposed_kit(examination.kit)
    if problems:
        return failed(KIT_MODES, listed(problems, examination))
    return passed(KIT_MODES, "the kit is for its owner alone")


def allow_list(examination: Examination) -> Result:
    """``local/resources.json`` is exactly this package's."""
    kit = examination.kit
    expected = resources(kit.kind)
    faults = []
    for name in _RESOURCES:
        found = read_json(kit.local / name, KIT_UNREADABLE)
        faults += [f"{name}: {fault}" for fault in _differences(found, expected)]
    if faults:
        return failed(ALLOW_LIST, "; ".join(faults))
    return passed(ALLOW_LIST, f"jobs may load {len(expected['class_allow_list'])} classes, no extra setting is sent")


def _differences(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    faults = [f"extra key '{key}'" for key in found.keys() - expected.keys()]
    faults += [f"key '{key}' is missing" for key in expected.keys() - found.keys()]
    for key in sorted(found.keys() & expected.keys()):
        here, there = found[key], expected[key]
        if here == there:
            continue
        if key == "class_allow_list" and isinstance(here, list):
            faults += [f"allows {item} too" for item in here if item not in there]
            faults += [f"does not allow {item}" for item in there if item not in here]
        else:
            faults.append(f"'{key}' is not this package's")
    return sorted(faults)


def folders(examination: Examination) -> Result:
    """The folders that FLARE and this package write to are writable."""
    kit = examination.kit
    wanted = {"the kit": kit.folder, **{f"{name}/ in the kit": kit.folder / name for name in _OURS[kit.kind]}}
    cache = _cache_folder(examination) if kit.kind == "site" else None
    if cache is not None:
        wanted["compute.cache_dir"] = cache
    faults = [f"{name}: {fault}" for name, path in wanted.items() if (fault := _write_fault(path))]
    if faults:
        return failed(FOLDERS, "; ".join(faults))
    return passed(FOLDERS, f"{', '.join(wanted)} can be written to")


def _cache_folder(examination: Examination) -> Path | None:
    try:
        return examination.site.compute.cache_dir
    except FedfmsError:
        return None  # another line says so


def _write_fault(folder: Path) -> str:
    """Why a folder cannot be written to; one that does not exist yet is tried where it will be created."""
    while not (folder.exists() or folder.is_symlink()):
        folder = folder.parent
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".fedfms-doctor-") as file:
            file.write(b"x")
            file.flush()
    except OSError as error:
        return reason_of(error)
    return ""
