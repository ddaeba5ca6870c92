"""The benchmark of training steps: its JSON, its peer, the script for GPUs, the comparison of precisions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from fedfms.sam.model import build_model
from fedfms.sam.segmenter import Segmenter
from tests.sam.models import config

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def _scripts_import_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def _model(backbone: str) -> Segmenter:
    """With adapters that are not zero."""
    model = build_model(config(backbone), seed=0)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "adapter" in name:
            nn.init.uniform_(parameter.data, -0.05, 0.05, generator=generator)
    return model


@pytest.mark.parametrize("backbone", ["vit_test", pytest.param("vit_t", marks=pytest.mark.slow)])
def test_the_peer_is_the_same_model(backbone: str) -> None:
    from peer import use_peer

    model = _model(backbone)
    size = model.config.input_size
    images = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(1))
    results = []
    for _ in range(2):
        logits = model(images)
        model.zero_grad()
        logits.square().mean().backward()
        adapters = [name for name in model.schema.names if name.startswith("encoder.")]
        parameters = dict(model.named_parameters())
        results.append((logits.detach(), [parameters[name].grad.clone() for name in adapters]))
        own = model.encoder.suffix
        use_peer(model)
        assert model.encoder.suffix != own
    (ours, our_gradients), (theirs, their_gradients) = results
    assert (ours - theirs).abs().max() < 1e-5 * ours.abs().max()
    largest = max(float(gradient.abs().max()) for gradient in their_gradients)
    for one, other in zip(our_gradients, their_gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5 * largest)


def test_json_names_each_way_with_its_seconds_and_memory(tmp_path: Path) -> None:
    file = tmp_path / "steps.json"
    arguments = ["--backbone", "vit_test", "--repeats", "1", "--batch", "2", "--ways", "fp32, not cached"]
    command = [sys.executable, str(BENCHMARKS / "steps.py"), *arguments, "--threads", "1", "--json", str(file)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    content = json.loads(file.read_text(encoding="utf-8"))
    assert set(content) == {"machine", "settings", "ways"}
    assert content["settings"]["backbone"] == "vit_test" and content["settings"]["input_size"] == 64
    names = [way["name"] for way in content["ways"]]
    assert names == [
        "adapters in all blocks, fp32, not cached",
        "peer: adapters in all blocks, fp32, not cached",
    ]
    for way in content["ways"]:
        assert 0 < way["min"] <= way["seconds"] <= way["max"]
        assert 100 < way["peak_mb"] < 4000
    ours, peer = (line.split("│") for line in output.splitlines() if "adapters" in line)
    assert float(ours[5]) == pytest.approx(content["ways"][1]["seconds"] / content["ways"][0]["seconds"], abs=0.01)
    assert float(peer[5]) == 1


def test_profile_names_operators() -> None:
    arguments = ["--backbone", "vit_test", "--batch", "1", "--ways", "decoder only", "--threads", "1", "--profile"]
    command = [sys.executable, str(BENCHMARKS / "steps.py"), *arguments]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "decoder only, bf16, cached" in output and "aten::" in output and "Self CPU time total" in output


def test_gpu_script_says_that_there_is_no_gpu() -> None:
    environment = {**os.environ, "PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(["bash", str(BENCHMARKS / "gpu.sh")], env=environment, capture_output=True, text=True)
    assert result.returncode == 1
    assert "torch.cuda.is_available() is false" in result.stderr


def test_agreement_tells_equal_from_different() -> None:
    from agreement import compare, dice

    assert dice(torch.tensor([1.0, -1.0]), torch.tensor([2.0, -3.0])) == 1
    assert dice(torch.tensor([1.0, 1.0]), torch.tensor([1.0, -1.0])) == pytest.approx(2 / 3)
    assert dice(-torch.ones(2), -torch.ones(2)) == 1
    (row,) = compare(_model("vit_test"), "cpu")
    assert row["name"] == "cpu, bf16 against fp32"
    assert 0 < row["largest_difference"] < 0.1 * row["largest_logit"]
    assert 0.9 < row["dice"] <= 1
