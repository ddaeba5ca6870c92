"""What the account that runs this may read and write: a file that it may not read is never taken for a missing one.

``Path.is_file`` and ``Path.exists`` raise where a folder on the way may not be entered, or say False (Python 3.14), and
``Path.glob`` skips folders that may not be listed. What must not be overlooked is therefore asked for here.
"""

from __future__ import annotations

import errno
import grp
import os
import pwd
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

from fedfms.errors import FILE_REFUSED, FILE_UNWRITABLE, ErrorKind, FedfmsError, Problem, fail, reason_of

# Folders of file systems themselves, which are their administrator's alone and hold no data.
_OF_FILE_SYSTEMS = ("lost+found",)


def user_name(uid: int) -> str:
    """Name and number of an account, such as ``fedfms (uid 990)``."""
    return _named(lambda: pwd.getpwuid(uid).pw_name, f"uid {uid}")


def login(uid: int) -> str:
    """An account as sudo and chown take it: by its name, or by its number where it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"#{uid}"


def account() -> str:
    """Name and number of the account whose rights count for this process."""
    return f"account {user_name(os.geteuid())}"


def whose(path: Path) -> str:
    """Owner, group and mode of a file or folder, in words."""
    status = path.stat()
    group = _named(lambda: grp.getgrgid(status.st_gid).gr_name, f"gid {status.st_gid}")
    return f"it belongs to {user_name(status.st_uid)}, group {group}, mode {stat.S_IMODE(status.st_mode):04o}"


def _named(look_up: Callable[[], str], number: str) -> str:
    try:
        return f"{look_up()} ({number})"
    except KeyError:  # a container need not name its accounts, nor a machine those of a network drive
        return number


def refusal(path: Path) -> Problem | None:
    """Why this account may not read a file or list a folder.

    Returns:
        FMS-D019, which names the account, and of what refuses (the path itself, or the first folder on the way to it)
        owner and mode; None where reading is allowed, and where there is nothing to read.
    """
    try:
        # Not os.access: it asks for the account that started the program, and does not know every kind of refusal.
        os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
    except PermissionError:
        return _refused(path)
    except (OSError, ValueError):  # missing, a socket, or a name that is not possible
        return None
    return None


def require_readable(path: Path) -> None:
    """Refuse a file or folder that this account may not read; a missing one is none of its business.

    Raises:
        FedfmsError: FMS-D019.
    """
    if (problem := refusal(path)) is not None:
        raise FedfmsError([problem])


def unreadable(kind: ErrorKind, path: Path, error: BaseException) -> FedfmsError:
    """The error of a file whose reading failed: FMS-D019 if this account may not read it, else of the kind given.

    The first is found by trying, because libraries have many names for it.

    Args:
        kind: The kind otherwise, with what was raised as its cause.
        path: The file or folder.
        error: What was raised.
    """
    problem = refusal(path)
    return fail(kind, path, reason_of(error)) if problem is None else FedfmsError([problem])


def exists(path: Path) -> bool:
    """``Path.exists``, but FMS-D019 where a folder on the way may not be entered."""
    return _mode(path) is not None


def is_file(path: Path) -> bool:
    """``Path.is_file``, but FMS-D019 where a folder on the way may not be entered."""
    return stat.S_ISREG(_mode(path) or 0)


def is_dir(path: Path, *, follow_links: bool = True) -> bool:
    """``Path.is_dir``, but FMS-D019 where a folder on the way may not be entered."""
    return stat.S_ISDIR(_mode(path, follow_links) or 0)


def _mode(path: Path, follow_links: bool = True) -> int | None:
    try:
        return path.stat(follow_symlinks=follow_links).st_mode
    except PermissionError:
        raise FedfmsError([_refused(path)]) from None
    except (OSError, ValueError):
        return None


def children(folder: Path) -> list[Path]:
    """What is directly in a folder, sorted; nothing if there is no such folder.

    Raises:
        FedfmsError: FMS-D019 when it may not be listed.
    """
    try:
        return sorted(path for path in folder.iterdir() if path.name not in _OF_FILE_SYSTEMS)
    except PermissionError:
        raise FedfmsError([_refused(folder)]) from None
    except (FileNotFoundError, NotADirectoryError):
        return []


def walk(folder: Path, refused: list[Problem], *, hidden: bool = True) -> Iterator[Path]:
    """Everything below a folder, sorted; links to folders are not followed.

    Args:
        folder: Where to look.
        refused: Gets FMS-D019 for each folder that may not be listed or entered.
        hidden: Whether names that begin with a dot count; if not, such folders are not looked into.
    """
    try:
        found = [(path, is_dir(path, follow_links=False)) for path in children(folder) if hidden or path.name[0] != "."]
    except FedfmsError as error:
        refused += (replace(problem, where=str(folder)) for problem in error.problems)
        return
    for path, is_folder in found:
        yield path
        if is_folder:
            yield from walk(path, refused, hidden=hidden)


def paths_that_fit(folder: Path, pattern: str) -> list[Path]:
    """``sorted(folder.glob(pattern))``, without names that begin with a dot where the pattern has a wildcard.

    Raises:
        FedfmsError: FMS-D019 for each folder that may not be listed or entered: what is in it is not known then.
    """
    refused: list[Problem] = []
    found = sorted(set(_fitting(folder, pattern.split("/"), refused)))
    if refused:
        raise FedfmsError(dict.fromkeys(refused))
    return found


def _fitting(folder: Path, parts: Sequence[str], refused: list[Problem]) -> Iterator[Path]:
    if not parts:
        yield folder
        return
    first, *rest = parts
    try:
        if first == "**":
            yield from _fitting(folder, rest, refused)
        if not any(letter in first for letter in "*?["):
            paths = [folder / first] if exists(folder / first) else []
        else:
            paths = [path for path in children(folder) if fnmatchcase(path.name, first) and path.name[0] != "."]
        if first == "**":
            paths, rest = [path for path in paths if is_dir(path, follow_links=False)], [first, *rest]
        elif rest:
            paths = [path for path in paths if is_dir(path)]
    except FedfmsError as error:
        refused += error.problems
        return
    for path in paths:
        yield from _fitting(path, rest, refused)


def unwritable(path: Path, error: OSError, kind: ErrorKind = FILE_UNWRITABLE) -> FedfmsError:
    """The error of a file or folder that could not be written.

    A full disk, a used up quota, a disk that is read-only and a missing right have a remedy each.
    """
    detail, remedy = why_unwritable(path, error)
    return fail(kind, path, detail, remedy)


def why_unwritable(path: Path, error: OSError) -> tuple[str, str | None]:
    """Cause and remedy of a failed write; the remedy is None where only the catalogue's general one is known."""
    folder = next((place for place in (path, *path.parents) if os.path.lexists(place)), path)
    said = reason_of(error)
    if error.errno == errno.ENOSPC:
        return f"{said}: the disk of {folder} is full", f"Free space on the disk of {folder} ('df -h', 'df -i')."
    if error.errno == errno.EDQUOT:
        text = f"{said}: {account()} has used up its quota on the disk of {folder}"
        return text, "Delete files of this account there, or ask the administrator for a larger quota ('quota -s')."
    if error.errno == errno.EROFS:
        text = f"{said}: {folder} is on a disk that is mounted read-only"
        return text, "Let the administrator mount it for writing, or use a folder on another disk."
    if isinstance(error, PermissionError):
        barrier = _barrier(path)
        place = _closed(path, folder) if barrier is None else barrier
        rights = "x" if barrier is not None else "rwx" if place.is_dir() else "rw"
        # Not chown: it takes a folder away from the people whose it is.
        remedy = (
            "Name another place to write to, or let the owner or an administrator give this account the right:"
            f" 'setfacl -m u:{os.geteuid()}:{rights} {place}'."
        )
        return f"{account()} may not write there; {place}: {whose(place)}", remedy
    return said, None


def _closed(path: Path, nearest: Path) -> Path:
    """What does not let a path be written, of which ``nearest`` is the first part that is there."""
    if nearest != path or path.is_dir():
        return nearest
    # Files are written beside their place and renamed, so the folder counts before the file.
    folder = path.parent
    return path if os.access(folder, os.W_OK | os.X_OK, effective_ids=True) else folder


def _refused(path: Path) -> Problem:
    """FMS-D019, for a path of which something has raised a PermissionError."""
    place = _barrier(path)
    if place is None:
        target = Path(os.path.realpath(path))
        verb = "list" if target.is_dir() else "read"
        what = f"{target}: {whose(target)}" if target != path else f"it: {whose(target)}"
        return Problem(FILE_REFUSED, str(path), f"{account()} may not {verb} {what}")
    return Problem(FILE_REFUSED, str(path), f"{account()} may not enter {place}: {whose(place)}")


def _barrier(path: Path) -> Path | None:
    """The first folder on the way to a path that may not be entered."""
    target = Path(os.path.realpath(path))
    for place in (*reversed(target.parents), target):
        try:
            place.lstat()
        except PermissionError:
            return place.parent
        except OSError:
            return None
    return None
