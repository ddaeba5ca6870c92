"""Properties of the adapters and of the exchange scope."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedfms.errors import FedfmsError
from fedfms.sam.adapter import Adapter
from fedfms.sam.model import build_model
from fedfms.sam.scope import apply_scope
from fedfms.sam.segmenter import Segmenter
from fedfms.sam.tinyvit import WindowAttention
from fedfms.sam.vit import Attention
from tests.sam.models import config

SCOPES = ("full", "adapters+decoder", "decoder")


def _images(model: Segmenter, count: int = 2) -> Tensor:
    size = model.config.input_size
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def _train_step(model: Segmenter) -> dict[str, Tensor]:
    """Take an optimizer step; return the absolute gradient of each element of the exchanged tensors.

    In double precision, where the rounding noise of a gradient that is zero by mathematics is far below any other.
    """
    model.double()
    model.prompt_encoder.float()  # SAM's computes in fp32 whatever its weights are
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert tuple(trained) == model.schema.names
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-2)
    images = _images(model, 1).double()
    generator = torch.Generator().manual_seed(2)
    target = (torch.rand(1, len(model.config.structures), *images.shape[2:], generator=generator) > 0.5).double()
    model.train()
    nn.functional.binary_cross_entropy_with_logits(model(images), target).backward()
    optimizer.step()
    none = torch.zeros(())
    return {name: none if p.grad is None else p.grad.abs() for name, p in trained.items()}


def _key_biases(model: Segmenter) -> dict[str, Tensor]:
    """Of each exchanged bias that query, key and value share: which elements are the key's."""
    keys = {}
    for name, module in model.encoder.named_modules():
        tensor = f"encoder.{name}.qkv.bias"
        if isinstance(module, (Attention, WindowAttention)) and tensor in model.schema.names:
            width = module.qkv.in_features
            # LiteMedSAM's file interleaves the three within each head, SAM's has them one after the other.
            run = width // module.heads if isinstance(module, WindowAttention) else width
            keys[tensor] = torch.arange(3 * width) // run % 3 == 1
    return keys


@pytest.mark.parametrize("blocks", ["all", 1])
@pytest.mark.parametrize(
    ("backbone", "size"),
    [
        ("vit_test", 64),  # windows of 3 on a grid of 4: padding; then a global block
        ("vit_test", 96),  # grid of 6: no padding
        pytest.param("vit_t", 256, marks=pytest.mark.slow),
    ],
)
@torch.no_grad()
def test_fresh_adapters_change_no_bit(backbone: str, size: int, blocks: Any) -> None:
    adapted = build_model(config(backbone, input_size=size, adapter={"blocks": blocks}), seed=3)
    plain = build_model(config(backbone, input_size=size, scope="decoder"), seed=3)
    assert adapted.adapters() and not plain.adapters()
    images = _images(plain, 1 if backbone == "vit_t" else 2)
    assert torch.equal(adapted(images), plain(images))


def test_adapters_are_in_the_chosen_blocks() -> None:
    model = build_model(config("vit_test"), seed=0)
    assert list(model.adapters()) == [
        f"encoder.layers.{index}.adapter_{where}" for index in (0, 1) for where in ("attention", "mlp")
    ]
    last = build_model(config("vit_test", adapter={"blocks": 1}), seed=0)
    assert list(last.adapters()) == ["encoder.layers.1.adapter_attention", "encoder.layers.1.adapter_mlp"]
    assert last.encoder.layers[0].adapter_mlp is None
    assert last.encoder.units()[last.first_trainable][0] == "layers.1"


class ScaledAdapter(Adapter):
    """Has a parameter more than it declares."""

    def __init__(self) -> None:
        super().__init__(8, 0.5)
        self.factor = nn.Parameter(torch.ones(1))


class MisnamedAdapter(Adapter):
    """Declares a parameter that it does not have."""

    def adapter_params(self) -> list[str]:
        return [*super().adapter_params(), "middle.weight"]


@pytest.mark.parametrize(
    ("adapter", "fault"),
    [
        (ScaledAdapter(), r"no module declares: \['encoder.inner.factor'\]"),
        (MisnamedAdapter(8, 0.5), r"the model does not have: \['encoder.inner.middle.weight'\]"),
    ],
)
def test_an_adapter_that_does_not_declare_its_parameters_is_a_fault(adapter: Adapter, fault: str) -> None:
    """Its parameters would be frozen and never exchanged."""
    model = nn.ModuleDict({"encoder": nn.ModuleDict({"inner": adapter})})
    with pytest.raises(AssertionError, match=fault):
        apply_scope(model, "adapters+decoder")


def test_what_a_module_around_an_adapter_declares_is_trained() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.frozen = ScaledAdapter(), nn.Linear(2, 2)

        def adapter_params(self) -> list[str]:
            return ["inner.factor"]

    schema = apply_scope(nn.ModuleDict({"encoder": Scaled()}), "adapters+decoder")
    assert set(schema.names) == {
        f"encoder.inner.{name}" for name in ("factor", "down.weight", "down.bias", "up.weight", "up.bias")
    }


def test_tinyvit_has_twenty_adapters() -> None:
    from fedfms.sam.model import skeleton

    model = skeleton(config("vit_t"))
    assert len(model.adapters()) == 20
    assert model.encoder.units()[model.first_trainable][0] == "layers.1.blocks.0"


def test_ratio_and_scale_are_used() -> None:
    model = build_model(config("vit_test", adapter={"ratio": 0.5, "scale": 2.0}), seed=0)
    block = model.encoder.layers[0]
    assert block.adapter_mlp.down.out_features == 8
    images = _images(model)
    with torch.no_grad():
        for block in model.encoder.layers:
            nn.init.constant_(block.adapter_mlp.up.bias, 0.1)
        doubled = model.encoder(images)
        for block in model.encoder.layers:
            nn.init.constant_(block.adapter_mlp.up.bias, 0.2)
            block.adapter_scale = 1.0
        assert torch.allclose(doubled, model.encoder(images), atol=1e-6)


def test_more_adapted_blocks_than_exist_are_refused() -> None:
    with pytest.raises(FedfmsError, match=r"FMS-M005 adapter.blocks: 3 blocks requested, vit_test has 2"):
        build_model(config("vit_test", adapter={"blocks": 3}), seed=0)


@pytest.mark.parametrize(
    ("backbone", "scope"),
    [
        *(("vit_test", scope) for scope in SCOPES),
        # The decoder is the same for all backbones.
        *(pytest.param("vit_t", scope, marks=pytest.mark.slow) for scope in SCOPES if scope != "decoder"),
    ],
)
def test_nothing_dead_is_exchanged_and_nothing_frozen_moves(backbone: str, scope: str) -> None:
    model = build_model(config(backbone, scope=scope), seed=0)
    # As after some steps: while the last layer of an adapter is zero, it hides the one before it.
    generator = torch.Generator().manual_seed(3)
    for adapter in model.adapters().values():
        nn.init.normal_(adapter.up.weight, std=0.02, generator=generator)
    before = {name: tensor.double() for name, tensor in model.state_dict().items()}
    gradients = _train_step(model)
    noise = 1e-12 * max(float(gradient.max()) for gradient in gradients.values())
    assert [name for name, gradient in gradients.items() if gradient.max() <= noise] == []
    # The one exception, part of a tensor (docs/decisions/0005).
    keys = _key_biases(model)
    for name, is_key in keys.items():
        assert torch.equal(gradients[name] <= 1e-12 * gradients[name].max(), is_key), name
    elements = {"vit_test": 2 * 16, "vit_t": 1856}[backbone] if scope == "full" else 0
    assert sum(int(is_key.sum()) for is_key in keys.values()) == elements
    if backbone == "vit_test":  # LiteMedSAM's weights have channels that are always zero
        # At a ReLU, what has no gradient is a matter of the image.
        relu = re.compile(r"decoder\..*\.(mlp|hypernetwork)\.")
        checked = [name for name in gradients if name not in keys and not relu.match(name)]
        assert [name for name in checked if gradients[name].min() <= noise] == []
    after = model.state_dict()
    exchanged = set(model.schema.names)
    for name, tensor in before.items():
        if name in exchanged:
            assert not torch.equal(tensor, after[name]), f"{name} is exchanged but did not move"
        else:
            # BatchNorm statistics are among these.
            assert torch.equal(tensor, after[name].double()), f"{name} is frozen but moved"
    assert all(parameter.grad is None for name, parameter in model.named_parameters() if name not in exchanged)


def test_batchnorm_statistics_are_there_to_be_frozen() -> None:
    """Guards the test above: TinyViT has 27 BatchNorms, and training mode must not reach them."""
    model = build_model(config("vit_t", scope="full"), seed=0)
    model.train()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 27
    assert not any(module.training for module in norms)


def test_key_projection_biases_have_no_gradient_by_mathematics() -> None:
    model = build_model(config("vit_test", scope="decoder"), seed=0)
    biases = {name: p for name, p in model.named_parameters() if name.endswith("k_proj.bias")}
    assert len(biases) == 7
    for parameter in biases.values():
        parameter.requires_grad_(True)
    model(_images(model)).square().sum().backward()
    others = [p.grad.abs().max() for n, p in model.named_parameters() if n.endswith("q_proj.bias")]
    assert min(others) > 1e-6
    assert all(parameter.grad.abs().max() < 1e-6 * max(others) for parameter in biases.values())


@pytest.mark.parametrize("scope", SCOPES)
def test_gradient_checkpointing_changes_no_gradient(scope: str) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = build_model(config("vit_test", scope=scope), seed=0).train()
        model.encoder.gradient_checkpointing = checkpointing
        model(_images(model)).square().mean().backward()
        parameters = dict(model.named_parameters())
        gradients.append([parameters[name].grad for name in model.schema.names])
    for one, other in zip(*gradients, strict=True):
        assert (one is None and other is None) or torch.equal(one, other)


@torch.no_grad()
def test_prompts_and_batches_are_independent_per_image() -> None:
    model = build_model(config("vit_test"), seed=0)
    images = _images(model, 3)
    points = (torch.tensor([[[10.0, 10]], [[30, 5]], [[60, 60]]]), torch.ones(3, 1))
    together = model(images, points=points)
    assert together.shape == (3, 2, 64, 64)
    for index in range(3):
        alone = model(images[index : index + 1], points=(points[0][index : index + 1], points[1][index : index + 1]))
        torch.testing.assert_close(together[index : index + 1], alone, atol=1e-5, rtol=1e-4)
    moved = model(images, points=(points[0].flip(0), points[1]))
    assert not torch.allclose(together, moved)


@pytest.mark.parametrize("scope", ["adapters+decoder", "decoder"])
@torch.no_grad()
def test_prefix_and_suffix_make_the_whole(scope: str) -> None:
    model = build_model(config("vit_test", scope=scope), seed=0)
    images = _images(model)
    assert model.first_trainable > 0
    assert torch.equal(model.from_prefix(model.prefix(images)), model(images))
