"""How much each site counts: its number of cases, and the largest share that one site may have."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction

from fedfms.sam.scope import TensorSpec


def weight(spec: TensorSpec, cases: Mapping[str, int]) -> int:
    """The weight of an update for one tensor: a number of cases.

    A structure's own tensors count its cases. Shared tensors count the largest number over the structures: it
    is the site's number of training cases whenever one structure is annotated in all of them, and the sum
    would count a case once per structure.
    """
    return cases[spec.structure] if spec.structure is not None else max(cases.values())


def capped(weights: Mapping[str, int], largest_share: Fraction) -> dict[str, int]:
    """Lower the largest weights until no site has more than a share of their sum.

    The k largest weights are lowered to one value c, where c is the share of the new sum: with R the sum of the other
    weights and P/Q the share, c = P R / (Q - k P). All weights are then multiplied by Q - k P, so that they are whole
    numbers and their ratios exact; a weight grows at most Q-fold by that.

    Args:
        weights: Positive weights by site.
        largest_share: Above 0, at most 1.

    Returns:
        Whole positive weights by site, in the same order; unchanged when none is too large. With too few sites for the
        share (fewer than 1 / share) all are 1.
    """
    share, whole = largest_share.numerator, largest_share.denominator
    rest = sum(weights.values())
    largest_first = sorted(weights.values(), reverse=True)
    for lowered, value in enumerate(largest_first):
        left = whole - lowered * share
        if value * left <= share * rest:
            if not lowered:
                return dict(weights)
            cap = share * rest
            exact = {site: min(own * left, cap) for site, own in weights.items()}
            common = math.gcd(*exact.values())
            return {site: own // common for site, own in exact.items()}
        rest -= value
    return dict.fromkeys(weights, 1)
