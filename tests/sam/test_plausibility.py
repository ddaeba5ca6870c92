"""States and backbones built after the PEFTLeak attack (CVPR 2025) are refused; real ones pass."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fedfms.errors import FedfmsError
from fedfms.sam.adapter import Adapter
from fedfms.sam.backbones import BACKBONES, load_weights, published_sha256, random_weights, serialise
from fedfms.sam.model import initial_state
from fedfms.sam.plausibility import require_plausible_backbone, require_plausible_state
from tests.sam.models import config

STEPS = 32


def imprint(width: int, hidden: int) -> tuple[Tensor, Tensor]:
    """First layer of an adapter in the attack: all neurons measure the mean, each with another threshold."""
    return torch.full((hidden, width), 1 / width), -torch.linspace(-1, 1, hidden)


def attacked(start: dict[str, Tensor], share: float = 1.0) -> dict[str, Tensor]:
    """A state whose adapters read patches out; ``share`` of each first layer's neurons do so."""
    state = {name: tensor.clone() for name, tensor in start.items()}
    for name in state:
        if name.endswith("down.weight"):
            count = round(share * len(state[name]))
            weight, bias = imprint(state[name].shape[1], count)
            state[name][:count] = weight
            state[name.replace("weight", "bias")][:count] = bias
    return state


@pytest.fixture(scope="module")
def start() -> dict[str, Tensor]:
    return initial_state(config("vit_t"), 0)


def test_the_fixture_is_an_attack() -> None:
    """The difference of two neighbouring neurons' gradients is the token between their thresholds."""
    adapter = Adapter(64, STEPS / 64)
    adapter.act = torch.nn.ReLU()  # type: ignore[assignment]
    with torch.no_grad():
        weight, bias = imprint(64, STEPS)
        adapter.down.weight.copy_(weight)
        adapter.down.bias.copy_(bias)
        adapter.up.weight.fill_(1.0)
    tokens = torch.randn(3, 64, generator=torch.Generator().manual_seed(0)) + torch.tensor([[-0.5], [0.1], [0.6]])
    adapter(tokens).sum().backward()
    assert adapter.down.weight.grad is not None and adapter.down.bias.grad is not None
    by_weight, by_bias = adapter.down.weight.grad.diff(dim=0), adapter.down.bias.grad.diff()
    read = [by_weight[i] / by_bias[i] for i in range(STEPS - 1) if by_bias[i] != 0]
    assert all(min(float((row - token).abs().max()) for row in read) < 1e-3 for token in tokens)


@pytest.mark.parametrize("share", [1.0, 0.5, 0.3])
def test_adapters_that_read_patches_out_are_refused(start: dict[str, Tensor], share: float) -> None:
    with pytest.raises(FedfmsError) as caught:
        require_plausible_state(attacked(start, share), start)
    assert caught.value.ids == ("FMS-X015",)
    layers = [name for name in start if name.endswith("down.weight")]
    assert {problem.where for problem in caught.value.problems} >= set(layers)
    assert ("staircase" in str(caught.value)) == (share == 1.0)


def test_noise_on_the_rows_does_not_hide_them(start: dict[str, Tensor]) -> None:
    state = attacked(start)
    generator = torch.Generator().manual_seed(1)
    for name in state:
        if name.endswith("down.weight"):
            state[name] += 0.1 * float(state[name].mean()) * torch.randn(state[name].shape, generator=generator)
    with pytest.raises(FedfmsError, match="point the same way"):
        require_plausible_state(state, start)


MATRIX = "decoder.transformer.layers.0.self_attn.q_proj.weight"


def zeroed(tensor: Tensor) -> Tensor:
    return torch.zeros_like(tensor)


def identity(tensor: Tensor) -> Tensor:
    return 0.3 * torch.eye(*tensor.shape)


def nearly_identity(tensor: Tensor) -> Tensor:
    return torch.eye(*tensor.shape) + 0.01 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0))


def huge(tensor: Tensor) -> Tensor:
    return 100 * tensor


@pytest.mark.parametrize("change", [zeroed, identity, nearly_identity, huge])
def test_a_matrix_that_lets_everything_or_nothing_through_is_refused(
    start: dict[str, Tensor], change: Callable[[Tensor], Tensor]
) -> None:
    with pytest.raises(FedfmsError) as caught:
        require_plausible_state({**start, MATRIX: change(start[MATRIX])}, start)
    assert [(problem.kind.id, problem.where) for problem in caught.value.problems] == [("FMS-X015", MATRIX)]


def test_what_was_so_before_may_stay_so(start: dict[str, Tensor]) -> None:
    """The adapters' last layers start at zero."""
    require_plausible_state(start, start)
    before = {**start, MATRIX: identity(start[MATRIX])}
    require_plausible_state(before, before)


@pytest.mark.parametrize("backbone", ["vit_test", "vit_t"])
def test_a_state_that_moved_by_training_passes(backbone: str) -> None:
    """Moved further than five rounds on real images move it (0.014 per element), in the direction that they do."""
    before = initial_state(config(backbone), 0)
    generator = torch.Generator().manual_seed(2)
    common = {
        name: torch.randn(tensor.shape[-1:], generator=generator) for name, tensor in before.items() if tensor.ndim
    }
    after = {
        name: tensor + 0.05 * (torch.randn(tensor.shape, generator=generator) + common[name])
        for name, tensor in before.items()
    }
    require_plausible_state(after, before)


@pytest.mark.parametrize("backbone", ["vit_t", "vit_test"])
def test_the_published_backbones_pass(backbone: str) -> None:
    require_plausible_backbone(load_weights(backbone, published_sha256(backbone)), backbone)


@pytest.mark.parametrize("backbone", ["vit_t", "vit_b"])
def test_random_backbones_for_trials_pass(backbone: str) -> None:
    require_plausible_backbone(random_weights(BACKBONES[backbone], 7), backbone)


@pytest.mark.parametrize("change", [zeroed, identity, nearly_identity])
@pytest.mark.parametrize("name", ["layers.1.blocks.0.attn.proj.weight", "layers.2.blocks.1.mlp.fc2.weight"])
def test_a_backbone_with_a_block_made_a_pipe_is_refused(
    name: str, change: Callable[[Tensor], Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when the job names its digest: then its author made the job too."""
    weights = load_weights("vit_t", published_sha256("vit_t"))
    weights[f"image_encoder.{name}"] = change(weights[f"image_encoder.{name}"])
    content = serialise(weights)
    (tmp_path / "vit_t.safetensors").write_bytes(content)
    monkeypatch.setenv("FEDFMS_BACKBONES", str(tmp_path))
    with pytest.raises(FedfmsError) as caught:
        load_weights("vit_t", hashlib.sha256(content).hexdigest())
    (problem,) = caught.value.problems
    assert problem.kind.id == "FMS-M006" and problem.where.endswith(name)


def test_filters_that_only_pass_their_centre_on_are_refused() -> None:
    weights = load_weights("vit_t", published_sha256("vit_t"))
    name = "image_encoder.layers.1.blocks.0.local_conv.c.weight"
    filters = torch.zeros_like(weights[name])
    filters[:, :, 1, 1] = 1
    with pytest.raises(FedfmsError, match=f"{name}: the identity|{name}: zeroed"):
        require_plausible_backbone({**weights, name: filters}, "vit_t")
