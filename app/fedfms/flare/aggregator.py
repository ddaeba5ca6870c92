"""The aggregator: keeps the updates that it has checked, and combines them when the round is closed."""

from __future__ import annotations

import threading

from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.app_common.abstract.aggregator import Aggregator
from nvflare.app_common.app_constant import AppConstants

from fedfms.aggregation.kept_updates import KeptUpdates
from fedfms.aggregation.norm_check import too_large
from fedfms.aggregation.rules import combine
from fedfms.aggregation.weighted_sum import require_in_range
from fedfms.errors import (
    DUPLICATE_UPDATE,
    NO_UPDATE_ACCEPTED,
    STALE_ROUND,
    UPDATE_EXCLUDED,
    FedfmsError,
    Problem,
    fail,
)
from fedfms.exchange.messages import Update
from fedfms.exchange.replies import TrainReport
from fedfms.flare.console import reasons, say
from fedfms.flare.context import public_errors, report_locally, run_contract, run_folder, tell_broken
from fedfms.flare.gates import check_ingress
from fedfms.flare.ledger import Ledger
from fedfms.flare.messages import receipt, to_shareable

SITE = "fedfms_site"
DIFFERENCE = "difference"


class FedfmsAggregator(Aggregator):
    """Combines updates by the job's rule, each tensor weighted by the number of cases.

    An update is checked when it arrives, and kept on disk until the round is closed. Then those that are too large
    beside the others are left out, and the rest is combined; the result is bitwise independent of the order of arrival.

    The site's name comes from the controller (the client that the transport authenticated), never from the
    message. An update that was refused or left out is noted in the ledger with the reason.

    Args:
        ledger_id: Id of the `Ledger` component.
    """

    def __init__(self, ledger_id: str = "ledger") -> None:
        super().__init__()
        self._ledger_id = ledger_id
        # FLARE calls accept from its own threads, late replies also while a round is being closed.
        self._lock = threading.Lock()
        self._kept: KeptUpdates | None = None
        self._closed = False
        self.reports: dict[str, TrainReport] = {}
        self.bytes_up: dict[str, int] = {}

    def reset(self, fl_ctx: FLContext) -> None:
        """Start a new round."""
        with self._lock:
            self._free()
            self._closed = False
            self.reports = {}
            self.bytes_up = {}

    def close(self, fl_ctx: FLContext) -> None:
        """Accept no more updates in this round, and leave out those that are too large beside the others.

        The sites in `reports` are then those that are judged, recorded and combined.

        Raises:
            FedfmsError: FMS-D011 when the ledger cannot be written.
        """
        with self._lock:
            self._close(fl_ctx)

    def _close(self, fl_ctx: FLContext) -> None:
        if self._closed:
            return
        self._closed = True
        if self._kept is None:
            return
        norms = dict(self._kept.norms)
        sites, median = too_large(norms, run_contract(fl_ctx).job.aggregation.norm_factor)
        ledger: Ledger = fl_ctx.get_engine().get_component(self._ledger_id)
        number = fl_ctx.get_prop(AppConstants.CURRENT_ROUND)
        for site in sites:
            self._kept.exclude(site)
            del self.reports[site], self.bytes_up[site]
            # Without the message's digest: the line of its arrival has it, and each reply is to have one.
            found = {"norm": norms[site], "median_norm": median}
            ledger.write(fl_ctx, "excluded", round=number, site=site, errors=[UPDATE_EXCLUDED.id], **found)
            figures = f"norm {norms[site]:.3g}, median of the round {median:.3g}"
            say(f"[server] round {number + 1}: {site} is left out: {reasons([UPDATE_EXCLUDED.id])} ({figures})")

    def accept(self, shareable: Shareable, fl_ctx: FLContext) -> bool:
        """Check one reply to task ``train`` and keep its update until the round is closed.

        Returns:
            Whether it was accepted; if not, the ledger says why.
        """
        site = fl_ctx.get_prop(SITE)
        round_number = fl_ctx.get_prop(AppConstants.CURRENT_ROUND)
        ledger: Ledger = fl_ctx.get_engine().get_component(self._ledger_id)
        common = {"round": round_number, "site": site, **receipt(shareable)}
        with public_errors(fl_ctx, "The server could not record an update:"), self._lock:
            try:
                update, report, norm = self._keep(shareable, fl_ctx, site, round_number)
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
                norm=norm,
                bytes_up_tensors=4 * sum(tensor.numel() for tensor in update.tensors.values()),
                report=report.model_dump(mode="json"),
                **common,
            )
        ledger.scalars(fl_ctx, _figures(site, report), round_number)
        return True

    def _keep(
        self, shareable: Shareable, fl_ctx: FLContext, site: str, round_number: int
    ) -> tuple[Update, TrainReport, float]:
        """Check a reply and write its update to the disk; both of it, and the update's norm."""
        contract = run_contract(fl_ctx)
        reply = check_ingress(shareable, contract, task="train", site=site, round_number=round_number)
        assert reply.update is not None and isinstance(reply.report, TrainReport)
        if self._closed:
            raise fail(STALE_ROUND, site, f"round {round_number + 1} is closed already")
        if site in self.reports:
            raise fail(DUPLICATE_UPDATE, site, f"second update for round {round_number + 1}")
        if self._kept is None:
            self._kept = KeptUpdates(contract.schema, run_folder(fl_ctx) / "fedfms")
        growth = contract.job.aggregation.largest_share.denominator
        require_in_range(contract.schema, reply.update, others=len(self._kept), growth=growth)
        self._kept.keep(reply.update)
        return reply.update, reply.report, self._kept.norms[site]

    def aggregate(self, fl_ctx: FLContext) -> Shareable:
        """Close the round and return the combination of the updates that count.

        Without any accepted update it stops the job with FMS-X011; the last saved model stays.
        """
        with public_errors(fl_ctx, "The server could not close a round:"), self._lock:
            self._close(fl_ctx)
            if not self._kept:
                none = FedfmsError([Problem(NO_UPDATE_ACCEPTED, "round", "no update")])
                tell_broken(fl_ctx, none.ids)
                self.system_panic(none.public, fl_ctx)
                return Shareable()
            try:
                difference = combine(self._kept, run_contract(fl_ctx).job.aggregation)
            finally:
                self._free()
        return to_shareable({DIFFERENCE: difference})

    def _free(self) -> None:
        if self._kept is not None:
            self._kept.close()
            self._kept = None


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
