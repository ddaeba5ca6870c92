"""The folder with the private key of a project's root certificate, and the list of blocked participants.

Central provisioning keeps FLARE's ``cert.json`` in it (which also contains the keys of all participants), distributed
provisioning ``rootCA.key``. Neither is part of a kit.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryptography import x509
from pydantic import TypeAdapter, ValidationError

from fedfms.configuration import Strict, read_json
from fedfms.errors import (
    AUTHORITY_UNUSABLE,
    PARTICIPANT_BLOCKED,
    PARTICIPANT_UNKNOWN,
    PROJECT_INVALID,
    FedfmsError,
    Problem,
    fail,
    reason_of,
)
from fedfms.files import atomic_path, write_json
from fedfms.moved import former_names
from fedfms.provision.overlay import template
from fedfms.provision.project import HostName, PersonName, SiteName
from fedfms.site.certificates import fingerprint
from fedfms.site.kit import exposed_files, restrict

STATE = "cert.json"
ROOT_KEY = "rootCA.key"
#: Keeps the name of the command's first version, ``kit bar``.
BLOCKED_FILE = "barred.json"
APPROVALS = "approvals"
#: Names in ``cert.json`` that are not participants.
_ROOT_ENTRIES = {"root_cert", "root_pri_key"}


class Block(Strict):
    """Since when and why a participant is blocked.

    Attributes:
        time: ISO 8601, in UTC.
        reason: In the words of who blocked it.
    """

    time: str
    reason: str


@dataclass(frozen=True)
class Authority:
    """An authority's folder.

    Attributes:
        folder: Absolute path of the folder.
        central: Whether FLARE's central provisioning keeps its state in it; distributed provisioning otherwise.
        root: The project's root certificate.
    """

    folder: Path
    central: bool
    root: x509.Certificate

    @property
    def project(self) -> str:
        """Name of the project: the root certificate's common name."""
        return str(self.root.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)[0].value)

    @property
    def root_fingerprint(self) -> str:
        """SHA-256 fingerprint of the root certificate, ``SHA256:AB:CD:...``."""
        return fingerprint(self.root)

    @property
    def blocked(self) -> Mapping[str, Block]:
        """Participants that get no more certificates, by name."""
        path = self.folder / BLOCKED_FILE
        content = read_json(path, AUTHORITY_UNUSABLE) if path.exists() else {}
        try:
            return {name: Block.model_validate(entry) for name, entry in content.items()}
        except ValueError as error:
            raise fail(AUTHORITY_UNUSABLE, path, f"not as 'fedfms kit block' writes it: {error}") from None

    def refuse_blocked(self, names: Iterable[str]) -> None:
        """Raise FMS-K016 with every one of the names that is blocked."""
        blocked = self.blocked
        problems = [
            Problem(PARTICIPANT_BLOCKED, name, f"since {blocked[name].time}: {blocked[name].reason}")
            for name in names
            if name in blocked
        ]
        if problems:
            raise FedfmsError(problems)

    def block(self, name: str, reason: str, *, in_advance: bool = False) -> None:
        """Write down that a participant gets no more certificates.

        Args:
            name: The participant.
            reason: Why, for the record.
            in_advance: Whether to allow a participant that never had a certificate.

        Raises:
            FedfmsError: FMS-K003 for an empty or impossible name or reason, FMS-K017 for one without a certificate: a
                misspelt name would block nobody.
        """
        problems = [] if reason.strip() else [Problem(PROJECT_INVALID, "reason", "is empty")]
        if not any(_fits(name, form) for form in (HostName, SiteName, PersonName)):
            problems.append(Problem(PROJECT_INVALID, "name", f"{name!r} is not a name of a participant"))
        elif not in_advance and name not in self.admitted():
            detail = "has no certificate of this authority; to block it all the same: --in-advance"
            problems.append(Problem(PARTICIPANT_UNKNOWN, name, detail))
        if problems:
            raise FedfmsError(problems)
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        path = self.folder / BLOCKED_FILE
        with self.locked():
            entries = {key: entry.model_dump() for key, entry in self.blocked.items()}
            write_json(path, {**entries, name: Block(time=now, reason=reason).model_dump()})
            path.chmod(0o600)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Wait until no other command works in this folder: of two at once, one would lose entries."""
        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def require_project(self, name: str, where: Path) -> None:
        """Raise FMS-K005 if the authority belongs to another project."""
        if self.project != name:
            raise fail(AUTHORITY_UNUSABLE, self.folder, f"belongs to project {self.project}, {where} to {name}")

    def state(self) -> dict[str, Any]:
        """Content of FLARE's ``cert.json``; raises FMS-K005 if it cannot be read."""
        return read_json(self.folder / STATE, AUTHORITY_UNUSABLE)

    def save_state(self, state: Mapping[str, Any]) -> None:
        """Replace FLARE's ``cert.json``; raises FMS-D011 if it cannot be written."""
        path = self.folder / STATE
        with atomic_path(path) as temporary:
            # Created closed: it contains every private key of the project.
            temporary.touch(mode=0o600)
            temporary.write_text(json.dumps(state), encoding="utf-8")

    def participants(self) -> set[str]:
        """Names with a certificate of central provisioning."""
        return set(self.state()) - _ROOT_ENTRIES

    def admitted(self) -> set[str]:
        """Names with a certificate, according to FLARE's state or the records of approvals."""
        if self.central:
            return self.participants()
        records = [read_json(path, AUTHORITY_UNUSABLE) for path in (self.folder / APPROVALS).glob("*.json")]
        return {str(record["approval"]["name"]) for record in records if "approval" in record}


def _fits(name: str, form: Any) -> bool:
    try:
        TypeAdapter[str](form).validate_python(name)
    except ValidationError:
        return False
    return True


def refuse_overlap(ca: Path, *made: Path) -> None:
    """Raise FMS-K005 for every path to be made that is in the authority's folder, is that folder, or contains it.

    Nothing in that folder may be handed out, and kits are handed out as a whole.
    """
    ca = ca.resolve()
    problems = [
        Problem(AUTHORITY_UNUSABLE, str(path), f"must be outside the authority's folder, {ca}, and not contain it")
        for path in made
        if ca in (path.resolve(), *path.resolve().parents) or path.resolve() in ca.parents
    ]
    if problems:
        raise FedfmsError(problems)


def finish_authority(folder: Path) -> Authority:
    """Add the README on where to keep the folder, close it to other users, and open the authority."""
    with atomic_path(folder / "README.txt") as temporary:
        temporary.write_text(template("authority_readme.txt"), encoding="utf-8")
    restrict(folder)
    return open_authority(folder)


def open_authority(folder: Path) -> Authority:
    """Open an authority's folder.

    Raises:
        FedfmsError: FMS-K005 if it is not an authority, FMS-K006 if other users can read it.
    """
    folder = folder.resolve()
    central, distributed = (folder / STATE).is_file(), (folder / ROOT_KEY).is_file()
    if central == distributed:
        found = "both" if central else "neither"
        raise fail(AUTHORITY_UNUSABLE, folder, f"expected {STATE} or {ROOT_KEY}, found {found}")
    problems = exposed_files(folder)
    if problems:
        raise FedfmsError(problems)
    try:
        if central:
            content = str(read_json(folder / STATE, AUTHORITY_UNUSABLE)["root_cert"]).encode()
        else:
            content = (folder / "rootCA.pem").read_bytes()
        root = x509.load_pem_x509_certificate(content)
    except (OSError, KeyError, ValueError) as error:
        raise fail(AUTHORITY_UNUSABLE, folder, f"no root certificate: {reason_of(error)}") from error
    return Authority(folder, central, root)


if not TYPE_CHECKING:  # type checkers know the new names only
    __getattr__ = former_names(__name__)
