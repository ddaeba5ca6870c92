"""The learning rate's schedule over the whole federation, independent of a site's amount of local work."""

from __future__ import annotations

import math

#: Share of the learning rate that is left at the end of the federation.
FINAL = 0.5


def learning_rate_factor(progress: float, warmup: float) -> float:
    """Linear warm-up from a tenth, then a cosine down to ``FINAL``.

    Not down to zero: averaging over the sites already reduces the noise that a vanishing rate reduces in central
    training, and a federation has too few steps to learn next to nothing in its last rounds (docs/decisions/0004).

    Args:
        progress: Share of the federation that is done, 0 to 1: (round + share of this round) / rounds.
        warmup: Share of the federation that warms up.

    Returns:
        Factor on the learning rate, between 0 and 1.
    """
    if progress < warmup:
        return 0.1 + 0.9 * progress / warmup
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - warmup) / (1 - warmup))))
    return FINAL + (1 - FINAL) * cosine
