"""Which tensors are trained and exchanged, hence leave a hospital: the only place that decides it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from fedfms.errors import SCHEMA_MISMATCH, FedfmsError, Problem
from fedfms.files import sha256_json
from fedfms.sam.adapter import adapter_parameters
from fedfms.sam.config import Scope

_STRUCTURES = "decoder.structures."


@dataclass(frozen=True)
class TensorSpec:
    """One exchanged tensor.

    Attributes:
        name: Its name in the model.
        shape: Its shape.
        dtype: Always ``float32``.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"

    @property
    def size(self) -> int:
        """Number of its values."""
        return math.prod(self.shape)

    @property
    def structure(self) -> str | None:
        """The structure that owns the tensor; None if all structures share it."""
        if not self.name.startswith(_STRUCTURES):
            return None
        return self.name.removeprefix(_STRUCTURES).split(".", 1)[0]


@dataclass(frozen=True)
class Schema:
    """Names, shapes and dtypes of the exchanged tensors, in a fixed order."""

    tensors: tuple[TensorSpec, ...]

    @cached_property
    def sha256(self) -> str:
        """Digest of names, shapes and dtypes in their order."""
        return sha256_json([[spec.name, list(spec.shape), spec.dtype] for spec in self.tensors])

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(spec.name for spec in self.tensors)

    @property
    def parameters(self) -> int:
        """Number of exchanged parameters."""
        return sum(spec.size for spec in self.tensors)

    @property
    def bytes(self) -> int:
        """Bytes of the tensors alone, as fp32."""
        return 4 * self.parameters

    def check(self, state: Mapping[str, object]) -> None:
        """Validate a state against the schema.

        Raises:
            FedfmsError: FMS-X001 with every missing and unknown name and every other shape or dtype.
        """
        problems = [
            Problem(SCHEMA_MISMATCH, name, "not in the schema") for name in state if name not in set(self.names)
        ]
        for spec in self.tensors:
            tensor = state.get(spec.name)
            if tensor is None:
                problems.append(Problem(SCHEMA_MISMATCH, spec.name, "missing"))
            elif not isinstance(tensor, Tensor):
                problems.append(Problem(SCHEMA_MISMATCH, spec.name, f"a {type(tensor).__name__}, not a tensor"))
            elif tuple(tensor.shape) != spec.shape or tensor.dtype != torch.float32:
                found = f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
                problems.append(Problem(SCHEMA_MISMATCH, spec.name, f"expected float32 {spec.shape}, found {found}"))
        if problems:
            raise FedfmsError(problems)


def apply_scope(model: nn.Module, scope: Scope) -> Schema:
    """Freeze everything outside the scope and return the schema of the rest.

    Never trained, hence never exchanged: the prompt encoder; BatchNorm statistics; and the biases of the decoder's
    key projections, because a constant added to all keys cancels in the softmax. For the same reason the key's third of
    each ``qkv.bias`` of the encoder has no gradient; scope ``full`` exchanges it all the same, as part of its tensor.

    Args:
        model: With the parts ``encoder`` and ``decoder``; whatever else it has is frozen.
        scope: What is trained and exchanged.
    """
    adapters = adapter_parameters(model)
    specs = []
    for name, parameter in model.named_parameters():
        if name.startswith("decoder."):
            trained = not name.endswith("k_proj.bias")
        elif name.startswith("encoder."):
            trained = scope == "full" or (scope == "adapters+decoder" and name in adapters)
        else:
            trained = False
        parameter.requires_grad_(trained)
        if trained:
            specs.append(TensorSpec(name, tuple(parameter.shape)))
    return Schema(tuple(specs))
