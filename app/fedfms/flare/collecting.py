"""A ScatterAndGather controller that counts only replies that passed the ingress gate."""

from __future__ import annotations

import time
from typing import Any

from nvflare.apis.controller_spec import ClientTask, TaskCompletionStatus
from nvflare.apis.controller_spec import Task as FlareTask
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_common.workflows.scatter_and_gather import ScatterAndGather

from fedfms.errors import FedfmsError
from fedfms.exchange.messages import JobContract, Reply, Task, task_message
from fedfms.exchange.replies import TaskKind
from fedfms.flare.aggregator import SITE
from fedfms.flare.context import report_locally
from fedfms.flare.gates import check_ingress
from fedfms.flare.messages import receipt, to_shareable

# Validate and final are short; a job that does not wait for stragglers still gives the sites this long. Ready reads
# all data of a site, after up to 110 minutes in which somebody there approves the job; a site that is not ready is left
# out of the whole job, so a large hospital gets its time there.
_LEAST_WAIT_SECONDS = {"ready": 4 * 3600, "validate": 600, "final": 600, "train": 0}


class CollectingController(ScatterAndGather):
    """Changes what ScatterAndGather does when some replies fail.

    FLARE counts a failed reply towards ``min_clients`` and would close a round after one good and one failed reply.
    Here only a reply that passed the ingress gate counts, and a round whose quorum is out of reach stops the
    job at once.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._sites: list[str] = []
        self._good: set[str] = set()
        self._refused: dict[str, tuple[str, ...]] = {}
        self._receipts: dict[str, dict[str, Any]] = {}

    def ask(
        self, kind: TaskKind, rounds: int, state: Any, contract: JobContract, abort_signal: Signal, fl_ctx: FLContext
    ) -> dict[str, Reply]:
        """Send a task other than ``train`` to the sites and collect the replies that pass the ingress gate.

        `refused` gives the reasons of the others.
        """
        replies: dict[str, Reply] = {}

        def receive(client_task: ClientTask, fl_ctx: FLContext) -> None:
            site = client_task.client.name
            self._receipts[site] = receipt(client_task.result)
            try:
                replies[site] = check_ingress(client_task.result, contract, task=kind, site=site, round_number=rounds)
                self._good.add(site)
            except FedfmsError as error:
                self._refused[site] = error.ids
                report_locally(fl_ctx, f"{site}: the reply to task {kind} was refused:", error)
            client_task.result = None

        message = task_message(Task(kind, rounds, state), contract)
        self.broadcast_and_wait(
            FlareTask(name=kind, data=to_shareable(message), result_received_cb=receive),
            fl_ctx,
            min_responses=min(self._min_clients, len(self._sites)),
            wait_time_after_min_received=max(_LEAST_WAIT_SECONDS[kind], self._wait_time_after_min_received),
            abort_signal=abort_signal,
        )
        return dict(replies)

    def refused(self, site: str) -> tuple[str, ...]:
        """Error ids of a site's reply to the current task; empty when it sent none or a good one."""
        return self._refused.get(site, ())

    def receipt_of(self, site: str) -> dict[str, Any]:
        """Digest and bytes of a site's reply to the current task; None where it sent none."""
        return self._receipts.get(site, {"message_sha256": None, "bytes_up": None})

    def broadcast_and_wait(
        self,
        task: FlareTask,
        fl_ctx: FLContext,
        targets: list[str] | None = None,
        min_responses: int = 1,
        wait_time_after_min_received: int = 0,
        abort_signal: Signal | None = None,
    ) -> None:
        """Wait until all sites have replied, or enough good replies have come and the time for stragglers is over."""
        sites = list(self._sites if targets is None else targets)
        self._good, self._refused, self._receipts = set(), {}, {}
        self._current_num_targets = len(sites)
        started = time.monotonic()
        # With 0 FLARE waits for all; the shorter wait is ours.
        self.broadcast(task=task, fl_ctx=fl_ctx, targets=sites, min_responses=0)
        enough_since: float | None = None
        while task.completion_status is None and not (abort_signal and abort_signal.triggered):
            if len(self._good) >= min_responses:
                enough_since = time.monotonic() if enough_since is None else enough_since
                if time.monotonic() - enough_since >= wait_time_after_min_received:
                    # FLARE holds this lock while it takes in a reply, so none is counted halfway.
                    with task.cb_lock:
                        self.cancel_task(task, TaskCompletionStatus.OK, fl_ctx)
            time.sleep(self._task_check_period)
        if abort_signal and abort_signal.triggered:
            return
        if len(self._good) < min_responses and task.name == self.train_task_name:
            # The others are dead: FLARE ends a task when no living client is left that could reply.
            self.quorum_lost(len(self._good), fl_ctx)
            return
        if task.name == self.train_task_name:
            self.updates_collected(task, time.monotonic() - started, fl_ctx)

    def _accept_train_result(
        self, client_name: str, result: Shareable, fl_ctx: FLContext, is_unknown_task: bool = False
    ) -> bool:
        """Let the aggregator check a reply; call `quorum_lost` when ``min_clients`` is out of reach."""
        fl_ctx.set_prop(SITE, client_name, private=True, sticky=False)
        fl_ctx.set_prop(AppConstants.CURRENT_ROUND, self._current_round, private=True, sticky=True)
        if self.aggregator.accept(result, fl_ctx):
            self._good.add(client_name)
            return True
        if not is_unknown_task:
            self._current_failed_clients.add(client_name)
            left = self._current_num_targets - len(self._current_failed_clients)
            if left < self._min_clients:
                self.quorum_lost(left, fl_ctx)
        return False

    def updates_collected(self, task: FlareTask, seconds: float, fl_ctx: FLContext) -> None:
        """Called when a round's replies are in, before they are aggregated."""
        raise NotImplementedError

    def quorum_lost(self, left: int, fl_ctx: FLContext) -> None:
        """Called when only ``left`` sites can still give a good reply in this round."""
        raise NotImplementedError
