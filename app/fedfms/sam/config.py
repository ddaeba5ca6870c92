"""What a job says about the model."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fedfms.configuration import Number, Sha256, Strict, StructureNames

Scope = Literal["full", "adapters+decoder", "decoder"]
BackboneName = Literal["vit_t", "vit_b", "vit_l", "vit_h", "vit_test"]


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
