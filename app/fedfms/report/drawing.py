"""Images with the outlines of masks on them, as the package's pictures show them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import cycle
from typing import Any

import numpy as np
import numpy.typing as npt

_COLOURS = (
    "#00e5ff",
    "#ff4081",
    "#ffd740",
    "#69f0ae",
    "#b388ff",
    "#ff6e40",
    "#2979ff",
    "#c6ff00",
    "#ff80ab",
    "#bcaaa4",
)


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
    for mask, colour in zip(masks, cycle(_COLOURS)):
        if mask.any() and not mask.all():
            cell.contour(mask, levels=[0.5], colors=[colour], linewidths=1.4)
    cell.set_xticks([])
    cell.set_yticks([])


def legend(figure: Any, structures: Sequence[str]) -> float:
    """Name the colours below the cells, in as many lines as the figure's width asks for.

    A figure that is narrower than the longest name is widened.

    Returns:
        Height that it takes, in inches.
    """
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=colour, label=name) for name, colour in zip(structures, cycle(_COLOURS))]
    for columns in range(min(len(handles), 6), 0, -1):
        drawn = figure.legend(handles=handles, loc="lower center", ncols=columns, frameon=False, fontsize=9)
        width, height = (length / figure.dpi for length in drawn.get_window_extent().size)
        if columns == 1:
            figure.set_figwidth(max(width, figure.get_figwidth()))
        if width <= figure.get_figwidth():
            return float(height)
        drawn.remove()
    return 0.0
