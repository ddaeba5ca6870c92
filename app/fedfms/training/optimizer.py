"""AdamW whose state survives the process: FLARE may run every task in a fresh one."""

from __future__ import annotations

from pathlib import Path

import safetensors
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from fedfms.sam.segmenter import Segmenter
from fedfms.tensor_files import write_tensors


def make_optimizer(model: Segmenter, learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW over the trained parameters; weight decay on matrices and filters only, not on biases and norms."""
    trained = trained_parameters(model)
    decayed = [parameter for parameter in trained.values() if parameter.ndim >= 2]
    others = [parameter for parameter in trained.values() if parameter.ndim < 2]
    return torch.optim.AdamW(
        [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=learning_rate,
        # The second moment remembers a hundred steps, not a thousand: a federation has a few hundred, and the large
        # gradients of the first round would keep the steps small to its end.
        betas=(0.9, 0.99),
    )


def trained_parameters(model: Segmenter) -> dict[str, nn.Parameter]:
    """The parameters of the schema, in its order."""
    parameters = dict(model.named_parameters())
    return {name: parameters[name] for name in model.schema.names}


def save_optimizer(path: Path, optimizer: torch.optim.AdamW, model: Segmenter) -> None:
    """Write the moments and step counts, atomically.

    Raises:
        FedfmsError: FMS-D011 when the disk is full; the previous file stays whole.
    """
    tensors: dict[str, Tensor] = {}
    for name, parameter in trained_parameters(model).items():
        for key, value in optimizer.state[parameter].items():
            tensors[f"{name}|{key}"] = value
    write_tensors(path, tensors, {"schema_sha256": model.schema.sha256})


def load_optimizer(path: Path, optimizer: torch.optim.AdamW, model: Segmenter) -> bool:
    """Load the moments of an earlier round.

    Returns:
        False when there is no file of this schema; the optimizer then starts from nothing.
    """
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            if (file.metadata() or {}).get("schema_sha256") != model.schema.sha256:
                return False
        tensors = safetensors.torch.load_file(str(path))
    except (FileNotFoundError, SafetensorError):
        return False
    parameters = trained_parameters(model)
    for key, tensor in tensors.items():
        name, entry = key.rsplit("|", 1)
        parameter = parameters[name]
        # AdamW keeps its step counts on the CPU.
        optimizer.state[parameter][entry] = tensor if entry == "step" else tensor.to(parameter.device)
    return True
