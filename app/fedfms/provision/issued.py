"""Which certificates an authority has made: who has which until when.

A certificate cannot be revoked, so one that was renewed is listed as long as its file is kept: whoever has its key can
use it until it expires.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from fedfms.errors import AUTHORITY_UNUSABLE, fail, reason_of
from fedfms.files import atomic_path
from fedfms.provision.authority import Authority
from fedfms.provision.certificate_request import described_kind
from fedfms.site.blocking import Block
from fedfms.site.certificates import SECONDS_PER_DAY, describe_certificate

#: Certificates that were handed out, in the authority's folder.
CERTIFICATES = "certificates"
#: FLARE's words in certificates of distributed provisioning.
_PLACES = {"client": "site", "server": "server"}
_PEOPLE = ("project_admin", "org_admin", "lead", "member")


@dataclass(frozen=True)
class IssuedCertificate:
    """A certificate that an authority has made.

    Attributes:
        name: The participant.
        kind: site, server, or a person's role; "site or server" where a certificate of central provisioning leaves it
            open.
        organisation: The participant's organisation; empty if the certificate names none.
        serial: Serial number, hexadecimal.
        fingerprint: SHA-256 fingerprint; None when only the record of the approval is left.
        not_before: When it was made, UTC.
        not_after: When it expires, UTC.
        block: Since when and why the participant is blocked; None if it is not.
        renewed: Whether a later certificate was made for the same participant.
    """

    name: str
    kind: str
    organisation: str
    serial: str
    fingerprint: str | None
    not_before: datetime
    not_after: datetime
    block: Block | None = None
    renewed: bool = False

    def days_left(self, now: datetime) -> float:
        """Days until it expires; negative afterwards."""
        return (self.not_after - now).total_seconds() / SECONDS_PER_DAY

    def as_json(self, now: datetime) -> dict[str, Any]:
        """The certificate as ``fedfms kit list --json`` prints it."""
        return {
            "name": self.name,
            "kind": self.kind,
            "organisation": self.organisation,
            "serial": self.serial,
            "fingerprint": self.fingerprint,
            "not_before": self.not_before.isoformat(),
            "not_after": self.not_after.isoformat(),
            "days_left": round(self.days_left(now), 1),
            "renewed": self.renewed,
            "blocked": self.block.model_dump() if self.block is not None else None,
        }


def keep_certificate(authority: Authority, certificate: x509.Certificate) -> None:
    """Keep a copy of a certificate that was handed out, so that it is listed also after a later one was made.

    Raises:
        FedfmsError: FMS-D011 when it cannot be written.
    """
    name = describe_certificate(certificate).name
    path = authority.folder / CERTIFICATES / f"{name}.{certificate.serial_number:x}.crt"
    path.parent.mkdir(mode=0o700, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.touch(mode=0o600)
        temporary.write_bytes(certificate.public_bytes(Encoding.PEM))


def issued_certificates(authority: Authority) -> list[IssuedCertificate]:
    """All certificates that the authority knows of, by participant, the latest of each last.

    Raises:
        FedfmsError: FMS-K005 when a file of the authority cannot be read.
    """
    found = {item.serial: item for item in (*_recorded(authority), *_current(authority), *_kept(authority))}
    ordered = sorted(found.values(), key=lambda item: (item.name, item.not_before, item.not_after))
    latest = {item.name: item.serial for item in ordered}
    blocked = authority.blocked
    return [replace(item, block=blocked.get(item.name), renewed=latest[item.name] != item.serial) for item in ordered]


def _kept(authority: Authority) -> Iterator[IssuedCertificate]:
    for path in (authority.folder / CERTIFICATES).glob("*.crt"):
        try:
            yield _described(x509.load_pem_x509_certificate(path.read_bytes()))
        except (OSError, ValueError) as error:
            raise fail(AUTHORITY_UNUSABLE, path, reason_of(error)) from error


def _current(authority: Authority) -> Iterator[IssuedCertificate]:
    """The latest certificate of each participant of central provisioning."""
    if authority.central:
        state = authority.state()
        for name in authority.participants():
            yield _described(certificate_in(state, name, authority))


def certificate_in(state: Mapping[str, Any], name: str, authority: Authority) -> x509.Certificate:
    """A participant's certificate in FLARE's state; raises FMS-K005 when it cannot be read."""
    try:
        return x509.load_pem_x509_certificate(str(state[name]["cert"]).encode())
    except (KeyError, TypeError, ValueError) as error:
        raise fail(AUTHORITY_UNUSABLE, authority.folder, f"certificate of {name}: {reason_of(error)}") from error


def _recorded(authority: Authority) -> Iterator[IssuedCertificate]:
    """What is known of approvals from before certificates were kept."""
    for path, record in authority.approvals().items():
        try:
            yield IssuedCertificate(
                name=str(record["name"]),
                kind=described_kind(record),
                organisation=str(record["org"]),
                serial=f"{int(str(record['certificate']['serial']), 16):x}",
                fingerprint=None,
                not_before=_time(record["approved_at"]),
                not_after=_time(record["certificate"]["valid_until"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise fail(AUTHORITY_UNUSABLE, path, f"not as FLARE writes it: {reason_of(error)}") from error


def _time(text: object) -> datetime:
    # Python 3.10 does not read the Z.
    return datetime.strptime(str(text), "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=timezone.utc)


def _described(certificate: x509.Certificate) -> IssuedCertificate:
    facts = describe_certificate(certificate)
    return IssuedCertificate(
        name=facts.name,
        kind=_kind(facts.name, facts.role),
        organisation=facts.organisation or "",
        serial=f"{certificate.serial_number:x}",
        fingerprint=facts.fingerprint,
        not_before=facts.not_before,
        not_after=facts.not_after,
    )


def _kind(name: str, role: str | None) -> str:
    if role in _PEOPLE:
        return str(role)
    if role in _PLACES:
        return _PLACES[str(role)]
    # Central provisioning writes none of the two; names of sites have no dot.
    return "server" if "." in name else "site or server"
