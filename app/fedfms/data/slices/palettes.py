"""Whether the palettes of a dataset's masks agree: a value means nothing where each file has its own colours."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from fedfms.data.readers.formats import format_of
from fedfms.data.readers.raster import palette_colours
from fedfms.data.slices.discovery import CaseFiles
from fedfms.errors import PALETTES_DIFFER, FedfmsError, Problem

#: A palette entry: dataset, number of its mask source, index.
_Entry = tuple[str, int, int]


def palette_problems(cases: Sequence[CaseFiles], structures: Collection[str]) -> list[Problem]:
    """FMS-D018 for each list of masks in which an index has several colours, with two of the files.

    Args:
        cases: The cases of one task.
        structures: Only masks that have one of these are read.
    """
    seen: dict[_Entry, tuple[tuple[int, int, int], str]] = {}
    problems: dict[tuple[str, int], Problem] = {}
    for files in cases:
        for number, (source, path) in enumerate(zip(files.dataset.masks, files.masks, strict=True)):
            if path is None or format_of(path) != "raster" or source.labels.keys().isdisjoint(structures):
                continue
            try:
                colours = palette_colours(path) or {}
            except FedfmsError:
                continue  # reading the case reports it
            for index, colour in colours.items():
                first, other = seen.setdefault((files.dataset.name, number, index), (colour, str(path)))
                if colour != first:
                    where = f"dataset {files.dataset.name}: masks.{number}"
                    detail = f"value {index} is the colour {first} in {other}, and {colour} in {path}"
                    problems.setdefault((files.dataset.name, number), Problem(PALETTES_DIFFER, where, detail))
    return list(problems.values())
