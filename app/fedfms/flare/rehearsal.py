"""Tests that a kit's gates stop what must not leave, without a running federation.

FLARE's own configurator loads the kit's ``local/privacy.json`` in a separate workspace, and replies are sent through
the components that it builds, as FLARE's client does it. The kit itself is only read.
"""

from __future__ import annotations

import io
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stderr
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from nvflare.apis.analytix import AnalyticsDataType
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import EventScope, FLContextKey, ProcessType, ReturnCode
from nvflare.apis.fl_context import FLContext, FLContextManager
from nvflare.apis.shareable import Shareable
from nvflare.apis.utils.analytix_utils import create_analytic_dxo
from nvflare.apis.utils.event import fire_event_to_components
from nvflare.apis.workspace import Workspace
from nvflare.private.fed.app.fl_conf import create_privacy_manager

from fedfms.exchange.messages import JobContract, Reply, Update, reply_message
from fedfms.exchange.replies import Score, TrainReport
from fedfms.flare.context import run_contract
from fedfms.flare.messages import MESSAGE, error_ids, to_shareable
from fedfms.site.application import read_application
from fedfms.site.notify_config import NOTIFY_FILE
from fedfms.site.policy import SitePolicy, load_policy
from fedfms.site.review import decide

_JOB = "rehearsal"
_SITE = "site"


@dataclass(frozen=True)
class Attempt:
    """One reply that was sent through the gates.

    Attributes:
        what: What is wrong with it, in words; nothing is wrong with the first one.
        may_leave: Whether it should leave.
        left: Whether anything but a return code and error ids left.
        ids: The error ids that left.
    """

    what: str
    may_leave: bool
    left: bool
    ids: tuple[str, ...]

    @property
    def as_expected(self) -> bool:
        """Whether exactly what may leave has left."""
        return self.left == self.may_leave


class _Engine:
    """The part of FLARE's engine that the gates use."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace

    def get_workspace(self) -> Workspace:
        return self._workspace


def rehearse(kit: Path, application: Path) -> list[Attempt]:
    """Send a good update and forbidden ones through the exit gate of a kit.

    Args:
        kit: A site's kit with ``local/privacy.json`` and ``local/policy.yaml``.
        application: The application folder of a job, such as ``jobs/fedmsa/app``.

    Returns:
        One entry for each reply. With a policy that objects to the job, all must be refused.

    Raises:
        FedfmsError: FMS-S001, FMS-J001, FMS-J002, FMS-J005 for the policy or the job; FMS-S003 when there is no policy.
    """
    policy = load_policy(kit / "local" / "policy.yaml")
    job = read_application(application)
    # The gates report on stderr what they refused; here that is the expected result.
    with tempfile.TemporaryDirectory(prefix="fedfms-rehearsal-") as folder, redirect_stderr(io.StringIO()):
        root = Path(folder)
        (root / "startup").mkdir()
        # Without it nobody is notified of what the gates stop in a trial.
        shutil.copytree(kit / "local", root / "local", ignore=shutil.ignore_patterns(NOTIFY_FILE.name))
        shutil.copytree(application, root / _JOB / f"app_{_SITE}")
        # A rehearsal must not depend on an approval, so it is approved in the copy.
        decide(root, job, "approve", job=_JOB, valid_days=1)
        workspace = Workspace(str(root), _SITE)
        fl_ctx = _context(workspace)
        components = _site_components(workspace)
        contract = run_contract(fl_ctx)
        agreed = not policy.objections(contract.job)
        attempts = []
        for what, may_leave, reply in _replies(contract, policy):
            out = _through(components, reply, fl_ctx)
            left = out.get_return_code() == ReturnCode.OK or MESSAGE in out
            attempts.append(Attempt(what, may_leave and agreed, left, error_ids(out)))
        attempts.append(Attempt("an image as a metric", False, _event_leaves(components, fl_ctx), ()))
        return attempts


def _context(workspace: Workspace) -> FLContext:
    sticky = {FLContextKey.PROCESS_TYPE: ProcessType.CLIENT_JOB, FLContextKey.SIMULATE_MODE: False}
    manager = FLContextManager(engine=_Engine(workspace), identity_name=_SITE, job_id=_JOB, private_stickers=sticky)
    fl_ctx = manager.new_context()
    fl_ctx.set_prop(FLContextKey.TASK_NAME, "train", private=True, sticky=False)
    return fl_ctx


def _site_components(workspace: Workspace) -> list[FLComponent]:
    """The site's own components that FLARE would load; none when privacy.json is missing or names no scope."""
    manager = create_privacy_manager(workspace, names_only=False)
    return list((manager.components or {}).values()) if manager.is_policy_defined() else []


def _through(components: list[FLComponent], reply: Shareable, fl_ctx: FLContext) -> Shareable:
    fl_ctx.set_prop(FLContextKey.TASK_RESULT, reply, private=True, sticky=False)
    fl_ctx.set_prop(FLContextKey.EVENT_DATA, None, private=True, sticky=False)
    fire_event_to_components(EventType.AFTER_TASK_RESULT_FILTER, components, fl_ctx)
    return reply


def _event_leaves(components: list[FLComponent], fl_ctx: FLContext) -> bool:
    data = create_analytic_dxo("slice", [0, 1], AnalyticsDataType.IMAGE).to_shareable()
    fl_ctx.set_prop(FLContextKey.EVENT_DATA, data, private=True, sticky=False)
    fl_ctx.set_prop(FLContextKey.EVENT_SCOPE, EventScope.FEDERATION, private=True, sticky=False)
    fire_event_to_components("fed.analytix_log_stats", components, fl_ctx)
    return "DXO" in data


def _replies(contract: JobContract, policy: SitePolicy) -> Iterator[tuple[str, bool, Shareable]]:
    """The replies to send: a description, whether it may leave, and the reply."""
    cases = dict.fromkeys(contract.job.structures, policy.min_training_cases)
    tensors = {spec.name: torch.zeros(spec.shape) for spec in contract.schema.tensors}
    scores = dict.fromkeys(contract.job.structures, Score(dice=0.5, iou=0.5, n=10))
    report = TrainReport(
        steps=-(-policy.min_slices_per_update // contract.job.batch_size),
        training_seconds=1,
        seconds=1,
        loss=1,
        learning_rate=1,
        peak_memory_bytes=1,
        received=scores,
        local=scores,
    )
    update = Update(
        schema_sha256=contract.schema.sha256,
        backbone_sha256=contract.job.backbone_sha256,
        job_sha256=contract.job.sha256,
        round=0,
        site=_SITE,
        cases=cases,
        tensors=tensors,
    )
    good = Reply("train", _SITE, 0, report, update)
    first = contract.schema.names[0]

    def changed(values: torch.Tensor) -> Shareable:
        return to_shareable(
            reply_message(replace(good, update=replace(update, tensors={**tensors, first: values})), contract)
        )

    yield "an update as agreed", True, to_shareable(reply_message(good, contract))
    extra = replace(update, tensors={**tensors, "encoder.not_agreed": torch.zeros(4)})
    yield "an update with another tensor", False, to_shareable(reply_message(replace(good, update=extra), contract))
    limit = min(policy.update_norm_limit, contract.job.update_norm_limit)
    size = tensors[first].numel() ** 0.5
    yield "an update above the norm", False, changed(torch.full(tensors[first].shape, 1.1 * limit / size))
    yield "an update with NaN", False, changed(torch.full(tensors[first].shape, float("nan")))
    text = reply_message(good, contract)
    text["report"]["note"] = "any text"
    yield "a report with text", False, to_shareable(text)
    if policy.min_training_cases > 1:
        few = replace(update, cases=dict.fromkeys(cases, policy.min_training_cases - 1))
        yield "an update on too few cases", False, to_shareable(reply_message(replace(good, update=few), contract))
    other = to_shareable(reply_message(good, contract))
    other["weights"] = {"anything": 1}
    other[MESSAGE]["kind"] = "validate"
    yield "a reply to another task", False, other
