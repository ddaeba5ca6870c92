"""The prefix cache: everything before the first trainable parameter is computed once per image.

One file per slice and augmentation variant. The name is a digest of all that decides the content, so a file is
either right or not found; nothing is ever invalidated. At the bound it stops adding: evicting would make every pass
over a data set larger than the cache miss every time.
"""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from fedfms.errors import CACHE_UNWRITABLE, FedfmsError, fail
from fedfms.files import sha256_json
from fedfms.tensor_files import write_tensors

_CODE = (
    "data/intensity.py",
    "data/dataset.py",
    "data/preparation.py",
    "data/preprocessing.py",
    "sam/encoder.py",
    "sam/tinyvit.py",
    "sam/vit.py",
)


def code_sha256() -> str:
    """Digest of the source files whose behaviour decides the cached content."""
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for name in _CODE:
        digest.update((package / name).read_bytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class CachedSlice:
    """One prepared slice.

    Attributes:
        activation: Output of the frozen part of the encoder (or the normalised image), without batch axis.
        masks: ``(C, S, S)`` uint8 in 0/1.
        annotated: ``(C,)`` bool.
        scaled: ``(height, width)`` of the image inside the padded square.
    """

    activation: Tensor
    masks: Tensor
    annotated: Tensor
    scaled: tuple[int, int]


class PrefixCache:
    """Slices on disk, bounded in bytes.

    Args:
        folder: Where the files live; created.
        limit_bytes: Bound on the sum of all files in ``folder``.
        common: What all keys share: backbone digest, cut, input size, preprocessing, dtype ...

    Raises:
        FedfmsError: FMS-D009 when the folder cannot be written.
    """

    def __init__(self, folder: Path, limit_bytes: int, common: dict[str, Any]) -> None:
        self._folder = folder
        self._limit = limit_bytes
        self._common = {**common, "code": code_sha256(), "torch": torch.__version__, "monai": version("monai")}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # A name of its own: sites on one machine may share the folder.
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise fail(CACHE_UNWRITABLE, folder, f"{type(error).__name__}: {error.strerror}") from error
        self.used_bytes = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        self.full = False

    def path(self, slice_sha256: str, variant: int) -> Path:
        """The file of one slice's variant."""
        key = sha256_json({**self._common, "slice": slice_sha256, "variant": variant})
        return self._folder / f"{key}.safetensors"

    def get(self, path: Path) -> CachedSlice | None:
        """Read one file; None when it is not there or not whole (it is then written again)."""
        try:
            tensors = safetensors.torch.load_file(str(path))
            height, width = tensors["scaled"].tolist()
            return CachedSlice(tensors["activation"], tensors["masks"], tensors["annotated"].bool(), (height, width))
        except (FileNotFoundError, SafetensorError, KeyError):
            return None

    def put(self, path: Path, item: CachedSlice) -> None:
        """Write one file unless the bound is reached or the disk is full."""
        size = item.activation.nbytes + item.masks.nbytes
        if self.full or self.used_bytes + size > self._limit:
            self.full = True
            return
        tensors = {
            "activation": item.activation,
            "masks": item.masks,
            "annotated": item.annotated.to(torch.uint8),
            "scaled": torch.tensor(item.scaled),
        }
        try:
            write_tensors(path, tensors)
        except FedfmsError:
            # A disk that fills up ends the caching, not the training; ``full`` is reported.
            self.full = True
            return
        self.used_bytes += size
