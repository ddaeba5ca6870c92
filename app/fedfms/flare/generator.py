"""Converts between the server's state and the messages of the exchange."""

from __future__ import annotations

from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.app_common.abstract.model import ModelLearnable, ModelLearnableKey, make_model_learnable
from nvflare.app_common.abstract.shareable_generator import ShareableGenerator
from nvflare.app_common.app_constant import AppConstants
from torch import Tensor

from fedfms.exchange.messages import Task, task_message
from fedfms.flare.aggregator import DIFFERENCE
from fedfms.flare.context import run_contract
from fedfms.flare.messages import MESSAGE, to_shareable


class ExchangeGenerator(ShareableGenerator):
    """Replaces FLARE's own generator, which uses DXO: its free ``meta`` has no place in a closed message.

    The server moves its state by the mean of the updates and a part of its last step: FedAvgM (Hsu, Qi and Brown 2019,
    section 4); with ``server_momentum: 0`` that is FedAvg.
    """

    def __init__(self) -> None:
        super().__init__()
        self._step: dict[str, Tensor] = {}

    def learnable_to_shareable(self, model_learnable: ModelLearnable, fl_ctx: FLContext) -> Shareable:
        """The task ``train`` of the current round."""
        task = Task("train", fl_ctx.get_prop(AppConstants.CURRENT_ROUND), model_learnable[ModelLearnableKey.WEIGHTS])
        return to_shareable(task_message(task, run_contract(fl_ctx)))

    def shareable_to_learnable(self, shareable: Shareable, fl_ctx: FLContext) -> ModelLearnable:
        """The state after a round, as new tensors: a late download may still read the old ones."""
        state = fl_ctx.get_prop(AppConstants.GLOBAL_MODEL)[ModelLearnableKey.WEIGHTS]
        momentum, last = run_contract(fl_ctx).job.server_momentum, self._step
        difference = shareable[MESSAGE][DIFFERENCE]
        self._step = {name: difference[name] + momentum * last[name] if last else difference[name] for name in state}
        return make_model_learnable({name: state[name] + step for name, step in self._step.items()}, {})
