"""The header of the checkpoints that a job writes, the same on server and sites."""

from __future__ import annotations

from fedfms.job.training import TrainingJob
from fedfms.sam.checkpoint import CheckpointHeader
from fedfms.sam.model import schema_of


def job_header(job: TrainingJob, rounds: int) -> CheckpointHeader:
    """What a checkpoint of ``job`` that has seen ``rounds`` rounds says about itself."""
    return CheckpointHeader(
        kind="exchange",
        task=job.task,
        model=job.model,
        preprocessing=job.preprocessing,
        seed=job.seed,
        rounds=rounds,
        schema_sha256=schema_of(job.model).sha256,
        job_sha256=job.sha256,
    )
