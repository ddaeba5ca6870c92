"""The record of what left a site: one line per reply of a job, written before the reply leaves.

``<kit>/egress/<job id>.jsonl`` holds the record, ``<job id>.html`` beside it the same for people. Both stay at the
site.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import AwareDatetime, ValidationError
from torch import Tensor

from fedfms.configuration import Sha256, Strict
from fedfms.errors import RECORD_UNREADABLE, fail
from fedfms.exchange.messages import tensor_bytes
from fedfms.site.records import Mark, append_line, read_after

EGRESS_FOLDER = "egress"


class SentTensor(Strict):
    """One tensor of an update.

    Attributes:
        name: Its name in the model.
        shape: Its shape.
        norm: L2 norm of its values.
        sha256: Of its values as float32, little-endian.
    """

    name: str
    shape: tuple[int, ...]
    norm: float
    sha256: Sha256


class EgressLine(Strict):
    """One reply of the site.

    Attributes:
        time: When it was let go.
        task: Name of the task.
        round: Round it belongs to, from 0; None when the reply names none.
        decision: ``sent``: as it was; ``withheld``: sent without the figures under ``withheld``; ``refused``: nothing
            left but a return code and the ids under ``errors``.
        review_sha256: Digest for review of the job that it was let go for (``Application.review_sha256``).
        errors: Error ids in the reply.
        bytes: Bytes of what left.
        sha256: Digest of what left: `fedfms.exchange.messages.message_digest`.
        norm: L2 norm of the update.
        cases: Number of training cases per structure beside the update.
        tensors: Every tensor of the update.
        report: The figures as they left.
        withheld: Places of the figures that the policy withheld.
    """

    time: AwareDatetime
    task: str
    round: int | None = None
    decision: Literal["sent", "withheld", "refused"]
    review_sha256: Sha256 | None = None
    errors: tuple[str, ...] = ()
    bytes: int
    sha256: Sha256
    norm: float | None = None
    cases: dict[str, int] | None = None
    tensors: tuple[SentTensor, ...] = ()
    report: dict[str, Any] | None = None
    withheld: tuple[str, ...] = ()


def describe_tensors(tensors: dict[str, Tensor]) -> tuple[SentTensor, ...]:
    """Name, shape, norm and digest of each."""
    return tuple(
        SentTensor(
            name=name,
            shape=tuple(tensor.shape),
            norm=float(torch.linalg.vector_norm(tensor, dtype=torch.float64)),
            sha256=hashlib.sha256(tensor_bytes(tensor)).hexdigest(),
        )
        for name, tensor in tensors.items()
    )


def record_file(kit: Path, job_id: str) -> Path:
    """The record of a job."""
    return kit / EGRESS_FOLDER / f"{job_id}.jsonl"


def record(kit: Path, job_id: str, line: EgressLine) -> None:
    """Append a line; when this returns, the disk has it.

    Raises:
        FedfmsError: FMS-D011; what the line is about must not leave then.
    """
    append_line(record_file(kit, job_id), line.model_dump(mode="json"))


def read_record(kit: Path, job_id: str) -> list[EgressLine]:
    """All lines of a job, oldest first.

    Raises:
        FedfmsError: FMS-S008 when the record is damaged.
    """
    return read_record_after(kit, job_id, None)[0]


def read_record_after(kit: Path, job_id: str, mark: Mark | None) -> tuple[list[EgressLine], Mark | None]:
    """The lines of a job that were appended since an earlier reading.

    Args:
        kit: The site's kit.
        job_id: The job.
        mark: Where the earlier reading ended; None to read the whole record.

    Returns:
        The lines, oldest first, and the new mark; None if the record has no line yet.

    Raises:
        FedfmsError: FMS-S008 when the record is damaged, or no longer holds what was read before.
    """
    path = record_file(kit, job_id)
    lines, new_mark = read_after(path, mark)
    try:
        return [EgressLine.model_validate(line) for line in lines], new_mark
    except ValidationError as error:
        raise fail(RECORD_UNREADABLE, path, str(error)) from error


@dataclass(frozen=True)
class Totals:
    """What a record adds up to.

    Attributes:
        messages: Replies that left with content.
        refusals: Replies of which only error ids left.
        updates: Replies with an update.
        bytes: Bytes of all.
    """

    messages: int
    refusals: int
    updates: int
    bytes: int


def totals(lines: Sequence[EgressLine]) -> Totals:
    """Add a record up."""
    refusals = sum(line.decision == "refused" for line in lines)
    updates = sum(bool(line.tensors) for line in lines)
    return Totals(len(lines) - refusals, refusals, updates, sum(line.bytes for line in lines))
