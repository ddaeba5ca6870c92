"""Checks on sets of exchanged tensors: names, shapes, finite values, norm, and how far a received state has moved."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from fedfms.errors import (
    INITIAL_STATE,
    NORM_EXCEEDED,
    NOT_FINITE,
    SCHEMA_MISMATCH,
    FedfmsError,
    Problem,
    fail,
)
from fedfms.sam.scope import Schema

# Own derivations of the initial state may differ in the last bits between processors (resampled embeddings).
_TOLERANCE = 1e-5


def check_tensors(raw: object, schema: Schema) -> dict[str, Tensor]:
    """Copy exactly the schema's tensors, in its order, into memory of their own.

    Args:
        raw: What arrived: tensors by name.
        schema: The exchanged tensors of the job.

    Returns:
        New contiguous fp32 tensors on the CPU, by name.

    Raises:
        FedfmsError: FMS-X001 for missing or unknown tensors, another shape, dtype or layout, or something other than
            a plain CPU tensor; FMS-X002 for NaN or infinity; all problems of one kind at once.
    """
    if not isinstance(raw, Mapping):
        raise fail(SCHEMA_MISMATCH, "tensors", f"expected names with tensors, found {type(raw).__name__}")
    # One reading of the mapping: what is checked is what is copied.
    raw = dict(raw)
    schema.check(raw)
    plain = {name: raw[name] for name in schema.names}
    problems = [
        Problem(SCHEMA_MISMATCH, name, "not a plain CPU tensor")
        for name, tensor in plain.items()
        # A subclass can have attributes of its own, a view can share a larger memory: neither is copied blindly.
        if type(tensor) is not Tensor or tensor.layout != torch.strided or tensor.device.type != "cpu"
    ]
    if problems:
        raise FedfmsError(problems)
    built = {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in plain.items()}
    require_finite(built)
    return built


def require_finite(tensors: Mapping[str, Tensor]) -> None:
    """Raise FMS-X002 with every tensor that contains NaN or infinity."""
    problems = [
        Problem(NOT_FINITE, name, "contains NaN or infinity")
        for name, tensor in tensors.items()
        if not bool(torch.isfinite(tensor).all())
    ]
    if problems:
        raise FedfmsError(problems)


def l2_norm(tensors: Mapping[str, Tensor]) -> float:
    """L2 norm over all tensors together, summed in double precision."""
    norms = [float(torch.linalg.vector_norm(tensor, dtype=torch.float64)) for tensor in tensors.values()]
    return math.hypot(*norms)


def require_same_start(received: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Compare the state that the server sent in round 0 with the site's own derivation, up to rounding.

    Args:
        received: The exchanged tensors that arrived, by name.
        own: The same, derived by the site from backbone and seed.

    Raises:
        FedfmsError: FMS-X008 with every tensor that differs.
    """
    problems = [
        Problem(INITIAL_STATE, name, "differs from backbone and seed")
        for name, tensor in own.items()
        if not torch.allclose(received[name], tensor, rtol=_TOLERANCE, atol=_TOLERANCE)
    ]
    if problems:
        raise FedfmsError(problems)


def require_bounded_change(
    received: Mapping[str, Tensor],
    last: Mapping[str, Tensor],
    *,
    rounds: int,
    structures: int,
    norm_limit: float,
    momentum: float,
    largest_step: float = 1.0,
) -> None:
    """Bound how far the server may move the state between two that a site receives.

    Tensors that share a weighting (all shared ones, and those of each structure) move by a weighted mean of
    updates whose norm is at most the job's limit, so one round moves the state by at most the limit times the
    root of the number of such groups; with momentum, by the sum of a geometric series of that. A rule that goes
    element by element can move further than each update, by a known factor.

    Args:
        received: The new state.
        last: The state that the site has from ``rounds`` rounds before or after.
        rounds: Rounds between the two; 0 requires the same state again.
        structures: Number of structures of the job.
        norm_limit: The job's limit on the norm of one update.
        momentum: The job's server momentum, at least 0 and below 1.
        largest_step: The factor of the job's rule (`fedfms.job.aggregation.Aggregation.largest_step`), at least 1.

    Raises:
        FedfmsError: FMS-X003 when the change is larger.
    """
    # One part in a thousand for the rounding of the fixed-point sums and of the fp32 additions.
    limit = 1.001 * rounds * norm_limit * largest_step * (1 + structures) ** 0.5 / (1 - momentum) + _TOLERANCE
    change = l2_norm({name: received[name] - tensor for name, tensor in last.items()})
    if not change <= limit:
        raise fail(NORM_EXCEEDED, "state", f"moved by {change:.6g} in {rounds} rounds, allowed {limit:.6g}")
