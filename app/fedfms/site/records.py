"""Files of a site that only grow: one JSON object per line, on the disk before anything depends on it."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from fedfms.errors import FILE_UNWRITABLE, RECORD_UNREADABLE, fail


def utc_now() -> datetime:
    """The time, with its zone."""
    return datetime.now(timezone.utc)


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
        raise fail(FILE_UNWRITABLE, path, f"{type(error).__name__}: {error.strerror or error}") from error
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
    line = json.dumps(content, allow_nan=False) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(descriptor, "r+b") as file:
            end = file.seek(0, os.SEEK_END)
            if end:
                file.seek(end - 1)
                if file.read(1) != b"\n":  # torn by a power cut: it must not spoil the new line too
                    line = "\n" + line
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise fail(FILE_UNWRITABLE, path, f"{type(error).__name__}: {error.strerror or error}") from error


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All lines; none if there is no file. A last line without its end is not yet written and does not count.

    Raises:
        FedfmsError: FMS-S008 when the file cannot be read, or a line is damaged.
    """
    try:
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        lines = [json.loads(line) for line in text.split("\n")[:-1]]
    except (OSError, ValueError) as error:
        raise fail(RECORD_UNREADABLE, path, f"{type(error).__name__}: {error}") from error
    if not all(isinstance(line, dict) for line in lines):
        raise fail(RECORD_UNREADABLE, path, "a line is no JSON object")
    return lines
