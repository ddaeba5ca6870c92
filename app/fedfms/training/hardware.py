"""Device, threads and precision of a site."""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

import torch

from fedfms.data.description.site import Compute
from fedfms.errors import DEVICE_MISSING, fail
from fedfms.sam.arithmetic import has_fast_bf16


@dataclass(frozen=True)
class Hardware:
    """Where and in which precision the model runs.

    Attributes:
        device: A torch device.
        dtype: ``torch.bfloat16`` (autocast; weights and optimizer stay fp32) or ``torch.float32``.
        max_batch: Most images in one forward pass; gradient accumulation keeps the job's batch size.
        gradient_checkpointing: Recompute activations in the backward pass: less memory, more time.
    """

    device: torch.device
    dtype: torch.dtype
    max_batch: int | None = None
    gradient_checkpointing: bool = False

    def autocast(self) -> AbstractContextManager[object]:
        """The context every forward pass runs in."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    @property
    def dtype_name(self) -> str:
        """``bfloat16`` or ``float32``."""
        return str(self.dtype).removeprefix("torch.")


def choose_hardware(compute: Compute, precision: Literal["auto", "bf16", "fp32"]) -> Hardware:
    """Choose device and precision from what site and job request and the machine has.

    Args:
        compute: From ``site.yaml``; device ``auto`` takes a GPU if there is one.
        precision: From the job; ``auto`` takes bf16 where the hardware is faster in it.

    Raises:
        FedfmsError: FMS-T004 when ``cuda`` is requested and there is none.
    """
    if compute.device == "cuda" and not torch.cuda.is_available():
        raise fail(DEVICE_MISSING, "compute.device", "cuda is requested, but torch sees no GPU")
    chosen = torch.device("cuda" if compute.device != "cpu" and torch.cuda.is_available() else "cpu")
    if compute.threads is not None:
        torch.set_num_threads(compute.threads)
    in_bf16 = precision == "bf16" or (precision == "auto" and _gains_by_bf16(chosen))
    dtype = torch.bfloat16 if in_bf16 else torch.float32
    return Hardware(chosen, dtype, compute.max_batch, compute.gradient_checkpointing)


def _gains_by_bf16(device: torch.device) -> bool:
    """Whether the hardware multiplies faster in bf16 than in fp32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return has_fast_bf16()


def is_lack_of_memory(error: Exception) -> bool:
    """Whether an error says that the device or the machine has too little memory."""
    # PyTorch's allocator on the CPU has no type of error of its own.
    on_cpu = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    return on_cpu or isinstance(error, (MemoryError, torch.OutOfMemoryError))


def release_memory() -> None:
    """Give the memory of a task that is over back to machine and GPU, which others want until the next one."""
    gc.collect()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()
    if sys.platform == "linux":
        # With the settings of a training process (``MEMORY_REUSE``) glibc does so only when asked; others lack it.
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def peak_memory_bytes() -> int:
    """Largest resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
