"""Central provisioning: the coordinator makes all kits, with their private keys, and hands them out.

This is quick for trials, and for sites where nobody can make a request. Between hospitals the distributed way
(`fedfms.provision.distributed`) is better: no private key ever leaves its owner.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fedfms.errors import (
    ALREADY_THERE,
    AUTHORITY_UNUSABLE,
    PARTICIPANT_UNKNOWN,
    PROVISIONING_FAILED,
    FedfmsError,
    Problem,
    fail,
)
from fedfms.files import atomic_folder
from fedfms.provision.authority import STATE, Authority, finish_authority, open_authority, refuse_overlap
from fedfms.provision.flare_command import flare, private_folder
from fedfms.provision.issued import certificate_in, keep_certificate
from fedfms.provision.overlay import overlay_kit
from fedfms.provision.project import ProjectDescription, SiteParticipant, load_project
from fedfms.site.kit import restrict


@dataclass(frozen=True)
class MadeKit:
    """A kit, or a certificate to put into one, that was made.

    Attributes:
        folder: Where it is.
        manifest_sha256: SHA-256 of the kit's manifest; None for a certificate.
    """

    folder: Path
    manifest_sha256: str | None


@dataclass(frozen=True)
class Provisioned:
    """What a provisioning command made.

    Attributes:
        kits: The kits or certificates, one for each participant.
        root_fingerprint: SHA-256 fingerprint of the project's root certificate.
        authority: Folder of the certificate authority.
    """

    kits: tuple[MadeKit, ...]
    root_fingerprint: str
    authority: Path


def refuse_existing(*folders: Path) -> None:
    """Raise FMS-K007 for every path that is a file or a folder with content."""
    problems = [
        Problem(ALREADY_THERE, str(folder), "not empty" if folder.is_dir() else "a file of this name exists")
        for folder in folders
        if folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))
    ]
    if problems:
        raise FedfmsError(problems)


def provision(project_file: Path, out: Path, ca: Path) -> Provisioned:
    """Make all kits of a project, and its certificate authority.

    Args:
        project_file: ``project.yml``.
        out: Folder for the kits, one below it for each participant; must be empty or absent.
        ca: Folder for the authority, outside ``out``; must be empty or absent.

    Raises:
        FedfmsError: FMS-K002 to FMS-K005 and FMS-K007; then nothing was made.
    """
    project = load_project(project_file)
    out, ca = out.resolve(), ca.resolve()
    refuse_existing(out, ca)
    refuse_overlap(ca, out)
    with atomic_folder(ca) as new_ca, atomic_folder(out) as new_out:
        new_ca.chmod(0o700)
        new_out.chmod(0o700)
        with _flare_kits(project_file, project, new_ca, None) as (made, state_file):
            names = [item.name for item in project.participants]
            kits = _move(_overlaid(made, names), new_out)
            shutil.move(state_file, new_ca / STATE)
        authority = finish_authority(new_ca)
    final = tuple(MadeKit(out / kit.folder.name, kit.manifest_sha256) for kit in kits)
    return Provisioned(final, authority.root_fingerprint, ca)


def add_participants(project_file: Path, names: Sequence[str], out: Path, ca: Path) -> Provisioned:
    """Make kits for participants that were added to ``project.yml``; no other kit is read or written.

    Args:
        project_file: ``project.yml`` with the new participants.
        names: The new participants.
        out: Folder for their kits.
        ca: The project's authority.

    Raises:
        FedfmsError: FMS-K002 to FMS-K007, FMS-K016 and FMS-K017; then nothing was made.
    """
    names = _once(names)
    with _open(project_file, ca, names) as (project, authority):
        known = authority.participants()
        problems = [
            Problem(PARTICIPANT_UNKNOWN, name, "has a certificate already; a new one: fedfms kit renew")
            for name in names
            if name in known
        ]
        problems += [
            Problem(PARTICIPANT_UNKNOWN, name, f"not in {project_file}")
            for name in names
            if project.participant(name) is None
        ]
        if problems:
            raise FedfmsError(problems)
        return _issue(project_file, project, authority, names, out, _overlaid)


def renew(project_file: Path, names: Sequence[str], out: Path, ca: Path) -> Provisioned:
    """Make a new key and certificate of the same root for participants, to be put into their kits.

    Args:
        project_file: ``project.yml``.
        names: Whose certificates.
        out: Folder; ``<out>/<name>`` will contain certificate, key and root certificate.
        ca: The project's authority.

    Raises:
        FedfmsError: FMS-K002 to FMS-K007, FMS-K016 and FMS-K017; then nothing was made.
    """
    names = _once(names)
    with _open(project_file, ca, names) as (project, authority):
        known = authority.participants()
        problems = [
            Problem(PARTICIPANT_UNKNOWN, name, "has no certificate of this project yet")
            for name in names
            if name not in known or project.participant(name) is None
        ]
        if problems:
            raise FedfmsError(problems)
        return _issue(project_file, project, authority, names, out, _certificates)


def steps_for_new_participants(project: ProjectDescription, names: Sequence[str]) -> list[tuple[str, str]]:
    """How the running server learns that new participants are in the studies of ``project.yml``.

    Returns:
        For each participant and study FLARE's command, for a project_admin, and ours, for the server's machine.
    """
    found = []
    for study, content in project.studies.items():
        for name in _once(names):
            participant = project.participant(name)
            if isinstance(participant, SiteParticipant) and name in content.site_orgs.get(participant.org, ()):
                site = f"{participant.org}:{name}"
                flares = f"nvflare study add-site {study} --site-org {site} --startup-kit KIT"
                found.append((flares, f"fedfms kit study KIT {study} --add-site {site}"))
            elif name in content.admins:
                flares = f"nvflare study add-user {study} {name} --startup-kit KIT"
                found.append((flares, f"fedfms kit study KIT {study} --add-person {name}"))
    return found


def _once(names: Sequence[str]) -> list[str]:
    """Drop repeated names."""
    return list(dict.fromkeys(names))


@contextmanager
def _open(project_file: Path, ca: Path, names: Sequence[str]) -> Iterator[tuple[ProjectDescription, Authority]]:
    """A project and its authority, locked for other commands, after a check that it has blocked none of the names."""
    project, authority = load_project(project_file), open_authority(ca)
    if not authority.central:
        raise fail(AUTHORITY_UNUSABLE, ca, "it is of distributed provisioning: use request, approve and package")
    authority.require_project(project.name, project_file)
    with authority.locked():
        authority.refuse_blocked(names)
        yield project, authority


def _issue(
    project_file: Path,
    project: ProjectDescription,
    authority: Authority,
    names: Sequence[str],
    out: Path,
    take: Callable[[Path, Sequence[str]], list[MadeKit]],
) -> Provisioned:
    """Make new certificates for these participants; ``take`` copies from FLARE's kits to ``out`` what is wanted."""
    out = out.resolve()
    refuse_overlap(authority.folder, *(out / name for name in names))
    refuse_existing(*(out / name for name in names))
    before = authority.state()
    with _flare_kits(project_file, project, authority.folder, authority, without=names) as (made, state_file):
        state = json.loads(state_file.read_text(encoding="utf-8"))
        changed = [name for name, entry in before.items() if name not in names and state.get(name) != entry]
        if changed:
            raise fail(
                PROVISIONING_FAILED,
                authority.folder,
                f"FLARE changed certificates of {', '.join(changed)}; nothing was made",
            )
        taken = take(made, names)
        for name in before.keys() & set(names):
            # FLARE's state forgets it, but it stays valid until it expires.
            keep_certificate(authority, certificate_in(before, name, authority))
        # First the state: a certificate that the authority does not know of could not be renewed.
        authority.save_state({**before, **{name: state[name] for name in names}})
        return Provisioned(tuple(_move(taken, out)), authority.root_fingerprint, authority.folder)


def _overlaid(made: Path, names: Sequence[str]) -> list[MadeKit]:
    return [MadeKit(made / name, overlay_kit(made / name)) for name in names]


def _certificates(made: Path, names: Sequence[str]) -> list[MadeKit]:
    """Copy only certificate, key and root certificate of each kit."""
    taken = []
    for name in names:
        renewal = made / ".renewals" / name
        renewal.mkdir(parents=True)
        for pattern in ("*.crt", "*.key", "rootCA.pem"):
            for path in (made / name / "startup").glob(pattern):
                shutil.move(path, renewal / path.name)
        restrict(renewal)
        taken.append(MadeKit(renewal, None))
    return taken


def _move(kits: Sequence[MadeKit], out: Path) -> list[MadeKit]:
    out.mkdir(parents=True, exist_ok=True)
    for kit in kits:
        shutil.move(kit.folder, out / kit.folder.name)
    return [MadeKit(out / kit.folder.name, kit.manifest_sha256) for kit in kits]


@contextmanager
def _flare_kits(
    project_file: Path,
    project: ProjectDescription,
    beside: Path,
    authority: Authority | None,
    without: Sequence[str] = (),
) -> Iterator[tuple[Path, Path]]:
    """Run FLARE's provisioning with the authority's state without some names, in a folder that is removed afterwards.

    Yields:
        FLARE's folder of kits, and its state file afterwards.
    """
    with private_folder(beside) as work:
        state_file = work / "workspace" / project.name / "state" / STATE
        if authority is not None:
            state_file.parent.mkdir(parents=True)
            state = {name: entry for name, entry in authority.state().items() if name not in without}
            state_file.write_text(json.dumps(state), encoding="utf-8")
        arguments = (
            "provision",
            "--project-file",
            project_file.resolve(),
            "--workspace",
            work / "workspace",
            "--force",
        )
        flare(arguments, work, where=project_file)
        made = work / "workspace" / project.name / "prod_00"
        absent = [item.name for item in project.participants if not (made / item.name / "startup").is_dir()]
        if absent or not state_file.is_file():
            raise fail(PROVISIONING_FAILED, project_file, f"FLARE made no kit for {', '.join(absent) or 'anybody'}")
        yield made, state_file
