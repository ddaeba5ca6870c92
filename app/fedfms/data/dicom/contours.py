"""Closed contours in one slice as pixels.

A scan-line fill, row by row, so that the time grows with the length of the outlines. Testing each pixel against each
edge, as scikit-image and Matplotlib do, takes seconds for one organ.

Polygons are arrays (n, 2) of corners as (row, column) in pixels; whole numbers are pixel centres. Parts beyond the
slice are cut off, and fewer than three corners enclose nothing: planning systems sometimes write points and lines.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from fedfms.data.volume.geometry import Array, Matrix

# In fractions of a pixel: a contour that was traced through pixel centres hits them in spite of rounding.
_DECIMALS = 3
_SLACK = 1e-6
#: A contour is within another when no corner is farther outside of it than this fraction of a pixel.
_TOUCHING = 0.05
#: A contour goes to and fro along one line, as at the channel to a hole, when the ways are no further apart than this.
_CHANNEL = 0.5
#: Cosine of the angle between the ways, at most.
_OPPOSITE = -0.9
#: Two contours are one that was drawn twice when their outlines are nowhere further apart than this.
_SAME_OUTLINE = 0.5


def fill_even_odd(polygons: Iterable[Array], shape: tuple[int, ...]) -> Array:
    """Pixels inside of an odd number of polygons, or on one: the rule of contours of type CLOSEDPLANAR_XOR.

    Args:
        polygons: Closed contours of one slice.
        shape: (rows, columns) of the slice.

    Returns:
        uint8 0/1 of ``shape``.
    """
    turns, border = _scanned(polygons, shape)
    return _odd(turns) | border


def fill_union(polygons: Sequence[Array], shape: tuple[int, ...]) -> Array:
    """Pixels inside of any polygon, or on one, except in holes: the rule of contours of type CLOSED_PLANAR.

    A contour that lies completely within another one is a hole in it, as planning systems write holes, and one in a
    hole is an island. Contours that overlap in part, or cover the same pixels, are joined. One contour holds all that
    it goes around, also where it crosses itself or goes around twice; only one that goes to and fro along the same
    line (keyhole, PS3.3 C.8.8.6.3) cuts out what that line leads to.

    Args:
        polygons: Closed contours of one slice.
        shape: (rows, columns) of the slice.

    Returns:
        uint8 0/1 of ``shape``.
    """
    result = np.zeros(shape, dtype=np.uint8)
    for contour in _outermost(polygons, shape):
        inside, border = contour.region()
        result |= inside | border
    return result


def count_inner(polygons: Sequence[Matrix]) -> int:
    """How many polygons of one slice are within another: ``fill_union`` reads them as holes or as islands in holes."""
    ordered = sorted(polygons, key=_area)
    return sum(any(_is_within(inner, outer) for outer in ordered[number + 1 :]) for number, inner in enumerate(ordered))


@dataclass
class _Contour:
    corners: Matrix
    inside: Array
    border: Array
    area: float
    within: list[_Contour] = field(default_factory=list)

    def region(self) -> tuple[Array, Array]:
        """Pixels inside, without holes, and on the outlines of the contour and of those within it."""
        inside, border = self.inside.copy(), self.border.copy()
        for contour in self.within:
            hole, edge = contour.region()
            inside &= 1 - hole
            border |= edge
        return inside, border


def _outermost(polygons: Sequence[Array], shape: tuple[int, ...]) -> list[_Contour]:
    """The contours that are within no other, with those within them; one that was drawn twice once."""
    contours: list[_Contour] = []
    for corners in polygons:
        turns, border = _scanned([corners], shape)
        inside, odd = (turns != 0).astype(np.uint8), _odd(turns)
        if not np.array_equal(inside, odd) and _has_channel(corners):
            inside = odd
        contour = _Contour(corners, inside, border, _area(corners))
        same = next((other for other in contours if _is_again(contour, other)), None)
        if same is None:
            contours.append(contour)
        else:
            same.inside, same.border = same.inside | inside, same.border | border
    contours.sort(key=lambda contour: contour.area)
    outermost: list[_Contour] = []
    for number, contour in enumerate(contours):
        # The smallest that surrounds it.
        around = next((other for other in contours[number + 1 :] if _is_within(contour.corners, other.corners)), None)
        (outermost if around is None else around.within).append(contour)
    return outermost


def _has_channel(corners: Matrix) -> bool:
    """Whether a line is passed in both directions, as that which joins the outline of a hole to the outer one is."""
    along = np.roll(corners, -1, axis=0) - corners
    lengths = np.linalg.norm(along, axis=1)
    directions = along / np.maximum(lengths, _SLACK)[:, None]
    for start, step in zip(corners[lengths > _SLACK], along[lengths > _SLACK], strict=True):
        opposite = directions @ step < _OPPOSITE * np.linalg.norm(step)
        if opposite.any():
            offset = start + step / 2 - corners[opposite]
            share = np.clip((offset * along[opposite]).sum(axis=1) / lengths[opposite] ** 2, 0, 1)
            if np.linalg.norm(offset - share[:, None] * along[opposite], axis=1).min() <= _CHANNEL:
                return True
    return False


def _odd(turns: Array) -> Array:
    odd: Array = (turns % 2).astype(np.uint8)
    return odd


def _area(corners: Matrix) -> float:
    following = np.roll(corners, -1, axis=0)
    return abs(float((corners[:, 0] * following[:, 1] - corners[:, 1] * following[:, 0]).sum())) / 2


def _is_again(contour: _Contour, other: _Contour) -> bool:
    """Whether two contours surround the same: the same pixels, or nearly the same outline."""
    if np.array_equal(contour.inside | contour.border, other.inside | other.border):
        return True
    one, two = contour.corners, other.corners
    extents = np.abs([one.min(axis=0) - two.min(axis=0), one.max(axis=0) - two.max(axis=0)])
    return bool(
        extents.max() <= _SAME_OUTLINE
        and _distances(one, two).max() <= _SAME_OUTLINE
        and _distances(two, one).max() <= _SAME_OUTLINE
    )


def _is_within(inner: Matrix, outer: Matrix) -> bool:
    if (inner.min(axis=0) < outer.min(axis=0) - _TOUCHING).any() or (
        inner.max(axis=0) > outer.max(axis=0) + _TOUCHING
    ).any():
        return False
    outside = ~_contains(outer, inner)
    if outside.all() or (outside.any() and _distances(inner[outside], outer).max() > _TOUCHING):
        return False
    # A corner of the outer one in the inner one: their outlines cross.
    crossing = outer[_contains(inner, outer)]
    return not len(crossing) or bool(_distances(crossing, inner).max() <= _TOUCHING)


def _contains(polygon: Matrix, points: Matrix) -> Array:
    """Which points (n, 2) are inside, by the even-odd rule."""
    from skimage.measure import points_in_poly

    found: Array = points_in_poly(points, polygon)
    return found


def _distances(points: Matrix, polygon: Matrix) -> Matrix:
    """Distance of each point (n, 2) from the nearest edge."""
    start, along = polygon, np.roll(polygon, -1, axis=0) - polygon
    squares = np.maximum((along**2).sum(axis=1), 1e-12)
    offsets = points[:, None] - start
    share = np.clip((offsets * along).sum(axis=2) / squares, 0, 1)
    distances: Matrix = np.linalg.norm(offsets - share[..., None] * along, axis=2).min(axis=1)
    return distances


def _scanned(polygons: Iterable[Array], shape: tuple[int, ...]) -> tuple[Array, Array]:
    """How often the polygons go around each pixel's centre, one direction less the other; and centres on an outline."""
    rows, columns = shape
    crossings = np.zeros((rows, columns + 1), dtype=np.int32)
    border = np.zeros(shape, dtype=np.uint8)
    for corners in polygons:
        if len(corners) < 3:
            continue
        start = np.round(corners, _DECIMALS)
        end = np.roll(start, -1, axis=0)
        # An edge crosses the rows from its upper end on, without its lower end: there the next edge begins.
        first = np.clip(np.ceil(np.minimum(start[:, 0], end[:, 0])), 0, rows).astype(int)
        last = np.clip(np.ceil(np.maximum(start[:, 0], end[:, 0])), 0, rows).astype(int)
        edge = np.repeat(np.arange(len(start)), last - first)
        row = np.concatenate([np.arange(low, high) for low, high in zip(first, last, strict=True)])
        slope = (end[edge, 1] - start[edge, 1]) / (end[edge, 0] - start[edge, 0])
        column = start[edge, 1] + (row - start[edge, 0]) * slope
        direction = np.where(end[edge, 0] > start[edge, 0], 1, -1)
        np.add.at(crossings, (row, np.clip(np.ceil(column), 0, columns).astype(int)), direction)
        _mark(border, row, column, column)
        level = start[:, 0] == end[:, 0]
        ends = np.sort(np.stack([start[level, 1], end[level, 1]]), axis=0)
        _mark(border, start[level, 0], ends[0], ends[1])
        _mark(border, start[:, 0], start[:, 1], start[:, 1])
    turns: Array = np.cumsum(crossings[:, :columns], axis=1)
    return turns, border


def _mark(border: Array, rows: Array, low: Array, high: Array) -> None:
    """Mark the pixel centres that are on horizontal lines."""
    inside = (rows == np.rint(rows)) & (rows >= 0) & (rows < border.shape[0])
    # Rounding errors of a crossing are far below the precision of corners.
    first = np.clip(np.ceil(low - _SLACK), 0, border.shape[1])
    last = np.clip(np.floor(high + _SLACK) + 1, 0, border.shape[1])
    for index in np.flatnonzero(inside & (first < last)):
        border[int(rows[index]), int(first[index]) : int(last[index])] = 1
