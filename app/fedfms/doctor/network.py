"""Checks of the connection to the server, and of the server's own port."""

from __future__ import annotations

import socket
from urllib.request import getproxies

import psutil

from fedfms.doctor.examination import Examination
from fedfms.doctor.result import Result, failed, listed, passed, skipped, warned
from fedfms.errors import CERTIFICATE_KEY, SERVER_IDENTITY, SERVER_NAME, SERVER_PORT, SITE_REFUSED, FedfmsError
from fedfms.provision.local import PID, kit_process
from fedfms.site.admittance import read_refusal
from fedfms.site.certificates import describe_certificate

_OFFLINE = "not looked at (--offline)"
_OPEN = "Let 'fedfms doctor' run again without --offline."


def name(examination: Examination) -> Result:
    """The server's name has an address."""
    host = examination.kit.server.host
    if examination.offline:
        return warned(SERVER_NAME, _OFFLINE, _OPEN)
    contact = examination.contact
    if not contact.addresses:
        return failed(SERVER_NAME, f"{host}: {contact.name_error}")
    return passed(SERVER_NAME, f"{host} is {', '.join(contact.addresses)}")


def port(examination: Examination) -> Result:
    """The server's port accepts connections."""
    server = examination.kit.server
    where = f"{server.host}:{server.port}"
    if examination.offline:
        return warned(SERVER_PORT, _OFFLINE, _OPEN)
    contact = examination.contact
    if contact.connected:
        return passed(SERVER_PORT, f"{where} answers")
    proxied = "https" in getproxies()
    if not contact.addresses and not proxied:
        return skipped(SERVER_PORT, SERVER_NAME)
    text = f"{where}: {contact.port_error or 'not tried, the name does not resolve'}"
    if proxied:
        return warned(SERVER_PORT, f"{text}; https_proxy is set, the way through it was not tried")
    return failed(SERVER_PORT, text)


def identity(examination: Examination) -> Result:
    """Mutual TLS works, and the server's certificate is signed by the kit's root for its host name and identity."""
    if examination.offline:
        return warned(SERVER_IDENTITY, _OFFLINE, _OPEN)
    contact, expected = examination.contact, examination.record.server.identity
    if not contact.connected:
        if "https" in getproxies():
            remedy = "See in log.txt after the start whether the kit connects."
            return warned(SERVER_IDENTITY, "not checked: the way through https_proxy was not tried", remedy)
        return skipped(SERVER_IDENTITY, SERVER_PORT if contact.addresses else SERVER_NAME)
    if not (examination.root and examination.key_fits):  # TLS needs both
        return skipped(SERVER_IDENTITY, CERTIFICATE_KEY)
    if contact.tls_error or contact.certificate is None:
        return failed(SERVER_IDENTITY, f"TLS failed: {contact.tls_error or 'no certificate was shown'}")
    facts = describe_certificate(contact.certificate)
    if facts.name != expected:
        return failed(SERVER_IDENTITY, f"a participant '{facts.name}' answers, expected '{expected}'")
    if not contact.spoke:
        text = (
            f"{facts.name} answers with certificate {facts.fingerprint}, but said nothing: whether it accepts this kit"
        )
        remedy = "See at the server, or in log.txt after the start, whether the kit connects."
        return warned(SERVER_IDENTITY, f"{text} is not known", remedy)
    return passed(SERVER_IDENTITY, f"mutual TLS with {facts.name}, certificate {facts.fingerprint}")


def admitted(examination: Examination) -> Result:
    """The server did not refuse the site when it last ran. It may be admitted again, so a start is not prevented."""
    try:
        refusal = read_refusal(examination.kit.folder)
    except FedfmsError as error:
        return warned(SITE_REFUSED, listed(error.problems, examination), "Delete refused.json in the kit.")
    if refusal is not None:
        return warned(SITE_REFUSED, f"since {refusal.time}, when the site last ran: {refusal.reason}")
    return passed(SITE_REFUSED, "the server has not refused this site")


def own_port(examination: Examination) -> Result:
    """At a server: no other program listens on its port."""
    number = examination.kit.server.port
    running = kit_process(examination.kit.folder, PID)
    if running is not None:
        return passed(SERVER_PORT, f"{number}: used by this kit's own process {running.pid}")
    for family, address in _everywhere():
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            # As FLARE's own listening socket: a port that has just been closed counts as free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                probe.bind((address, number))
            except OSError as error:
                return failed(SERVER_PORT, f"{number} is not free: {error.strerror or error}")
    return passed(SERVER_PORT, f"{number} is free")


def _everywhere() -> list[tuple[socket.AddressFamily, str]]:
    families = {entry.family for entries in psutil.net_if_addrs().values() for entry in entries}
    everywhere = [(socket.AF_INET, "0.0.0.0")]
    return [*everywhere, (socket.AF_INET6, "::")] if socket.AF_INET6 in families else everywhere
