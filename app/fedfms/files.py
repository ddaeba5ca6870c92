"""Atomic writes: a file is written under a temporary name, synced and renamed, so that it is whole or absent."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fedfms.access import unwritable


@contextmanager
def atomic_path(target: Path, *, sync: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside ``target``; on success it replaces ``target``, on failure it is removed.

    Args:
        target: The file to write. Its folder is created.
        sync: Wait until the file is on disk, so that it is whole even after a power failure.

    Raises:
        FedfmsError: FMS-D011 when the disk is full or the folder cannot be written; ``target`` is unchanged.
    """
    temporary = target.with_name(f".{target.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if sync:
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
        temporary.replace(target)
    except OSError as error:
        raise unwritable(target, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder beside ``target``; on success it replaces ``target``, on failure it is removed.

    Raises:
        FedfmsError: FMS-D011 when the disk is full or the folder cannot be written; ``target`` is unchanged.
    """
    unique = f"{os.getpid()}.{secrets.token_hex(4)}"
    temporary, old = (target.with_name(f".{target.name}.{unique}.{kind}") for kind in ("tmp", "old"))
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if target.is_dir():
            # A folder cannot be renamed onto one that is not empty.
            target.rename(old)
        temporary.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        if old.exists() and not target.exists():
            old.rename(target)
        raise unwritable(target, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Wait until no other command of this package works in a folder: of two at once, one would lose entries.

    Args:
        folder: Must exist. Nothing is written into it.

    Raises:
        OSError: The folder cannot be opened.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def environment_folder(variable: str) -> Path | None:
    """The folder that an environment variable names; None when it is not set.

    A relative path is relative to the folder in which the command was started: FLARE changes its working directory
    before it loads our code, but the shell's PWD stays in the environment.
    """
    value = os.environ.get(variable)
    return Path(os.environ.get("PWD", ""), value) if value else None


def write_json(target: Path, content: Any, *, sync: bool = True) -> None:
    """Write JSON through ``atomic_path``.

    Args:
        target: The file to write.
        content: JSON values.
        sync: As for ``atomic_path``.

    Raises:
        FedfmsError: FMS-D011 as ``atomic_path``.
        ValueError: when a number is NaN or infinite.
    """
    text = json.dumps(content, indent=1, sort_keys=True, allow_nan=False)
    with atomic_path(target, sync=sync) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sha256_json(content: Any) -> str:
    """SHA-256 of the canonical JSON form (sorted keys, no spaces) of ``content``."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
