"""Elements of a DICOM file as plain Python values.

pydicom decodes an element when it is first asked for, so that a damaged one raises wherever it is used. All access to
elements therefore goes through ``Elements``: what pydicom raises there, or a value of the wrong type, is FMS-D004 of
the file. Code that works on the values is kept outside, so that a fault of ours is never taken for a damaged file.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from fedfms.access import require_readable
from fedfms.data.volume.remedies import GeneralRemedy
from fedfms.errors import IMAGE_UNREADABLE, FedfmsError, fail, reason_of

Value = TypeVar("Value")

#: Blocks of private elements that are looked into (PS3.5 7.8.1); devices begin with the first.
PRIVATE_BLOCKS = range(0x10, 0x14)

_is_quiet: ContextVar[bool] = ContextVar("pydicom is quiet", default=False)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence pydicom: its warnings and log lines on odd values quote them, and they may identify a patient.

    Inside of another ``quiet`` it costs nothing, so a loop over many elements may be put into one.
    """
    if _is_quiet.get():
        yield
        return
    import pydicom

    logger = logging.getLogger("pydicom")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    token = _is_quiet.set(True)
    try:
        with warnings.catch_warnings(), pydicom.config.disable_value_validation():
            warnings.simplefilter("ignore")
            yield
    finally:
        _is_quiet.reset(token)
        logger.setLevel(level)


@contextmanager
def as_unreadable(path: Path, hint: str = "", remedy: str | None = None) -> Iterator[None]:
    """Call a library on a file that may be damaged: whatever it raises is FMS-D004, or FMS-D019 if the
    file may not be read.

    Only calls of pydicom, highdicom and codecs belong into it: an error of our own code would be reported as a
    damaged file.

    Args:
        path: The file.
        hint: Added to what the library said.
        remedy: In place of the general one.
    """
    try:
        with quiet():
            yield
    except (FedfmsError, MemoryError):
        raise
    except Exception as error:
        require_readable(path)
        raise fail(IMAGE_UNREADABLE, path, reason_of(error) + hint, remedy) from error


@dataclass(frozen=True)
class TransferSyntax:
    """How the data set of a file is encoded (PS3.5 section 10).

    Attributes:
        uid: Its UID.
        name: Its name in PS3.6, such as ``JPEG Lossless``.
        compressed: Whether pixels are compressed, or run-length encoded.
        deflated: Whether the whole data set is compressed.
        encapsulated: Whether pixels are stored in fragments (PS3.5 A.4).
    """

    uid: str
    name: str
    compressed: bool
    deflated: bool
    encapsulated: bool


#: Encodings that pydicom 3.0 does not know (PS3.6 table A-1; GE's from its conformance statements).
_UNKNOWN_SYNTAXES = {
    "1.2.840.10008.1.2.4.110": "JPEG XL Lossless",
    "1.2.840.10008.1.2.4.111": "JPEG XL JPEG Recompression",
    "1.2.840.10008.1.2.4.112": "JPEG XL",
    "1.2.840.10008.1.2.8.1": "Deflated Image Frame Compression",
    "1.2.840.113619.5.2": "GE's private Implicit VR Big Endian",
}
UNCOMPRESSED = GeneralRemedy("Export the series uncompressed (Explicit VR Little Endian).")


def refuse_unknown_syntax(path: Path, file_meta: Any) -> None:
    """Raise FMS-D004 for a file whose meta information (PS3.10 section 7.1) names an encoding that pydicom lacks."""
    uid = file_meta.get("TransferSyntaxUID")
    if uid and not uid.is_transfer_syntax:
        name = _UNKNOWN_SYNTAXES.get(str(uid), "an unknown or private encoding")
        raise fail(IMAGE_UNREADABLE, path, f"{name} ({uid}) is a transfer syntax that is not read", UNCOMPRESSED)


class Elements:
    """The elements of a file, or of one item of a sequence in it.

    Keywords are those of the DICOM dictionary (PS3.6). Every method raises ``FedfmsError`` FMS-D004 when the element is
    damaged, or is not of the type that the method returns.

    Args:
        path: The file, for errors.
        dataset: What pydicom read from it.

    Attributes:
        path: As above.
        dataset: As above, for calls of libraries that take a whole data set.
    """

    def __init__(self, path: Path, dataset: Any) -> None:
        self.path = path
        self.dataset = dataset

    def __contains__(self, keyword: str) -> bool:
        """Whether the element is there, possibly empty."""
        return keyword in self.dataset

    def has(self, keyword: str) -> bool:
        """Whether the element is there and has a value."""
        return self._read(keyword, lambda _: True) or False

    def text(self, keyword: str) -> str:
        """The value as text without blanks at both ends; empty when it is absent."""
        return self._read(keyword, lambda value: str(value).strip()) or ""

    def texts(self, keyword: str) -> tuple[str, ...]:
        """Each of several values as text."""
        return self._read(keyword, lambda value: tuple(str(item) for item in _several(value))) or ()

    def whole(self, keyword: str, default: int | None = None) -> int:
        """A whole number. An element that is absent or empty is an error without ``default``."""
        return self._required(keyword, self._read(keyword, int), default)

    def number(self, keyword: str, default: float | None = None) -> float:
        """A number, possibly not finite. An element that is absent or empty is an error without ``default``."""
        return self._required(keyword, self._read(keyword, float), default)

    def numbers(self, keyword: str) -> tuple[float, ...]:
        """Several numbers, possibly not finite; none when the element is absent."""
        return self._read(keyword, lambda value: tuple(float(item) for item in _several(value))) or ()

    def private(self, creator: str, group: int, element: int) -> str:
        """The first value of a private element as text; empty when it is absent or not text or numbers.

        Elements without any creator, which some anonymisers remove, are taken to be of the first block.
        """
        with as_unreadable(self.path):
            found = {block: self.dataset.get((group, block)) for block in PRIVATE_BLOCKS}
            creators = {block: str(item.value) for block, item in found.items() if item is not None}
            own = next((block for block, text in creators.items() if text.strip() == creator), None)
            if own is None and creators:
                return ""
            tag = (group, (own or PRIVATE_BLOCKS[0]) << 8 | element)
            value = self.dataset[tag].value if tag in self.dataset else ""
            if isinstance(value, bytes):  # of type UN
                value = value.decode("ascii", "replace").split("\\")
            first = next(iter(map(str, _several(value))), "").strip(" \0")
            return first if first.isprintable() else ""

    def data(self, keyword: str) -> bytes:
        """Bytes, such as PixelData. An element that is absent is an error."""
        return self._required(keyword, self._read(keyword, _bytes), None)

    def items(self, keyword: str) -> list[Elements]:
        """Items of a sequence; none when it is absent or empty."""
        return [Elements(self.path, item) for item in self._read(keyword, _items) or ()]

    def keyword(self, keyword: str) -> str:
        """Keyword of the element that a value of type AT points to; empty for private elements."""
        from pydicom.datadict import keyword_for_tag

        return self._read(keyword, keyword_for_tag) or ""

    def uid(self, keyword: str) -> tuple[str, str]:
        """A UID and its name in PS3.6; the name is the UID itself when it is not in the dictionary."""
        from pydicom.uid import UID

        text = self.text(keyword)
        with as_unreadable(self.path):
            return text, UID(text).name

    @property
    def is_directory(self) -> bool:
        """Whether the file is a DICOMDIR, by its file meta information."""
        from pydicom.uid import MediaStorageDirectoryStorage

        with as_unreadable(self.path):
            return bool(self.dataset.file_meta.get("MediaStorageSOPClassUID") == MediaStorageDirectoryStorage)

    @property
    def transfer_syntax(self) -> TransferSyntax:
        """By the file meta information; an error when that names none."""
        with as_unreadable(self.path):
            refuse_unknown_syntax(self.path, self.dataset.file_meta)
            uid = self.dataset.file_meta.get("TransferSyntaxUID")
            if not uid:
                raise fail(IMAGE_UNREADABLE, self.path, "no TransferSyntaxUID: the file does not say how it is encoded")
            return TransferSyntax(str(uid), uid.name, uid.is_compressed, uid.is_deflated, uid.is_encapsulated)

    def _read(self, keyword: str, convert: Callable[[Any], Value]) -> Value | None:
        """None when the element is absent or empty."""
        with as_unreadable(self.path):
            value = self.dataset.get(keyword)
            return None if value is None or _is_empty(value) else convert(value)

    def _required(self, keyword: str, value: Value | None, default: Value | None) -> Value:
        if value is not None:
            return value
        if default is None:
            raise fail(IMAGE_UNREADABLE, self.path, f"no {keyword}; the file is cut or damaged")
        return default


def _is_empty(value: Any) -> bool:
    return hasattr(value, "__len__") and len(value) == 0


def _several(value: Any) -> Any:
    return [value] if isinstance(value, str | bytes) or not hasattr(value, "__iter__") else value


def _bytes(value: Any) -> bytes:
    if not isinstance(value, bytes):
        raise TypeError("not bytes")
    return value


def _items(value: Any) -> list[Any]:
    from pydicom import Dataset

    if not all(isinstance(item, Dataset) for item in value):
        raise TypeError("not a sequence of items")
    return list(value)
