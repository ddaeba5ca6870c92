"""The job's one configuration file, ``training.yaml``, read and checked by server and sites alike.

Its SHA-256 over the validated content is the job configuration digest that every message carries.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from fedfms.configuration import Number, Sha256, Strict, StructureNames, TaskName, read_yaml, validation_problems
from fedfms.errors import JOB_INVALID, JOB_UNREADABLE, FedfmsError, Problem
from fedfms.files import sha256_json
from fedfms.job.aggregation import Aggregation
from fedfms.preprocessing import Preprocessing
from fedfms.sam.config import AdapterConfig, BackboneName, ModelConfig, Scope, impossible_settings

# Integers are strict: YAML reads 'yes' and 'on' as true, which would count as 1.
Positive = Annotated[Number, Field(gt=0)]


class LocalWork(Strict):
    """The work of one site in one round. Exactly one of the three attributes is given, the others are None.

    Attributes:
        epochs: Passes over the site's training slices.
        steps: Optimizer steps.
        minutes: Wall-clock minutes of training (validation not counted).
    """

    epochs: Positive | None = None
    steps: Annotated[int, Field(strict=True, ge=1)] | None = None
    minutes: Positive | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> LocalWork:
        given = [name for name in ("epochs", "steps", "minutes") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of epochs, steps, minutes; found {given or 'none'}")
        return self


class Augmentation(Strict):
    """Seeded variants of each training image.

    Attributes:
        variants: Number of variants per image, the unchanged image included; 1 switches augmentation off.
    """

    variants: Annotated[int, Field(strict=True, ge=1, le=64)]


class TrainingJob(Strict):
    """Content of ``training.yaml``; ``jobs/README.md`` explains each value in more detail.

    Attributes:
        task: Name of the task; a site takes part with the datasets of the same name.
        structures: Structures to segment, in the order of the output channels; they may overlap.
        missing_structure: ``error``: a site that lacks a structure is not ready; ``mask``: it trains the others.
        backbone: Name of the backbone, such as ``vit_t``.
        backbone_sha256: SHA-256 of the backbone's weight file.
        scope: What is trained and exchanged.
        adapter: The adapters, for scope ``adapters+decoder``.
        preprocessing: How a slice becomes a model input.
        empty_slices: Share (0 to 1) of the training slices without any structure that is kept.
        rounds: Number of rounds.
        min_clients: Accepted updates that a round needs.
        straggler_minutes: How long the server waits for other sites after ``min_clients`` updates.
        server_momentum: Share (0 to below 1) of its last step that the server adds to each step; 0 is FedAvg.
        aggregation: How the server combines the updates of a round.
        local_work: Work of a site in one round.
        batch_size: Slices in each optimizer step.
        learning_rate: Highest learning rate of AdamW.
        weight_decay: Weight decay of AdamW, on matrices and filters only.
        warmup: Share (0 to below 1) of all steps over which the learning rate rises.
        gradient_clip: Largest L2 norm of a gradient.
        augmentation: Seeded variants of the training images.
        update_norm_limit: Largest L2 norm of one site's update over all its tensors.
        precision: ``bf16``, ``fp32``, or ``auto`` for bf16 where the hardware is faster in it.
        seed: Decides the adapters' initial values, the order of slices, and the variants.
    """

    task: TaskName
    structures: StructureNames
    missing_structure: Literal["error", "mask"]
    backbone: BackboneName
    backbone_sha256: Sha256
    scope: Scope
    adapter: AdapterConfig = AdapterConfig()
    preprocessing: Preprocessing
    empty_slices: Annotated[Number, Field(ge=0, le=1)] = 1.0
    rounds: Annotated[int, Field(strict=True, ge=1, le=10_000)]
    min_clients: Annotated[int, Field(strict=True, ge=1)]
    straggler_minutes: Annotated[Number, Field(ge=0)]
    server_momentum: Annotated[Number, Field(ge=0, lt=1)]
    aggregation: Aggregation = Aggregation()
    local_work: LocalWork
    batch_size: Annotated[int, Field(strict=True, ge=1, le=1024)]
    learning_rate: Positive
    weight_decay: Annotated[Number, Field(ge=0)]
    warmup: Annotated[Number, Field(ge=0, lt=1)]
    gradient_clip: Positive
    augmentation: Augmentation
    update_norm_limit: Positive
    precision: Literal["auto", "bf16", "fp32"]
    seed: Annotated[int, Field(strict=True, ge=0, lt=2**31)]

    @property
    def model(self) -> ModelConfig:
        """The settings that decide which tensors the model has."""
        return ModelConfig(
            backbone=self.backbone,
            backbone_sha256=self.backbone_sha256,
            input_size=self.preprocessing.input_size,
            structures=self.structures,
            scope=self.scope,
            adapter=self.adapter,
        )

    @property
    def content(self) -> dict[str, Any]:
        """What the digests of the job are taken of.

        Without the section ``aggregation`` where it says what holds without it: a job of before there was one keeps its
        digests, and the approvals that are bound to them.
        """
        content = self.model_dump(mode="json")
        if self.aggregation == Aggregation():
            del content["aggregation"]
        return content

    @property
    def sha256(self) -> str:
        """The job configuration digest: SHA-256 of the canonical JSON form."""
        return sha256_json(self.content)


def load_job(path: Path) -> TrainingJob:
    """Read and check a ``training.yaml``.

    Raises:
        FedfmsError: FMS-J001 when it cannot be read, FMS-J002 with every wrong key when it is not valid.
    """
    return parse_job(read_yaml(path, JOB_UNREADABLE), path)


def parse_job(content: dict[str, Any], where: Path) -> TrainingJob:
    """Check the content of a ``training.yaml``; ``where`` is named in the errors.

    Raises:
        FedfmsError: FMS-J002 with every wrong, missing or unknown key, FMS-M005 with every value that the backbone
            does not allow, together.
    """
    impossible = [
        Problem(item.kind, f"{where}: {item.where}", item.detail, item.remedy)
        for item in impossible_settings(
            content.get("backbone"),
            _inner(content, "preprocessing", "input_size"),
            content.get("scope"),
            _inner(content, "adapter", "blocks"),
        )
    ]
    try:
        job = TrainingJob.model_validate(content)
    except ValidationError as error:
        found = validation_problems(error, JOB_INVALID, where, content)
        raise FedfmsError([*found.problems, *impossible]) from None
    if impossible:
        raise FedfmsError(impossible)
    return job


def _inner(content: dict[str, Any], section: str, key: str) -> object:
    """A value of a section of the raw content, which may be of any type."""
    values = content.get(section)
    return values.get(key) if isinstance(values, dict) else None
