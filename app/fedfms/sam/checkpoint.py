"""Checkpoints: safetensors files that describe their model and refuse to load into another one.

Two kinds: ``exchange`` holds exactly the exchanged tensors (the server's global state), ``inference`` holds the whole
model and needs no backbone file. Both carry in the header everything that decides the architecture, the preprocessing
and the digests.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import safetensors
import safetensors.torch
from pydantic import Field, ValidationError
from safetensors import SafetensorError
from torch import Tensor

from fedfms import __version__
from fedfms.access import unreadable
from fedfms.configuration import Sha256, Strict, TaskName
from fedfms.errors import CHECKPOINT_MISMATCH, CHECKPOINT_UNREADABLE, FedfmsError, Problem, fail, first_of
from fedfms.files import sha256_file
from fedfms.preprocessing import Preprocessing
from fedfms.sam.config import ModelConfig
from fedfms.sam.model import build_model, schema_of, skeleton
from fedfms.sam.scope import Schema
from fedfms.sam.segmenter import Segmenter
from fedfms.tensor_files import write_tensors

_HEADER_KEY = "fedfms"


class CheckpointHeader(Strict):
    """A checkpoint's description of itself, stored as JSON in the file's metadata.

    Attributes:
        kind: ``exchange`` or ``inference``.
        task: The job's task.
        model: Architecture, structures and scope.
        preprocessing: How slices become model inputs.
        seed: The job's seed, which decides the adapters' start.
        rounds: Rounds of training that the tensors have seen.
        schema_sha256: Digest of the exchange schema.
        job_sha256: Digest of the job configuration.
        package_version: Version of fedfms that wrote the file.
    """

    kind: Literal["exchange", "inference"]
    task: TaskName
    model: ModelConfig
    preprocessing: Preprocessing
    seed: int
    rounds: int = Field(ge=0)
    schema_sha256: Sha256
    job_sha256: Sha256
    package_version: str = __version__


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint file's header and tensors."""

    header: CheckpointHeader
    tensors: dict[str, Tensor]


def save_exchange(path: Path, header: CheckpointHeader, state: Mapping[str, Tensor]) -> None:
    """Write exactly the exchanged tensors, atomically.

    Raises:
        FedfmsError: FMS-X001 when ``state`` does not match the schema, FMS-D011 when it cannot be written.
    """
    schema_of(header.model).check(state)
    _save(path, header.model_copy(update={"kind": "exchange"}), state)


def save_inference(path: Path, header: CheckpointHeader, state: Mapping[str, Tensor]) -> None:
    """Write the whole model with the exchanged tensors in place, atomically.

    Raises:
        FedfmsError: FMS-X001, FMS-D011, or FMS-M001 and -M002 when the backbone's file is missing.
    """
    model = build_model(header.model, header.seed)
    model.load_exchanged(dict(state))
    _save(path, header.model_copy(update={"kind": "inference"}), model.state_dict())


def _save(path: Path, header: CheckpointHeader, tensors: Mapping[str, Tensor]) -> None:
    write_tensors(path, tensors, {_HEADER_KEY: header.model_dump_json()})


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint of either kind and validate its tensors against its own header.

    Raises:
        FedfmsError: FMS-M003 when the file is not a readable checkpoint, FMS-M004 or FMS-X001 when header and tensors
            disagree, FMS-M004 when this version of fedfms exchanges other tensors of such a model.
    """
    header = read_header(path)
    try:
        tensors = safetensors.torch.load_file(str(path))
    except (OSError, SafetensorError) as error:
        raise unreadable(CHECKPOINT_UNREADABLE, path, error) from error
    _check_layout(path, header, tensors)
    return Checkpoint(header, tensors)


def read_header(path: Path) -> CheckpointHeader:
    """Read only the header.

    Raises:
        FedfmsError: FMS-M003 when the file is not a readable checkpoint.
    """
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
        return CheckpointHeader.model_validate_json(metadata[_HEADER_KEY])
    except KeyError:
        raise fail(CHECKPOINT_UNREADABLE, path, "a safetensors file without a fedfms header") from None
    except (OSError, SafetensorError) as error:
        raise unreadable(CHECKPOINT_UNREADABLE, path, error) from error
    except ValidationError as error:
        raise fail(CHECKPOINT_UNREADABLE, path, f"the header is not valid: {error}") from error


def _check_layout(path: Path, header: CheckpointHeader, tensors: Mapping[str, Tensor]) -> None:
    schema = schema_of(header.model)
    if header.schema_sha256 != schema.sha256:
        raise fail(
            CHECKPOINT_MISMATCH,
            path,
            f"its schema is {header.schema_sha256}, this version of fedfms makes {schema.sha256} of the same model",
        )
    if header.kind == "exchange":
        schema.check(tensors)
        return
    expected = skeleton(header.model).state_dict()
    differing = sorted(
        name
        for name in expected.keys() | tensors.keys()
        if name not in tensors or name not in expected or tensors[name].shape != expected[name].shape
    )
    if differing:
        raise fail(
            CHECKPOINT_MISMATCH,
            path,
            f"{len(differing)} tensors differ from the header's architecture: {first_of(differing, 5)}",
        )


def require_same_model(path: Path, found: ModelConfig, expected: ModelConfig) -> None:
    """Refuse a checkpoint made for another model.

    Raises:
        FedfmsError: FMS-M004 with each differing value of both sides.
    """
    here, there = expected.model_dump(mode="json"), found.model_dump(mode="json")
    problems = [
        Problem(CHECKPOINT_MISMATCH, f"{path}: {key}", f"the checkpoint has {there[key]}, expected {here[key]}")
        for key in here
        if here[key] != there[key]
    ]
    if problems:
        raise FedfmsError(problems)


def load_segmenter(path: Path) -> tuple[Segmenter, CheckpointHeader]:
    """Load a checkpoint into a model on the CPU; an ``exchange`` checkpoint also needs the backbone's file.

    Raises:
        FedfmsError: FMS-M003, FMS-M004; FMS-M001, FMS-M002 for the backbone.
    """
    checkpoint = load_checkpoint(path)
    header = checkpoint.header
    if header.kind == "exchange":
        model = build_model(header.model, header.seed)
        model.load_exchanged(checkpoint.tensors)
    else:
        model = skeleton(header.model, device="cpu")
        model.load_state_dict(checkpoint.tensors)
    return model, header


def describe(path: Path) -> dict[str, Any]:
    """Describe a checkpoint as ``fedfms inspect`` shows it.

    Raises:
        FedfmsError: FMS-M003, FMS-M004.
    """
    checkpoint = load_checkpoint(path)
    header, tensors = checkpoint.header, checkpoint.tensors
    return {
        "file_sha256": sha256_file(path),
        "file_bytes": path.stat().st_size,
        **summary(header.model, header.schema_sha256),
        **json.loads(
            header.model_dump_json(include={"kind", "task", "seed", "rounds", "job_sha256", "package_version"})
        ),
        "preprocessing": header.preprocessing.model_dump(mode="json"),
        "tensors": {
            name: {"shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}
            for name, tensor in tensors.items()
        },
    }


def summary(config: ModelConfig, schema_sha256: str | None = None) -> dict[str, Any]:
    """Parameters, bytes and digests of a model configuration, as ``fedfms model summary`` shows them."""
    model = skeleton(config)
    schema: Schema = model.schema
    return {
        "backbone": config.backbone,
        "scope": config.scope,
        "input_size": config.input_size,
        "structures": list(config.structures),
        "adapter": config.adapter.model_dump(mode="json") if model.adapters() else None,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "exchanged_parameters": schema.parameters,
        "exchanged_bytes": schema.bytes,
        "exchanged_tensors": len(schema.tensors),
        "schema_sha256": schema_sha256 or schema.sha256,
        "backbone_sha256": config.backbone_sha256,
    }
