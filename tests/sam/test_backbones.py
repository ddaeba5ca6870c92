"""Where weight files are found, and what happens when they are not the right ones."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import get_args

import pytest
import torch

from fedfms.errors import FedfmsError
from fedfms.sam.architecture import SIZES
from fedfms.sam.backbones import (
    BACKBONES,
    file_layout,
    load_weights,
    norm_scales,
    published_sha256,
    random_weights,
    serialise,
)
from fedfms.sam.config import BackboneName
from fedfms.sam.model import build_model, initial_state, schema_of, skeleton
from tests.sam.models import config


def test_packaged_vit_t_is_found_and_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEDFMS_BACKBONES", raising=False)
    weights = load_weights("vit_t", published_sha256("vit_t"))
    assert len(weights) == len(file_layout(BACKBONES["vit_t"]))


def test_missing_file_says_where_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDFMS_BACKBONES", str(tmp_path))
    with pytest.raises(FedfmsError) as caught:
        load_weights("vit_b", published_sha256("vit_b"))
    assert caught.value.ids == ("FMS-M001",)
    for needed in (published_sha256("vit_b"), "sam_vit_b_01ec64.pth", "FEDFMS_BACKBONES", str(tmp_path)):
        assert needed in str(caught.value)


def test_folder_that_does_not_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDFMS_BACKBONES", str(tmp_path / "nowhere"))
    with pytest.raises(FedfmsError, match="FMS-M001 .*is not a folder"):
        load_weights("vit_b", published_sha256("vit_b"))


def test_other_digest_is_named_on_both_sides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDFMS_BACKBONES", str(tmp_path))
    (tmp_path / "my_vit_b.pth").write_bytes(b"something else")
    found = hashlib.sha256(b"something else").hexdigest()
    with pytest.raises(FedfmsError) as caught:
        load_weights("vit_b", published_sha256("vit_b"))
    assert caught.value.ids == ("FMS-M002",)
    assert found in str(caught.value) and published_sha256("vit_b") in str(caught.value)


def test_file_of_another_backbone_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDFMS_BACKBONES", str(tmp_path))
    content = serialise(random_weights(BACKBONES["vit_test"], seed=0))
    (tmp_path / "vit_b.safetensors").write_bytes(content)
    with pytest.raises(FedfmsError, match="FMS-M003 .*not a vit_b file"):
        load_weights("vit_b", hashlib.sha256(content).hexdigest())


def test_the_right_file_is_found_beside_wrong_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDFMS_BACKBONES", str(tmp_path))
    weights = random_weights(BACKBONES["vit_t"], seed=3)
    content = serialise(weights)
    (tmp_path / "a_vit_t.pth").write_bytes(b"another")
    (tmp_path / "b_vit_t.safetensors").write_bytes(content)
    (tmp_path / "c_vit_t.txt").write_bytes(content)
    found = load_weights("vit_t", hashlib.sha256(content).hexdigest())
    assert found.keys() == weights.keys() and all(torch.equal(found[name], weights[name]) for name in weights)


def test_random_weights_depend_on_the_seed_alone() -> None:
    one, same, other = (random_weights(BACKBONES["vit_test"], seed) for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["image_encoder.pos_embed"], other["image_encoder.pos_embed"])
    assert all(bool(torch.isfinite(tensor).all()) for tensor in one.values())


def test_torch_files_are_read_without_running_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A .pth is a pickle: only plain tensors may come out of it."""
    monkeypatch.setenv("FEDFMS_BACKBONES", str(tmp_path))
    path = tmp_path / "vit_b.pth"
    torch.save({"evil": print}, path)
    with pytest.raises(FedfmsError, match="FMS-M003"):
        load_weights("vit_b", hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.mark.parametrize("content", [b"an own backbone", b"x", b"\x80\x02", b"PK\x03\x04", b""])
def test_bytes_of_anything_are_m003(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setenv("FEDFMS_BACKBONES", str(tmp_path))
    (tmp_path / "own_vit_b.pth").write_bytes(content)
    with pytest.raises(FedfmsError, match="FMS-M003 .*own_vit_b.pth"):
        load_weights("vit_b", hashlib.sha256(content).hexdigest())


@pytest.mark.parametrize(("name", "millions"), [("vit_b", 93.7), ("vit_l", 312.3), ("vit_h", 641.1)])
def test_layout_of_the_published_files(name: str, millions: float) -> None:
    """Parameter counts of the published checkpoints (FedSAM exchanges 93.7 M with vit_b)."""
    count = sum(torch.Size(shape).numel() for shape in file_layout(BACKBONES[name]).values())
    assert count / 1e6 == pytest.approx(millions, abs=0.1)


def test_vit_b_at_256_exchanges_only_live_parameters() -> None:
    """The official FedMSA sends 14.7 M parameters at 256 px, 11.03 M of which ever get a gradient."""
    model = config("vit_b", input_size=256, structures=("tumour",))
    assert schema_of(model).parameters <= 11_030_000
    assert schema_of(config("vit_b", input_size=256, scope="full")).parameters < 93_700_000


def test_initial_state_is_derived_alike_and_follows_the_seed() -> None:
    model = config()
    one, same, other = (initial_state(model, seed) for seed in (5, 5, 6))
    assert all(torch.equal(one[name], same[name]) for name in one)
    down = "encoder.layers.0.adapter_mlp.down.weight"
    assert not torch.equal(one[down], other[down])
    assert all(torch.equal(one[name], other[name]) for name in one if ".adapter_" not in name)
    schema_of(model).check(one)


def test_structures_start_from_sams_first_mask_token() -> None:
    weights = load_weights("vit_test", published_sha256("vit_test"))
    state = initial_state(config(), seed=0)
    for name in ("organ", "lesion"):
        assert torch.equal(state[f"decoder.structures.{name}.token"], weights["mask_decoder.mask_tokens.weight"][0])


def test_schema_without_weights_is_that_of_the_built_model() -> None:
    model = config()
    assert skeleton(model).schema == build_model(model, seed=0).schema == schema_of(model)
    assert schema_of(config(structures=("lesion", "organ"))).sha256 != schema_of(model).sha256
    owners = {spec.structure for spec in schema_of(model).tensors}
    assert owners == {None, "organ", "lesion"}


def test_jobs_may_name_the_backbones_that_there_are() -> None:
    assert set(get_args(BackboneName)) == set(BACKBONES) == set(SIZES)


@pytest.mark.parametrize("name", BACKBONES)
def test_a_backbone_has_as_many_blocks_and_input_sizes_as_its_sizes_say(name: str) -> None:
    sizes, backbone = SIZES[name], BACKBONES[name]
    with torch.device("meta"):
        encoder = backbone.encoder(backbone.native_size)
        half = backbone.encoder(backbone.native_size // 2)
    assert len(encoder.blocks()) == sizes.blocks
    resized = {key for key, tensor in half.state_dict().items() if tensor.shape != encoder.state_dict()[key].shape}
    assert bool(resized) == (sizes.only_size is None), "positions that are resampled"
    assert sizes.only_size in (None, backbone.native_size)


@pytest.mark.parametrize(
    ("name", "sha256"),
    [
        ("vit_test", "933c4b14f06196e9153b3eb5659fbd5dd9e07b6e7e07fed1950c8046efe082d4"),
        ("vit_t", "ae20948149e5d669bd7f7783cd17a4a5720984f67d5e6b2598dc1b84a0174680"),
    ],
)
def test_random_weights_keep_their_bytes(name: str, sha256: str) -> None:
    """Jobs name them by digest, so another version of fedfms must write the same file."""
    assert hashlib.sha256(serialise(random_weights(BACKBONES[name], 0))).hexdigest() == sha256


@pytest.mark.parametrize("name", BACKBONES)
def test_random_weights_scale_by_one_in_norms_alone(name: str) -> None:
    layout = file_layout(BACKBONES[name])
    vectors = {key for key, shape in layout.items() if key.endswith(".weight") and len(shape) == 1}
    assert norm_scales(BACKBONES[name]) == vectors


def test_input_size_of_a_fixed_backbone() -> None:
    with pytest.raises(FedfmsError, match=r"FMS-M005 preprocessing.input_size: vit_t runs at 256 pixels only"):
        schema_of(config("vit_t", input_size=128))
