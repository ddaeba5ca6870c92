"""Names of files: bytes that are not text, and accents that are encoded in two ways.

Linux stores names as bytes. Python shows bytes that are not UTF-8 as lone surrogates, which can be neither printed nor
written to a file. macOS writes an accent as a character of its own (NFD), others as part of the letter (NFC).
"""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

from fedfms.access import exists
from fedfms.data.volume.remedies import GeneralRemedy
from fedfms.errors import IMAGE_UNREADABLE, fail


def require_utf8(path: Path) -> None:
    """Refuse a path that is not UTF-8.

    Raises:
        FedfmsError: FMS-D004, with its bytes escaped.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise fail(
            IMAGE_UNREADABLE,
            printable(path),
            "the name is not UTF-8",
            GeneralRemedy("Rename the file, for example with 'convmv -f latin1 -t utf8 --notest FOLDER/*'."),
        ) from None


def printable(path: Path) -> str:
    """A path that may not be UTF-8, with such bytes escaped."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def composed(text: str) -> str:
    """Text with accents as part of their letters (NFC), so that names from two systems are equal."""
    return unicodedata.normalize("NFC", text)


def as_stored(path: Path) -> Path:
    """The path as the file system has it: a list may have been written on another system. As given if there is none.

    Raises:
        FedfmsError: FMS-D019 where a folder on the way may not be entered.
    """
    ways = (path, *(Path(unicodedata.normalize(form, str(path))) for form in ("NFC", "NFD")))
    return next((way for way in ways if exists(way)), path)
