"""The aggregator: accepts checked updates and keeps their running weighted sum."""

from __future__ import annotations

import threading

from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.app_common.abstract.aggregator import Aggregator
from nvflare.app_common.app_constant import AppConstants

from fedfms.errors import DUPLICATE_UPDATE, NO_UPDATE_ACCEPTED, STALE_ROUND, FedfmsError, Problem, fail
from fedfms.exchange.messages import Update
from fedfms.exchange.replies import TrainReport
from fedfms.exchange.state import l2_norm
from fedfms.flare.context import public_errors, report_locally, run_contract, tell_broken
from fedfms.flare.gates import check_ingress
from fedfms.flare.ledger import Ledger
from fedfms.flare.messages import receipt, to_shareable
from fedfms.flare.weighted_sum import WeightedSum

SITE = "fedfms_site"
DIFFERENCE = "difference"


class FedfmsAggregator(Aggregator):
    """Averages updates, each tensor weighted by the number of cases; bitwise independent of the order of arrival.

    The site's name comes from the controller (the client that the transport authenticated), never from the
    message. A refused update is noted in the ledger with the reason.

    Args:
        ledger_id: Id of the `Ledger` component.
    """

    def __init__(self, ledger_id: str = "ledger") -> None:
        super().__init__()
        self._ledger_id = ledger_id
        # FLARE calls accept from its own threads, late replies also while a round is being closed.
        self._lock = threading.Lock()
        self._sum: WeightedSum | None = None
        self._closed = False
        self.reports: dict[str, TrainReport] = {}
        self.bytes_up: dict[str, int] = {}

    def reset(self, fl_ctx: FLContext) -> None:
        """Start a new round."""
        with self._lock:
            self._sum = None
            self._closed = False
            self.reports = {}
            self.bytes_up = {}

    def close(self) -> None:
        """Accept no more updates in this round: those judged and recorded now are those that will be averaged."""
        with self._lock:
            self._closed = True

    def accept(self, shareable: Shareable, fl_ctx: FLContext) -> bool:
        """Check one reply to task ``train`` and add its update.

        Returns:
            Whether the update counts; if not, the ledger says why.
        """
        site = fl_ctx.get_prop(SITE)
        round_number = fl_ctx.get_prop(AppConstants.CURRENT_ROUND)
        ledger: Ledger = fl_ctx.get_engine().get_component(self._ledger_id)
        common = {"round": round_number, "site": site, **receipt(shareable)}
        with public_errors(fl_ctx, "The server could not record an update:"), self._lock:
            try:
                update, report = self._add(shareable, fl_ctx, site, round_number)
            except FedfmsError as error:
                report_locally(fl_ctx, f"{site}: the update of round {round_number + 1} was refused:", error)
                ledger.write(fl_ctx, "update", accepted=False, errors=list(error.ids), **common)
                return False
            self.reports[site] = report
            self.bytes_up[site] = common["bytes_up"]
            ledger.write(
                fl_ctx,
                "update",
                accepted=True,
                errors=[],
                cases=update.cases,
                norm=l2_norm(update.tensors),
                bytes_up_tensors=4 * sum(tensor.numel() for tensor in update.tensors.values()),
                report=report.model_dump(mode="json"),
                **common,
            )
        ledger.scalars(fl_ctx, _figures(site, report), round_number)
        return True

    def _add(self, shareable: Shareable, fl_ctx: FLContext, site: str, round_number: int) -> tuple[Update, TrainReport]:
        contract = run_contract(fl_ctx)
        reply = check_ingress(shareable, contract, task="train", site=site, round_number=round_number)
        assert reply.update is not None and isinstance(reply.report, TrainReport)
        if self._closed:
            raise fail(STALE_ROUND, site, f"round {round_number + 1} is closed already")
        if site in self.reports:
            raise fail(DUPLICATE_UPDATE, site, f"second update for round {round_number + 1}")
        if self._sum is None:
            self._sum = WeightedSum(contract.schema)
        self._sum.add(reply.update)
        return reply.update, reply.report

    def aggregate(self, fl_ctx: FLContext) -> Shareable:
        """Close the round and return the weighted mean of the accepted updates.

        Without any accepted update it stops the job with FMS-X011; the last saved model stays.
        """
        with self._lock:
            self._closed = True
            if self._sum is None:
                none = FedfmsError([Problem(NO_UPDATE_ACCEPTED, "round", "no update")])
                tell_broken(fl_ctx, none.ids)
                self.system_panic(none.public, fl_ctx)
                return Shareable()
            mean = self._sum.mean()
            self._sum = None
        return to_shareable({DIFFERENCE: mean})


def _figures(site: str, report: TrainReport) -> dict[str, float | None]:
    figures: dict[str, float | None] = {
        f"{site}/loss": report.loss,
        f"{site}/learning_rate": report.learning_rate,
        f"{site}/seconds": report.seconds,
        f"{site}/peak_memory_bytes": report.peak_memory_bytes,
    }
    for model, scores in (("received", report.received), ("local", report.local)):
        for structure, score in scores.items():
            figures[f"{site}/{model}/dice/{structure}"] = score.dice
            figures[f"{site}/{model}/iou/{structure}"] = score.iou
    return figures
