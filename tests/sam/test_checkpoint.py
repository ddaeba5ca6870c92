"""Checkpoints say what they are, are written whole, and load into nothing else."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from fedfms.errors import FedfmsError
from fedfms.preprocessing import Preprocessing
from fedfms.sam.checkpoint import (
    CheckpointHeader,
    describe,
    load_checkpoint,
    load_segmenter,
    require_same_model,
    save_exchange,
    save_inference,
    summary,
)
from fedfms.sam.config import ModelConfig
from fedfms.sam.model import build_model, initial_state, schema_of
from tests.sam.models import config


def header(model: ModelConfig) -> CheckpointHeader:
    return CheckpointHeader(
        kind="exchange",
        task="abdomen",
        model=model,
        preprocessing=Preprocessing.model_validate(
            {"input_size": model.input_size, "intensity": {"rule": "range"}, "slice_axis": "axial"}
        ),
        seed=0,
        rounds=2,
        schema_sha256=schema_of(model).sha256,
        job_sha256="0" * 64,
    )


def trained_state(model: ModelConfig) -> dict[str, torch.Tensor]:
    return {name: tensor + 0.01 for name, tensor in initial_state(model, seed=0).items()}


@pytest.mark.parametrize("scope", ["full", "adapters+decoder", "decoder"])
def test_both_kinds_give_the_same_model(tmp_path: Path, scope: str) -> None:
    model = config(scope=scope)
    state = trained_state(model)
    save_exchange(tmp_path / "exchange.safetensors", header(model), state)
    save_inference(tmp_path / "inference.safetensors", header(model), state)
    images = torch.randn(1, 3, 64, 64)
    expected = build_model(model, seed=0)
    expected.load_exchanged(state)
    with torch.no_grad():
        for kind in ("exchange", "inference"):
            loaded, found = load_segmenter(tmp_path / f"{kind}.safetensors")
            assert found.kind == kind and found.rounds == 2
            assert torch.equal(loaded(images), expected(images))


def test_exchange_file_holds_exactly_the_schema(tmp_path: Path) -> None:
    model = config()
    path = tmp_path / "state.safetensors"
    save_exchange(path, header(model), trained_state(model))
    assert set(load_checkpoint(path).tensors) == set(schema_of(model).names)
    # The tensors plus a header: nothing else is in the file.
    assert path.stat().st_size < schema_of(model).bytes + 200 * len(schema_of(model).names) + 4096


def test_inference_needs_no_backbone_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = config()
    save_inference(tmp_path / "model.safetensors", header(model), trained_state(model))

    def gone(*_: object) -> dict[str, torch.Tensor]:
        raise AssertionError("the backbone's file was read")

    monkeypatch.setattr("fedfms.sam.model.load_weights", gone)
    segmenter, _ = load_segmenter(tmp_path / "model.safetensors")
    assert segmenter.schema.sha256 == schema_of(model).sha256


def test_incomplete_state_is_not_written(tmp_path: Path) -> None:
    model = config()
    state = trained_state(model)
    state.pop("decoder.iou_token.weight")
    state["encoder.neck.0.weight"] = torch.zeros(1)
    with pytest.raises(FedfmsError) as caught:
        save_exchange(tmp_path / "state.safetensors", header(model), state)
    assert "encoder.neck.0.weight: not in the schema" in str(caught.value)
    assert "decoder.iou_token.weight: missing" in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_other_architecture_is_refused_with_both_sides(tmp_path: Path) -> None:
    other = config(structures=("kidney",), scope="decoder")
    with pytest.raises(FedfmsError) as caught:
        require_same_model(tmp_path / "x", other, config())
    text = str(caught.value)
    assert caught.value.ids == ("FMS-M004",)
    assert "the checkpoint has ['kidney'], expected ['organ', 'lesion']" in text
    assert "the checkpoint has decoder, expected adapters+decoder" in text


def test_the_same_architecture_is_not_refused(tmp_path: Path) -> None:
    require_same_model(tmp_path / "x", config(), config())


@pytest.mark.parametrize("kind", ["exchange", "inference"])
def test_another_schema_of_the_same_configuration_is_refused(tmp_path: Path, kind: str) -> None:
    """Written by a version of fedfms that trains other tensors of such a model."""
    model = config()
    path = tmp_path / "state.safetensors"
    save = save_exchange if kind == "exchange" else save_inference
    save(path, header(model).model_copy(update={"schema_sha256": "e" * 64}), trained_state(model))
    for load in (load_checkpoint, load_segmenter, describe):
        with pytest.raises(FedfmsError, match=f"FMS-M004 .*{'e' * 64}.*{schema_of(model).sha256}"):
            load(path)


@pytest.mark.parametrize("change", [{"kind": "weights"}, {"rounds": -1}, {"approved": True}])
def test_a_header_that_says_something_else_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    model = config()
    path = tmp_path / "state.safetensors"
    metadata = {"fedfms": json.dumps({**header(model).model_dump(mode="json"), **change})}
    safetensors.torch.save_file(trained_state(model), str(path), metadata=metadata)
    with pytest.raises(FedfmsError, match="FMS-M003 .*the header is not valid"):
        load_checkpoint(path)


@pytest.mark.parametrize("change", ["missing", "unknown", "shape"])
def test_an_exchange_file_of_other_tensors_is_refused(tmp_path: Path, change: str) -> None:
    model = config()
    path = tmp_path / "state.safetensors"
    tensors = trained_state(model)
    if change == "missing":
        tensors.pop("decoder.iou_token.weight")
    else:
        tensors["encoder.neck.0.weight" if change == "unknown" else "decoder.iou_token.weight"] = torch.zeros(1)
    safetensors.torch.save_file(tensors, str(path), metadata={"fedfms": header(model).model_dump_json()})
    with pytest.raises(FedfmsError, match="FMS-X001"):
        load_checkpoint(path)


def test_tensors_that_do_not_fit_the_header_are_refused(tmp_path: Path) -> None:
    model = config()
    path = tmp_path / "model.safetensors"
    save_inference(path, header(model), trained_state(model))
    tensors = safetensors.torch.load_file(str(path))
    tensors["encoder.neck.0.weight"] = torch.zeros(1, 1)
    metadata = {"fedfms": header(model).model_copy(update={"kind": "inference"}).model_dump_json()}
    safetensors.torch.save_file(tensors, str(path), metadata=metadata)
    with pytest.raises(FedfmsError, match="FMS-M004"):
        load_segmenter(path)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint at all"])
def test_unreadable_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.safetensors"
    path.write_bytes(content)
    with pytest.raises(FedfmsError, match="FMS-M003"):
        load_segmenter(path)


def test_truncated_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_exchange(path, header(config()), trained_state(config()))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(FedfmsError, match="FMS-M003"):
        load_segmenter(path)


def test_foreign_safetensors_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "foreign.safetensors"
    safetensors.torch.save_file({"a": torch.zeros(1)}, str(path))
    with pytest.raises(FedfmsError, match="FMS-M003 .*without a fedfms header"):
        load_checkpoint(path)


def test_full_disk_leaves_the_previous_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = config()
    path = tmp_path / "state.safetensors"
    save_exchange(path, header(model), initial_state(model, seed=0))
    before = path.read_bytes()

    def full(tensors: object, filename: str, metadata: object = None) -> None:
        Path(filename).write_bytes(before[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(FedfmsError, match="FMS-D011 .*No space left"):
        save_exchange(path, header(model), trained_state(model))
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_description_and_summary(tmp_path: Path) -> None:
    model = config()
    path = tmp_path / "state.safetensors"
    save_exchange(path, header(model), trained_state(model))
    found = describe(path)
    for key, value in summary(model).items():
        assert found[key] == value
    assert found["exchanged_bytes"] == 4 * found["exchanged_parameters"]
    assert found["parameters"] > found["exchanged_parameters"] > 0
    assert set(found["tensors"]) == set(schema_of(model).names)
    assert (found["kind"], found["rounds"], found["file_bytes"]) == ("exchange", 2, path.stat().st_size)
    assert found["adapter"] == model.adapter.model_dump(mode="json")
    assert summary(config(scope="decoder"))["adapter"] is None
