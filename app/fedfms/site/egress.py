"""The record of what has left a site: one line for each reply of a job, written before the reply is sent.

The record is ``<kit>/egress/<job id>.jsonl``; ``<job id>.html`` beside it shows the same to people. Both stay at the
site.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import AwareDatetime, ValidationError

from fedfms.access import is_file
from fedfms.configuration import Sha256, Strict
from fedfms.errors import RECORD_UNREADABLE, RUN_FOLDER, fail
from fedfms.site.records import Mark, append_line, read_after

if TYPE_CHECKING:
    from torch import Tensor

EGRESS_FOLDER = "egress"


class SentTensor(Strict):
    """One tensor of an update that was sent.

    Attributes:
        name: Its name in the model.
        shape: Its shape, in the order of the tensor's axes.
        norm: L2 norm of its values.
        sha256: SHA-256 of its values as float32, little-endian, in row-major order.
    """

    name: str
    shape: tuple[int, ...]
    norm: float
    sha256: Sha256


class EgressLine(Strict):
    """One reply of the site, as a line of the record.

    Attributes:
        time: When it was sent.
        task: Name of the task.
        round: Round it belongs to, from 0; None when the reply names none.
        decision: ``sent``: unchanged; ``withheld``: sent without the figures under ``withheld``, the update included;
            ``refused``: only a return code and the ids under ``errors`` were sent.
        review_sha256: Digest for review of the job that it was sent for (``Application.review_sha256``); None when it
            was refused.
        errors: Error ids in the reply.
        bytes: Size of what was sent.
        sha256: Digest of what was sent: `fedfms.exchange.messages.message_digest`.
        norm: L2 norm of the update; None without one.
        cases: Number of training cases of each structure, sent with the update.
        tensors: Every tensor of the update.
        report: The figures as they were sent.
        withheld: Places of the figures that the policy withheld, such as ``received.organ.dice``.
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

    @property
    def outcome(self) -> str:
        """The decision in words for people: ``withheld`` is said of figures only, the reply itself was sent."""
        return "sent, figures withheld" if self.decision == "withheld" else self.decision


def describe_tensors(tensors: dict[str, Tensor]) -> tuple[SentTensor, ...]:
    """Name, shape, norm and digest of each tensor, in the order given."""
    # Here, because the commands that only read the record would wait seconds for torch.
    import torch

    from fedfms.exchange.messages import tensor_bytes

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
    """Path of a job's record, whether or not it exists."""
    return kit / EGRESS_FOLDER / f"{job_id}.jsonl"


def record(kit: Path, job_id: str, line: EgressLine) -> None:
    """Append a line and wait until it is on the disk.

    Raises:
        FedfmsError: FMS-D011 when it cannot be written; then the reply that it is about must not be sent.
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
    return _read(record_file(kit, job_id), mark)


def read_record_file(path: Path) -> list[EgressLine]:
    """All lines of a record that may have been copied elsewhere.

    Raises:
        FedfmsError: FMS-R001 when there is no such file; FMS-S008 when the record is damaged.
    """
    if not is_file(path):
        raise fail(RUN_FOLDER, path, "no such file", "Name a file from the folder egress of a site's kit.")
    return _read(path, None)[0]


def _read(path: Path, mark: Mark | None) -> tuple[list[EgressLine], Mark | None]:
    lines, new_mark = read_after(path, mark)
    try:
        return [EgressLine.model_validate(line) for line in lines], new_mark
    except ValidationError as error:
        raise fail(RECORD_UNREADABLE, path, str(error)) from error


@dataclass(frozen=True)
class Totals:
    """What a record adds up to.

    Attributes:
        messages: Number of replies that were sent with content.
        refusals: Number of replies of which only error ids were sent.
        updates: Number of replies with an update.
        bytes: Size of all of them.
    """

    messages: int
    refusals: int
    updates: int
    bytes: int


def totals(lines: Sequence[EgressLine]) -> Totals:
    """Sum up the lines of a record."""
    refusals = sum(line.decision == "refused" for line in lines)
    updates = sum(bool(line.tensors) for line in lines)
    return Totals(len(lines) - refusals, refusals, updates, sum(line.bytes for line in lines))
