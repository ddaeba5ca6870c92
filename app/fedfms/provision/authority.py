"""The folder with the private key of a project's root certificate, and the list of blocked participants.

Central provisioning keeps FLARE's ``cert.json`` in it (which also contains the keys of all participants), distributed
provisioning ``rootCA.key``. Neither is part of a kit.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryptography import x509

from fedfms.access import is_file, paths_that_fit
from fedfms.configuration import read_json
from fedfms.errors import (
    AUTHORITY_UNUSABLE,
    FedfmsError,
    Problem,
    fail,
    reason_of,
)
from fedfms.files import atomic_path, locked_folder
from fedfms.moved import former_names
from fedfms.provision.overlay import template
from fedfms.site.blocking import Block, blocked_problems, read_blocks
from fedfms.site.certificates import fingerprint
from fedfms.site.kit import exposed_files, restrict

STATE = "cert.json"
ROOT_KEY = "rootCA.key"
#: Keeps the name of the command's first version, ``kit bar``.
BLOCKED_FILE = "barred.json"
APPROVALS = "approvals"
#: Names in ``cert.json`` that are not participants.
_ROOT_ENTRIES = {"root_cert", "root_pri_key"}


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
        return read_blocks(self.folder / BLOCKED_FILE, AUTHORITY_UNUSABLE)

    def refuse_blocked(self, names: Iterable[str]) -> None:
        """Raise FMS-K016 with every one of the names that is blocked."""
        if problems := blocked_problems(self.blocked, names):
            raise FedfmsError(problems)

    def locked(self) -> AbstractContextManager[None]:
        """Wait until no other command works in this folder: of two at once, one would lose entries."""
        return locked_folder(self.folder)

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
        return {str(approval["name"]) for approval in self.approvals().values()}

    def approvals(self) -> dict[Path, dict[str, Any]]:
        """FLARE's records of approved requests, by file; raises FMS-K005 if one cannot be read."""
        files = paths_that_fit(self.folder / APPROVALS, "*.json")
        records = {path: read_json(path, AUTHORITY_UNUSABLE) for path in files}
        return {path: record["approval"] for path, record in records.items() if "approval" in record}


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
    central, distributed = is_file(folder / STATE), is_file(folder / ROOT_KEY)
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
