"""The section ``aggregation`` of ``training.yaml``: how the server combines the updates of a round."""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated, Literal

from pydantic import Field, model_validator

from fedfms.configuration import Number, Strict

RuleName = Literal["mean", "coordinate_median", "trimmed_mean", "geometric_median"]

#: Shares are read as the nearest fraction with a denominator up to this: 0.33 is 33/100, 0.3333 is 1/3.
_DENOMINATOR = 100


class Aggregation(Strict):
    """How the server combines the updates of a round; sites only need to know how far it can move the model.

    Attributes:
        rule: The rule; each weighs sites by their number of cases.
        trim: Share of the weight (0.01 to 0.49) that ``trimmed_mean`` cuts at each end; None for other rules.
        max_share: Largest share (0.01 to 1) of the weight that one site may have in any tensor; 1 is no limit.
        norm_factor: An update whose L2 norm is more than this many times the median norm of the round does not count;
            None switches the check off.
    """

    rule: RuleName = "mean"
    trim: Annotated[Number, Field(ge=0.01, le=0.49)] | None = None
    max_share: Annotated[Number, Field(ge=0.01, le=1)] = 1.0
    norm_factor: Annotated[Number, Field(gt=1)] | None = 10.0

    @model_validator(mode="after")
    def _trim_belongs_to_its_rule(self) -> Aggregation:
        if self.rule == "trimmed_mean" and self.trim is None:
            raise ValueError("rule trimmed_mean needs the share to cut at each end: write for example trim: 0.25")
        if self.rule != "trimmed_mean" and self.trim is not None:
            raise ValueError(f"rule {self.rule} cuts nothing: remove trim, or write rule: trimmed_mean")
        return self

    @property
    def largest_share(self) -> Fraction:
        """``max_share`` as an exact fraction."""
        return Fraction(self.max_share).limit_denominator(_DENOMINATOR)

    @property
    def trimmed_share(self) -> Fraction:
        """``trim`` as an exact fraction; 0 for rules that cut nothing."""
        return Fraction(self.trim or 0).limit_denominator(_DENOMINATOR)

    @property
    def largest_step(self) -> float:
        """Bound on the L2 norm of a combination of updates whose own norms are at most 1, at least 1.

        A weighted mean and a weighted geometric median are in the convex hull of the updates: 1. For the rules that go
        element by element, let w be the weights, with sum 1. Half of the weight has values that are at least as far
        from zero as the median m, and on its side, so m^2 is at most twice the sum of w x^2. A mean over what remains
        of the weight after a share t is cut at each end is, squared, at most the sum of w x^2 over 1 - 2t (Jensen);
        and beyond it is a weight t of values further from zero, so also at most that sum over t. Summed over all
        elements, the sum of w x^2 is at most 1.
        """
        if self.rule == "coordinate_median":
            return 2**0.5
        if self.rule == "trimmed_mean":
            trim = float(self.trimmed_share)
            return float(min(1 / (1 - 2 * trim), 1 / trim) ** 0.5)
        return 1.0
