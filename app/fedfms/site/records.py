"""Files of a site that only grow: one JSON object per line, on the disk before anything depends on it.

Each line carries the SHA-256 of the line before it, so that one that was changed or taken out is noticed. A file that
is written anew as a whole, or whose end is cut off, is not: for that the digest of the last line can be kept elsewhere.
"""

from __future__ import annotations

import fcntl
import getpass
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from fedfms.errors import FILE_UNWRITABLE, RECORD_UNREADABLE, fail, reason_of


def utc_now() -> datetime:
    """The time, with its zone."""
    return datetime.now(timezone.utc)


_PREVIOUS = "previous_sha256"
_FIRST = "0" * 64  # before the first line


def account_name() -> str:
    """Name of the account that this process runs as; ``unknown`` where it has none, as in some containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Let one thread of one process at a time in: what is counted in a folder must hold until it is written down.

    Raises:
        FedfmsError: FMS-D011 when the folder cannot be locked.
    """
    path = folder / ".lock"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise fail(FILE_UNWRITABLE, path, reason_of(error)) from error
    try:
        # Held by the open file: a process that dies gives it back.
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def append_line(path: Path, content: Mapping[str, Any]) -> None:
    """Append one line and wait until the disk has it. Only the file's owner may read it.

    Raises:
        FedfmsError: FMS-D011.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(descriptor, "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            before = file.read()
            line = json.dumps({_PREVIOUS: _last_digest(before), **content}, allow_nan=False) + "\n"
            if before and not before.endswith(b"\n"):
                line = "\n" + line  # torn by a power cut: it must not spoil the new line too
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise fail(FILE_UNWRITABLE, path, reason_of(error)) from error


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All lines; none if there is no file. A last line without its end is not yet written and does not count.

    Raises:
        FedfmsError: FMS-S008 when the file cannot be read, or a line is damaged or does not follow the one before.
    """
    try:
        written = _lines(path.read_bytes()) if path.exists() else []
        lines = [json.loads(line) for line in written]
    except (OSError, ValueError) as error:
        raise fail(RECORD_UNREADABLE, path, reason_of(error)) from error
    expected = _FIRST
    for number, (content, line) in enumerate(zip(lines, written, strict=True), start=1):
        if not isinstance(content, dict):
            raise fail(RECORD_UNREADABLE, f"{path}, line {number}", "is no JSON object")
        if content.pop(_PREVIOUS, None) != expected:
            raise fail(RECORD_UNREADABLE, f"{path}, line {number}", "does not follow the line before: one was changed")
        expected = _digest(line)
    return lines


def last_digest(path: Path) -> str:
    """SHA-256 of the last line, which stands for all before it; zeros where there is none."""
    return _last_digest(path.read_bytes() if path.exists() else b"")


def _last_digest(content: bytes) -> str:
    lines = _lines(content)
    return _digest(lines[-1]) if lines else _FIRST


def _lines(content: bytes) -> list[bytes]:
    return content.split(b"\n")[:-1]


def _digest(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()
