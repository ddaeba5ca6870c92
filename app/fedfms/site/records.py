"""Files that only grow: one JSON object per line, synced to the disk before anything depends on it.

Each line holds the SHA-256 of the line before it, so an edited or removed line is detected by the line that follows.
A file that was rewritten as a whole, or whose last lines were cut off, does not show it: to detect that, keep the
digest of the last line (`last_digest`), or a `Mark`, somewhere else.
"""

from __future__ import annotations

import fcntl
import getpass
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import NonNegativeInt

from fedfms.access import exists, unreadable, unwritable
from fedfms.configuration import Sha256, Strict
from fedfms.errors import RECORD_UNREADABLE, ErrorKind, FedfmsError, Problem, fail, reason_of

_PREVIOUS = "previous_sha256"
#: In the line after one that a power failure or a full disk cut off: how many bytes of that one were taken away.
_TORN = "torn_bytes"
_FIRST = "0" * 64  # before the first line
_BLOCK = 1 << 16


class Mark(Strict):
    """The last line of a file up to which it has been read.

    Attributes:
        start: Offset of the line's first byte.
        end: Offset of the byte after its newline.
        sha256: Of the line without its newline.
    """

    start: NonNegativeInt
    end: NonNegativeInt
    sha256: Sha256


def utc_now() -> datetime:
    """The current time in UTC, with its time zone."""
    return datetime.now(timezone.utc)


def account_name() -> str:
    """Name of the account that this process runs as; ``unknown`` where it has none, as in some containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Admit one thread of one process at a time: what is counted in a folder must stay true until it is written down.

    Raises:
        FedfmsError: FMS-D011 when the folder cannot be locked.
    """
    path = folder / ".lock"
    try:
        make_closed(folder)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise unwritable(path, error) from error
    try:
        # The lock belongs to the open file, so a process that dies releases it.
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def make_closed(folder: Path) -> None:
    """Create a folder for its owner alone, and its parents: ``Path.mkdir`` gives the mode to the last one only."""
    if not folder.is_dir():
        make_closed(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)


def append_line(path: Path, content: Mapping[str, Any]) -> None:
    """Append one line and wait until it is on the disk. Only the file's owner may read it.

    A line that was cut off at the end was never acknowledged, and nothing depends on it: it is taken away, and the new
    line says so. It would otherwise be in the middle, where a damaged line is an error.

    Raises:
        FedfmsError: FMS-D011.
    """
    try:
        make_closed(path.parent)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        # Without a buffer, which would write on closing what an error has taken back.
        with os.fdopen(descriptor, "r+b", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            last, torn = _last_line(file)
            line = {_PREVIOUS: _digest(last), **({_TORN: torn} if torn else {}), **content}
            end = file.seek(0, os.SEEK_END) - torn
            file.truncate(end)
            try:
                _write_all(file, json.dumps(line, allow_nan=False).encode() + b"\n")
                os.fsync(file.fileno())
            except OSError:
                _take_back(file, end)
                raise
    except OSError as error:
        raise unwritable(path, error) from error


def _write_all(file: FileIO, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]


def _take_back(file: FileIO, end: int) -> None:
    """Remove what a full disk left of a line; if that fails too, the next line does it."""
    with suppress(OSError):
        os.ftruncate(file.fileno(), end)


def read_lines(path: Path, damaged: ErrorKind = RECORD_UNREADABLE) -> list[dict[str, Any]]:
    """All lines; none if there is no file. A last line without its newline is not written yet and does not count.

    Args:
        path: The file.
        damaged: Kind of the error.

    Raises:
        FedfmsError: FMS-D019 when the file may not be read; of kind ``damaged`` when it cannot be read, and with every
            line that is damaged or does not follow the one before.
    """
    return read_after(path, None, damaged)[0]


def read_after(
    path: Path, mark: Mark | None, damaged: ErrorKind = RECORD_UNREADABLE
) -> tuple[list[dict[str, Any]], Mark | None]:
    """The lines appended since an earlier reading; of what that one has read, only the last line is read again.

    Args:
        path: The file.
        mark: Where the earlier reading ended; None to read the whole file.
        damaged: Kind of the error.

    Returns:
        The lines, and the new mark; None if the file has no line yet.

    Raises:
        FedfmsError: as `read_lines`, and when the marked line is no longer where it was.
    """
    try:
        if mark is None and not exists(path):
            return [], None
        with path.open("rb") as file:
            last = _between(file, mark.start, mark.end) if mark is not None else b""
            appended = file.read()
    except OSError as error:
        raise unreadable(damaged, path, error) from error
    if mark is not None and (not last.endswith(b"\n") or _digest(last[:-1]) != mark.sha256):
        raise fail(damaged, path, "was edited or cut off: a line read before is not where it was")
    written = appended.split(b"\n")[:-1]
    place = f"{path}, line" if mark is None else f"{path}, after byte {mark.end}, line"
    lines, problems = [], list[Problem]()
    for number, line in enumerate(written, start=1):
        try:
            lines.append(_parsed(line, _FIRST if mark is None else mark.sha256, f"{place} {number}", damaged))
        except FedfmsError as error:
            problems += error.problems
        start = 0 if mark is None else mark.end
        mark = Mark(start=start, end=start + len(line) + 1, sha256=_digest(line))
    if problems:
        raise FedfmsError(problems)
    return lines, mark


def is_chained(path: Path) -> bool:
    """Whether any line of a file names the line before it, as all do that `append_line` writes."""
    with path.open("rb") as file:
        return any(line.startswith(f'{{"{_PREVIOUS}": '.encode()) for line in file)


def last_digest(path: Path) -> str:
    """SHA-256 of the last line, which vouches for all lines before it; zeros where there is none.

    Raises:
        FedfmsError: FMS-S008.
    """
    try:
        if not exists(path):
            return _FIRST
        with path.open("rb") as file:
            return _digest(_last_line(file)[0])
    except OSError as error:
        raise unreadable(RECORD_UNREADABLE, path, error) from error


def _parsed(line: bytes, previous: str, where: str, damaged: ErrorKind) -> dict[str, Any]:
    try:
        content = json.loads(line)
    except ValueError as error:
        raise fail(damaged, where, reason_of(error)) from error
    if not isinstance(content, dict):
        raise fail(damaged, where, "not a JSON object")
    if content.pop(_PREVIOUS, None) != previous:
        raise fail(damaged, where, "does not follow the line before: one of the two was edited or removed")
    content.pop(_TORN, None)
    return content


def _last_line(file: BinaryIO | FileIO) -> tuple[bytes | None, int]:
    """The last whole line without its newline, None if there is none; and how many bytes of a torn one follow it.

    Read from the end, because a record of many rounds has megabytes.
    """
    start = file.seek(0, os.SEEK_END)
    tail = b""
    while start > 0 and tail.count(b"\n") < 2:
        step = min(_BLOCK, start)
        start -= step
        tail = _between(file, start, start + step) + tail
    *whole, torn = tail.split(b"\n")
    return (whole[-1] if whole else None), len(torn)


def _between(file: BinaryIO | FileIO, start: int, end: int) -> bytes:
    file.seek(start)
    return file.read(end - start)


def _digest(line: bytes | None) -> str:
    return _FIRST if line is None else hashlib.sha256(line).hexdigest()
