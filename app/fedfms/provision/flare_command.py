"""Runs ``nvflare`` commands in separate processes and returns their answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fedfms.errors import PROVISIONING_FAILED, ErrorKind, fail, reason_of

TIME_LIMIT = 120.0
_LAST_LINES = 15


@contextmanager
def private_folder(beside: Path) -> Iterator[Path]:
    """A temporary folder that only this user can enter, on the same disk as ``beside``."""
    beside.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{beside.name}.", dir=beside.parent) as name:
        yield Path(name).resolve()


def flare(
    arguments: Sequence[object],
    home: Path,
    *,
    failure: ErrorKind = PROVISIONING_FAILED,
    where: object = "nvflare",
    seconds: float = TIME_LIMIT,
) -> Mapping[str, Any]:
    """Run ``nvflare ARGUMENTS`` and return the ``data`` of its answer.

    Args:
        arguments: Command and options; paths must be absolute.
        home: Working folder of the command, which also serves as the user's home, so that no file of the user's is read
            or written: FLARE keeps settings and records in ``~/.nvflare``, and imports from its working folder.
        failure: Kind of error when the command fails.
        where: What the command was about, for the error.
        seconds: Time limit.

    Raises:
        FedfmsError: of kind ``failure``, with FLARE's reason.
    """
    command = [sys.executable, "-m", "nvflare.cli", "--format", "json", *(str(argument) for argument in arguments)]
    environment = {**os.environ, "HOME": str(home)}
    environment.pop("NVFLARE_STARTUP_KIT_DIR", None)
    shown = f"nvflare {arguments[0]} {arguments[1]}"
    try:
        result = subprocess.run(
            command,
            cwd=home,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
            umask=0o077,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise fail(failure, where, f"'{shown}': {reason_of(error)}") from error
    answer = _answer(result.stdout)
    if result.returncode == 0 and answer is not None and answer.get("status") == "ok":
        data = answer.get("data")
        return data if isinstance(data, dict) else {"data": data}
    if answer is not None:
        parts = [str(answer[key]) for key in ("message", "detail", "hint") if answer.get(key)]
    else:
        parts = ["no answer", *(result.stdout + result.stderr).strip().splitlines()[-_LAST_LINES:]]
    raise fail(failure, where, f"'{shown}' ended with {result.returncode}: {' '.join(parts)}")


def _answer(text: str) -> dict[str, Any] | None:
    """The last line that is a JSON object; other lines may come before it."""
    for line in reversed(text.strip().splitlines()):
        try:
            content = json.loads(line)
        except ValueError:
            continue
        if isinstance(content, dict):
            return content
    return None
