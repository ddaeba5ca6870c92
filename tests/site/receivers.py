"""What a notice is sent to: a web server, a mail server with TLS and accounts, and a program, all real and local."""

from __future__ import annotations

import base64
import json
import socketserver
import ssl
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from email import message_from_string
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

from tests.site.authorities import NOW, SmallAuthority

ACCOUNT = ("fedfms", "secret word")


def write_notify(kit: Path, **channels: Any) -> Path:
    """``local/notify.yaml`` for all events."""
    content = {"events": ["review_waits", "certificate_ends", "run_broke"], **channels}
    path = kit / "local" / "notify.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({key: value for key, value in content.items() if value is not None}))
    path.chmod(0o600)
    return path


@dataclass
class Program:
    """A program that writes what it gets on its standard input, one notice per line."""

    file: Path
    run: list[str]

    @property
    def notices(self) -> list[dict[str, Any]]:
        lines = self.file.read_text().splitlines() if self.file.exists() else []
        return [json.loads(line) for line in lines]

    def wait_for(self, count: int) -> list[dict[str, Any]]:
        """The notices, as soon as there are so many; a process starts for each."""
        deadline = time.monotonic() + 60
        while len(self.notices) < count and time.monotonic() < deadline:
            time.sleep(0.05)
        return self.notices


def program(folder: Path, *, code: str = "", exit_code: int = 0) -> Program:
    """Write the program; ``code`` runs after it has written."""
    folder.mkdir(parents=True, exist_ok=True)
    script, file = folder / "tell.py", folder / "told.jsonl"
    script.write_text(
        f"#!{sys.executable}\nimport os, sys, time\ntext = sys.stdin.read()\n"
        f"with open({str(file)!r}, 'a') as file:\n    file.write(text + '\\n')\n{code}\nsys.exit({exit_code})\n"
    )
    script.chmod(0o700)
    return Program(file, [str(script)])


@dataclass
class Web:
    """A web server on loopback.

    Attributes:
        url: Its address.
        status: What it answers.
        location: Where it redirects to.
        delay: Seconds before it answers.
        requests: Method, path, content type and body of what came.
    """

    url: str = ""
    status: int = 204
    location: str = ""
    delay: float = 0.0
    requests: list[tuple[str, str, str | None, Any]] = field(default_factory=list)


@contextmanager
def web_server() -> Iterator[Web]:
    web = Web()

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            content = json.loads(body) if body else None
            web.requests.append((self.command, self.path, self.headers.get("Content-Type"), content))
            time.sleep(web.delay)
            self.send_response(web.status)
            if web.location:
                self.send_header("Location", web.location)
            self.end_headers()

        do_POST = do_GET = _answer  # noqa: N815 - the names that the library looks for

        def log_message(self, *arguments: Any) -> None:
            """Say nothing on stderr."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    web.url = f"http://127.0.0.1:{server.server_port}/hook"
    with _serving(server):
        yield web


@dataclass
class MailServer:
    """A mail server on loopback that asks for `ACCOUNT`.

    Attributes:
        port: Its port.
        root: Root certificate of its own certificate, which is for ``localhost``.
        refused: Addresses that it does not take mail for.
        mails: What it took: recipients, mail, and whether TLS and the account were used.
    """

    port: int
    root: Path
    refused: tuple[str, ...] = ()
    mails: list[tuple[list[str], Message, bool, bool]] = field(default_factory=list)


@contextmanager
def mail_server(folder: Path, security: str) -> Iterator[MailServer]:
    """Serve with ``starttls``, ``tls`` or ``none``; with ``none`` it asks for no account."""
    now = datetime.now(timezone.utc)
    authority = SmallAuthority(start=now - timedelta(days=1))
    days = (now - NOW) / timedelta(days=1)
    authority.issue(folder, "localhost", base="mail", days=(days - 1, days + 10))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "mail.crt", folder / "mail.key")
    mail = MailServer(0, folder / "rootCA.pem")

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            encrypted = security == "tls"
            connection = context.wrap_socket(self.request, server_side=True) if encrypted else self.request
            stream, known, recipients = connection.makefile("rwb"), False, []

            def say(line: str) -> None:
                stream.write(line.encode() + b"\r\n")
                stream.flush()

            say("220 localhost")
            while line := stream.readline().decode().rstrip("\r\n"):
                command = line.split(" ")[0].split(":")[0].upper()
                if command == "EHLO":
                    offers = ["localhost", *(["STARTTLS"] if security == "starttls" and not encrypted else [])]
                    offers += ["AUTH PLAIN"] if encrypted else []
                    for number, offer in enumerate(offers, start=1):
                        say(f"250{' ' if number == len(offers) else '-'}{offer}")
                elif command == "STARTTLS":
                    say("220 go ahead")
                    connection = context.wrap_socket(self.request, server_side=True)
                    stream, encrypted = connection.makefile("rwb"), True
                elif command == "AUTH":
                    given = base64.b64decode(line.split(" ")[2]).decode().split("\0")[1:]
                    known = tuple(given) == ACCOUNT
                    say("235 welcome" if known else "535 unknown account")
                elif command == "MAIL":
                    recipients = []
                    say("250 ok" if known or security == "none" else "530 who are you")
                elif command == "RCPT":
                    address = line[line.index("<") + 1 : line.index(">")]
                    if address in mail.refused:
                        say("550 no such box")
                    else:
                        recipients.append(address)
                        say("250 ok")
                elif command == "DATA":
                    say("354 go ahead")
                    lines = []
                    while (text := stream.readline().decode().rstrip("\r\n")) != ".":
                        lines.append(text)
                    mail.mails.append((recipients, message_from_string("\n".join(lines)), encrypted, known))
                    say("250 taken")
                else:
                    say("221 bye" if command == "QUIT" else "250 ok")
                    if command == "QUIT":
                        return

    class Quiet(socketserver.ThreadingTCPServer):
        daemon_threads = True
        allow_reuse_address = True

        def handle_error(self, *arguments: Any) -> None:
            """A client that refuses the certificate breaks off the handshake; that is what some tests are about."""

    server = Quiet(("127.0.0.1", 0), Handler)
    mail.port = server.server_address[1]
    with _serving(server):
        yield mail


@contextmanager
def _serving(server: socketserver.BaseServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
