"""Tensors as safetensors files, whole or not there; apart from ``files`` because torch takes seconds to import."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from torch import Tensor

from fedfms.files import atomic_path


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors, atomically.

    Raises:
        FedfmsError: FMS-D011 when the disk is full; the previous file stays whole.
    """
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_path(path) as temporary:
        try:
            safetensors.torch.save_file(contiguous, str(temporary), metadata=dict(metadata) if metadata else None)
        except safetensors.SafetensorError as error:  # it hides the operating system's error, a full disk for one
            raise OSError(None, str(error)) from error
