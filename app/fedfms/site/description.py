"""Describes a job in plain words, for the person at the site who has to decide about it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedfms.access import is_file
from fedfms.configuration import printable
from fedfms.data.description.site import load_site
from fedfms.errors import FedfmsError
from fedfms.exchange.replies import FIGURES
from fedfms.job.training import LocalWork, TrainingJob
from fedfms.sam.config import Scope
from fedfms.sam.model import schema_of
from fedfms.sam.scope import Schema
from fedfms.site.application import Application
from fedfms.site.approvals import DecisionStatus
from fedfms.site.policy import SitePolicy
from fedfms.site.review import Decision
from fedfms.site.withholding import withheld_structures

_WHAT_LEAVES: dict[Scope, str] = {
    "full": "the change of all weights of encoder and decoder",
    "adapters+decoder": "the change of the adapters' and the mask decoder's weights; the encoder stays as it is",
    "decoder": "the change of the mask decoder's weights; the encoder stays as it is",
}
_LONGEST_WORD = 100


def describe(
    application: Application,
    *,
    kit: Path,
    policy: SitePolicy | None,
    run_folder: Path | None = None,
    validation_slices: Mapping[str, int] | None = None,
) -> list[tuple[str, str]]:
    """Facts about a job, for people.

    Args:
        application: The job's files.
        kit: The site's kit, for the data that its ``site.yaml`` offers.
        policy: The site's policy, for the figures it withholds; None if it cannot be read.
        run_folder: The run folder of a job that has reached the site: its ``meta.json`` says who submitted it. None
            for a job folder that was not submitted.
        validation_slices: From ``count_validation_slices``, to name the structures whose scores never leave; None to
            leave them out.

    Returns:
        Pairs of a heading and the words about it, in the order in which to show them.
    """
    job = application.job
    schema = schema_of(job.model)
    up, down = job.rounds * schema.bytes, (job.rounds + 2) * schema.bytes
    return [
        ("trains", f"{', '.join(job.structures)} of task '{job.task}'"),
        ("on this site's data", _data(job, kit / "local" / "site.yaml")),
        ("model", f"{job.backbone}, weight file with SHA-256 {job.backbone_sha256}"),
        ("what leaves", f"{_WHAT_LEAVES[job.scope]} (scope {job.scope}: {schema.parameters:,} numbers)"),
        ("figures beside it", _figures(policy)),
        ("what is withheld", _withheld(policy, validation_slices)),
        ("rounds", f"{job.rounds}; in each {_work(job.local_work)}"),
        ("slices in an update", _slices(job.local_work, job.batch_size, policy)),
        ("augmentation", f"{job.augmentation.variants} variants of each image, itself included"),
        ("averaged over", _averaged(job, schema)),
        ("one structure's weights", _structures_own(job, schema)),
        ("missing_structure", _missing(job)),
        (
            "bytes out",
            f"{schema.bytes:,} in each round, {up:,} in all; some tens of kilobytes of names and figures beside them",
        ),
        ("bytes in", f"{schema.bytes:,} in each round, {down:,} in all, with the last and the final model"),
        ("size of an update", f"L2 norm of at most {_norm(job, policy):g}"),
        ("submitted by", _submitter(run_folder)),
        ("digest for review", application.review_sha256),
        ("job configuration digest", job.sha256),
    ]


def review_words(decision: Decision | None, status: DecisionStatus | None) -> str:
    """What was decided about a job, by whom, and what that amounts to at present.

    Args:
        decision: The last decision about the job; None if there is none.
        status: Its status; None if there is no decision.
    """
    if decision is None or status is None:
        return "nobody has decided about it yet"
    when = f"{decision.time:%Y-%m-%d %H:%M} UTC by {decision.who}" + (f": {decision.note}" if decision.note else "")
    until = f", until {decision.expires:%Y-%m-%d %H:%M} UTC" if decision.expires else ""
    words = {"expired": "approval has expired; approved", "used up": "approval is used up; approved"}
    return f"{words.get(status.word, status.word)} {when}{until}{status.detail}"


def submitter(run_folder: Path) -> str:
    """Name, organisation and role of the person who submitted a deployed job, according to the server.

    Args:
        run_folder: The job's run folder at the site.

    Returns:
        One line of printable characters.
    """
    try:
        meta: dict[str, Any] = json.loads((run_folder / "meta.json").read_text(encoding="utf-8"))
        words = [str(meta[key]) for key in ("submitter_name", "submitter_org", "submitter_role") if meta.get(key)]
    except (OSError, ValueError, AttributeError):
        words = []
    shown = ", ".join(printable(word, _LONGEST_WORD) for word in words)
    return shown or "unknown (the simulator, for example, names nobody)"


def _submitter(run_folder: Path | None) -> str:
    return "not submitted yet: this is a job folder" if run_folder is None else submitter(run_folder)


def _data(job: TrainingJob, path: Path) -> str:
    try:
        if not is_file(path):
            return f"unknown: there is no {path}"
        site = load_site(path)
    except FedfmsError as error:
        return f"unknown: {path} cannot be used ({' '.join(error.ids)})"
    found = [item for item in site.datasets if item.task == job.task]
    if not found:
        tasks = ", ".join(sorted({item.task for item in site.datasets}))
        return f"none: site.yaml offers the tasks {tasks}"
    parts = []
    for item in found:
        has = [name for name in job.structures if name in item.structures]
        parts.append(f"{item.name} ({item.format}, {item.root}) with {', '.join(has) or 'none of the structures'}")
    return "; ".join(parts)


def _figures(policy: SitePolicy | None) -> str:
    allowed = FIGURES if policy is None else policy.metrics.allowed
    return ", ".join(("numbers of training cases", *map(_plain, allowed)))


def _plain(figure: str) -> str:
    return figure.replace("_", " ")


def _withheld(policy: SitePolicy | None, validation_slices: Mapping[str, int] | None) -> str:
    if policy is None:
        return "unknown without a policy"
    names = ", ".join(map(_plain, policy.withheld_figures)) or "no figure"
    least = policy.metrics.min_slices
    if least == 1:
        return names
    rule = f"{names}; scores of a structure on fewer than {least} validation slices"
    return "; ".join([rule, *withheld_structures(policy, validation_slices or {}).values()])


def _averaged(job: TrainingJob, schema: Schema) -> str:
    """Over how many sites at least the weights are averaged that all structures share."""
    shared = sum(spec.size for spec in schema.tensors if spec.structure is None)
    alone = ", so that an average can be one site's own update" if job.min_clients == 1 else ""
    return (
        f"{shared:,} numbers that all structures share: over the updates of at least {job.min_clients} sites in each "
        f"round if the server does as the job says{alone}; each is weighted by its number of training cases{_rule(job)}"
    )


def _rule(job: TrainingJob) -> str:
    """What another rule than the mean changes for a site: the result can be closer to one site's update."""
    rule = job.aggregation.rule
    if rule == "mean":
        return ""
    if rule == "trimmed_mean":
        return f"; without {float(job.aggregation.trimmed_share):.0%} of the weight at each end of each number"
    what = "each number" if rule == "coordinate_median" else "the whole"
    return f"; not the mean but the median of {what}, which can be one site's own where it has half of the weight"


def _structures_own(job: TrainingJob, schema: Schema) -> str:
    """Over how many sites at least the weights are averaged that belong to one structure."""
    own = sum(spec.size for spec in schema.tensors if spec.structure == job.structures[0])
    where = f"{own:,} numbers for each structure (tensors decoder.structures.NAME)"
    if job.missing_structure == "error":
        return f"{where}: over the same sites, because each must have annotated every structure"
    return (
        f"{where}: only over the sites that have annotated it, which can be one site; the average is then that site's "
        "own update, and every site receives it"
    )


def _missing(job: TrainingJob) -> str:
    if job.missing_structure == "error":
        return "error: a site that has not annotated every structure takes no part"
    return "mask: a site also takes part with annotations of some of the structures, and trains those"


def _norm(job: TrainingJob, policy: SitePolicy | None) -> float:
    return job.update_norm_limit if policy is None else min(job.update_norm_limit, policy.update_norm_limit)


def _work(work: LocalWork) -> str:
    if work.minutes is not None:
        return f"{work.minutes:g} minutes of training"
    if work.epochs is not None:
        return f"{work.epochs:g} passes over the training slices"
    return f"{work.steps} training steps"


def _slices(work: LocalWork, batch_size: int, policy: SitePolicy | None) -> str:
    """How many slices an update is trained on: an update on few slices reveals much about each."""
    asked = f"steps of {batch_size} slices each"
    if work.steps is not None:
        asked = f"{work.steps * batch_size}, with repetitions: {work.steps} {asked}"
    return asked if policy is None else f"{asked}; the site requires at least {policy.min_slices_per_update}"
