"""One connection to the server, step by step: name, port, TLS with the kit's certificate, the server's time."""

from __future__ import annotations

import socket
import ssl
import time
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime

from cryptography import x509

from fedfms.site.kit import Kit

TIMEOUT_SECONDS = 5.0
_RETRY_SECONDS = 1.0
# gRPC refuses a client that does not offer h2; FLARE's http scheme does not care.
_PROTOCOLS = ["h2", "http/1.1"]


@dataclass
class Contact:
    """How far the connection got; attributes of steps after a failed one keep their defaults.

    Attributes:
        addresses: Addresses that the name resolves to; empty if it does not resolve.
        name_error: Why the name does not resolve.
        connected: Whether the port accepts a connection.
        port_error: Why it does not.
        certificate: The server's certificate, when it is signed by the kit's root, valid, and for this name.
        tls_error: Why it is not, or why the server refused this kit.
        spoke: Whether the server sent anything, which it does only after accepting this kit's certificate.
        seconds_off: This machine's clock minus the server's, in seconds; None if the server did not send its time.
    """

    addresses: tuple[str, ...] = ()
    name_error: str = ""
    connected: bool = False
    port_error: str = ""
    certificate: x509.Certificate | None = None
    tls_error: str = ""
    spoke: bool = False
    seconds_off: float | None = None


def make_contact(kit: Kit, patience: float) -> Contact:
    """Connect to the kit's server and disconnect again.

    Args:
        kit: The kit of a site or a person.
        patience: Seconds to keep trying while the port is closed: a server that was just started opens it late.
    """
    contact = Contact()
    host, port = kit.server.host, kit.server.port
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        contact.name_error = str(error.strerror or error)
        return contact
    contact.addresses = tuple(dict.fromkeys(str(entry[4][0]) for entry in found))
    deadline = time.monotonic() + patience
    while True:
        try:
            connection = socket.create_connection((host, port), TIMEOUT_SECONDS)
            break
        except OSError as error:
            contact.port_error = str(error.strerror or error)
            if time.monotonic() >= deadline:
                return contact
            time.sleep(_RETRY_SECONDS)
    contact.connected, contact.port_error = True, ""
    with connection:
        _shake_hands(kit, connection, contact)
    return contact


def _shake_hands(kit: Kit, connection: socket.socket, contact: Contact) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(_PROTOCOLS)
    try:
        context.load_verify_locations(kit.root_file)
        context.load_cert_chain(kit.certificate_file, kit.key_file)
        with context.wrap_socket(connection, server_hostname=kit.server.host) as secure:
            shown = secure.getpeercert(binary_form=True)
            # With TLS 1.3 a server refuses a client's certificate only after the handshake, in what is read first.
            _listen(kit, secure, contact)
            contact.certificate = x509.load_der_x509_certificate(shown) if shown else None
    except ssl.SSLCertVerificationError as error:
        contact.tls_error = error.verify_message
    except (OSError, ValueError) as error:
        contact.tls_error = f"{type(error).__name__}: {getattr(error, 'reason', None) or error}"


def _listen(kit: Kit, secure: ssl.SSLSocket, contact: Contact) -> None:
    """Wait for the first bytes from the server; a connection closed before them is a refusal.

    Raises:
        OSError: It closed the connection, or sent a TLS alert.
    """
    # FLARE's tcp scheme expects its own protocol and takes anything else for an attack; gRPC (h2) sends first.
    if secure.selected_alpn_protocol() != "h2" and kit.scheme != "tcp":
        secure.sendall(f"HEAD / HTTP/1.1\r\nHost: {kit.server.host}\r\nConnection: close\r\n\r\n".encode())
    try:
        answer = secure.recv(4096)
    except TimeoutError:
        return
    if not answer:
        raise ConnectionResetError("the server closed the connection without an answer: it may refuse this kit")
    contact.spoke = True
    contact.seconds_off = _seconds_off(answer.decode("latin-1"))


def _seconds_off(answer: str) -> float | None:
    """The difference of the clocks if the answer holds a date, as HTTP/1.1 answers do."""
    now = datetime.now(timezone.utc)
    for line in answer.splitlines():
        name, _, value = line.partition(":")
        if name.strip().lower() == "date":
            try:
                return (now - parsedate_to_datetime(value.strip())).total_seconds()
            except (TypeError, ValueError):
                return None
    return None
