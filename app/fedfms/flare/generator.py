"""Converts between the server's state and the messages of the exchange."""

from __future__ import annotations

from collections.abc import Mapping

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

_STEP = "step"


class ExchangeGenerator(ShareableGenerator):
    """Replaces FLARE's own generator, which uses DXO: its free ``meta`` has no place in a closed message.

    The server moves its state by the mean of the updates and a part of its last step: FedAvgM (Hsu, Qi and Brown 2019,
    section 4); with ``server_momentum: 0`` that is FedAvg. The step is kept with the state, so that both are saved.
    """

    def learnable_to_shareable(self, model_learnable: ModelLearnable, fl_ctx: FLContext) -> Shareable:
        """The task ``train`` of the current round."""
        task = Task("train", fl_ctx.get_prop(AppConstants.CURRENT_ROUND), model_learnable[ModelLearnableKey.WEIGHTS])
        return to_shareable(task_message(task, run_contract(fl_ctx)))

    def shareable_to_learnable(self, shareable: Shareable, fl_ctx: FLContext) -> ModelLearnable:
        """The state after a round, as new tensors: a late download may still read the old ones."""
        model = fl_ctx.get_prop(AppConstants.GLOBAL_MODEL)
        state, last = model[ModelLearnableKey.WEIGHTS], step_of(model)
        momentum, difference = run_contract(fl_ctx).job.server_momentum, shareable[MESSAGE][DIFFERENCE]
        step = {name: difference[name] + momentum * last[name] if last else difference[name] for name in state}
        return with_step({name: state[name] + step[name] for name in state}, step)


def with_step(state: Mapping[str, Tensor], step: Mapping[str, Tensor]) -> ModelLearnable:
    """A state and the server optimizer's last step, as FLARE passes them around."""
    return make_model_learnable(dict(state), {_STEP: dict(step)})


def step_of(model: ModelLearnable) -> dict[str, Tensor]:
    """The server optimizer's last step; empty before the first."""
    step: dict[str, Tensor] = model[ModelLearnableKey.META].get(_STEP, {})
    return step
