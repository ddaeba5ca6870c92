"""Small certificate authorities for the tests."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

Key = ec.EllipticCurvePrivateKey
NOW = datetime(2030, 1, 1, tzinfo=timezone.utc)
_SIGNS_CERTIFICATES = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)


def subject(name: str, organisation: str | None = None, role: str | None = None) -> x509.Name:
    parts = [x509.NameAttribute(NameOID.COMMON_NAME, name)]
    if organisation:
        parts.append(x509.NameAttribute(NameOID.ORGANIZATION_NAME, organisation))
    if role:
        parts.append(x509.NameAttribute(NameOID.UNSTRUCTURED_NAME, role))
    return x509.Name(parts)


class SmallAuthority:
    """A root certificate and its key."""

    def __init__(self, name: str = "p", *, ca: bool = True, start: datetime = NOW - timedelta(days=10)) -> None:
        self.key: Key = ec.generate_private_key(ec.SECP256R1())
        self.name = subject(name)
        self.certificate = self._sign(self.name, self.key, start, start + timedelta(days=400), ca=ca)

    def _sign(self, name: x509.Name, key: Key, start: datetime, end: datetime, *, ca: bool) -> x509.Certificate:
        builder = x509.CertificateBuilder().subject_name(name).issuer_name(self.name).public_key(key.public_key())
        builder = builder.serial_number(x509.random_serial_number()).not_valid_before(start).not_valid_after(end)
        builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        # Newer Pythons ask for these three (RFC 5280).
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        builder = builder.add_extension(issuer, critical=False)
        if ca:
            builder = builder.add_extension(_SIGNS_CERTIFICATES, critical=True)
        else:
            names = x509.SubjectAlternativeName([x509.DNSName("localhost")])
            builder = builder.add_extension(names, critical=False)
        return builder.sign(self.key, hashes.SHA256())

    def issue(
        self,
        folder: Path,
        name: str = "hospital-a",
        *,
        organisation: str = "hospital_a",
        role: str | None = None,
        days: tuple[float, float] = (-1, 100),
        base: str = "client",
    ) -> Path:
        """Write ``<base>.crt``, ``<base>.key`` and ``rootCA.pem``; ``days`` counts from `NOW`. Returns the folder."""
        folder.mkdir(parents=True, exist_ok=True)
        key = ec.generate_private_key(ec.SECP256R1())
        start, end = (NOW + timedelta(days=value) for value in days)
        certificate = self._sign(subject(name, organisation, role), key, start, end, ca=False)
        pem = serialization.Encoding.PEM
        (folder / f"{base}.crt").write_bytes(certificate.public_bytes(pem))
        (folder / "rootCA.pem").write_bytes(self.certificate.public_bytes(pem))
        plain = (serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        (folder / f"{base}.key").write_bytes(key.private_bytes(pem, *plain))
        return folder
