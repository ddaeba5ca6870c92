"""``fedfms data preview``: cases of a site on one sheet, the masks drawn on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedfms.data.description.site import DatasetDescription, load_site
from fedfms.data.slices.case_pixels import CasePixels, read_case
from fedfms.data.slices.discovery import CaseFiles, find_cases
from fedfms.errors import NO_CASES, FedfmsError, Problem
from fedfms.files import atomic_path
from fedfms.results.drawing import legend, pyplot, show

_COLUMNS = 6
# Of a cell and of the line above it, in inches.
_WIDTH = 2.6
_TITLE = 0.35


@dataclass(frozen=True)
class _Cell:
    title: str
    image: npt.NDArray[np.float32] | None
    masks: tuple[npt.NDArray[Any], ...]
    aspect: float


def draw_preview(site_file: Path, out: Path, *, cases: int = 12, show_ids: bool = False) -> list[Problem]:
    """Write a contact sheet as PNG.

    Cases are taken evenly from the list of each dataset. Of a volume the axial slice is shown that has most of the
    structures and in which they are largest, or the middle one. Grey values are shown from the 1st to the 99th
    percentile of what is in and around the structures, or of the whole slice.

    Args:
        site_file: The ``site.yaml``.
        out: The PNG.
        cases: Most cases of each dataset.
        show_ids: Title cells with file names; otherwise with running numbers.

    Returns:
        The problems of the cases that could not be drawn; their cells show the error ids.

    Raises:
        FedfmsError: FMS-D001, FMS-D002, FMS-D008 when there is nothing to draw, FMS-D011.
    """
    site = load_site(site_file)
    structures = tuple(dict.fromkeys(name for dataset in site.datasets for name in dataset.structures))
    problems: list[Problem] = []
    cells: list[_Cell] = []
    for dataset in site.datasets:
        found = find_cases(dataset)
        problems += [*found.problems, *(problem for bad in found.bad for problem in bad)]
        count = min(len(found.cases), cases)
        for position in (index * len(found.cases) // count for index in range(count)):
            cells.append(_cell(dataset, found.cases[position], position, structures, show_ids, problems))
    if not cells:
        ids = " ".join(FedfmsError(problems).ids) if problems else "none is described"
        detail = f"no case to draw ({ids})" + ("" if show_ids or not problems else "; --show-ids names them")
        remedy = f"Mend what 'fedfms data check {site_file} --show-ids' names first." if problems else None
        raise FedfmsError([Problem(NO_CASES, str(site_file), detail, remedy), *(problems if show_ids else ())])
    _draw(cells, structures, out)
    return problems


def _cell(
    dataset: DatasetDescription,
    files: CaseFiles,
    position: int,
    structures: tuple[str, ...],
    show_ids: bool,
    problems: list[Problem],
) -> _Cell:
    title = files.name if show_ids else f"{dataset.name} {position + 1}"
    try:
        pixels = read_case(files, "axial", structures)
    except FedfmsError as error:
        problems += error.problems
        return _Cell(f"{title}\n{' '.join(error.ids)}", None, (), 1.0)
    index = _slice(pixels)
    masks = tuple(
        pixels.masks[name][index] if name in pixels.masks else np.zeros(pixels.values.shape[1:3], np.uint8)
        for name in structures
    )
    aspect = pixels.spacing[0] / pixels.spacing[1] if pixels.spacing else 1.0
    shown = f"{title}, slice {index + 1} of {len(pixels.values)}" if len(pixels.values) > 1 else title
    return _Cell(shown, _shown(pixels, index, np.any(masks, axis=0) if masks else None), masks, aspect)


def _slice(pixels: CasePixels) -> int:
    """The slice with most structures; of those the one whose least shown structure is largest in it."""
    areas = np.array([mask.sum(axis=(1, 2)) for mask in pixels.masks.values() if mask.any()])
    if not len(areas):
        return len(pixels.values) // 2
    shown = (areas > 0).sum(axis=0)
    least = np.where(areas > 0, areas / areas.max(axis=1, keepdims=True), np.inf).min(axis=0)
    return max(range(len(shown)), key=lambda index: (shown[index], least[index]))


def _shown(pixels: CasePixels, index: int, marked: npt.NDArray[np.bool_] | None) -> npt.NDArray[np.float32]:
    values = pixels.values[index].astype(np.float32)
    if values.ndim == 3 and pixels.values.dtype == np.uint8:
        low, high = 0.0, 255.0
    else:
        low, high = (float(value) for value in np.percentile(_around(values, marked), (1, 99)))
    scaled: npt.NDArray[np.float32] = np.clip((values - low) / max(high - low, 1e-6), 0, 1)
    return scaled if scaled.ndim == 3 else np.repeat(scaled[:, :, None], 3, axis=2)


def _around(values: npt.NDArray[np.float32], marked: npt.NDArray[np.bool_] | None) -> npt.NDArray[np.float32]:
    """The part of a slice that the structures span, and half as much on each side.

    Over all of a CT the percentiles are those of air and table, and soft tissue is white.
    """
    if marked is None or not marked.any():
        return values
    part = []
    for length, places in zip(values.shape, np.nonzero(marked), strict=False):
        first, last = int(places.min()), int(places.max()) + 1
        margin = max((last - first) // 2, length // 16)
        part.append(slice(max(0, first - margin), last + margin))
    return values[tuple(part)]


def _draw(cells: list[_Cell], structures: tuple[str, ...], out: Path) -> None:
    plotter = pyplot()
    columns = min(_COLUMNS, len(cells))
    rows = -(-len(cells) // columns)
    figure, axes = plotter.subplots(rows, columns, figsize=(_WIDTH * columns, 1), squeeze=False)
    for cell, axis in zip(cells, axes.flat):  # noqa: B905 - the last row may have room left
        if cell.image is None:
            axis.text(0.5, 0.5, "cannot be read", ha="center", va="center", color="red")
            axis.set_xticks([])
            axis.set_yticks([])
        else:
            show(axis, cell.image, cell.masks, cell.aspect)
        axis.set_title(cell.title, fontsize=8)
    for axis in axes.flat[len(cells) :]:
        axis.set_axis_off()
    below = legend(figure, structures)
    # As high as the highest image, but a tall one does not make the sheet endless.
    highest = max(
        (cell.image.shape[0] / cell.image.shape[1] * cell.aspect for cell in cells if cell.image is not None), default=1
    )
    height = rows * (_WIDTH * min(highest, 1.5) + _TITLE) + below
    figure.set_figheight(height)
    figure.tight_layout(rect=(0, below / height, 1, 1))
    with atomic_path(out) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    plotter.close(figure)
