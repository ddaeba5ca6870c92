"""Certificates of a kit: who they name, how long they are valid, whether they belong to key and root.

A project has one root certificate (RFC 5280, self-signed) that signs every participant's own; there are no
certificates between them. Fingerprints are SHA-256 over the certificate's DER bytes, written as FLARE and OpenSSL
write them: ``SHA256:AB:CD:...``.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import NameOID

from fedfms.access import require_readable
from fedfms.errors import CERTIFICATE_EXPIRED, CERTIFICATE_INVALID, FINGERPRINT_DIFFERS, Problem, fail, reason_of

#: A certificate should be renewed from this many days before it expires.
RENEWAL_DAYS = 30
SECONDS_PER_DAY = 86_400.0


@dataclass(frozen=True)
class CertificateFacts:
    """What a certificate says.

    Attributes:
        name: Common name: the participant.
        organisation: Its organisation, on which rights in FLARE such as ``o:site`` depend.
        role: FLARE's role of a person or kind of a site, from ``unstructuredName``; None if absent.
        not_before: Start of validity, UTC.
        not_after: End of validity, UTC.
        fingerprint: ``SHA256:AB:CD:...``
        host_names: DNS names and addresses for which a server may use it.
    """

    name: str
    organisation: str | None
    role: str | None
    not_before: datetime
    not_after: datetime
    fingerprint: str
    host_names: tuple[str, ...]

    def days_left(self, now: datetime | None = None) -> float:
        """Days until the certificate expires; negative afterwards."""
        return (self.not_after - (now or datetime.now(timezone.utc))).total_seconds() / SECONDS_PER_DAY


def _formatted(digest: str) -> str:
    return "SHA256:" + ":".join(digest[start : start + 2] for start in range(0, len(digest), 2)).upper()


def fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 fingerprint of a certificate."""
    return _formatted(certificate.fingerprint(hashes.SHA256()).hex())


def key_fingerprint(key: x509.CertificateSigningRequest | x509.Certificate) -> str:
    """SHA-256 of the public key (DER, SubjectPublicKeyInfo); the same for a request and its certificate."""
    public = key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return _formatted(hashlib.sha256(public).hexdigest())


def parse_fingerprint(text: str) -> str:
    """Convert a fingerprint, as people and OpenSSL write it, to the form used here.

    Raises:
        FedfmsError: FMS-K008 if the text is not a SHA-256 fingerprint.
    """
    digits = re.sub(r"^\s*sha256(\s+fingerprint)?\s*[:=]", "", text, flags=re.IGNORECASE)
    digits = re.sub(r"[:\s]", "", digits)
    if not re.fullmatch(r"[0-9a-fA-F]{64}", digits):
        detail = f"'{text}' is not a SHA-256 fingerprint"
        raise fail(FINGERPRINT_DIFFERS, "fingerprint", detail, "Write SHA256: and 32 pairs of digits 0-9, A-F.")
    return _formatted(digits)


def load_certificate(path: Path) -> x509.Certificate:
    """Read one certificate in PEM form.

    Raises:
        FedfmsError: FMS-K010 when it cannot be read.
    """
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        require_readable(path)
        raise fail(CERTIFICATE_INVALID, path, f"cannot be read: {reason_of(error)}") from error


def describe_certificate(certificate: x509.Certificate) -> CertificateFacts:
    """What a certificate says."""
    hosts: tuple[str, ...] = ()
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        hosts = tuple(str(name.value) for name in names)
    except x509.ExtensionNotFound:
        pass  # a root has none
    return CertificateFacts(
        name=subject_value(certificate.subject, NameOID.COMMON_NAME) or "",
        organisation=subject_value(certificate.subject, NameOID.ORGANIZATION_NAME),
        role=subject_value(certificate.subject, NameOID.UNSTRUCTURED_NAME),
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
        fingerprint=fingerprint(certificate),
        host_names=hosts,
    )


def subject_value(subject: x509.Name, field: x509.ObjectIdentifier) -> str | None:
    """The first value of a field of a certificate's subject; None if the field is absent."""
    found = subject.get_attributes_for_oid(field)
    return str(found[0].value) if found else None


def certificate_problems(
    certificate_file: Path, root_file: Path, key_file: Path | None, *, now: datetime | None = None
) -> list[Problem]:
    """Check that a certificate is signed by the root, belongs to the key, and is valid now.

    Args:
        certificate_file: The participant's certificate.
        root_file: The project's root certificate.
        key_file: The participant's private key; None if it is not at hand.
        now: Time to check for; the present if None.

    Returns:
        Problems FMS-K010 and FMS-K011; empty if there are none.

    Raises:
        FedfmsError: FMS-K010 if a file cannot be read.
    """
    certificate, root = load_certificate(certificate_file), load_certificate(root_file)
    problems = []
    if not is_issued_by(certificate, root):
        detail = f"not signed by {root_file.name} ({fingerprint(root)})"
        problems.append(Problem(CERTIFICATE_INVALID, str(certificate_file), detail))
    if not is_authority(root):
        problems.append(Problem(CERTIFICATE_INVALID, str(root_file), "not a self-signed root certificate"))
    if key_file is not None and not key_matches(key_file, certificate):
        detail = f"does not belong to the key {key_file.name}"
        problems.append(Problem(CERTIFICATE_INVALID, str(certificate_file), detail))
    moment = now or datetime.now(timezone.utc)
    for path, item in ((certificate_file, certificate), (root_file, root)):
        start, end = item.not_valid_before_utc, item.not_valid_after_utc
        if not start <= moment <= end:
            detail = f"valid from {start:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC, it is {moment:%Y-%m-%d %H:%M}"
            problems.append(Problem(CERTIFICATE_EXPIRED, str(path), detail))
    return problems


def is_issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Whether the issuer's key has signed the certificate."""
    try:
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, TypeError, ValueError):
        return False
    return True


def is_authority(root: x509.Certificate) -> bool:
    """Whether a certificate is a self-signed root that may sign others."""
    try:
        return is_issued_by(root, root) and root.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (ValueError, x509.ExtensionNotFound):
        return False


def key_matches(key_file: Path, certificate: x509.Certificate) -> bool:
    """Whether a private key belongs to a certificate.

    Raises:
        FedfmsError: FMS-K010 if the key cannot be read.
    """
    try:
        key = serialization.load_pem_private_key(key_file.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        require_readable(key_file)
        raise fail(CERTIFICATE_INVALID, key_file, f"cannot be read: {reason_of(error)}") from error
    form = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return key.public_key().public_bytes(*form) == certificate.public_key().public_bytes(*form)
