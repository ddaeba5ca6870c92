"""The server's state: exactly the exchanged tensors, on disk as checkpoints after every round."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from nvflare.apis.fl_context import FLContext
from nvflare.app_common.abstract.model import ModelLearnable, ModelLearnableKey, make_model_learnable
from nvflare.app_common.abstract.model_persistor import ModelPersistor
from nvflare.app_common.app_constant import AppConstants
from torch import Tensor

from fedfms.exchange.state import check_tensors
from fedfms.files import atomic_path
from fedfms.flare.context import app_folder, public_errors, run_contract
from fedfms.sam.checkpoint import load_checkpoint, save_exchange, save_inference
from fedfms.sam.model import initial_state
from fedfms.training.headers import job_header

EXCHANGE = "exchange.safetensors"
INFERENCE = "model.safetensors"


class FedfmsPersistor(ModelPersistor):
    """Keeps two models in the job's result: ``models/last`` and ``models/best``.

    Each is an ``exchange.safetensors`` (what travels) and a self-contained ``model.safetensors`` for
    inference. Every file is replaced as a whole.
    """

    def load_model(self, fl_ctx: FLContext) -> ModelLearnable:
        """The state before round 0, derived from backbone and seed as every site does.

        Raises:
            FedfmsError: FMS-M001, FMS-M002, FMS-M003 for the backbone's file.
        """
        contract = run_contract(fl_ctx)
        state = initial_state(contract.job.model, contract.job.seed)
        return make_model_learnable(check_tensors(state, contract.schema), {})

    def save_model(self, model: ModelLearnable, fl_ctx: FLContext) -> None:
        """Write the aggregate of the current round as ``models/last``."""
        with public_errors(fl_ctx, "The model could not be saved:"):
            self.save_state(model[ModelLearnableKey.WEIGHTS], fl_ctx.get_prop(AppConstants.CURRENT_ROUND) + 1, fl_ctx)

    def save_state(self, state: Mapping[str, Tensor], rounds: int, fl_ctx: FLContext) -> None:
        """Write a state that has seen ``rounds`` rounds as ``models/last``.

        Raises:
            FedfmsError: FMS-D011 when it cannot be written; the previous files stay.
        """
        folder = self.folder("last", fl_ctx)
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
