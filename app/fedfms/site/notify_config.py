"""``local/notify.yaml``: whom a kit tells what, and how. Every channel is optional; without one nobody is told.

``docs/site-admin.md`` explains each key.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from fedfms.configuration import Number, Strict, distinct_and_some, in_words, read_yaml, validated
from fedfms.errors import NOTIFY_INVALID, FedfmsError, Problem, fail, reason_of

NOTIFY_FILE = Path("local/notify.yaml")

#: What can be told: a job waits for a decision, a certificate ends soon, a job failed here.
Event = Literal["review_waits", "certificate_ends", "run_broke"]
ChannelName = Literal["command", "webhook", "smtp"]

#: Longest time limit of one channel, in seconds.
MOST_SECONDS = 60.0
Seconds = Annotated[Number, Field(gt=0, le=MOST_SECONDS)]

# The manifest refuses other files there.
_WATCHED_FOLDERS = ("local", "startup")
_LOOPBACK = "127.0.0.1, ::1 or localhost"


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _program_first(run: tuple[str, ...]) -> tuple[str, ...]:
    if not run or not Path(run[0]).is_absolute():
        raise ValueError("write a list that begins with the full path of a program, such as [/usr/local/bin/tell, it]")
    return run


def _address(text: str) -> str:
    if not re.fullmatch(r"[!-~]+@[!-~]+", text) or set(text) & set('<>(),;:\\"'):
        raise ValueError("write one address without a name, such as it@hospital.example")
    return text


def _host(text: str) -> str:
    try:
        ip_address(text)
    except ValueError:
        if not re.fullmatch(r"[A-Za-z0-9._-]+", text):
            raise ValueError("write a host name or an address, without a port") from None
    return text


def _web_address(text: str) -> str:
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"not a web address: {error}") from None
    if not host or not re.fullmatch(r"[!-~]+", text):
        raise ValueError("write a web address such as https://chat.hospital.example/hooks/fedfms")
    if parts.username is not None:
        raise ValueError("a web address with a name or password before @ is not supported")
    if parts.scheme != "https" and not (parts.scheme == "http" and _is_loopback(host)):
        raise ValueError(f"write https://; http:// is for {_LOOPBACK} only")
    return text


class CommandChannel(Strict):
    """A program of the site.

    Attributes:
        run: Program and arguments; no shell reads them. The notice is on its standard input, as JSON.
        seconds: After so many seconds the program and what it started are killed.
    """

    run: Annotated[tuple[str, ...], AfterValidator(_program_first)]
    seconds: Seconds = 30.0


class WebhookChannel(Strict):
    """A web address to which the notice is sent as JSON (POST).

    Attributes:
        url: ``https``; ``http`` for the machine itself only. Redirections are not followed.
        seconds: Time limit.
    """

    url: Annotated[str, AfterValidator(_web_address)]
    seconds: Seconds = 15.0


class MailChannel(Strict):
    """A mail server that takes the notice as a mail.

    Attributes:
        host: Name or address of the mail server.
        port: 587 is usual for ``starttls``, 465 for ``tls``, 25 for ``none``.
        security: ``starttls``, ``tls`` from the first byte, or ``none``, for a mail server on this machine only.
        sender: Key ``from``: the address that the mail comes from.
        to: Addresses that it goes to.
        user: Account at the mail server; None to send without one.
        password_file: File whose first line is the account's password; relative to the kit.
        password_variable: Environment variable with the password, instead of the file.
        seconds: Time limit.
    """

    host: Annotated[str, AfterValidator(_host)]
    port: Annotated[int, Field(strict=True, ge=1, le=65535)]
    security: Literal["starttls", "tls", "none"]
    sender: Annotated[str, Field(alias="from"), AfterValidator(_address)]
    to: Annotated[tuple[Annotated[str, AfterValidator(_address)], ...], AfterValidator(distinct_and_some)]
    user: Annotated[str, StringConstraints(min_length=1)] | None = None
    password_file: Path | None = None
    password_variable: (
        Annotated[
            str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$"), in_words("the name of an environment variable")
        ]
        | None
    ) = None
    seconds: Seconds = 30.0

    @model_validator(mode="after")
    def _agree(self) -> MailChannel:
        wrong = []
        if self.security == "none" and not _is_loopback(self.host):
            wrong.append(f"security none is for {_LOOPBACK} only; write starttls or tls")
        sources = [item for item in (self.password_file, self.password_variable) if item is not None]
        if self.user is None and sources:
            wrong.append("a password needs user")
        if self.user is not None and len(sources) != 1:
            wrong.append("user needs either password_file or password_variable")
        if wrong:
            raise ValueError("; ".join(wrong))
        return self


Channel = CommandChannel | WebhookChannel | MailChannel


class NotifyConfig(Strict):
    """Content of ``notify.yaml``.

    Attributes:
        events: What is told.
        command: A program to start.
        webhook: A web address to post to.
        smtp: A mail server to send mail through.
    """

    events: Annotated[tuple[Event, ...], AfterValidator(distinct_and_some)]
    command: CommandChannel | None = None
    webhook: WebhookChannel | None = None
    smtp: MailChannel | None = None

    @property
    def channels(self) -> dict[ChannelName, Channel]:
        """The channels that the file names."""
        named: dict[ChannelName, Channel | None] = {
            "command": self.command,
            "webhook": self.webhook,
            "smtp": self.smtp,
        }
        return {name: channel for name, channel in named.items() if channel is not None}


def has_notify(kit: Path) -> bool:
    """Whether a kit has a ``notify.yaml``, valid or not."""
    path = kit / NOTIFY_FILE
    # Not exists() alone: a link to nowhere is a mistake, not a site that wants no notices.
    return path.is_symlink() or path.exists()


def load_notify(kit: Path) -> NotifyConfig | None:
    """Read a kit's ``notify.yaml``, and look whether the files that it names can be used.

    Args:
        kit: The kit's folder.

    Returns:
        The content; None if there is no such file.

    Raises:
        FedfmsError: FMS-S012 with every wrong, missing or unknown key, or with every file that cannot be used.
    """
    path = kit / NOTIFY_FILE
    if not has_notify(kit):
        return None
    config = validated(NotifyConfig, read_yaml(path, NOTIFY_INVALID), NOTIFY_INVALID, path)
    if problems := list(_file_problems(kit, config)):
        raise FedfmsError(problems)
    return config


def _file_problems(kit: Path, config: NotifyConfig) -> Iterator[Problem]:
    if config.command is not None:
        program = Path(config.command.run[0])
        if not program.is_file() or not os.access(program, os.X_OK):
            detail = f"{program} is not a file that this account may execute"
            yield Problem(NOTIFY_INVALID, f"{kit / NOTIFY_FILE}: command.run", detail)
    if config.smtp is not None and config.smtp.password_file is not None:
        try:
            read_password(kit, config.smtp)
        except FedfmsError as error:
            yield from error.problems


def read_password(kit: Path, channel: MailChannel) -> str:
    """The password of the account at the mail server.

    Raises:
        FedfmsError: FMS-S012 when the file or the variable cannot be used, or other users can read the file.
    """
    where = f"{kit / NOTIFY_FILE}: smtp"
    if channel.password_variable is not None:
        password = os.environ.get(channel.password_variable, "")
        if not password:
            detail = f"the environment variable {channel.password_variable} is not set, or is empty"
            raise fail(NOTIFY_INVALID, f"{where}.password_variable", detail)
        return password
    assert channel.password_file is not None
    path, where = kit / channel.password_file, f"{where}.password_file"
    if any((kit / name).resolve() in path.resolve().parents for name in _WATCHED_FOLDERS):
        detail = f"{path} is in a folder of the kit in which the manifest allows no other file"
        raise fail(NOTIFY_INVALID, where, detail, "Put it beside these folders or outside the kit.")
    try:
        status = path.stat()
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise fail(NOTIFY_INVALID, where, f"{path} cannot be read: {reason_of(error)}") from error
    if stat.S_IMODE(status.st_mode) & 0o077:
        detail = f"{path} is open to other users, mode {stat.S_IMODE(status.st_mode):04o}"
        raise fail(NOTIFY_INVALID, where, detail, f"Close it with 'chmod 600 {path}'.")
    password = text.partition("\n")[0].rstrip("\r")
    if not password:
        raise fail(NOTIFY_INVALID, where, f"the first line of {path} is empty; it must be the password")
    return password
