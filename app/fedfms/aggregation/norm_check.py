"""Which updates of a round are too large beside the others."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median

#: With two, the median is their mean: neither can be more than twice as large.
LEAST_UPDATES = 3


def too_large(norms: Mapping[str, float], factor: float | None) -> tuple[tuple[str, ...], float | None]:
    """Compare each update's norm with the median of the round.

    The median does not move far as long as more than half of the sites are honest: it is then between norms of theirs.
    It counts sites, not cases, because a site could state any number of cases.

    Args:
        norms: L2 norm of each update over all its tensors, by site.
        factor: How many times the median a norm may be; None allows any.

    Returns:
        Names of the sites whose norm is larger, sorted; and the median, None where nothing was compared: with fewer
        than three updates, and where the median is zero, because half of the sites have then learned nothing.
    """
    if factor is None or len(norms) < LEAST_UPDATES:
        return (), None
    middle = median(norms.values())
    if middle == 0:
        return (), None
    return tuple(sorted(site for site, norm in norms.items() if norm > factor * middle)), middle
