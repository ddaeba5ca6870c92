"""The server's state: exactly the exchanged tensors, on disk as checkpoints after every round."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.job_def import JobMetaKey
from nvflare.app_common.abstract.model import ModelLearnable, ModelLearnableKey
from nvflare.app_common.abstract.model_persistor import ModelPersistor
from nvflare.app_common.app_constant import AppConstants
from torch import Tensor

from fedfms.access import is_file
from fedfms.exchange.replies import LEDGER_FILE
from fedfms.exchange.state import check_tensors
from fedfms.files import atomic_path
from fedfms.flare.context import app_folder, public_errors, run_contract, state_folder
from fedfms.flare.generator import step_of, with_step
from fedfms.flare.run_state import RunProgress, RunState, RunStore
from fedfms.sam.checkpoint import load_checkpoint, save_exchange, save_inference
from fedfms.sam.model import initial_state
from fedfms.training.headers import job_header

EXCHANGE = "exchange.safetensors"
INFERENCE = "model.safetensors"


class FedfmsPersistor(ModelPersistor):
    """Commits the run after each round (`fedfms.flare.run_state`), and keeps two models in the job's result.

    ``models/last`` and ``models/best`` are derived from what was committed. Each is an ``exchange.safetensors`` (what
    travels) and a self-contained ``model.safetensors`` for inference. Every file is replaced as a whole.

    Attributes:
        progress: What the next commit says of the controller; the controller sets it.
        resumed: The committed state that ``load_model`` found; None when the run begins.
        former: Id of the job that this one was cloned from, when it goes on from that one's state.
    """

    def __init__(self) -> None:
        super().__init__()
        self.progress = RunProgress()
        self.resumed: RunState | None = None
        self.former: str | None = None

    def load_model(self, fl_ctx: FLContext) -> ModelLearnable:
        """The state that was committed last, by this job or by the one that it was cloned from.

        Without one the state before round 0, derived from backbone and seed as every site does.

        Raises:
            FedfmsError: FMS-M001, FMS-M002, FMS-M003 for the backbone's file; FMS-J006, FMS-J007 for the committed
                state; FMS-D011.
        """
        contract, store = run_contract(fl_ctx), _store(fl_ctx)
        former = (fl_ctx.get_prop(FLContextKey.JOB_META) or {}).get(JobMetaKey.CLONED_FROM.value)
        if former and store.is_empty:
            before = RunStore(state_folder(fl_ctx, former))
            if before.load(contract) is not None:
                store.take_over(before)
                self.former = former
        self.resumed = store.load(contract)
        if self.resumed is None:
            state = initial_state(contract.job.model, contract.job.seed)
            return with_step(check_tensors(state, contract.schema), {})
        self._restore(self.resumed, fl_ctx)
        return with_step(self.resumed.weights, self.resumed.step)

    def _restore(self, state: RunState, fl_ctx: FLContext) -> None:
        """Make ledger and models those of the commit: what came after it happens again."""
        live = app_folder(fl_ctx) / LEDGER_FILE
        committed = state.ledger.read_bytes()
        if not is_file(live) or not live.read_bytes().startswith(committed):
            with atomic_path(live) as temporary:
                temporary.write_bytes(committed)
        for half in (app_folder(fl_ctx) / "models").rglob(".*.tmp"):
            half.unlink()  # of a server that was killed while it wrote
        self.save_state(state.weights, state.rounds, fl_ctx)
        if state.best is not None and state.progress.best is not None:
            self._save("best", state.best, state.progress.best.rounds, fl_ctx)

    def save_model(self, model: ModelLearnable, fl_ctx: FLContext) -> None:
        """Commit the aggregate of the current round, then write it as ``models/last``."""
        rounds, state = fl_ctx.get_prop(AppConstants.CURRENT_ROUND) + 1, model[ModelLearnableKey.WEIGHTS]
        with public_errors(fl_ctx, "The model could not be saved:"):
            ledger = app_folder(fl_ctx) / LEDGER_FILE
            _store(fl_ctx).commit(run_contract(fl_ctx), rounds, state, step_of(model), self.progress, ledger)
            self.save_state(state, rounds, fl_ctx)

    def forget(self, fl_ctx: FLContext) -> None:
        """Remove what was committed: the run has reached its end."""
        _store(fl_ctx).clear()

    def save_state(self, state: Mapping[str, Tensor], rounds: int, fl_ctx: FLContext) -> None:
        """Write a state that has seen ``rounds`` rounds as ``models/last``.

        Raises:
            FedfmsError: FMS-D011 when it cannot be written; the previous files stay.
        """
        self._save("last", state, rounds, fl_ctx)

    def _save(self, which: str, state: Mapping[str, Tensor], rounds: int, fl_ctx: FLContext) -> None:
        folder = self.folder(which, fl_ctx)
        saved = job_header(run_contract(fl_ctx).job, rounds)
        save_exchange(folder / EXCHANGE, saved, state)
        save_inference(folder / INFERENCE, saved, state)

    def keep_best(self, fl_ctx: FLContext) -> None:
        """Make ``models/last`` the best one.

        Raises:
            FedfmsError: FMS-D011.
        """
        for name in (EXCHANGE, INFERENCE):
            source, target = self.folder("last", fl_ctx) / name, self.folder("best", fl_ctx) / name
            with atomic_path(target) as temporary:
                shutil.copyfile(source, temporary)

    def best(self, fl_ctx: FLContext) -> tuple[dict[str, Tensor], int]:
        """The best state and the number of rounds it has seen.

        Raises:
            FedfmsError: FMS-M003, FMS-M004.
        """
        checkpoint = load_checkpoint(self.folder("best", fl_ctx) / EXCHANGE)
        return check_tensors(checkpoint.tensors, run_contract(fl_ctx).schema), checkpoint.header.rounds

    @staticmethod
    def folder(which: str, fl_ctx: FLContext) -> Path:
        """``models/last`` or ``models/best`` in the downloaded part of the run folder."""
        return app_folder(fl_ctx) / "models" / which


def _store(fl_ctx: FLContext) -> RunStore:
    return RunStore(state_folder(fl_ctx, fl_ctx.get_job_id()))
