"""``local/policy.yaml``: what a hospital allows jobs to do and to send. It is read at the site and never leaves it.

Every key must be given: a policy states what it allows and leaves nothing to a default. ``docs/security.md`` explains
each key.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from fedfms.access import exists, is_file
from fedfms.configuration import Number, Sha256, Strict, distinct, distinct_and_some, read_yaml, validated
from fedfms.errors import POLICY_ABSENT, POLICY_INVALID, POLICY_OBJECTS, Problem, fail
from fedfms.exchange.replies import FIGURES, Report
from fedfms.job.training import TrainingJob
from fedfms.sam.config import Scope

POLICY_FILE = "policy.yaml"


def _figure(name: str) -> str:
    if name not in FIGURES:
        raise ValueError(f"not a figure; choose from {', '.join(FIGURES)}")
    return name


class MetricsPolicy(Strict):
    """Which figures the site reports beside its update.

    Attributes:
        allowed: Their names (``fedfms.exchange.replies.FIGURES``); any other becomes null. The number of validation
            slices goes with Dice and IoU, whose support it is.
        min_slices: With fewer validation slices that show a structure, its scores and their number become null. A
            number of 0 is reported: without a slice there is no score to withhold.
    """

    allowed: Annotated[tuple[Annotated[str, AfterValidator(_figure)], ...], AfterValidator(distinct)]
    min_slices: Annotated[int, Field(strict=True, ge=1)]


class ReviewPolicy(Strict):
    """Whether a person at the site looks at each job before it starts.

    Attributes:
        rule: ``required``: nothing of a job runs before it was approved.
        hold_minutes: How long a job that arrives unapproved waits for the decision before the federation goes on
            without this site. Approved later, it joins at the next round. Below two hours, so that the answer reaches
            the server before that has stopped waiting for it.
        valid_days: How long an approval holds, for every task of the job.
    """

    rule: Literal["required", "not_required"]
    hold_minutes: Annotated[Number, Field(ge=0, le=110)]
    valid_days: Annotated[Number, Field(gt=0, le=3650)]


class SitePolicy(Strict):
    """Content of ``policy.yaml``.

    Attributes:
        scopes: Exchange scopes the site takes part in.
        backbones: SHA-256 of the weight files it trains with, or ``any``.
        update_norm_limit: Largest L2 norm of an update that leaves; a job with a larger limit is
            refused, because its limit also bounds how far the server may move the model.
        min_training_cases: Of each structure that the site has annotated it must have at least so many training cases,
            or it does not take part: an update on few cases reveals much about each.
        min_slices_per_update: Least number of slices that an update is trained on, repetitions counted: a job of one
            step on one slice would send that slice's own gradient.
        metrics: Figures reported beside the update.
        max_rounds: Most rounds of a job, and most updates that are sent for one.
        max_hours: How long a job may run at the site, in hours from its first admitted task.
        review: Whether a person at the site decides about each job.
    """

    scopes: Annotated[tuple[Scope, ...], AfterValidator(distinct_and_some)]
    backbones: Literal["any"] | Annotated[tuple[Sha256, ...], AfterValidator(distinct_and_some)]
    update_norm_limit: Annotated[Number, Field(gt=0)]
    min_training_cases: Annotated[int, Field(strict=True, ge=1)]
    min_slices_per_update: Annotated[int, Field(strict=True, ge=1)]
    metrics: MetricsPolicy
    max_rounds: Annotated[int, Field(strict=True, ge=1)]
    max_hours: Annotated[Number, Field(gt=0)]
    review: ReviewPolicy

    def objections(self, job: TrainingJob) -> list[Problem]:
        """Everything in which the job asks for more than the policy allows.

        Returns:
            Problems FMS-S002, each with the key of ``training.yaml`` as its place; empty if the policy allows the job.
        """
        problems = []

        def object_to(key: str, found: object, allowed: object) -> None:
            problems.append(Problem(POLICY_OBJECTS, key, f"found {found}, the site allows {allowed}"))

        if job.scope not in self.scopes:
            object_to("scope", job.scope, " or ".join(self.scopes))
        if self.backbones != "any" and job.backbone_sha256 not in self.backbones:
            object_to("backbone_sha256", f"{job.backbone_sha256} ({job.backbone})", f"only {', '.join(self.backbones)}")
        if job.rounds > self.max_rounds:
            object_to("rounds", job.rounds, f"at most {self.max_rounds}")
        if job.update_norm_limit > self.update_norm_limit:
            object_to("update_norm_limit", f"{job.update_norm_limit:g}", f"at most {self.update_norm_limit:g}")
        steps = job.local_work.steps
        if steps is not None and steps * job.batch_size < self.min_slices_per_update:
            found = f"{steps} steps of {job.batch_size} slices for an update"
            object_to("local_work.steps", found, f"no fewer than {self.min_slices_per_update} slices")
        minutes = job.local_work.minutes
        if minutes is not None and job.rounds * minutes > 60 * self.max_hours:
            hours = job.rounds * minutes / 60
            object_to("local_work.minutes", f"{hours:.4g} hours over all rounds", f"at most {self.max_hours:g}")
        return problems

    def too_few(self, cases: dict[str, int]) -> list[str]:
        """Structures with too few annotated training cases to take part.

        Args:
            cases: Number of training cases of each structure; 0 for one that the site does not annotate.

        Returns:
            Structures with at least one and fewer than ``min_training_cases`` cases; all of them if none has a case.
        """
        if not any(cases.values()):
            return list(cases)
        return [name for name, count in cases.items() if 0 < count < self.min_training_cases]

    def is_too_small(self, slices: int) -> bool:
        """Whether scores on so many validation slices that show a structure are withheld; 0 slices have no score."""
        return 0 < slices < self.metrics.min_slices

    @property
    def withheld_figures(self) -> tuple[str, ...]:
        """Names of the figures that are never sent."""
        return tuple(name for name in FIGURES if name not in self.metrics.allowed)

    def withhold(self, report: Report) -> tuple[Report, tuple[str, ...]]:
        """Replace the figures that the policy does not allow by null.

        Args:
            report: The report of a task.

        Returns:
            A new report, and the places of the figures that became null, such as ``received.organ.dice``. A figure that
            was null before is not among them.
        """
        fields = report.model_dump()
        withheld: list[str] = []

        def blank(values: dict[str, Any], name: str, where: str) -> None:
            if values[name] is not None:
                values[name] = None
                withheld.append(where)

        for name in fields:
            if name in ("received", "local"):
                for structure, score in fields[name].items():
                    for figure in self._withheld_of(score):
                        blank(score, figure, f"{name}.{structure}.{figure}")
            elif name in FIGURES and name not in self.metrics.allowed:
                blank(fields, name, name)
        return type(report).model_validate(fields), tuple(withheld)

    def _withheld_of(self, score: dict[str, Any]) -> list[str]:
        count = score["n"]
        if count is not None and self.is_too_small(count):
            return ["dice", "iou", "n"]
        hidden = [figure for figure in ("dice", "iou") if figure not in self.metrics.allowed]
        return [*hidden, "n"] if len(hidden) == 2 else hidden


#: The policy in FLARE's simulator when its ``local`` folder has no policy.yaml: the data are on the researcher's own
#: machine. ``simulator_workspace/local/policy.yaml`` says the same; a test compares.
SIMULATOR_POLICY = SitePolicy(
    scopes=("full", "adapters+decoder", "decoder"),
    backbones="any",
    update_norm_limit=1000.0,
    min_training_cases=1,
    min_slices_per_update=1,
    metrics=MetricsPolicy(allowed=FIGURES, min_slices=1),
    max_rounds=10_000,
    max_hours=10_000.0,
    review=ReviewPolicy(rule="not_required", hold_minutes=0.0, valid_days=365.0),
)


def load_policy(path: Path) -> SitePolicy:
    """Read and check a ``policy.yaml``.

    Raises:
        FedfmsError: FMS-S001 with every wrong, missing or unknown key.
    """
    return validated(SitePolicy, read_yaml(path, POLICY_INVALID), POLICY_INVALID, path)


def site_policy(kit: Path, *, simulated: bool = False) -> SitePolicy:
    """Read the policy of a site. A site without the file has no policy, except in the simulator.

    Args:
        kit: Its startup kit: the folder that holds ``local``.
        simulated: Whether FLARE's simulator runs.

    Raises:
        FedfmsError: FMS-S003 when there is no file, FMS-D019 when it may not be read, FMS-S001 when it is not valid.
    """
    path = kit / "local" / POLICY_FILE
    # Not exists() alone: a link to nowhere must not look like a simulator without a file.
    if simulated and not exists(path) and not path.is_symlink():
        return SIMULATOR_POLICY
    if not is_file(path):
        raise fail(POLICY_ABSENT, path, "does not exist")
    return load_policy(path)
