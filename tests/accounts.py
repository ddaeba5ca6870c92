"""Root reads every file. Here it is held to the modes of files as any other account is, so that it can be refused."""

from __future__ import annotations

import ctypes
import os
import platform
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_VERSION_3 = 0x20080522
#: CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH of capabilities(7), as bits.
_PASSES_MODES = 1 << 1 | 1 << 2


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Sets(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


@contextmanager
def held_to_modes() -> Iterator[None]:
    """Without root's right to pass over modes; of any other account nothing changes. Skips where that is not possible.

    It lasts for this thread. The account stays the same, so files of its own are read as before, and modules of Python
    can be loaded.
    """
    if os.geteuid() != 0:
        yield
        return
    if platform.system() != "Linux":
        pytest.skip("only Linux lets root give up its right to read every file")
    libc = ctypes.CDLL(None, use_errno=True)
    sets = (_Sets * 2)()
    if libc.capget(ctypes.byref(_Header(_VERSION_3, 0)), sets) != 0:
        pytest.skip("the rights of this process cannot be read")
    before = sets[0].effective
    _set(libc, sets, before & ~_PASSES_MODES)
    try:
        yield
    finally:
        _set(libc, sets, before)


def _set(libc: ctypes.CDLL, sets: ctypes.Array[_Sets], effective: int) -> None:
    sets[0].effective = effective
    if libc.capset(ctypes.byref(_Header(_VERSION_3, 0)), sets) != 0:
        pytest.skip("the rights of this process cannot be changed")


@contextmanager
def shut(path: Path, mode: int = 0) -> Iterator[None]:
    """A file or folder that this account may not read."""
    before = stat.S_IMODE(path.stat().st_mode)
    path.chmod(mode)
    try:
        with held_to_modes():
            yield
    finally:
        path.chmod(before)
