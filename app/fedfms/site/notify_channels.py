"""A notice, and the three ways in which it is sent: to a program, to a web address, by mail.

A notice holds an event, the site's name, a job's id, ids of errors and a number of days, and nothing else: it may go
through a chat service or a mail server outside the hospital.
"""

from __future__ import annotations

import json
import os
import signal
import smtplib
import ssl
import subprocess
import threading
from collections.abc import Callable
from datetime import timezone
from email.message import EmailMessage
from email.utils import format_datetime, make_msgid
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, ProxyHandler, Request, build_opener

from pydantic import AfterValidator, AwareDatetime, StringConstraints

from fedfms.configuration import Strict
from fedfms.errors import CATALOGUE
from fedfms.site.notify_config import (
    Channel,
    CommandChannel,
    Event,
    MailChannel,
    WebhookChannel,
    read_password,
)
from fedfms.site.review import JobId


def _error_id(text: str) -> str:
    if text not in CATALOGUE:
        raise ValueError("not an id of the catalogue")
    return text


class Notice(Strict):
    """What is told.

    Attributes:
        event: What happened; ``test`` for a trial.
        site: The participant whose kit it is.
        time: When it was noticed.
        job_id: The job's id.
        errors: Ids of the errors with which a run broke.
        certificate: ``own`` or ``root``, of a certificate that ends.
        days_left: Whole days until it ends; negative afterwards.
    """

    event: Event | Literal["test"]
    site: Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]{1,200}$")]
    time: AwareDatetime
    job_id: JobId | None = None
    errors: tuple[Annotated[str, AfterValidator(_error_id)], ...] = ()
    certificate: Literal["own", "root"] | None = None
    days_left: int | None = None

    @property
    def subject(self) -> str:
        """What happened, in one line."""
        said = {
            "review_waits": "a job waits for a decision",
            "certificate_ends": "a certificate ends soon",
            "run_broke": "a run broke",
            "test": "TEST, nothing has happened",
        }
        if self.event == "certificate_ends" and (self.days_left or 0) < 0:
            return f"fedfms at {self.site}: a certificate has expired"
        return f"fedfms at {self.site}: {said[self.event]}"

    @property
    def text(self) -> str:
        """What happened and what to do, in a few lines."""
        lines = [f"{self.subject}."]
        if self.event == "review_waits":
            lines.append(f"Job {self.job_id}. At the site: fedfms review show {self.job_id}")
        elif self.event == "certificate_ends":
            which = "the root certificate of the project" if self.certificate == "root" else "the kit's certificate"
            lines.append(f"Days left of {which}: {self.days_left}. See docs/provisioning.md, Renew certificates.")
        elif self.event == "run_broke":
            lines.append(f"Job {self.job_id}.")
            lines += [f"{name}: {CATALOGUE[name].title}." for name in self.errors]
            lines.append("What exactly happened is written in the job's run folder in the kit, and on the console.")
        else:
            lines.append("Somebody has tried the notices of this kit; they arrive here.")
        return "\n".join(lines)

    def as_json(self) -> bytes:
        """The notice for a program or a web address: what it holds, and ``text``."""
        content = self.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
        return json.dumps({"program": "fedfms", **content, "text": self.text}).encode()


def send(kit: Path, channel: Channel, notice: Notice) -> None:
    """Send a notice and return when it was accepted, or when the channel's time is over.

    Args:
        kit: The kit's folder: a program is started in it.
        channel: How.
        notice: What.

    Raises:
        FedfmsError: FMS-S012 when the password cannot be read.
        OSError: no connection, not accepted (also smtplib's and urllib's errors), or time over (``TimeoutError``).
        http.client.HTTPException: what answers is not a web server.
        ValueError: a name that cannot be written in the protocol.
        RuntimeError: the program ended with an error.
    """
    if isinstance(channel, CommandChannel):
        _run(kit, channel, notice)
    elif isinstance(channel, WebhookChannel):
        _within(channel.seconds, lambda: _post(channel, notice))
    else:
        password = read_password(kit, channel) if channel.user is not None else None
        _within(channel.seconds, lambda: _mail(channel, password, notice))


def _within(seconds: float, work: Callable[[], None]) -> None:
    """Do something in a thread for so many seconds at most: not every step of it, such as DNS, has its own limit."""
    failures: list[Exception] = []

    def attempt() -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001 - raised again below, in the caller's thread
            failures.append(error)

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError(f"not done after {seconds:g} seconds")
    if failures:
        raise failures[0]


def _run(kit: Path, channel: CommandChannel, notice: Notice) -> None:
    # A session of its own: what the program has started is killed with it.
    process = subprocess.Popen(
        channel.run,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=kit,
        start_new_session=True,
    )
    try:
        process.communicate(notice.as_json(), timeout=channel.seconds)
    except subprocess.TimeoutExpired:
        raise TimeoutError(f"killed after {channel.seconds:g} seconds") from None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if process.returncode:
        raise RuntimeError(f"the program ended with {process.returncode}")


class _NoRedirection(HTTPRedirectHandler):
    """A redirection is an error: it would turn the notice into another request, to an address nobody has checked."""

    def redirect_request(self, *arguments: Any) -> None:
        return None


def _post(channel: WebhookChannel, notice: Notice) -> None:
    request = Request(channel.url, notice.as_json(), {"Content-Type": "application/json"}, method="POST")
    # http is for this machine only, which no proxy can reach.
    proxies = [ProxyHandler({})] if urlsplit(channel.url).scheme == "http" else []
    with build_opener(_NoRedirection, *proxies).open(request, timeout=channel.seconds):
        pass  # the status was checked; what else it says is of no use


def _mail(channel: MailChannel, password: str | None, notice: Notice) -> None:
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = channel.sender, ", ".join(channel.to), notice.subject
    message["Date"] = format_datetime(notice.time.astimezone(timezone.utc))
    message["Message-ID"] = make_msgid(domain=channel.sender.rpartition("@")[2])
    message["Auto-Submitted"] = "auto-generated"  # RFC 3834: no automatic answers
    message.set_content(notice.text)
    context = ssl.create_default_context()
    client: smtplib.SMTP
    if channel.security == "tls":
        client = smtplib.SMTP_SSL(channel.host, channel.port, timeout=channel.seconds, context=context)
    else:
        client = smtplib.SMTP(channel.host, channel.port, timeout=channel.seconds)
    with client:
        if channel.security == "starttls":
            client.starttls(context=context)
        if channel.user is not None and password is not None:
            client.login(channel.user, password)
        refused = client.send_message(message)
    # To be tried means every address; a real notice that somebody got must not be sent to them again.
    if refused and notice.event == "test":
        raise smtplib.SMTPRecipientsRefused(refused)
