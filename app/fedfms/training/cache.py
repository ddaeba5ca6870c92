"""The prefix cache: the output of the units before the first trainable parameter, computed once per image.

One folder for each configuration that computes the same output, one file in it per slice and augmentation variant. The
names are digests of everything that decides the content, so a file is either right or not found; nothing is ever
invalidated. At its size limit the cache stops adding: evicting would make every pass over a data set larger than the
cache miss every time. When a cache is opened, files of other jobs are removed until they take up at most half of the
limit.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from fedfms.access import unwritable
from fedfms.errors import CACHE_UNWRITABLE, FedfmsError
from fedfms.files import sha256_json
from fedfms.tensor_files import write_tensors

_LIBRARIES = ("torch", "monai", "segment-anything")
# More than the names, shapes and types at the start of a file take up.
_HEADER_BYTES = 512
# Age from which a temporary file counts as left behind by a process that was killed.
_ABANDONED_SECONDS = 24 * 3600


def code_sha256() -> str:
    """Digest of every source file of the package.

    Most of them do not decide the cached content, but a list of those that do would one day lack one, and stale
    activations would train a wrong model unnoticed. Computing the cache anew after an upgrade costs minutes.
    """
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package).as_posix()}\n{path.stat().st_size}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class CachedSlice:
    """One prepared slice.

    Attributes:
        activation: Output of the frozen part of the encoder, without batch axis.
        masks: ``(structures, rows, columns)`` uint8 in 0/1, padded as the input.
        annotated: ``(structures,)`` bool.
        scaled: ``(height, width)`` of the image inside the padded square.
    """

    activation: Tensor
    masks: Tensor
    annotated: Tensor
    scaled: tuple[int, int]


class PrefixCache:
    """Prepared slices on disk, up to a number of bytes.

    Args:
        folder: The folder of the files; it is created. Jobs, and sites on one machine, may share it.
        limit_bytes: Limit on the sum of all files in ``folder``. Processes that fill it at the same time may exceed it
            by a sixteenth of it each.
        common: What decides the content of all files: backbone digest, first trainable unit, preprocessing, dtype ...

    Attributes:
        full: The limit was reached, or the disk is full; further slices are not stored.

    Raises:
        FedfmsError: FMS-D009 when the folder cannot be written.
    """

    def __init__(self, folder: Path, limit_bytes: int, common: dict[str, Any]) -> None:
        versions = {name: version(name) for name in _LIBRARIES}
        self._root = folder
        self._folder = folder / sha256_json({**common, "code": code_sha256(), **versions})
        self._limit = limit_bytes
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            # A unique name: sites on one machine may share the folder.
            with tempfile.TemporaryFile(dir=self._folder):
                pass
            self._folder.touch()
            self._make_room()
        except OSError as error:
            raise unwritable(folder, error, CACHE_UNWRITABLE) from error
        self.full = False
        self._count()

    def path(self, slice_sha256: str, variant: int) -> Path:
        """The file of one slice's variant."""
        return self._folder / f"{slice_sha256}-{variant}.safetensors"

    def get(self, path: Path) -> CachedSlice | None:
        """Read one file; None when it is missing or damaged (it is then written again)."""
        try:
            tensors = safetensors.torch.load_file(str(path))
            height, width = tensors["scaled"].tolist()
            return CachedSlice(tensors["activation"], tensors["masks"], tensors["annotated"].bool(), (height, width))
        except (FileNotFoundError, SafetensorError, KeyError):
            return None

    def put(self, path: Path, item: CachedSlice) -> None:
        """Write one file, unless the limit is reached or the disk is full."""
        if self.full:
            return
        tensors = {
            "activation": item.activation,
            "masks": item.masks,
            "annotated": item.annotated.to(torch.uint8),
            "scaled": torch.tensor(item.scaled),
        }
        size = sum(tensor.nbytes for tensor in tensors.values()) + _HEADER_BYTES
        if self._since_count > self._limit // 16:
            self._count()  # other processes may have added to the folder
        if self.used_bytes + size > self._limit:
            self.full = True
            return
        try:
            write_tensors(path, tensors)
        except FedfmsError:
            # A disk that fills up ends the caching, not the training; ``full`` is reported.
            self.full = True
            return
        self.used_bytes += size
        self._since_count += size

    def _count(self) -> None:
        self._since_count = 0
        self.used_bytes = sum(_bytes(folder) for folder in self._root.iterdir())

    def _make_room(self) -> None:
        """Remove abandoned temporary files, and files of other jobs, the longest unused first."""
        for path in self._root.glob("*/.*.tmp"):
            with suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > _ABANDONED_SECONDS:
                    path.unlink()
        others = sorted(
            (path for path in self._root.iterdir() if path.is_dir() and path != self._folder),
            key=lambda path: path.stat().st_mtime,
        )
        sizes = [_bytes(path) for path in others]
        while others and sum(sizes) > self._limit // 2:
            shutil.rmtree(others.pop(0), ignore_errors=True)
            sizes.pop(0)


def _bytes(folder: Path) -> int:
    """Sum of the sizes of a folder's files; one may be removed while they are counted."""
    total = 0
    for path in folder.glob("*"):
        with suppress(FileNotFoundError):
            total += path.stat().st_size
    return total
