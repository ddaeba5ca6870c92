"""The rules that combine the updates of a round; each goes over the kept updates piece by piece.

No rule needs more memory with more sites, except that the geometric median keeps a number for each pair of them. Sites
are taken in the order of their names, so that the order of arrival does not change one bit of the result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction

import torch
from torch import Tensor

from fedfms.aggregation.kept_updates import KeptUpdates
from fedfms.aggregation.weighted_sum import WeightedSum
from fedfms.aggregation.weights import capped, weight
from fedfms.job.aggregation import Aggregation
from fedfms.sam.scope import TensorSpec

#: Values that are in memory at a time, those of all sites together where a rule needs them side by side.
BLOCK = 1 << 19
#: Of Weiszfeld's algorithm. A step costs nothing that depends on the size of the model, so there are many.
_STEPS = 200
#: Smallest distance that counts in it, relative to the median norm of the updates, or the largest if that is zero.
_SMOOTHING = 1e-6

_Values = Callable[[Tensor, Tensor], Tensor]


def combine(updates: KeptUpdates, settings: Aggregation) -> dict[str, Tensor]:
    """Combine the updates of a round by the job's rule.

    Tensors that have the same weights are combined together: all shared ones, and those of each structure, with the
    sites that have cases of it.

    Args:
        updates: The accepted updates.
        settings: The job's rule and its settings.

    Returns:
        fp32, schema order; zero where no site has a case.
    """
    schema, found = updates.schema, dict[str, Tensor]()
    for structure in dict.fromkeys(spec.structure for spec in schema.tensors):
        specs = [spec for spec in schema.tensors if spec.structure == structure]
        cases = {site: weight(specs[0], updates.cases[site]) for site in updates.sites}
        weights = capped({site: own for site, own in cases.items() if own}, settings.largest_share)
        if not weights:
            found |= {spec.name: torch.zeros(spec.size) for spec in specs}
        elif settings.rule == "mean":
            found |= {spec.name: _mean(updates, spec, weights) for spec in specs}
        elif settings.rule == "geometric_median":
            found |= _geometric_median(updates, specs, weights)
        else:
            rule = weighted_median if settings.rule == "coordinate_median" else trimming(settings.trimmed_share)
            found |= {spec.name: _elementwise(updates, spec, weights, rule) for spec in specs}
    return {spec.name: found[spec.name].reshape(spec.shape) for spec in schema.tensors}


def _blocks(size: int, columns: int = 1) -> Iterator[tuple[int, int]]:
    """Start and stop of the pieces of a tensor of which ``columns`` copies may be in memory."""
    step = max(1, BLOCK // columns)
    return ((start, min(start + step, size)) for start in range(0, size, step))


def _mean(updates: KeptUpdates, spec: TensorSpec, weights: Mapping[str, int]) -> Tensor:
    result = torch.empty(spec.size)
    for start, stop in _blocks(spec.size):
        total = WeightedSum(stop - start)
        for site, own in weights.items():
            total.add(updates.read(site, spec, start, stop), own)
        result[start:stop] = total.mean()
    return result


def _elementwise(updates: KeptUpdates, spec: TensorSpec, weights: Mapping[str, int], rule: _Values) -> Tensor:
    result = torch.empty(spec.size)
    numbers = torch.tensor(list(weights.values()), dtype=torch.int64)
    for start, stop in _blocks(spec.size, len(weights)):
        result[start:stop] = rule(_side_by_side(updates, spec, weights, start, stop), numbers)
    return result


def _side_by_side(updates: KeptUpdates, spec: TensorSpec, sites: Mapping[str, int], start: int, stop: int) -> Tensor:
    """Values of all sites, fp32, sites x values."""
    return torch.stack([updates.read(site, spec, start, stop) for site in sites])


def weighted_median(values: Tensor, weights: Tensor) -> Tensor:
    """The weighted median of each column (Yin, Chen, Ramchandran and Bartlett 2018, with weights).

    It is the smallest value at which the weights of all values up to it reach half of their sum; where they are
    exactly half, the mean of it and the next value.

    Args:
        values: fp32, sites x values.
        weights: Positive, int64, one for each site.

    Returns:
        fp32, one for each column.
    """
    ordered, sites = torch.sort(values, dim=0, stable=True)
    twice, whole = 2 * weights[sites].cumsum(0), int(weights.sum())
    # argmax takes the first of equal values; bool has no argmax.
    first = (twice >= whole).to(torch.uint8).argmax(0, keepdim=True)
    even = twice.gather(0, first) == whole
    lower = ordered.gather(0, first)
    upper = ordered.gather(0, torch.where(even, first + 1, first))
    return ((lower.to(torch.float64) + upper) / 2).to(torch.float32)[0]


def trimming(share: Fraction) -> _Values:
    """The trimmed mean that cuts a share of the weight at each end (Yin et al. 2018, with weights).

    A value at the edge counts with the part of its weight that is not cut.

    Args:
        share: Above 0, below 1/2.

    Returns:
        The rule: from values (fp32, sites x values) and weights (positive, int64) to one fp32 value for each column.
    """

    def rule(values: Tensor, weights: Tensor) -> Tensor:
        ordered, sites = torch.sort(values, dim=0, stable=True)
        own, whole = weights[sites] * share.denominator, int(weights.sum())
        upper = own.cumsum(0)
        low, high = share.numerator * whole, (share.denominator - share.numerator) * whole
        kept = (upper.clamp(max=high) - (upper - own).clamp(min=low)).clamp_(min=0)
        total = torch.zeros(values.shape[1], dtype=torch.float64)
        for value, part in zip(ordered, kept, strict=True):  # the order of the sum must not depend on threads
            total += value.to(torch.float64) * part
        return (total / (high - low)).to(torch.float32)

    return rule


def _geometric_median(
    updates: KeptUpdates, specs: Sequence[TensorSpec], weights: Mapping[str, int]
) -> dict[str, Tensor]:
    """The weighted geometric median of the vectors that the tensors form together, as a mean with other weights."""
    products = torch.zeros(len(weights), len(weights), dtype=torch.float64)
    for spec in specs:
        for start, stop in _blocks(spec.size, len(weights)):
            values = _side_by_side(updates, spec, weights, start, stop).to(torch.float64)
            products += values @ values.T
    shares = dict(zip(weights, geometric_shares(products, list(weights.values())), strict=True))
    found = {}
    for spec in specs:
        result = torch.empty(spec.size)
        for start, stop in _blocks(spec.size):
            total = torch.zeros(stop - start, dtype=torch.float64)
            for site, share in shares.items():
                total += updates.read(site, spec, start, stop).to(torch.float64) * share
            result[start:stop] = total
        found[spec.name] = result
    return found


def geometric_shares(products: Tensor, weights: Sequence[int]) -> list[float]:
    """How much each vector counts in the weighted geometric median of some vectors.

    Weiszfeld's algorithm from their weighted mean, with a smallest distance (Pillutla, Kakade and Harchaoui 2022,
    "Robust aggregation for federated learning", algorithm 1). Every point on its way is a mean of the vectors, so
    distances follow from the vectors' inner products, and no step reads the vectors.

    Args:
        products: Inner product of each two vectors, float64, n x n.
        weights: Positive, one for each vector.

    Returns:
        n positive numbers whose sum is 1; the median is the mean of the vectors with these weights.
    """
    squares = products.diagonal()
    own = torch.tensor(weights, dtype=torch.float64)
    norms = squares.sqrt()
    smallest = _SMOOTHING * (float(norms.median()) or float(norms.max()) or 1.0)
    shares = own / own.sum()
    for _ in range(_STEPS):
        towards = products @ shares
        distances = (squares - 2 * towards + shares @ towards).clamp(min=0).sqrt().clamp(min=smallest)
        shares = own / distances
        shares = shares / shares.sum()
    return [float(share) for share in shares]
