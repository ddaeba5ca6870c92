"""Every message between server and sites, and the checks that each has to pass.

A check never returns what it was given. It builds a new object from the schema and from closed lists of
fields: numbers with bounds, names the job itself declares, and tensors with a memory of their own. What is
not on a list cannot be sent, whatever was put into the message. The same functions serve the egress gate at a
site and the ingress gate at the server; nothing here knows FLARE.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from pydantic import ValidationError
from torch import Tensor

from fedfms.configuration import Sha256, Strict, StructureName
from fedfms.errors import (
    BACKBONE_DIFFERS,
    JOB_DIFFERS,
    NORM_EXCEEDED,
    NOT_FINITE,
    SCHEMA_MISMATCH,
    STALE_ROUND,
    ErrorKind,
    FedfmsError,
    Problem,
    fail,
)
from fedfms.exchange.replies import (
    REPORTS,
    Count,
    ReadyReport,
    Report,
    Round,
    SiteName,
    TaskKind,
    TrainReport,
    ValidateReport,
)
from fedfms.exchange.state import check_tensors, l2_norm
from fedfms.job.training import TrainingJob
from fedfms.sam.scope import Schema

ENCODING: Literal["fp32-difference"] = "fp32-difference"

# Characters. A reply without its tensors has a few thousand; more can only be an attempt to send something else.
_TEXT_LIMIT = 1 << 18

_Model = TypeVar("_Model", bound=Strict)


class _Envelope(Strict):
    kind: TaskKind
    round: Round
    schema_sha256: Sha256
    backbone_sha256: Sha256
    job_sha256: Sha256


class _ReplyEnvelope(_Envelope):
    site: SiteName


class _UpdateFields(Strict):
    encoding: Literal["fp32-difference"]
    cases: dict[StructureName, Count]


@dataclass(frozen=True)
class JobContract:
    """What server and site each derive from the job themselves and never take from a message.

    Attributes:
        job: Content of ``training.yaml``.
        schema: Names, shapes and dtypes of the exchanged tensors, in their order.
    """

    job: TrainingJob
    schema: Schema

    @property
    def digests(self) -> dict[str, str]:
        """The three digests that every message carries."""
        return {
            "schema_sha256": self.schema.sha256,
            "backbone_sha256": self.job.backbone_sha256,
            "job_sha256": self.job.sha256,
        }


@dataclass(frozen=True)
class Task:
    """Server to site: a task and, except for ``ready``, the state of the model.

    Attributes:
        kind: ready, train, validate or final.
        round: Round it belongs to, from 0.
        tensors: The exchanged tensors, fp32, in schema order; None for ``ready``.
    """

    kind: TaskKind
    round: int
    tensors: dict[str, Tensor] | None


@dataclass(frozen=True)
class Update:
    """Site to server: local minus received state.

    Attributes:
        schema_sha256: Digest of the tensors' names, shapes and dtypes.
        backbone_sha256: Digest of the frozen backbone's file.
        job_sha256: Digest of the job configuration.
        round: Round it belongs to, from 0.
        site: Name of the sending site.
        cases: Number of training cases per structure, for weighting.
        encoding: How to read ``tensors``; leaves room for compression and masking.
        tensors: fp32 differences in schema order.
    """

    schema_sha256: str
    backbone_sha256: str
    job_sha256: str
    round: int
    site: str
    cases: dict[str, int]
    tensors: dict[str, Tensor]
    encoding: Literal["fp32-difference"] = ENCODING


@dataclass(frozen=True)
class Reply:
    """Site to server: the report of one task.

    Attributes:
        kind: The task that it answers.
        site: Name of the sending site.
        round: Round of the task.
        report: The figures.
        update: The site's update; only for ``train``.
    """

    kind: TaskKind
    site: str
    round: int
    report: Report
    update: Update | None = None


def task_message(task: Task, contract: JobContract) -> dict[str, Any]:
    """The form in which a task is sent: builtin types and tensors."""
    message: dict[str, Any] = {"kind": task.kind, "round": task.round, **contract.digests}
    if task.tensors is not None:
        message["tensors"] = task.tensors
    return message


def reply_message(reply: Reply, contract: JobContract) -> dict[str, Any]:
    """The form in which a reply is sent: builtin types and tensors."""
    message: dict[str, Any] = {
        "kind": reply.kind,
        "site": reply.site,
        "round": reply.round,
        **contract.digests,
        "report": reply.report.model_dump(mode="json"),
    }
    if reply.update is not None:
        message["update"] = {
            "encoding": reply.update.encoding,
            "cases": dict(reply.update.cases),
            "tensors": reply.update.tensors,
        }
    return message


def message_digest(message: Mapping[str, Any]) -> str:
    """SHA-256 of a message. A site's record has that of what it sent, the server's ledger that of what arrived.

    It is computed over the canonical JSON form (sorted keys, no spaces) of all fields except tensors and a line feed;
    then, for each tensor in their order, over name and shape as JSON, a line feed, and its values as little-endian
    float32.
    """
    tensors: dict[str, Tensor] = {}

    def without_tensors(fields: Mapping[str, Any]) -> dict[str, Any]:
        kept = {}
        for name, value in fields.items():
            if name == "tensors":
                tensors.update(value)
            else:
                kept[name] = without_tensors(value) if isinstance(value, Mapping) else value
        return kept

    fields = without_tensors(message)
    digest = hashlib.sha256(json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False).encode() + b"\n")
    for name, tensor in tensors.items():
        digest.update(json.dumps([name, list(tensor.shape)]).encode() + b"\n")
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def tensor_bytes(tensor: Tensor) -> bytes:
    """A tensor's values as float32, little-endian, in row-major order."""
    values: bytes = tensor.detach().contiguous().numpy().astype("<f4", copy=False).tobytes()
    return values


def round_in_words(kind: TaskKind, number: int) -> str:
    """The field ``round`` of a message as people count: rounds from 1, a model by the rounds that it has seen."""
    return f"round {number + 1}" if kind == "train" else f"the model after {number} rounds"


def check_task(message: object, contract: JobContract, *, kind: str) -> Task:
    """Check a task from the server, at the site.

    Args:
        message: What arrived.
        contract: The site's own derivation from the job.
        kind: The task that FLARE announced.

    Returns:
        A new task that shares nothing with the message.

    Raises:
        FedfmsError: FMS-X001 for unknown, missing or ill-formed fields or tensors, FMS-X002 for values that are not
            finite, FMS-X004 and FMS-X005 for another backbone or job, FMS-X006 for a round that the job does not have.
    """
    fields = _fields(message)
    wants_state = kind != "ready"
    raw = fields.pop("tensors", None)
    envelope = _read(_Envelope, fields, "task")
    _require_same_contract(envelope, contract, kind)
    if wants_state != (raw is not None):
        raise fail(SCHEMA_MISMATCH, "tensors", "missing" if wants_state else f"not allowed in task {kind}")
    if envelope.round > contract.job.rounds:
        found = round_in_words(envelope.kind, envelope.round)
        raise fail(STALE_ROUND, "round", f"the job has {contract.job.rounds} rounds, found {found}")
    return Task(envelope.kind, envelope.round, check_tensors(raw, contract.schema) if wants_state else None)


def check_reply(
    message: object, contract: JobContract, *, kind: str, site: str, norm_limit: float, round_number: int | None = None
) -> Reply:
    """Check a reply, on its way out of a site or on its way into the server.

    Args:
        message: What came; never part of the result.
        contract: Own derivation from the job.
        kind: The task's kind; a reply of another kind is refused.
        site: The sender as the transport knows it.
        norm_limit: Largest allowed L2 norm of the update over all tensors.
        round_number: The round it must belong to; None where the round is not known (at the exit of a site).

    Raises:
        FedfmsError: FMS-X001 unknown, missing or ill-formed fields or tensors, FMS-X002 not finite, FMS-X003
            norm, FMS-X004 and FMS-X005 other backbone or job, FMS-X006 another round.
    """
    fields = _fields(message)
    raw_report = fields.pop("report", None)
    raw_update = fields.pop("update", None)
    envelope = _read(_ReplyEnvelope, fields, "reply")
    _require_same_contract(envelope, contract, kind)
    if envelope.site != site:
        raise fail(SCHEMA_MISMATCH, "site", f"expected {site!r}, found {envelope.site!r}")
    if round_number is not None and envelope.round != round_number:
        expected, found = (round_in_words(envelope.kind, number) for number in (round_number, envelope.round))
        raise fail(STALE_ROUND, "round", f"expected {expected}, found {found}")
    if envelope.round > contract.job.rounds:
        found = round_in_words(envelope.kind, envelope.round)
        raise fail(STALE_ROUND, "round", f"the job has {contract.job.rounds} rounds, found {found}")
    report = _read(REPORTS[envelope.kind], raw_report, "report")
    _known_structures(report, contract)
    if (envelope.kind == "train") != (raw_update is not None):
        raise fail(SCHEMA_MISMATCH, "update", f"belongs to the reply of train and to no other, found {kind}")
    update = None
    if raw_update is not None:
        update = _check_update(raw_update, contract, envelope, norm_limit)
    return Reply(envelope.kind, envelope.site, envelope.round, report, update)


def _check_update(raw: object, contract: JobContract, envelope: _ReplyEnvelope, norm_limit: float) -> Update:
    fields = _fields(raw)
    tensors = fields.pop("tensors", None)
    checked = _read(_UpdateFields, fields, "update")
    _all_structures(checked.cases, contract, "update.cases")
    if not any(checked.cases.values()):
        raise fail(SCHEMA_MISMATCH, "update.cases", "no structure has a case")
    built = check_tensors(tensors, contract.schema)
    norm = l2_norm(built)
    if not norm <= norm_limit:
        raise fail(NORM_EXCEEDED, "update", f"norm {norm:.6g}, allowed {norm_limit:.6g}")
    return Update(
        schema_sha256=envelope.schema_sha256,
        backbone_sha256=envelope.backbone_sha256,
        job_sha256=envelope.job_sha256,
        round=envelope.round,
        site=envelope.site,
        cases=dict(checked.cases),
        tensors=built,
    )


def _fields(message: object) -> dict[str, Any]:
    """A new dict of the message's fields, so that taking tensors out does not change the message."""
    if not isinstance(message, Mapping):
        raise fail(SCHEMA_MISMATCH, "message", f"expected fields with values, found {type(message).__name__}")
    return dict(message)


def _read(model: type[_Model], fields: object, where: str) -> _Model:
    """Rebuild ``fields`` from its JSON text, so that nothing of the original object survives."""
    try:
        text = json.dumps(fields, allow_nan=False)
    except (TypeError, RecursionError):
        raise fail(SCHEMA_MISMATCH, where, "contains something other than numbers and names") from None
    except ValueError:
        raise fail(NOT_FINITE, where, "contains a number that is not finite") from None
    if len(text) > _TEXT_LIMIT:
        raise fail(SCHEMA_MISMATCH, where, f"{len(text)} characters, allowed {_TEXT_LIMIT}")
    try:
        return model.model_validate_json(text, strict=True)
    except ValidationError as error:
        raise FedfmsError(
            Problem(SCHEMA_MISMATCH, ".".join([where, *map(str, item["loc"])]), item["msg"])
            for item in error.errors(include_url=False, include_input=False)
        ) from None


def _require_same_contract(envelope: _Envelope, contract: JobContract, kind: str) -> None:
    kinds: dict[str, ErrorKind] = {
        "schema_sha256": SCHEMA_MISMATCH,
        "backbone_sha256": BACKBONE_DIFFERS,
        "job_sha256": JOB_DIFFERS,
    }
    problems = [
        Problem(kinds[name], name, f"own digest {own}, the message says {getattr(envelope, name)}")
        for name, own in contract.digests.items()
        if getattr(envelope, name) != own
    ]
    if envelope.kind != kind:
        problems.append(Problem(SCHEMA_MISMATCH, "kind", f"expected {kind}, found {envelope.kind}"))
    if problems:
        raise FedfmsError(problems)


def _known_structures(report: Report, contract: JobContract) -> None:
    if isinstance(report, ReadyReport):
        _all_structures(report.cases, contract, "report.cases")
    if isinstance(report, TrainReport | ValidateReport):
        _all_structures(report.received, contract, "report.received")
    if isinstance(report, TrainReport):
        _all_structures(report.local, contract, "report.local")


def _all_structures(found: Mapping[str, object], contract: JobContract, where: str) -> None:
    if set(found) != set(contract.job.structures):
        raise fail(
            SCHEMA_MISMATCH,
            where,
            f"expected {sorted(contract.job.structures)}, found {sorted(map(str, found))}",
        )
