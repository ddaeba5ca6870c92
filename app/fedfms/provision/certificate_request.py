"""A certificate request: who asks, for which names, with which key. Nothing in its zip file is trusted."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import yaml
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.x509.oid import NameOID
from pydantic import TypeAdapter, ValidationError

from fedfms.configuration import plain
from fedfms.errors import PROJECT_INVALID, REQUEST_DIFFERS, Problem, fail, reason_of
from fedfms.moved import former_names
from fedfms.provision.project import HostName, OrganisationName, PersonName, ProjectName, SiteName
from fedfms.site.certificates import key_fingerprint, subject_value

ParticipantKind = Literal["site", "server", "lead", "org_admin", "member"]
KINDS: tuple[ParticipantKind, ...] = get_args(ParticipantKind)
_MEMBER_LIMIT = 1 << 20
# RuntimeError: a zip file with a password, in a compression that Python lacks, or JSON that is nested too deeply.
UNREADABLE = (
    *(OSError, EOFError, KeyError, TypeError, ValueError, RuntimeError, UnsupportedAlgorithm),
    *(zipfile.BadZipFile, zlib.error, yaml.YAMLError),
)


@dataclass(frozen=True)
class Applicant:
    """Who asks for a certificate.

    Attributes:
        project: Name of the project.
        name: Host name of a server, name of a site, e-mail address of a person.
        organisation: Organisation; rights such as "the site's own org_admin" depend on it.
        kind: site, server, lead, org_admin or member.
    """

    project: str
    name: str
    organisation: str
    kind: ParticipantKind

    def problems(self) -> list[Problem]:
        """Problems FMS-K003, one for each value that is not possible."""
        name = {"server": HostName, "site": SiteName}.get(self.kind, PersonName)
        found = []
        for key, form, value in (
            ("project", ProjectName, self.project),
            ("name", name, self.name),
            ("organisation", OrganisationName, self.organisation),
        ):
            try:
                TypeAdapter[str](form).validate_python(value)
            except ValidationError as error:
                found.append(Problem(PROJECT_INVALID, key, f"{plain(error.errors()[0])} (found {value!r})"))
        if self.kind not in KINDS:
            found.append(Problem(PROJECT_INVALID, "kind", f"write one of {', '.join(KINDS)} (found {self.kind!r})"))
        return found

    def participant(self, host_names: Sequence[str]) -> dict[str, object]:
        """The applicant's entry in the form that ``nvflare cert request`` reads."""
        kinds = {"site": {"type": "client"}, "server": {"type": "server"}}
        entry: dict[str, object] = {"name": self.name, "org": self.organisation}
        entry.update(kinds.get(self.kind, {"type": "admin", "role": self.kind}))
        if host_names:
            entry["host_names"] = list(host_names)
        return entry


@dataclass(frozen=True)
class Request:
    """A certificate request.

    Attributes:
        file: The zip file to send.
        applicant: Who asks.
        key: Fingerprint of the public key, to be compared by telephone.
        host_names: Names and addresses beside its own for which a server asks.
    """

    file: Path
    applicant: Applicant
    key: str
    host_names: tuple[str, ...] = ()


def read_request(file: Path) -> Request:
    """Read who asks, from the signed request itself and the description beside it.

    Raises:
        FedfmsError: FMS-K009 if it cannot be read.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            description = json.loads(read_member(archive, "request.json"))
            signing = x509.load_pem_x509_csr(read_member(archive, f"{description['name']}.csr"))
            hosts = _host_names(yaml.safe_load(read_member(archive, "site.yaml")))
        kind: Any = described_kind(description)
        subject = signing.subject
        applicant = Applicant(
            str(description["project"]),
            subject_value(subject, NameOID.COMMON_NAME) or "",
            subject_value(subject, NameOID.ORGANIZATION_NAME) or "",
            kind,
        )
        valid, key = signing.is_signature_valid, key_fingerprint(signing)
    except UNREADABLE as error:
        raise fail(REQUEST_DIFFERS, file, f"cannot be read: {reason_of(error)}") from error
    if not valid:
        raise fail(REQUEST_DIFFERS, file, "the request is not signed with its own key")
    return Request(file, applicant, key, hosts)


def described_kind(description: Mapping[str, Any]) -> str:
    """What kind of participant FLARE's description of a request or an approval is about, in the words of `KINDS`."""
    kind = description["cert_type"]
    return str(description.get("cert_role") or {"client": "site"}.get(kind, kind))


def _host_names(content: object) -> tuple[str, ...]:
    """Host names from ``site.yaml`` of a request, from where FLARE takes them."""
    if isinstance(content, dict) and "participants" in content:
        (content,) = content["participants"]
    if not isinstance(content, dict):
        raise ValueError("site.yaml does not describe one participant")
    names = content.get("host_names") or ()
    if not (isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)):
        raise ValueError("host_names in site.yaml is not a list of names")
    return tuple(names)


def read_member(archive: zipfile.ZipFile, name: str) -> bytes:
    """Read a small file of a zip file.

    Raises:
        ValueError: It is too large. The other errors of `UNREADABLE` when it cannot be unpacked.
    """
    if archive.getinfo(name).file_size > _MEMBER_LIMIT:
        raise ValueError(f"{name} is too large")
    return archive.read(name)


if not TYPE_CHECKING:  # type checkers know the new names only
    __getattr__ = former_names(__name__)
