"""Chooses the best of the aggregates: by mean validation Dice over the sites whose update counted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from fedfms.exchange.replies import Scores


def pooled_dice(scores: Iterable[Scores], structures: Sequence[str]) -> dict[str, float | None]:
    """Dice per structure, each site weighted by its slices with a non-empty reference.

    Returns:
        One value per structure; None where no site has such a slice (not estimable), or none of those sites
        reports it (withheld by its policy).
    """
    pooled: dict[str, float | None] = {}
    found = list(scores)
    for structure in structures:
        known = [(item[structure].dice, item[structure].n) for item in found if structure in item]
        counted = [(dice, n) for dice, n in known if dice is not None and n]
        total = sum(n for _, n in counted)
        pooled[structure] = round(sum(dice * n for dice, n in counted) / total, 6) if total else None
    return pooled


def is_better(candidate: Mapping[str, Scores], best: Mapping[str, Scores], structures: Sequence[str]) -> bool:
    """Whether one aggregate beats another, judged by the sites that validated both.

    A site that was absent from one of the two rounds would otherwise make its patients decide and not the model.

    Args:
        candidate: Scores per site.
        best: Scores per site of the best aggregate so far.
        structures: The job's structures.
    """
    common = sorted(candidate.keys() & best.keys())
    new, old = (overall_dice((scores[site] for site in common), structures) for scores in (candidate, best))
    # Without a common measure, the later one wins: it has seen more training.
    return old is None or (new is not None and new > old)


def overall_dice(scores: Iterable[Scores], structures: Sequence[str]) -> float | None:
    """Mean over the structures of the Dice pooled over sites (`pooled_dice`, `mean_dice`).

    Args:
        scores: Scores of each site.
        structures: The job's structures.
    """
    return mean_dice(pooled_dice(scores, structures))


def mean_dice(pooled: dict[str, float | None]) -> float | None:
    """Mean over the structures that could be estimated, each counting the same; None if there is none."""
    known = [value for value in pooled.values() if value is not None]
    return round(sum(known) / len(known), 6) if known else None
