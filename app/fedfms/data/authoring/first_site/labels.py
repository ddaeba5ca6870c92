"""Guessing the structures in mask files from their values, segments and names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from fedfms.configuration import StructureName
from fedfms.data.authoring.first_site.files import has_soft_edges, is_mask_word, read_labels, values_in, words
from fedfms.data.readers.formats import stem
from fedfms.data.readers.masks import region_names
from fedfms.data.volume.remedies import GeneralRemedy
from fedfms.errors import LABEL_UNKNOWN, FedfmsError, Problem, fail, first_of

#: Most files of one pattern that are read, evenly spaced.
_LOOKED_INTO = 20
#: With more values than this, the numbers are taken to count objects, not to mean structures.
_STRUCTURES = 12


@dataclass(frozen=True)
class Mask:
    """One entry of ``masks`` in ``site.yaml``.

    Attributes:
        pattern: As in ``site.yaml``.
        labels: Structure -> a value, a name, ``nonzero``, or several names.
        required: Whether every case has such a file with all structures.
        comments: What was guessed.
        above: As in ``site.yaml``.
    """

    pattern: str
    labels: dict[str, int | str | tuple[str, ...]]
    required: bool
    comments: tuple[str, ...]
    above: float | None = None


def label_map(root: Path, pattern: str, files: Sequence[Path], taken: set[str], *, missing: int) -> Mask:
    """Describe raster masks or volumes of one pattern; structures are named after the folder or file.

    Args:
        root: Folder that the files are relative to.
        pattern: Their pattern.
        files: The files.
        taken: Names of structures that are in use; new ones are added.
        missing: Number of images without such a file.

    Raises:
        FedfmsError: FMS-D006 for JPEG files that are not one shape each: their values are not labels.
    """
    values: set[int] = set()
    looked, bad, filled, soft = _sample(files), 0, 0, 0
    for path in looked:
        try:
            found = read_labels(root / path)
            values |= values_in(found)
            filled += bool(found.any())
            soft += has_soft_edges(found)
        except FedfmsError:
            bad += 1
    base = _name_from(pattern)
    labels: dict[str, int | str | tuple[str, ...]]
    comments = [f"values found in {len(looked) - bad} of {len(files)} files: {_shown(values)}"]
    if bad:
        comments.append(f"{bad} files could not be read")
    lossy = any(path.suffix.lower() in (".jpg", ".jpeg") for path in looked)
    if 2 * soft > filled and (lossy or len(values) > _STRUCTURES):
        labels = {_free(base, taken): "nonzero"}
        above = max(values) // 2
        comments.append(f"shapes with soft edges: inside is what is above {above}; masks without such edges are better")
        return Mask(pattern, labels, not missing, _with_missing(comments, missing), above)
    if lossy and len(values) > 1:
        raise fail(
            LABEL_UNKNOWN,
            pattern,
            f"JPEG changes the values of masks ({_shown(values)}), and these are not one shape each",
            GeneralRemedy("Save the masks as PNG from their source, and run 'fedfms data init' again."),
        )
    if soft and len(values) > _STRUCTURES:
        raise fail(
            LABEL_UNKNOWN,
            pattern,
            f"{soft} of {filled} masks that are not empty look like one shape with soft edges, the others do not, so"
            f" values such as {_shown(values)} may be edges or count objects",
            GeneralRemedy("Put the two kinds into folders of their own, and run 'fedfms data init' again."),
        )
    if len(values) == 1:
        labels = {_free(base, taken): values.pop()}
    elif 1 < len(values) <= _STRUCTURES:
        labels = {_free(f"{base}_{value}", taken): value for value in sorted(values)}
        comments.append("each value is taken for a structure: name them, join them, or list them under ignore_values")
    else:
        labels = {_free(base, taken): "nonzero"}
        comments.append("so many values count objects: all together are one structure" if values else "all are empty")
    return Mask(pattern, labels, not missing, _with_missing(comments, missing))


def regions(root: Path, pattern: str, files: Sequence[Path], taken: set[str], *, missing: int) -> Mask:
    """Describe SEG or RTSTRUCT files of one pattern; structures are named after the segments or ROIs.

    Args:
        root: Folder that the files are relative to.
        pattern: Their pattern.
        files: The files.
        taken: Names of structures that are in use; new ones are added.
        missing: Number of images without such a file.

    Raises:
        FedfmsError: FMS-D004 when none of the files that were read is readable.
    """
    found: list[tuple[str | int, ...]] = []
    looked = _sample(files)
    problems: list[Problem] = []
    for path in looked:
        try:
            found.append(region_names(root / path))
        except FedfmsError as error:
            problems += error.problems
    groups = _alike(found)
    if problems and not groups:
        raise FedfmsError(problems)
    labels: dict[str, int | str | tuple[str, ...]] = {
        _free(_slug(str(names[0])), taken): names[0] if len(names) == 1 else tuple(map(str, names)) for names in groups
    }
    whole = all(sum(name in own for name in names for own in found) == len(looked) for names in groups)
    comments = [f"segments or ROIs found in {len(looked)} of {len(files)} files; delete those that no job trains"]
    if any(len(names) > 1 for names in groups):
        comments.append("names in one list differ in case, spaces or underscores, and none of these files has two")
    if not whole:
        comments.append("not every file has all of them: those count as not annotated")
    labels = labels or {_free("structure", taken): "nonzero"}
    return Mask(pattern, labels, not missing and whole, _with_missing(comments, missing))


def _alike(found: Sequence[tuple[str | int, ...]]) -> list[list[str | int]]:
    """Group names that differ only in case, spaces and underscores, in the order of their first occurrence.

    Names that are in the same file mean different things, however similar, and are not grouped.
    """
    alike: dict[str | int, list[str | int]] = {}
    for name in dict.fromkeys(name for names in found for name in names):
        key = re.sub(r"[\s_]+", "", name.casefold()) if isinstance(name, str) else name
        alike.setdefault(key, []).append(name)
    groups: list[list[str | int]] = []
    for members in alike.values():
        meet = any(sum(name in names for name in members) > 1 for names in found)
        groups += [[name] for name in members] if meet else [members]
    return groups


def _with_missing(comments: list[str], missing: int) -> tuple[str, ...]:
    return (*comments, *([f"{missing} images have no such file: not annotated"] if missing else ()))


def _sample(files: Sequence[Path]) -> list[Path]:
    count = min(len(files), _LOOKED_INTO)
    return [files[index * len(files) // count] for index in range(count)]


def _name_from(pattern: str) -> str:
    parts = [stem(part) for part in re.sub(r"\{\w+\}", " ", pattern).split("/")]
    left = [[word for word in words(part) if not is_mask_word(word) and word not in ("tr", "ts")] for part in parts]
    return _slug("_".join(next((found for found in reversed(left) if found), ["structure"])))


def _slug(text: str) -> str:
    name = "_".join(words(text))[:30].strip("_") or "structure"
    name = name if name[0].isalpha() else f"structure_{name}"
    try:
        TypeAdapter(StructureName).validate_python(name)
    except ValidationError:  # a word that PyTorch uses itself
        return f"{name}_structure"
    return name


def _free(name: str, taken: set[str]) -> str:
    free, number = name, 2
    while free in taken:
        free, number = f"{name}_{number}", number + 1
    taken.add(free)
    return free


def _shown(values: set[int]) -> str:
    listed = sorted(values)
    return first_of(listed, 10) or "only 0"
