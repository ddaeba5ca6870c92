"""The studies that a server knows: which sites and people take part in each.

FLARE begins with ``local/study_registry.json`` of the server's kit. What changes later is in ``study_registry.json`` in
the kit's folder, and from then on only that file counts.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fedfms.access import exists
from fedfms.configuration import Strict, read_json, validated
from fedfms.errors import (
    FILE_EXPOSED,
    KIT_UNREADABLE,
    NOT_THE_SERVER,
    PROJECT_INVALID,
    STUDY_CHANGE,
    FedfmsError,
    Problem,
    fail,
    first_of,
)
from fedfms.files import locked_folder, write_json
from fedfms.provision.project import Studies, Study
from fedfms.site.blocking import refuse_blocked_at
from fedfms.site.kit import Kit, open_kit

_FILE = "study_registry.json"


class _Registry(Strict):
    """FLARE's file format."""

    format_version: Literal["1.0"]
    studies: Studies


def first_studies_file(kit: Kit) -> Path:
    """Where a server's kit has the studies that it was made with."""
    return kit.local / _FILE


def changed_studies_file(kit: Kit) -> Path:
    """Where a server's kit has its studies once they were changed."""
    return kit.folder / _FILE


def studies_file(kit: Kit) -> Path | None:
    """The file that counts for a server's kit; None if it has none, and so knows no study."""
    files = (changed_studies_file(kit), first_studies_file(kit))
    return next((path for path in files if exists(path)), None)


def read_studies(kit: Kit) -> Studies:
    """The studies of a server's kit as they are now; empty if there is no file.

    Raises:
        FedfmsError: FMS-K001 when the file cannot be read.
    """
    path = studies_file(kit)
    if path is None:
        return {}
    return validated(_Registry, read_json(path, KIT_UNREADABLE), KIT_UNREADABLE, path).studies


def members(kit: Kit) -> set[str]:
    """Names of all sites and people of a server's studies; raises FMS-K001 when the studies cannot be read."""
    return {name for study in read_studies(kit).values() for name in study.participants}


def write_studies(path: Path, studies: Studies) -> None:
    """Write a file of studies for the owner alone.

    Raises:
        FedfmsError: FMS-D011 when it cannot be written; the old one is unchanged then.
    """
    write_json(path, {"format_version": "1.0", "studies": _content(studies)})
    path.chmod(0o600)


@dataclass(frozen=True)
class StudyChange:
    """What is to change in a study.

    Attributes:
        new: Whether the study is to be registered; otherwise it must be known.
        add_sites: Organisation and name of each site that takes part from now on.
        remove_sites: Names of sites that take part no longer.
        add_people: E-mail addresses of people who may submit jobs to the study or look at it from now on.
        remove_people: E-mail addresses of people who may no longer.
    """

    new: bool = False
    add_sites: tuple[tuple[str, str], ...] = ()
    remove_sites: tuple[str, ...] = ()
    add_people: tuple[str, ...] = ()
    remove_people: tuple[str, ...] = ()


def open_server(folder: Path) -> Kit:
    """Open the server's kit, to change what the running server follows.

    Raises:
        FedfmsError: FMS-K001 or FMS-K010 if it is not a kit, FMS-K023 if it is another participant's, FMS-K006 if it
            belongs to another user: the server could not read what this one writes.
    """
    kit = open_kit(folder)
    if kit.kind != "server":
        raise fail(NOT_THE_SERVER, kit.folder, f"it is the kit of {kit.name}")
    owner, user = kit.folder.stat().st_uid, os.geteuid()
    if owner != user:
        remedy = "Give the command with the account that runs the server."
        raise fail(FILE_EXPOSED, kit.folder, f"belongs to user {owner}, this is run by user {user}", remedy)
    return kit


def change_study(kit: Kit, name: str, change: StudyChange) -> Study:
    """Register a study or change who takes part in it. A running server notices the change by itself.

    Args:
        kit: The server's kit.
        name: Name of the study.
        change: What is to change. What is so already is left as it is.

    Returns:
        The study as it is now.

    Raises:
        FedfmsError: FMS-K024 and FMS-K003 with everything that does not fit, FMS-K016 for participants that are blocked
            at the server, FMS-K001 when the present studies cannot be read, FMS-D011. Nothing was changed then.
    """
    with locked_folder(kit.folder):
        studies = read_studies(kit)
        if problems := [Problem(STUDY_CHANGE, name, text) for text in _contradictions(studies, name, change)]:
            raise FedfmsError(problems)
        refuse_blocked_at(kit, [*(site for _, site in change.add_sites), *change.add_people])
        study = _changed(studies.get(name, Study(site_orgs={})), change)
        path = changed_studies_file(kit)
        content = {"format_version": "1.0", "studies": {**_content(studies), name: study}}
        checked = validated(_Registry, content, PROJECT_INVALID, path).studies
        write_studies(path, checked)
        return checked[name]


def require_study(kit: Kit, name: str) -> Study:
    """One study of a server's kit; raises FMS-K024 if there is none of the name, FMS-K001 as `read_studies`."""
    studies = read_studies(kit)
    if name not in studies:
        raise fail(STUDY_CHANGE, name, _no_such_study(studies))
    return studies[name]


def _no_such_study(studies: Studies) -> str:
    known = f"there are {first_of(list(studies), 10)}" if studies else "there is none"
    return f"no study of this name, {known}; to register it: --new"


def _contradictions(studies: Studies, name: str, change: StudyChange) -> Iterator[str]:
    if change.new and name in studies:
        yield "it is registered already; without --new it is changed"
    if change.new and not change.add_sites:
        yield "a new study needs at least one site: --add-site ORGANISATION:SITE"
    if not change.new and name not in studies:
        yield _no_such_study(studies)
        return
    study = studies.get(name, Study(site_orgs={}))
    members = {site: organisation for organisation, sites in study.site_orgs.items() for site in sites}
    wanted: dict[str, str] = {}
    for organisation, site in change.add_sites:
        there = wanted.setdefault(site, members.get(site, organisation))
        if there != organisation:
            yield f"site {site} belongs to {there}, not to {organisation}"
    for what, asked, known in (
        ("site", change.remove_sites, members),
        ("person", change.remove_people, study.admins),
    ):
        yield from (f"{what} {item} does not take part" for item in asked if item not in known)
    added = {*(site for _, site in change.add_sites), *change.add_people}
    both = added.intersection((*change.remove_sites, *change.remove_people))
    yield from (f"{item} is to be added and removed" for item in sorted(both))


def _changed(study: Study, change: StudyChange) -> Mapping[str, object]:
    sites = {organisation: list(names) for organisation, names in study.site_orgs.items()}
    for organisation, site in change.add_sites:
        if site not in sites.setdefault(organisation, []):
            sites[organisation].append(site)
    for names in sites.values():
        names[:] = [name for name in names if name not in change.remove_sites]
    # An organisation whose last site leaves goes with it: in FLARE its org_admin could otherwise add sites again.
    left = {key for key, names in study.site_orgs.items() if set(names) & set(change.remove_sites)}
    kept = {key: names for key, names in sites.items() if names or key not in left}
    people = [name for name in dict.fromkeys((*study.admins, *change.add_people)) if name not in change.remove_people]
    return {"site_orgs": kept, "admins": people}


def _content(studies: Studies) -> dict[str, object]:
    return {name: study.model_dump(mode="json") for name, study in studies.items()}
