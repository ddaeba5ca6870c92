"""Predict slices of any size with a loaded model: as a whole, or window by window."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from fedfms.data.description.site import Compute
from fedfms.data.slices.intensity import intensity_bounds, slice_values, to_model_range
from fedfms.data.slices.preparation import Geometry, geometry_of, normalise, pad, scale
from fedfms.data.volume.geometry import Array
from fedfms.files import sha256_file
from fedfms.prediction.prompts import NO_PROMPTS, Prompts
from fedfms.sam.backbones import BACKBONES
from fedfms.sam.checkpoint import CheckpointHeader, load_segmenter
from fedfms.training.hardware import Hardware, choose_hardware

#: ``off``: each image is scaled to the model's input, as in training. ``auto``: an image larger than the model's
#: input is predicted in overlapping windows of that size. A number: in windows of this many pixels per side.
Window = Literal["auto", "off"] | int

# Neighbouring windows share a quarter of their side; where they meet, the one whose centre is closer counts more.
_OVERLAP = 0.25


@dataclass(frozen=True)
class Predictor:
    """A loaded model and how to run it.

    Attributes:
        model: Called as ``fedfms.sam.segmenter.Segmenter``.
        header: Of its checkpoint.
        sha256: Of the checkpoint file; written into every result.
        hardware: Device and precision.
        batch: Images or windows in one forward pass.
        window: See ``Window``.
    """

    model: Any
    header: CheckpointHeader
    sha256: str
    hardware: Hardware
    batch: int = 4
    window: Window = "off"

    @property
    def structures(self) -> tuple[str, ...]:
        """One output channel each, in this order."""
        return self.header.model.structures

    def slices(
        self, values: Array, indices: Sequence[int], prompts: Prompts, where: str
    ) -> Iterator[tuple[int, Tensor]]:
        """Predict some slices of a case.

        Args:
            values: (slices, rows, columns), or (slices, rows, columns, 3) for colour, as stored; the intensity rule
                uses all slices.
            indices: The slices to predict.
            prompts: For the one slice they belong to.
            where: Named in errors.

        Yields:
            The index of a slice and its logits ``(structures, rows, columns)``, float32 on the CPU.

        Raises:
            FedfmsError: FMS-J003 when the model's intensity or channel rule does not fit the image.
        """
        preprocessing = self.header.preprocessing
        bounds = intensity_bounds(values, preprocessing.intensity, where)
        side = self._window_side((values.shape[1], values.shape[2]))
        remaining = iter(indices)
        while part := list(islice(remaining, 1 if side else self.batch)):
            stored = [slice_values(values, index, preprocessing.channels, where) for index in part]
            images = torch.stack([torch.from_numpy(to_model_range(item, bounds)) for item in stored])
            logits = self._in_windows(images, side) if side else self._whole(images, prompts)
            yield from zip(part, logits, strict=True)

    def scales_down(self, size: tuple[int, int], times: float) -> bool:
        """Whether an image (rows, columns) is scaled down more than so many times before the model sees it."""
        return self._window_side(size) is None and max(size) > times * self.header.model.input_size

    def _window_side(self, size: tuple[int, int]) -> int | None:
        if self.window == "off":
            return None
        side = self.header.model.input_size if self.window == "auto" else self.window
        return side if max(size) > side else None

    def _whole(self, images: Tensor, prompts: Prompts) -> Tensor:
        geometry = geometry_of((images.shape[2], images.shape[3]), self.header.model.input_size)
        scaled = torch.stack([normalise(image, self._normalisation) for image in scale(images, geometry)])
        return self._answer(pad(scaled, geometry), geometry, prompts)

    def _in_windows(self, images: Tensor, side: int) -> Tensor:
        from monai.inferers import sliding_window_inference

        # Over the whole image: a window of nothing but background must not be stretched to full contrast.
        image = normalise(images[0], self._normalisation)

        def answer(windows: Tensor) -> Tensor:
            geometry = geometry_of((windows.shape[2], windows.shape[3]), self.header.model.input_size)
            return self._answer(pad(scale(windows, geometry), geometry), geometry, NO_PROMPTS)

        roi = (min(side, image.shape[1]), min(side, image.shape[2]))
        logits: Tensor = sliding_window_inference(
            image[None], roi, self.batch, answer, overlap=_OVERLAP, mode="gaussian"
        )
        return logits

    @torch.no_grad()
    def _answer(self, inputs: Tensor, geometry: Geometry, prompts: Prompts) -> Tensor:
        device = self.hardware.device
        arguments = {
            name: tuple(item.to(device) for item in value) if isinstance(value, tuple) else value.to(device)
            for name, value in prompts.tensors(geometry).items()
        }
        with self.hardware.autocast():
            logits = self.model(inputs.to(device), **arguments).float().cpu()
        return torch.stack([geometry.restore(item) for item in logits])

    @property
    def _normalisation(self) -> Literal["unit", "sam"]:
        return BACKBONES[self.header.model.backbone].normalisation


def load_predictor(model_file: Path, batch: int, window: Window) -> Predictor:
    """Read a checkpoint of either kind; on a GPU when there is one.

    Raises:
        FedfmsError: FMS-M003, FMS-M004; FMS-M001, FMS-M002 for the backbone of an ``exchange`` checkpoint.
    """
    model, header = load_segmenter(model_file)
    hardware = choose_hardware(Compute(), "auto")
    return Predictor(model.to(hardware.device), header, sha256_file(model_file), hardware, batch, window)
