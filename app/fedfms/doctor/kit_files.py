"""Checks of the kit's files: manifest, modes, what FLARE may load, folders to write to."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedfms.access import refusal, walk, why_unwritable
from fedfms.configuration import read_json
from fedfms.doctor.examination import Examination
from fedfms.doctor.result import Result, failed, listed, passed, warned
from fedfms.errors import (
    ALLOW_LIST,
    FILE_REFUSED,
    FOLDERS,
    KIT_CHANGED,
    KIT_MODES,
    KIT_UNREADABLE,
    STUDIES,
    FedfmsError,
    Problem,
    first_of,
)
from fedfms.provision.overlay import resources
from fedfms.provision.studies import read_studies, studies_file
from fedfms.site.blocking import read_server_blocks
from fedfms.site.kit import NOTICES_FOLDER, Kit, exposed_kit
from fedfms.site.manifest import editor_copies, read_manifest, verify_manifest

# FLARE takes the default where the file itself is missing.
_RESOURCES = ("resources.json", "resources.json.default")
_OURS = {
    "server": ("transfer", "store", NOTICES_FOLDER),
    "site": ("transfer", "review", "egress", NOTICES_FOLDER),
    "admin": ("transfer",),
}
#: Folders whose files the site's own process reads and appends to.
_RECORDS = ("review", "egress")
_OWN_RECORDS = "Give the records back to the account that runs the kit: 'sudo chown -R ACCOUNT KIT/review KIT/egress'."
_SHOWN = 5


def manifest(examination: Examination) -> list[Result]:
    """No file of the kit was changed, removed or added."""
    problems = verify_manifest(examination.kit)
    if problems:
        refused = all(problem.kind is FILE_REFUSED for problem in problems)
        return [failed(KIT_CHANGED, listed(problems, examination), FILE_REFUSED.remedy if refused else None)]
    if copies := editor_copies(examination.kit):
        names = first_of([path.relative_to(examination.kit.folder) for path in copies], _SHOWN)
        return [warned(KIT_CHANGED, f"an editor's copy: {names}", "Move it out of local/; it is not an incident.")]
    return [passed(KIT_CHANGED, f"{len(read_manifest(examination.kit).files)} files as handed out")]


def modes(examination: Examination) -> Result:
    """No other user can read or change the kit."""
    problems = exposed_kit(examination.kit)
    if problems:
        own = [KIT_MODES.remedy] if any(problem.remedy is None for problem in problems) else []
        return failed(KIT_MODES, listed(problems, examination), " ".join([*_distinct_remedies(problems), *own]))
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


def studies(examination: Examination) -> Result:
    """At a server: the studies to which jobs can be submitted, and who is blocked."""
    kit = examination.kit
    blocked = read_server_blocks(kit)
    if studies_file(kit) is None:
        return failed(STUDIES, "the kit has no list of studies: it was packaged without --profile")
    found = read_studies(kit)
    if not found:
        return warned(STUDIES, "the list of studies is empty: only jobs without --study are accepted")
    texts = [f"{name} ({sum(map(len, study.site_orgs.values()))} sites)" for name, study in found.items()]
    kept_out = f"; blocked: {first_of(list(blocked), _SHOWN)}" if blocked else ""
    return passed(STUDIES, f"{first_of(texts, _SHOWN)}{kept_out}")


def folders(examination: Examination) -> Result:
    """The folders that FLARE and this package write to are writable."""
    kit = examination.kit
    wanted = {"the kit": kit.folder, **{f"{name}/ in the kit": kit.folder / name for name in _OURS[kit.kind]}}
    cache = _cache_folder(examination) if kit.kind == "site" else None
    if cache is not None:
        wanted["compute.cache_dir"] = cache
    faults = [problem for name, path in wanted.items() for problem in _write_faults(name, path)]
    if kit.kind == "site":
        faults += [problem for name in _RECORDS for problem in _record_faults(kit, name)]
    if faults:
        text = first_of([f"{item.where}: {item.detail}" for item in faults], _SHOWN, "; ")
        return failed(FOLDERS, text, " ".join(_distinct_remedies(faults)))
    return passed(FOLDERS, f"{', '.join(wanted)} can be written to")


def _distinct_remedies(problems: Iterable[Problem]) -> list[str]:
    return list(dict.fromkeys(item.remedy for item in problems if item.remedy is not None))


def _cache_folder(examination: Examination) -> Path | None:
    try:
        return examination.site.compute.cache_dir
    except FedfmsError:
        return None  # another line says so


def _write_faults(name: str, folder: Path) -> list[Problem]:
    """Why a folder cannot be written to; one that does not exist yet is tried where it will be created."""
    while not os.path.lexists(folder):
        folder = folder.parent
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".fedfms-doctor-") as file:
            file.write(b"x")
            file.flush()
    except OSError as error:
        return [Problem(FOLDERS, name, *why_unwritable(folder, error))]
    return []


def _record_faults(kit: Kit, name: str) -> list[Problem]:
    """Records that this account cannot read or write, such as those of a command that was run as root."""
    hidden: list[Problem] = []
    files = [path for path in walk(kit.folder / name, hidden) if not path.is_symlink() and not path.is_dir()]
    faults = [replace(item, where=f"{name}/", remedy=_OWN_RECORDS) for item in hidden]
    for path in files:
        where = path.relative_to(kit.folder).as_posix()
        if (refused := refusal(path)) is not None:
            faults.append(Problem(FOLDERS, where, refused.detail, _OWN_RECORDS))
            continue
        try:
            os.close(os.open(path, os.O_WRONLY))
        except PermissionError as error:
            faults.append(Problem(FOLDERS, where, why_unwritable(path, error)[0], _OWN_RECORDS))
        except OSError as error:
            faults.append(Problem(FOLDERS, where, *why_unwritable(path, error)))
    return faults
