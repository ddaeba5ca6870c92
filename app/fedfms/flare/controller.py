"""The controller: runs the phases ready, rounds and final as ``training.yaml`` says."""

from __future__ import annotations

from nvflare.apis.controller_spec import Task
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.job_def import get_job_meta_study
from nvflare.apis.signal import Signal
from nvflare.app_common.abstract.model import ModelLearnableKey

from fedfms.configuration import Strict
from fedfms.errors import NOT_APPROVED, NOT_READY, QUORUM_LOST, UNEXPECTED, FedfmsError, Problem
from fedfms.exchange.messages import JobContract
from fedfms.exchange.replies import ReadyReport, Scores, ValidateReport
from fedfms.flare.aggregator import FedfmsAggregator
from fedfms.flare.collecting import CollectingController
from fedfms.flare.console import dice_text, duration, quiet_console, reasons, say, size, where_kept
from fedfms.flare.context import job_location, report_locally, run_contract, tell_broken
from fedfms.flare.ledger import Ledger
from fedfms.flare.messages import MESSAGE, register_types, serialized_bytes
from fedfms.flare.persistor import FedfmsPersistor
from fedfms.flare.run_state import Best, RunProgress
from fedfms.flare.selection import is_better, mean_dice, overall_dice, pooled_dice
from fedfms.site.notices import tell_certificates


class FedfmsController(CollectingController):
    """Runs a federation as ``training.yaml`` describes it; FLARE's JSON files name classes and nothing else.

    - *ready*: every site checks data, backbone and schema. Sites that fail are left out with their reasons;
      fewer than ``min_clients`` stop the job with the reasons of all. A site that merely has not approved the job yet
      is asked again in every round and joins once it has.
    - *rounds*: ScatterAndGather's loop.
    - *final*: the last aggregate is validated too, and the best one goes to every site, ready or not. Where no site
      reported a Dice, nothing makes one the best, and the last one goes.

    Each aggregate is judged by the validation of the *received* model, which sites report with the update of
    the following round; only sites whose update counted are heard.
    """

    def __init__(
        self,
        aggregator_id: str = "aggregator",
        persistor_id: str = "persistor",
        shareable_generator_id: str = "shareable_generator",
        ledger_id: str = "ledger",
    ) -> None:
        super().__init__(
            min_clients=1,
            num_rounds=1,
            aggregator_id=aggregator_id,
            persistor_id=persistor_id,
            shareable_generator_id=shareable_generator_id,
            snapshot_every_n_rounds=0,
        )
        register_types()
        quiet_console()
        self._ledger_id = ledger_id
        self._contract: JobContract | None = None
        self._connected: list[str] = []
        self._counted: list[str] = []
        self._undecided: set[str] = set()
        self._best: tuple[int, dict[str, Scores]] | None = None
        self._same_sites = False

    def start_controller(self, fl_ctx: FLContext) -> None:
        """Read and check the job, derive the initial state; all problems of the job in one message."""
        try:
            self._ledger: Ledger = self._engine.get_component(self._ledger_id)
            contract = run_contract(fl_ctx)
            self._min_clients = contract.job.min_clients
            self._num_rounds = contract.job.rounds
            self._wait_time_after_min_received = round(60 * contract.job.straggler_minutes)
            super().start_controller(fl_ctx)
            self._contract = contract
            self._go_on(fl_ctx)
            tell_certificates(job_location(fl_ctx).kit)
        except Exception as error:  # noqa: BLE001 - FLARE would log its text
            self._stop(error, fl_ctx)

    def control_flow(self, abort_signal: Signal, fl_ctx: FLContext) -> None:
        """Run the phases ready, rounds and final."""
        if self._contract is None or abort_signal.triggered:
            return
        try:
            if not self._same_sites:
                self._ready(self._contract, abort_signal, fl_ctx)
            if not abort_signal.triggered:
                super().control_flow(abort_signal, fl_ctx)
            if not abort_signal.triggered:
                self._final(self._contract, abort_signal, fl_ctx)
        except Exception as error:  # noqa: BLE001 - FLARE would log its text
            self._stop(error, fl_ctx)

    def _go_on(self, fl_ctx: FLContext) -> None:
        """Take up the run where it was committed last, if it was."""
        persistor: FedfmsPersistor = self.persistor
        state = persistor.resumed
        if state is None:
            if self._ledger.has_begun(fl_ctx):  # a process that was killed before the first commit
                self._ledger.write(fl_ctx, "resume", rounds=0, former=None, errors=[])
            return
        progress = persistor.progress = state.progress
        self._current_round = state.rounds
        self._sites, self._connected = list(progress.sites), list(progress.connected)
        self._undecided, self._counted = set(progress.undecided), list(progress.counted)
        if progress.best is not None:
            self._best = (progress.best.rounds, progress.best.scores)
        # The sites of a clone begin anew: they have not done its task ready.
        self._same_sites = persistor.former is None
        ids = [problem.kind.id for problem in state.damaged]
        self._ledger.write(fl_ctx, "resume", rounds=state.rounds, former=persistor.former, errors=ids)
        for problem in state.damaged:
            report_locally(fl_ctx, "A later state cannot be used:", FedfmsError([problem]))
        say(f"[server] goes on after round {state.rounds}/{self._num_rounds}, from what was committed then")

    def quorum_lost(self, left: int, fl_ctx: FLContext) -> None:
        """Stop the job; the last saved model stays."""
        found = f"round {self._current_round + 1}: {left} sites are left, the job needs {self._min_clients}"
        self._stop(FedfmsError([Problem(QUORUM_LOST, "quorum", found)]), fl_ctx, found)

    def _ready(self, contract: JobContract, abort_signal: Signal, fl_ctx: FLContext) -> None:
        names = self._sites = self._connected = sorted(client.name for client in self._engine.get_clients())
        say(f"[server] {len(names)} sites, {contract.job.rounds} rounds, {size(contract.schema.bytes)} per message")
        replies = self.ask("ready", 0, None, contract, abort_signal, fl_ctx)
        if abort_signal.triggered:
            return
        problems = {name: reasons(self.refused(name)) or "no reply" for name in names if name not in replies}
        for name in names:
            report = replies[name].report if name in replies else None
            if isinstance(report, ReadyReport):
                cases = ", ".join(f"{structure} {count}" for structure, count in report.cases.items())
                counts = "number of slices withheld"
                if report.slices is not None:
                    counts = f"{report.slices.train} slices to train, {report.slices.validation} to validate"
                without = f"; {report.cases_left_out} left out because of bad files" if report.cases_left_out else ""
                say(f"[server] {name} is ready: {counts}; cases: {cases}{without}")
            else:
                say(f"[server] {name} is NOT ready: {problems[name]}")
            self._record("ready", name, report, fl_ctx)
        # A site where nobody has decided yet is asked in every round; its updates count from the first one it sends.
        self._undecided = {name for name in names if self.refused(name) == (NOT_APPROVED.id,)}
        self._sites = sorted(replies.keys() | self._undecided)
        if len(replies) < contract.job.min_clients:
            found = f"{len(replies)} of {len(names)} sites are ready, the job needs {contract.job.min_clients}"
            found = "; ".join([found, *(f"{name}: {text}" for name, text in problems.items())])
            self._stop(FedfmsError([Problem(NOT_READY, "ready", found)]), fl_ctx, found)

    def updates_collected(self, task: Task, seconds: float, fl_ctx: FLContext) -> None:
        """Judge the model that was sent, keep it if it is the best so far, and say what happened."""
        try:
            self._judge(task, seconds, fl_ctx)
        except FedfmsError as error:
            # ScatterAndGather's own handler would log the local text, paths included.
            self._stop(error, fl_ctx)

    def _judge(self, task: Task, seconds: float, fl_ctx: FLContext) -> None:
        assert self._contract is not None
        bytes_down, sent = serialized_bytes(task.data[MESSAGE]), len(task.client_tasks)
        aggregator: FedfmsAggregator = self.aggregator
        aggregator.close(fl_ctx)
        if len(aggregator.reports) < self._min_clients:  # updates that are too large were left out
            self.quorum_lost(len(aggregator.reports), fl_ctx)
            return
        number, structures = self._current_round, self._contract.job.structures
        self._counted = sorted(aggregator.reports)
        for name in sorted(self._undecided & set(self._counted)):
            say(f"[server] {name} has approved the job and joins in round {number + 1}")
        self._undecided -= set(self._counted)
        scores = {site: report.received for site, report in aggregator.reports.items()}
        dice = pooled_dice(scores.values(), structures)
        mean, up = mean_dice(dice), sum(aggregator.bytes_up.values())
        self._ledger.write(
            fl_ctx,
            "round",
            round=number,
            accepted=self._counted,
            received_dice=dice,
            received_mean_dice=mean,
            bytes_down=bytes_down * sent,
            bytes_down_each=bytes_down,
            bytes_down_tensors_each=self._contract.schema.bytes,
            bytes_up=up,
            seconds=round(seconds, 3),
        )
        self._ledger.scalars(fl_ctx, {"server/received/dice/mean": mean}, number)
        say(
            f"[server] round {number + 1}/{self._num_rounds}: accepted {', '.join(self._counted) or 'none'}"
            f"; received model: {dice_text(dice, mean)}"
            f"; down {size(bytes_down * sent)}, up {size(up)}; {duration(seconds)}"
        )
        self._consider(number, scores, fl_ctx)
        persistor: FedfmsPersistor = self.persistor
        persistor.progress = RunProgress(
            best=None if self._best is None else Best(rounds=self._best[0], scores=self._best[1]),
            sites=tuple(self._sites),
            connected=tuple(self._connected),
            undecided=tuple(sorted(self._undecided)),
            counted=tuple(self._counted),
        )

    def _final(self, contract: JobContract, abort_signal: Signal, fl_ctx: FLContext) -> None:
        """Validate the last aggregate, and send the best one to every site; the last one if no site reported a Dice."""
        persistor: FedfmsPersistor = self.persistor
        rounds, last = contract.job.rounds, self._global_weights[ModelLearnableKey.WEIGHTS]
        replies = self.ask("validate", rounds, last, contract, abort_signal, fl_ctx)
        if abort_signal.triggered:
            return
        scores = {}
        for site in self._sites:
            report = replies[site].report if site in replies else None
            self._record("validate", site, report, fl_ctx, rounds=rounds)
            if isinstance(report, ValidateReport) and site in self._counted:
                scores[site] = report.received
        dice = pooled_dice(scores.values(), contract.job.structures)
        mean = mean_dice(dice)
        self._consider(rounds, scores, fl_ctx)
        if self._best is None:
            persistor.keep_best(fl_ctx)  # nothing could be estimated: the last one
        chosen_dice = overall_dice(self._best[1].values(), contract.job.structures) if self._best else None
        best, after = persistor.best(fl_ctx)
        self._ledger.write(
            fl_ctx,
            "choice",
            rounds=after,
            mean_dice=chosen_dice,
            last_dice=dice,
            last_mean_dice=mean,
        )
        self._ledger.scalars(fl_ctx, {"server/received/dice/mean": mean}, rounds)
        say(f"[server] model after round {rounds}: {dice_text(dice, mean)}")
        which = "no Dice was reported, so none is the best: the last model"
        if chosen_dice is not None:
            which = f"the best model by Dice (mean {chosen_dice:.3f})"
        say(f"[server] {which}, after round {after}, goes to every site")
        # Also those that could not train: a site needs no data for the final model.
        self._sites = self._connected
        replies = self.ask("final", after, best, contract, abort_signal, fl_ctx)
        for site in self._sites:
            self._record("final", site, replies[site].report if site in replies else None, fl_ctx, rounds=after)
        study = get_job_meta_study(fl_ctx.get_prop(FLContextKey.JOB_META))
        where = where_kept(fl_ctx.get_job_id(), study, persistor.folder("best", fl_ctx))
        persistor.forget(fl_ctx)
        say(f"[server] kept by {', '.join(sorted(replies)) or 'no site'}; {where}")

    def _consider(self, rounds: int, scores: dict[str, Scores], fl_ctx: FLContext) -> None:
        """Keep ``models/last`` if it is better than the best so far; the initial state is not a candidate."""
        assert self._contract is not None
        structures = self._contract.job.structures
        if rounds == 0 or overall_dice(scores.values(), structures) is None:
            return
        if self._best is None or is_better(scores, self._best[1], structures):
            self._best = (rounds, scores)
            self.persistor.keep_best(fl_ctx)

    def _record(self, event: str, site: str, report: object, fl_ctx: FLContext, **fields: object) -> None:
        """Write one line of the ledger about one site's reply to the current task."""
        known = report.model_dump(mode="json") if isinstance(report, Strict) else None
        common = {"site": site, "accepted": known is not None, "errors": list(self.refused(site))}
        self._ledger.write(fl_ctx, event, **common, report=known, **self.receipt_of(site), **fields)

    def _stop(self, error: Exception, fl_ctx: FLContext, found: str = "") -> None:
        """End the job. ``found`` contains only site names, counts and titles of the catalogue."""
        if isinstance(error, FedfmsError):
            ids, public = list(error.ids), error.public
        else:
            ids, public = [UNEXPECTED.id], f"{UNEXPECTED.id} {UNEXPECTED.title}"
        report_locally(fl_ctx, "The job stops:", error)
        try:
            self._ledger.write(fl_ctx, "stop", errors=ids)
        except FedfmsError as unwritable:  # the disk may be what stops the job
            report_locally(fl_ctx, "The ledger cannot be written:", unwritable)
        tell_broken(fl_ctx, ids)
        self.system_panic(f"{public}: {found}" if found else public, fl_ctx)
