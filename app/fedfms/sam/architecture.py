"""The sizes of the backbones' image encoders, as plain numbers: importing them needs no PyTorch.

``fedfms.sam.config`` refuses impossible jobs by them, ``fedfms.sam.backbones`` builds the encoders from them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ViTSizes:
    """SAM's ViT (Kirillov et al., "Segment Anything", ICCV 2023, appendix A), for any input size.

    Attributes:
        width: Channels of the tokens.
        depth: Number of transformer blocks.
        heads: Attention heads of each block.
        global_blocks: Indices of the blocks with global attention; the others attend within windows.
        window: Side of a window in tokens.
        mlp_ratio: Hidden width of each block's MLP relative to ``width``.
        outputs: Channels of the embeddings.
        patch: Side in pixels of one cell of the embeddings.
        native_size: Side in pixels of the input that the weights were trained with.
    """

    width: int
    depth: int
    heads: int
    global_blocks: tuple[int, ...]
    window: int = 14
    mlp_ratio: int = 4
    outputs: int = 256
    patch: int = 16
    native_size: int = 1024

    @property
    def blocks(self) -> int:
        """Number of transformer blocks, the most that can get adapters."""
        return self.depth

    @property
    def only_size(self) -> int | None:
        """None: position tables are resampled to the size of the input."""
        return None


@dataclass(frozen=True)
class TinyViTSizes:
    """LiteMedSAM's TinyViT (Wu et al., "TinyViT", ECCV 2022, section 3), for one input size.

    Attributes:
        widths: Channels of the four stages.
        depths: Blocks of the four stages; those of the first stage are convolutional.
        heads: Attention heads of stages two to four.
        windows: Window sides of stages two to four, in tokens.
        outputs: Channels of the embeddings.
        patch: Side in pixels of one cell of the embeddings.
        native_size: Side in pixels of the input that the weights were trained with.
    """

    widths: tuple[int, int, int, int]
    depths: tuple[int, int, int, int]
    heads: tuple[int, int, int]
    windows: tuple[int, int, int]
    outputs: int = 256
    patch: int = 4
    native_size: int = 256

    @property
    def blocks(self) -> int:
        """Number of transformer blocks, the most that can get adapters."""
        return sum(self.depths[1:])

    @property
    def only_size(self) -> int | None:
        """The only possible side of the input in pixels."""
        return self.native_size


Sizes = ViTSizes | TinyViTSizes

#: By the backbone's name.
SIZES: dict[str, Sizes] = {
    "vit_t": TinyViTSizes(widths=(64, 128, 160, 320), depths=(2, 2, 6, 2), heads=(4, 5, 10), windows=(7, 14, 7)),
    "vit_b": ViTSizes(width=768, depth=12, heads=12, global_blocks=(2, 5, 8, 11)),
    "vit_l": ViTSizes(width=1024, depth=24, heads=16, global_blocks=(5, 11, 17, 23)),
    "vit_h": ViTSizes(width=1280, depth=32, heads=16, global_blocks=(7, 15, 23, 31)),
    # For tests. Window 3 on a grid of 4: both window padding and a global block are exercised.
    "vit_test": ViTSizes(
        width=16, depth=2, heads=2, global_blocks=(1,), window=3, mlp_ratio=2, outputs=16, native_size=64
    ),
}
