"""DICOM: which series of a folder is the case, and how ``site.yaml`` can select it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fedfms.data.description.series import SeriesChoice
from fedfms.data.dicom.references import referenced_series
from fedfms.data.dicom.series import Found
from fedfms.errors import FedfmsError, first_of

#: Most series that a comment lists.
_LISTED = 12
#: Characters with a meaning in regular expressions.
_SPECIAL = re.compile(r"[\\.^$*+?{}\[\]|()]")


@dataclass(frozen=True)
class Described:
    """A choice of series.

    Attributes:
        series: Content of ``images.series``; empty when each folder has one series, or nothing distinguishes them.
        comments: What was guessed.
    """

    series: dict[str, str]
    comments: tuple[str, ...] = ()


def references(regions: Iterable[Found]) -> Counter[str]:
    """How many SEG and RTSTRUCT files refer to each series, by SeriesInstanceUID."""
    counts: Counter[str] = Counter()
    for item in regions:
        for header in item.headers:
            with suppress(FedfmsError):  # a damaged file does not count
                counts.update(referenced_series(header))
    return counts


def is_localiser(item: Found) -> bool:
    """Whether ImageType (0008,0008) of all files says LOCALIZER; False when the element is damaged."""
    try:
        return all("LOCALIZER" in re.split(r"[^A-Z]+", " ".join(header.texts("ImageType"))) for header in item.headers)
    except FedfmsError:
        return False


def choose_series(by_folder: Mapping[Path, Sequence[Found]], referenced: Mapping[str, int]) -> Described:
    """Choose one image series of each folder, and find what distinguishes these from the others.

    It is the series that most SEG and RTSTRUCT files refer to; among equals one that is not a localiser, and then the
    one with the most files.

    Args:
        by_folder: The image series in each folder; at least one.
        referenced: Result of ``references``.
    """
    several = [items for items in by_folder.values() if len(items) > 1]
    if not several:
        return Described({})
    reasons: Counter[str] = Counter()
    chosen = [items[0] for items in by_folder.values() if len(items) == 1]
    for items in several:
        ranks = [(referenced.get(item.series.uid, 0), not is_localiser(item), len(item.series.files)) for item in items]
        best = max(ranks)
        chosen.append(items[ranks.index(best)])
        reasons[_reason(best, ranks)] += 1
    parts = [
        f"several image series in {len(several)} of {len(by_folder)} folders; "
        + "; ".join(f"in {count} {reason} is taken" for reason, count in reasons.items()),
        f"there are: {_listed([item for items in by_folder.values() for item in items])}",
    ]
    options = _options(chosen) if len(by_folder) > 1 else [*_options(chosen), {"uid": chosen[0].series.uid}]
    selected = [sum(_chooses(option, items) for items in several) for option in options]
    choice = options[selected.index(max(selected))] if max(selected, default=0) else {}
    if missing := len(several) - max(selected, default=0):
        parts.append(
            f"in {missing} folders neither description nor modality distinguishes it from others: see the check"
        )
    return Described(choice, tuple(parts))


def _reason(best: tuple[int, bool, int], ranks: Sequence[tuple[int, bool, int]]) -> str:
    """Why the series with this rank is chosen, in a few words."""
    count, is_none, _ = best
    if ranks.count(best) > 1:
        return "one of several that are equal in files and references"
    rivals = [rank for rank in ranks if rank[0] == count]
    if len(rivals) == 1:
        return "the one that " + ("most SEG or RTSTRUCT files refer to" if count else "is left")
    of = "of those that SEG or RTSTRUCT files refer to " if count else ""
    if not is_none:
        return f"{of}the localiser with the most files"
    aside = ", localisers aside" if not all(rank[1] for rank in rivals) else ""
    return f"{of}the one with the most files{aside}"


def _options(chosen: Sequence[Found]) -> list[dict[str, str]]:
    """Choices that fit all these series, the simplest first."""
    texts = list({item.series.description.casefold(): item.series.description for item in chosen}.values())
    modalities = {item.series.modality for item in chosen}
    alternatives = sorted(_SPECIAL.sub(r"\\\g<0>", text) for text in texts)
    only = alternatives[0] if len(alternatives) == 1 else f"({'|'.join(alternatives)})"
    description = {"description": f"^{only}$"}
    modality = {"modality": modalities.pop()} if len(modalities) == 1 else {}
    options = [modality, description] if len(texts) > 1 else [description, modality]
    return [option for option in (*options, description | modality) if option]


def _chooses(option: dict[str, str], items: Sequence[Found]) -> bool:
    choice = SeriesChoice.model_validate(option)
    return sum(choice.fits(item.series) for item in items) == 1


def _listed(items: Sequence[Found]) -> str:
    names = sorted({f"{item.series.modality} '{item.series.description}'" for item in items})
    return first_of(names, _LISTED, "; ")
