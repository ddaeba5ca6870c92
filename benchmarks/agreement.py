"""Compare the model's answers in fp32 and bf16 on a device, and those of the device with the CPU's.

    python benchmarks/agreement.py [--device cuda] [--backbone vit_t] [--input-size 256]

On one random image with adapters that are not zero: largest difference of the logits, and Dice of the masks.
Weights: the published ones for ``vit_t``, random ones for the others.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from steps import write_backbone
from torch import Tensor

from fedfms.sam.backbones import BACKBONES
from fedfms.sam.config import ModelConfig
from fedfms.sam.model import build_model
from fedfms.sam.segmenter import Segmenter
from fedfms.training.hardware import Hardware


@torch.no_grad()
def logits(model: Segmenter, image: Tensor, device: str, dtype: torch.dtype) -> Tensor:
    """The model's answer ``(1, structures, S, S)``, as fp32 on the CPU."""
    hardware = Hardware(torch.device(device), dtype)
    with hardware.autocast():
        found: Tensor = copy.deepcopy(model).to(device)(image.to(device))
    return found.float().cpu()


def dice(one: Tensor, other: Tensor) -> float:
    """Dice of the masks that two tensors of logits give; 1 when both are empty."""
    inside, beside = one > 0, other > 0
    total = int(inside.sum() + beside.sum())
    return 2 * int((inside & beside).sum()) / total if total else 1.0


def compare(model: Segmenter, device: str) -> list[dict[str, Any]]:
    """For each pair of ways to compute the same: ``name``, ``largest_difference``, ``largest_logit`` and ``dice``."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if ".adapter_" in name:  # zero at the start, it would hide its path
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data.add_(noise, alpha=0.02)
    size = model.config.input_size
    image = torch.rand(1, 3, size, size, generator=generator)
    exact = logits(model, image, device, torch.float32)
    pairs = {f"{device}, bf16 against fp32": logits(model, image, device, torch.bfloat16)}
    if device != "cpu":
        pairs[f"fp32, cpu against {device}"] = logits(model, image, "cpu", torch.float32)
    return [
        {
            "name": name,
            "largest_difference": float((found - exact).abs().max()),
            "largest_logit": float(exact.abs().max()),
            "dice": dice(found, exact),
        }
        for name, found in pairs.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", choices=sorted(BACKBONES), default="vit_t")
    parser.add_argument("--input-size", type=int, default=256)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        values = {
            "backbone": options.backbone,
            "backbone_sha256": write_backbone(options.backbone, Path(folder)),
            "input_size": options.input_size,
            "structures": ("organ",),
            "scope": "adapters+decoder",
        }
        model = build_model(ModelConfig.model_validate(values), seed=0)
    table = Table(title=f"agreement: {options.backbone}, {options.input_size} px")
    for heading in ("pair", "largest difference", "largest logit", "Dice"):
        table.add_column(heading, justify="left" if heading == "pair" else "right")
    for row in compare(model, options.device):
        cells = [f"{row[key]:.3g}" for key in ("largest_difference", "largest_logit")]
        table.add_row(row["name"], *cells, f"{row['dice']:.4f}")
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
