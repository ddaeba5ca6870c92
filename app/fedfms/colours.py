"""One colour per structure, the same in every picture and file."""

from __future__ import annotations

#: Red, green, blue; bright enough to be seen on grey images.
_COLOURS = (
    (0, 229, 255),
    (255, 64, 129),
    (255, 215, 64),
    (105, 240, 174),
    (179, 136, 255),
    (255, 110, 64),
    (41, 121, 255),
    (198, 255, 0),
    (255, 128, 171),
    (188, 170, 164),
)


def colour_of(position: int) -> tuple[int, int, int]:
    """Red, green and blue, 0..255, of the structure at a position in a list of structures."""
    return _COLOURS[position % len(_COLOURS)]
