"""Pieces of error texts that many errors share, so that they read alike."""

from __future__ import annotations

from collections.abc import Sequence

_LONGEST = 300


def reason_of(error: BaseException) -> str:
    """What a library's error says, after the name of its class: ``PermissionError: Permission denied``.

    The path that an ``OSError`` repeats is left out: our errors name it themselves. Long texts are cut, because some of
    pydicom's errors quote kilobytes of the file.
    """
    said = str(error.strerror if isinstance(error, OSError) and error.strerror else error)
    if len(said) > _LONGEST:
        said = f"{said[:_LONGEST]}..."
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def first_of(items: Sequence[object], most: int, separator: str = ", ") -> str:
    """The first items of a list and how many were left out: ``a, b and 3 more``.

    Args:
        items: What to list, in this order.
        most: Most items that are written out.
        separator: Between two items.
    """
    shown = separator.join(map(str, items[:most]))
    return shown if len(items) <= most else f"{shown} and {len(items) - most} more"
