"""Atomic writes of safetensors files; not in ``files``, because torch takes seconds to import."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from torch import Tensor

from fedfms.files import atomic_path


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors to a safetensors file, atomically.

    Args:
        path: The file to write.
        tensors: Name -> tensor; copied to the CPU.
        metadata: Texts for the header of the file.

    Raises:
        FedfmsError: FMS-D011 when the disk is full; the previous file stays whole.
    """
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_path(path) as temporary:
        try:
            safetensors.torch.save_file(contiguous, str(temporary), metadata=dict(metadata) if metadata else None)
        except safetensors.SafetensorError as error:  # it hides the error of the operating system, such as a full disk
            raise OSError(None, str(error)) from error
