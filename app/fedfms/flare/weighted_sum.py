"""Weighted mean of updates in integer fixed point, bitwise independent of the order of arrival."""

from __future__ import annotations

import torch
from torch import Tensor

from fedfms.errors import AGGREGATION_OVERFLOW, FedfmsError, Problem
from fedfms.exchange.messages import Update
from fedfms.sam.scope import Schema, TensorSpec

# Resolution 2**-32 (2.3e-10) is finer than the last bit of any fp32 weight above 0.002. The product of an
# element and its weight must stay below 2**63 / 2**32 / 1024, about two million: no 1024 sites can overflow.
SCALE_BITS = 32
MAX_SITES = 1024
_LARGEST = (2**63 - 1) // MAX_SITES


def weight(spec: TensorSpec, cases: dict[str, int]) -> int:
    """The weight of an update for one tensor: a number of cases.

    A structure's own tensors count its cases. Shared tensors count the largest number over the structures: it
    is the site's number of training cases whenever one structure is annotated in all of them, and the sum
    would count a case once per structure.
    """
    return cases[spec.structure] if spec.structure is not None else max(cases.values())


class WeightedSum:
    """Running sums over the updates of one round; memory does not grow with the number of sites.

    Args:
        schema: The exchanged tensors.
    """

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self._sums = {spec.name: torch.zeros(spec.shape, dtype=torch.int64) for spec in schema.tensors}
        self._weights = {spec.name: 0 for spec in schema.tensors}
        self.sites = 0

    def add(self, update: Update) -> None:
        """Add one checked update, or nothing of it.

        Raises:
            FedfmsError: FMS-X013 with every tensor whose values times cases leave the declared range.
        """
        problems = []
        for spec in self._schema.tensors:
            largest = float(update.tensors[spec.name].abs().max()) if update.tensors[spec.name].numel() else 0.0
            # Python integers do not wrap; an fp32 value times 2**32 is exact in a double.
            if round(largest * 2**SCALE_BITS) * weight(spec, update.cases) > _LARGEST:
                detail = f"{largest:.6g} times {weight(spec, update.cases)} cases is out of range"
                problems.append(Problem(AGGREGATION_OVERFLOW, spec.name, detail))
        if self.sites >= MAX_SITES:
            problems.append(Problem(AGGREGATION_OVERFLOW, "sites", f"more than {MAX_SITES} updates"))
        if problems:
            raise FedfmsError(problems)
        for spec in self._schema.tensors:
            share = weight(spec, update.cases)
            scaled = (update.tensors[spec.name].to(torch.float64) * 2.0**SCALE_BITS).round_().to(torch.int64)
            self._sums[spec.name].add_(scaled.mul_(share))
            self._weights[spec.name] += share
        self.sites += 1

    def mean(self) -> dict[str, Tensor]:
        """The weighted mean, fp32, schema order; zero where no site had a case."""
        means = {}
        for spec in self._schema.tensors:
            divisor = 2.0**SCALE_BITS * max(1, self._weights[spec.name])
            means[spec.name] = (self._sums[spec.name].to(torch.float64) / divisor).to(torch.float32)
        return means
