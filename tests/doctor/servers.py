"""A TLS server that requires certificates, in a thread."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def tls_server(
    port: int, startup: Path, root: Path, answer: bytes = b"", base: str = "server", *, silent: str = ""
) -> Iterator[None]:
    """Listen on loopback with the certificate in ``startup``; answer each request with the same bytes.

    ``silent``: "waits" for the other to go, or "closes" the connection, without a word.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(startup / f"{base}.crt", startup / f"{base}.key")
    context.load_verify_locations(root)
    context.verify_mode = ssl.CERT_REQUIRED
    listener = socket.create_server(("127.0.0.1", port))
    listener.settimeout(0.1)
    over = threading.Event()

    def serve() -> None:
        while not over.is_set():
            with suppress(OSError):
                connection, _ = listener.accept()
                connection.settimeout(5)
                with connection, context.wrap_socket(connection, server_side=True) as secure:
                    secure.recv(4096)
                    while silent == "waits" and secure.recv(4096):
                        pass
                    if silent:
                        continue
                    secure.sendall(answer or b"hello")

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        listener.close()
