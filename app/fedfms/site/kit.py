"""A startup kit: the folder with which a site, the server or a person takes part in one project.

Its layout is FLARE's: ``startup/`` contains certificate, key, root certificate and the server's address; ``local/``
what the participant itself decides. The kit is also the workspace of FLARE's processes.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fedfms.access import account, is_file, login, user_name, walk
from fedfms.configuration import Strict, read_json, validated
from fedfms.errors import FILE_EXPOSED, KIT_UNREADABLE, FedfmsError, Problem, fail, reason_of
from fedfms.site.certificates import certificate_problems, describe_certificate, load_certificate

Role = Literal["site", "server", "admin"]
STARTUP_FILES: dict[Role, str] = {"site": "fed_client.json", "server": "fed_server.json", "admin": "fed_admin.json"}
RECORD = "local/kit.json"
MANIFEST = "manifest.json"
#: Which notices were sent, and which could not be.
NOTICES_FOLDER = "notices"
#: What FLARE and this package keep in a kit beside ``startup`` and ``local``; each must be closed to other users.
_CLOSED = (MANIFEST, "review", "egress", NOTICES_FOLDER, "store", "transfer")


class ServerAddress(Strict):
    """The server's address, and the identity that its certificate must have.

    Attributes:
        host: Name that sites connect to.
        port: The one TCP port for everything.
        identity: Common name that the server's certificate must have.
    """

    host: str
    port: int
    identity: str


class KitRecord(Strict):
    """``local/kit.json``: what a kit was made for; written when it is made, read by the doctor.

    Attributes:
        project: Name of the project.
        kind: site, server or admin.
        name: The participant.
        server: The server's address.
        root_fingerprint: SHA-256 fingerprint of the project's root certificate.
        provisioned: Time, UTC, ISO 8601.
        packages: The coordinator's versions of the packages; empty if they are not known.
    """

    project: str
    kind: Role
    name: str
    server: ServerAddress
    root_fingerprint: str
    provisioned: str
    packages: dict[str, str]


@dataclass(frozen=True)
class Kit:
    """A kit on this machine's disk.

    Attributes:
        folder: Absolute path of the kit.
        kind: site, server or admin.
        name: The participant, from its certificate.
        organisation: Its organisation, from its certificate.
        project: Name of the project.
        server: The server's address.
        scheme: Protocol with which FLARE connects to it: grpc, http or tcp.
    """

    folder: Path
    kind: Role
    name: str
    organisation: str | None
    project: str
    server: ServerAddress
    scheme: str | None = None

    @property
    def startup(self) -> Path:
        """Folder with certificate, key, root certificate and the server's address."""
        return self.folder / "startup"

    @property
    def local(self) -> Path:
        """Folder with what the participant itself decides."""
        return self.folder / "local"

    @property
    def certificate_file(self) -> Path:
        """The participant's certificate, PEM."""
        return self.startup / ("server.crt" if self.kind == "server" else "client.crt")

    @property
    def key_file(self) -> Path:
        """The participant's private key, PEM."""
        return self.startup / ("server.key" if self.kind == "server" else "client.key")

    @property
    def root_file(self) -> Path:
        """The project's root certificate, PEM."""
        return self.startup / "rootCA.pem"


def open_kit(folder: Path) -> Kit:
    """Open a kit: read whose it is and where its server is.

    Args:
        folder: The folder with ``startup/`` and ``local/``.

    Raises:
        FedfmsError: FMS-K001 if it is not a kit, FMS-K010 if its certificate cannot be read.
    """
    folder = folder.resolve()
    kind = next((kind for kind, name in STARTUP_FILES.items() if is_file(folder / "startup" / name)), None)
    if kind is None:
        expected = ", ".join(STARTUP_FILES.values())
        raise fail(KIT_UNREADABLE, folder, f"startup/ contains none of {expected}")
    path = folder / "startup" / STARTUP_FILES[kind]
    content = read_json(path, KIT_UNREADABLE)
    try:
        project, server, scheme = _admin_facts(content) if kind == "admin" else _service_facts(content)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise fail(KIT_UNREADABLE, path, f"not as FLARE writes it: {reason_of(error)}") from error
    certificate = folder / "startup" / ("server.crt" if kind == "server" else "client.crt")
    facts = describe_certificate(load_certificate(certificate))
    return Kit(folder, kind, facts.name, facts.organisation, project, server, scheme)


def _service_facts(content: Mapping[str, Any]) -> tuple[str, ServerAddress, str | None]:
    entry = content["servers"][0]
    host, _, port = str(entry["service"]["target"]).rpartition(":")
    identity = entry.get("identity") or entry["admin_server"]
    address = ServerAddress(host=host, port=int(port), identity=str(identity))
    return str(entry["name"]), address, entry["service"].get("scheme")


def _admin_facts(content: Mapping[str, Any]) -> tuple[str, ServerAddress, str | None]:
    entry = content["admin"]
    address = ServerAddress(host=entry["host"], port=int(entry["port"]), identity=entry["server_identity"])
    return str(entry["project_name"]), address, entry.get("scheme")


def read_record(kit: Kit) -> KitRecord:
    """Read ``local/kit.json``.

    Raises:
        FedfmsError: FMS-K001 when it cannot be read.
    """
    path = kit.folder / RECORD
    return validated(KitRecord, read_json(path, KIT_UNREADABLE), KIT_UNREADABLE, path)


def identity_problems(kit: Kit) -> list[Problem]:
    """Check that the kit's certificate belongs to its key and root and is valid now.

    Returns:
        Problems FMS-K010 and FMS-K011; empty if there are none.
    """
    try:
        return certificate_problems(kit.certificate_file, kit.root_file, kit.key_file)
    except FedfmsError as error:
        return list(error.problems)


def exposed_files(*folders: Path) -> list[Problem]:
    """Files and folders that other users of the machine can read, write or enter.

    Args:
        folders: Each that exists is checked with everything below it. Links are not followed.

    Returns:
        Problems FMS-K006, one for each file or folder that is open to others or belongs to another user, and FMS-D019
        for each folder that may not be looked into.
    """
    problems: list[Problem] = []
    for folder in folders:
        for path in [folder, *walk(folder, problems)]:
            problems += _exposure(path)
    return problems


def exposed_kit(kit: Kit) -> list[Problem]:
    """Parts of a kit that other users of the machine can read, write or enter: who can write can replace it.

    Returns:
        Problems FMS-K006, one for each file or folder: the kit itself, its manifest, the folders for approvals,
        records and transfers, and everything in ``startup`` and ``local``.
    """
    own = [problem for path in (kit.folder, *(kit.folder / name for name in _CLOSED)) for problem in _exposure(path)]
    return [*own, *exposed_files(kit.startup, kit.local)]


def _exposure(path: Path) -> list[Problem]:
    try:
        status = path.lstat()
    except (FileNotFoundError, PermissionError):
        return []  # the folder above is a problem then; whether it should exist is for the manifest to say
    if stat.S_ISLNK(status.st_mode):
        return []
    mode, remedy = stat.S_IMODE(status.st_mode), None
    found = [f"mode {mode:04o}"] if mode & 0o077 else []
    if status.st_uid != os.geteuid():
        # Its owner can open it again at any time.
        found.append(f"belongs to {user_name(status.st_uid)}, this is run by {account()}")
        remedy = (
            f"One account owns and runs a kit: run this as its owner ('sudo -u {login(status.st_uid)} ...'), or let the"
            f" administrator give the kit to this account ('chown -R {os.geteuid()} KIT'); then 'chmod -R go= KIT'."
        )
    return [Problem(FILE_EXPOSED, str(path), ", ".join(found), remedy)] if found else []


def restrict(folder: Path) -> None:
    """Remove all rights of other users from a folder and everything below; scripts stay executable for the owner."""
    for path in [folder, *folder.rglob("*")]:
        if not path.is_symlink():
            path.chmod(0o700 if path.is_dir() or (os.access(path, os.X_OK) and path.suffix == ".sh") else 0o600)
