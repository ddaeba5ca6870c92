"""Box and points drawn by a person, in pixels of the image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedfms.data.slices.preparation import Geometry
from fedfms.errors import PROMPT_INVALID, FedfmsError, Problem


@dataclass(frozen=True)
class Prompts:
    """Where the model should look; without box and points the whole image is the box.

    Pixels are those of the slice as viewers show it (``fedfms.data.volume.geometry.slice_plan``): x counts columns
    to the right, y rows downwards, both from 0.

    Attributes:
        box: Corners x0, y0, x1, y1.
        points: Each x, y and 1 (inside the structure) or 0 (outside).
        slice: Index of the slice they belong to, from 0; only this one is predicted. None for single images.
    """

    box: tuple[float, float, float, float] | None = None
    points: tuple[tuple[float, float, int], ...] = ()
    slice: int | None = None

    def __bool__(self) -> bool:
        return self.box is not None or bool(self.points)

    def check(self, where: str, shape: tuple[int, int, int]) -> None:
        """Validate the prompts against an image of (slices, rows, columns).

        Raises:
            FedfmsError: FMS-P003 for every prompt that does not fit.
        """
        slices, rows, columns = shape
        details = []
        if self.slice is None and slices > 1:
            details.append(f"the volume has {slices} slices; say with --slice which one, 0 to {slices - 1}")
        if self.slice is not None and not 0 <= self.slice < slices:
            details.append(f"slice {self.slice} is requested; the image has 0 to {slices - 1}")
        corners = [(self.box[0], self.box[1]), (self.box[2], self.box[3])] if self.box else []
        details += [
            f"({x:g}, {y:g}) is outside the image of {columns} columns and {rows} rows"
            for x, y in [*corners, *(point[:2] for point in self.points)]
            if not (0 <= x <= columns and 0 <= y <= rows)
        ]
        if self.box and not (self.box[0] < self.box[2] and self.box[1] < self.box[3]):
            details.append("a box is x0,y0,x1,y1 with x0 < x1 and y0 < y1")
        if details:
            raise FedfmsError(Problem(PROMPT_INVALID, where, detail) for detail in details)

    def tensors(self, geometry: Geometry) -> dict[str, Tensor | tuple[Tensor, Tensor]]:
        """Arguments of ``Segmenter.forward`` for one image, in pixels of the model's input."""
        across = geometry.scaled[1] / geometry.native[1]
        down = geometry.scaled[0] / geometry.native[0]
        result: dict[str, Tensor | tuple[Tensor, Tensor]] = {}
        if self.box is not None:
            result["boxes"] = torch.tensor([self.box]) * torch.tensor([across, down, across, down])
        if self.points:
            places = torch.tensor([[(x * across, y * down) for x, y, _ in self.points]])
            result["points"] = (places, torch.tensor([[label for _, _, label in self.points]]))
        return result


#: The whole image is the box.
NO_PROMPTS = Prompts()
