"""Weighted mean of updates in integer fixed point, bitwise independent of the order of the summands."""

from __future__ import annotations

import torch
from torch import Tensor

from fedfms.aggregation.weights import weight
from fedfms.errors import AGGREGATION_OVERFLOW, FedfmsError, Problem
from fedfms.exchange.messages import Update
from fedfms.sam.scope import Schema

# Resolution 2**-32 (2.3e-10) is finer than the last bit of any fp32 weight above 0.002. The product of an
# element and its weight must stay below 2**63 / 2**32 / 1024, about two million: no 1024 sites can overflow.
SCALE_BITS = 32
MAX_SITES = 1024
_LARGEST = (2**63 - 1) // MAX_SITES


def require_in_range(schema: Schema, update: Update, *, others: int, growth: int = 1) -> None:
    """Check that an update can be added to those of other sites without overflow, whatever these are.

    Args:
        schema: The exchanged tensors.
        update: A checked update.
        others: Number of updates that were accepted in this round before.
        growth: Largest factor by which `capped` may multiply a weight: the denominator of the largest share.

    Raises:
        FedfmsError: FMS-X013 with every tensor whose values times cases leave the declared range.
    """
    problems = []
    for spec in schema.tensors:
        largest = float(update.tensors[spec.name].abs().max()) if update.tensors[spec.name].numel() else 0.0
        # Python integers do not wrap; an fp32 value times 2**32 is exact in a double.
        if round(largest * 2**SCALE_BITS) * weight(spec, update.cases) * growth > _LARGEST:
            detail = f"{largest:.6g} times {weight(spec, update.cases)} cases is out of range"
            problems.append(Problem(AGGREGATION_OVERFLOW, spec.name, detail))
    if others >= MAX_SITES:
        problems.append(Problem(AGGREGATION_OVERFLOW, "sites", f"more than {MAX_SITES} updates"))
    if problems:
        raise FedfmsError(problems)


class WeightedSum:
    """Running sum of one tensor, or a part of one, over the sites.

    Args:
        size: Number of its values.
    """

    def __init__(self, size: int) -> None:
        self._sum = torch.zeros(size, dtype=torch.int64)
        self._weight = 0

    def add(self, values: Tensor, weight: int) -> None:
        """Add one site's values, fp32, in the range that `require_in_range` checks."""
        scaled = (values.to(torch.float64) * 2.0**SCALE_BITS).round_().to(torch.int64)
        self._sum.add_(scaled.mul_(weight))
        self._weight += weight

    def mean(self) -> Tensor:
        """The weighted mean, fp32; zero where no site had a weight."""
        divisor = 2.0**SCALE_BITS * max(1, self._weight)
        return (self._sum.to(torch.float64) / divisor).to(torch.float32)
