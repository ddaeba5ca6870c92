"""The part of a job that defines the model."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fedfms.configuration import Number, Sha256, Strict, StructureNames
from fedfms.errors import MODEL_INVALID, Problem
from fedfms.sam.architecture import SIZES

Scope = Literal["full", "adapters+decoder", "decoder"]
BackboneName = Literal["vit_t", "vit_b", "vit_l", "vit_h", "vit_test"]


def impossible_settings(backbone: object, input_size: object, scope: object, blocks: object) -> list[Problem]:
    """Find the settings that the backbone's architecture does not allow.

    The arguments are values as read from a file, of any type, so that these problems are reported together with all
    others. A value of the wrong type passes here; the types refuse it.

    Returns:
        FMS-M005 for each.
    """
    sizes = SIZES.get(backbone) if isinstance(backbone, str) else None
    if sizes is None:
        return []
    problems = []
    if sizes.only_size is not None and isinstance(input_size, int) and input_size != sizes.only_size:
        detail = f"{backbone} runs at {sizes.only_size} pixels only, found {input_size}"
        remedy = f"Write {sizes.only_size}."
        problems.append(Problem(MODEL_INVALID, "preprocessing.input_size", detail, remedy))
    if scope == "adapters+decoder" and isinstance(blocks, int) and blocks > sizes.blocks:
        detail = f"{blocks} blocks requested, {backbone} has {sizes.blocks}"
        remedy = f"Write 'all' or a number from 1 to {sizes.blocks}."
        problems.append(Problem(MODEL_INVALID, "adapter.blocks", detail, remedy))
    return problems


class AdapterConfig(Strict):
    """Medical SAM Adapter (Wu et al., arXiv 2304.12620, section 3.2).

    Attributes:
        blocks: Transformer blocks that get adapters: ``all``, or the last k.
        ratio: Width of the bottleneck relative to the block's width.
        scale: Factor on the adapter beside the MLP.
    """

    blocks: Literal["all"] | Annotated[int, Field(strict=True, ge=1)] = "all"
    ratio: Annotated[Number, Field(gt=0, le=1)] = 0.25
    scale: Annotated[Number, Field(gt=0, le=10)] = 0.5


class ModelConfig(Strict):
    """Everything that decides which tensors the model has.

    Attributes:
        backbone: Name in the registry (``fedfms.sam.backbones``).
        backbone_sha256: SHA-256 of the backbone's weight file.
        input_size: Side of the square model input in pixels.
        structures: Names of the structures; one output channel each, in this order.
        scope: What is trained and exchanged.
        adapter: Only read when ``scope`` is ``adapters+decoder``.
    """

    backbone: BackboneName
    backbone_sha256: Sha256
    input_size: Annotated[int, Field(strict=True, ge=32, le=2048, multiple_of=16)]
    structures: StructureNames
    scope: Scope
    adapter: AdapterConfig = AdapterConfig()
