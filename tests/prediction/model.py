"""A model whose answer is known: it sees brightness, pixel by pixel."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from fedfms.data.slices.preparation import SAM_PIXEL_MEAN, SAM_PIXEL_STD
from fedfms.prediction.predictor import Predictor
from fedfms.sam.checkpoint import CheckpointHeader
from fedfms.sam.model import schema_of
from fedfms.training.hardware import Hardware
from tests.generators import preprocessing
from tests.sam.models import config

#: Values of the pixels that ``Bright`` calls organ, and of those it calls organ and lesion.
ORGAN, LESION = 160, 240
#: Keeps stored values 0..255 as they are.
PLAIN = {"rule": "window", "center": 127.5, "width": 255}
SHA256 = "ab" * 32


class Bright:
    """``organ`` is what is brighter than 130, ``lesion`` what is brighter than 200; within the box, if there is one."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.prompts: list[dict[str, Any]] = []

    def to(self, _: Any) -> Bright:
        return self

    def __call__(self, images: Tensor, **prompts: Any) -> Tensor:
        self.batches.append(len(images))
        self.prompts.append(prompts)
        values = images[:, 1] * SAM_PIXEL_STD[1] + SAM_PIXEL_MEAN[1]
        logits = torch.stack([values - 130, values - 200], dim=1) / 10
        if "boxes" in prompts:
            left, top, right, bottom = prompts["boxes"][0].round().int().tolist()
            inside = torch.zeros(logits.shape[2:], dtype=torch.bool)
            inside[top:bottom, left:right] = True
            logits[:, :, ~inside] = -9
        return logits


def header(slice_axis: str = "axial", **changes: Any) -> CheckpointHeader:
    """Of a model with an input of 64 pixels."""
    model = config(**changes)
    return CheckpointHeader(
        kind="inference",
        task="organ-lesion",
        model=model,
        preprocessing=preprocessing(PLAIN, size=64, slice_axis=slice_axis),
        seed=0,
        rounds=1,
        schema_sha256=schema_of(model).sha256,
        job_sha256="0" * 64,
    )


def predictor(slice_axis: str = "axial", model: Any = None, **changes: Any) -> Predictor:
    """A predictor around ``Bright``, or another model."""
    hardware = Hardware(torch.device("cpu"), torch.float32)
    return Predictor(model or Bright(), header(slice_axis), SHA256, hardware, **changes)


def object_in(shape: tuple[int, int, int], dtype: type = np.uint8) -> np.ndarray:
    """A volume (i, j, k) with an object that no turning or mirroring maps onto itself; it contains a lesion.

    In a slice across any axis the object covers whole pixels, so that a model of its size answers exactly.
    """
    i, j, k = shape
    voxels = np.full(shape, 20, dtype=dtype)
    voxels[i // 8 : i // 2, j // 6 : j // 3, k // 4 : k - 1] = ORGAN
    voxels[i // 8 : i // 4, j // 6 : j - 3, k // 4 : k // 2] = ORGAN
    voxels[i // 8 + 1 : i // 4, j // 6 + 1 : j // 3, k // 4 : k // 2] = LESION
    return voxels


def world(mask: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Positions (n, 3) of the voxels (i, j, k) in a mask."""
    indices = np.argwhere(mask)
    return (affine @ np.c_[indices, np.ones(len(indices))].T).T[:, :3]


def same_places(one: np.ndarray, other: np.ndarray, tolerance: float = 0.02) -> bool:
    """Whether two sets of positions in mm are the same one, and not empty."""
    return len(one) == len(other) > 0 and bool(cKDTree(one).query(other)[0].max() < tolerance)
