"""Guessing the pattern of image and mask paths."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedfms.data.description.pattern import PathPattern
from fedfms.data.readers.formats import stem
from fedfms.errors import first_of

_SEPARATORS = re.compile(r"([_.\- ])")


@dataclass(frozen=True)
class Images:
    """The pattern of the images, and the paths that fit.

    Attributes:
        pattern: As in ``site.yaml``.
        cases: Path -> the texts of ``case`` and perhaps ``patient``.
        comments: What was guessed.
    """

    pattern: str
    cases: dict[Path, dict[str, str]]
    comments: tuple[str, ...]


def image_pattern(paths: Sequence[Path], *, folders: bool) -> Images:
    """Guess the pattern of images.

    Args:
        paths: Paths relative to root; at least one.
        folders: Whether they are folders (DICOM), whose names have no endings.
    """
    comments = []
    depth, count = Counter(len(path.parts) for path in paths).most_common(1)[0]
    if count < len(paths):
        comments.append(f"{len(paths) - count} of {len(paths)} images are at another depth and are not described")
    own = [path for path in paths if len(path.parts) == depth]
    parents = [list(dict.fromkeys(path.parts[level] for path in own)) for level in range(depth - 1)]
    templates = Counter(path.name.replace(path.parts[-2], "{case}") if depth > 1 else path.name for path in own)
    if depth > 1 and len(parents[-1]) > 1 and len(templates) < len(parents[-1]):
        name, _ = min(templates.items(), key=lambda item: (-item[1], item[0]))
        if len(templates) > 1:
            others = first_of(sorted(set(templates) - {name}), 6)
            comments.append(f"each folder has several images; the others are: {others}")
        own = [path for path in own if path.name.replace(path.parts[-2], "{case}") == name]
        pattern = "/".join([*_levels(own, depth - 2, depth - 2), "{case}", name])
    elif len({path.name for path in own}) == 1 and any(len(texts) > 1 for texts in parents):
        level = max(level for level, texts in enumerate(parents) if len(texts) > 1)
        pattern = "/".join([*_levels(own, level, level), "{case}", *own[0].parts[level + 1 :]])
    else:
        pattern = "/".join([*_levels(own, depth - 1, -1), _name_pattern([path.name for path in own], folders=folders)])
    fitting = PathPattern(pattern).expression
    cases = {path: match.groupdict() for path in own if (match := fitting.fullmatch(path.as_posix()))}
    if alike := len(cases) - len({tuple(texts.items()) for texts in cases.values()}):
        comments.append(f"{alike} images have the {{case}} of another image: they would get its masks as well")
    return Images(pattern, cases, tuple(comments))


def _levels(paths: Sequence[Path], count: int, case: int) -> list[str]:
    """The first ``count`` folders of a pattern.

    Of those that vary, the first one that distinguishes images with the same text of ``{case}`` becomes ``{patient}``.
    """
    parts = [[path.parts[level] for path in paths] for level in range(count)]
    varying = [level for level, texts in enumerate(parts) if len(set(texts)) > 1]
    cases = [path.parts[case] for path in paths]
    telling = [level for level in varying if len(set(zip(parts[level], cases, strict=True))) == len(paths)]
    patient = next(iter([*telling, *varying]), None)
    return [
        "{patient}" if level == patient else "*" if level in varying else texts[0] for level, texts in enumerate(parts)
    ]


def mask_patterns(masks: Sequence[Path], images: Images) -> tuple[dict[str, list[Path]], int]:
    """Guess patterns of mask files, from the case that is in each path.

    Returns:
        Pattern -> files, the most frequent pattern first; and the number of files that belong to no image.
    """
    by_case: dict[str, list[dict[str, str]]] = {}
    stars = [level for level, part in enumerate(images.pattern.split("/")[:-1]) if part == "*"]
    for path, texts in images.cases.items():
        names = {path.parts[level]: "*" for level in stars} | {text: f"{{{name}}}" for name, text in texts.items()}
        by_case.setdefault(texts["case"], []).append(names)
    found: dict[str, list[Path]] = {}
    strangers = 0
    for path in masks:
        pattern = _mask_pattern(path, by_case)
        if pattern is None:
            strangers += 1
        else:
            found.setdefault(pattern, []).append(path)
    return dict(sorted(found.items(), key=lambda item: (-len(item[1]), item[0]))), strangers


def _name_pattern(names: Sequence[str], *, folders: bool) -> str:
    if folders:
        return "{case}"
    endings = {name[len(stem(name)) :] for name in names}
    ending = endings.pop() if len(endings) == 1 else ".*"
    parts = [_SEPARATORS.split(stem(name)) for name in names]
    common = 0
    # The last words that all names share, such as the 0000 of a first channel; something must be left for {case}.
    while len(names) > 1 and all(len(words) > common + 2 for words in parts):
        if len({tuple(words[len(words) - common - 2 :]) for words in parts}) > 1:
            break
        common += 2
    tail = "".join(parts[0][len(parts[0]) - common :]) if common else ""
    return "{case}" + tail + ending


def _mask_pattern(path: Path, by_case: dict[str, list[dict[str, str]]]) -> str | None:
    """``by_case``: case -> for each image of it, what replaces the parts of its path in the pattern."""
    name = stem(path.name)
    ending = path.name[len(name) :]
    words = _SEPARATORS.split(name)
    for length in range(len(words), 0, -2):
        for start in range(0, len(words) - length + 1, 2):
            case = "".join(words[start : start + length])
            if case in by_case:
                shown = "".join([*words[:start], "{case}", *words[start + length :]]) + ending
                return "/".join([*_folders(path, by_case[case]), shown])
    case = next((part for part in reversed(path.parts[:-1]) if part in by_case), "")
    return "/".join([*_folders(path, by_case[case]), path.name]) if case else None


def _folders(path: Path, candidates: list[dict[str, str]]) -> list[str]:
    # Patients may have cases of the same name: the one that shares most folders is meant.
    names = max(candidates, key=lambda item: sum(part in item for part in path.parts[:-1]))
    return [names.get(part, part) for part in path.parts[:-1]]
