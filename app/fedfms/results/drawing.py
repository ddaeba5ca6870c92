"""Images with the outlines of masks on them, as the package's pictures show them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fedfms.colours import colour_of


def pyplot() -> Any:
    """matplotlib's pyplot for files; it takes a second to import, and no window system is needed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as module

    return module


def show(cell: Any, image: npt.NDArray[np.float32], masks: Iterable[npt.NDArray[Any]], aspect: float = 1.0) -> None:
    """Draw an image and the outline of each mask into one cell.

    Args:
        cell: matplotlib's axes.
        image: (H, W, 3) in 0..1.
        masks: (H, W) each; colours go by their order. Empty and full ones have no outline.
        aspect: Distance of rows over distance of columns.
    """
    cell.imshow(image, aspect=aspect)
    for position, mask in enumerate(masks):
        if mask.any() and not mask.all():
            cell.contour(mask, levels=[0.5], colors=[_rgb(position)], linewidths=1.4)
    cell.set_xticks([])
    cell.set_yticks([])


def legend(figure: Any, structures: Sequence[str]) -> float:
    """Name the colours below the cells, in as many lines as the figure's width asks for.

    A figure that is narrower than the longest name is widened.

    Returns:
        Height that it takes, in inches.
    """
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=_rgb(position), label=name) for position, name in enumerate(structures)]
    for columns in range(min(len(handles), 6), 0, -1):
        drawn = figure.legend(handles=handles, loc="lower center", ncols=columns, frameon=False, fontsize=9)
        width, height = (length / figure.dpi for length in drawn.get_window_extent().size)
        if columns == 1:
            figure.set_figwidth(max(width, figure.get_figwidth()))
        if width <= figure.get_figwidth():
            return float(height)
        drawn.remove()
    return 0.0


def _rgb(position: int) -> tuple[float, ...]:
    """The structure's colour as matplotlib wants it, 0..1."""
    return tuple(value / 255 for value in colour_of(position))
