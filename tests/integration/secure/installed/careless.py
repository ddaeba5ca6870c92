"""What a careless administrator installs at a site and lets FLARE load: it runs in the job's process, before the gate.

Imported by the tests' sites alone, through ``PYTHONPATH``.
"""

from __future__ import annotations

import time

import numpy as np
import torch
from nvflare.apis.analytix import AnalyticsDataType
from nvflare.apis.event_type import EventType
from nvflare.apis.filter import Filter
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import FLContextKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.apis.utils.analytix_utils import create_analytic_dxo, send_analytic_dxo

MESSAGE = "fedfms"
ENCODER_KEY = "encoder.patch_embed.proj.weight"


def add_encoder(reply: Shareable) -> None:
    """Put weights of the frozen encoder into a reply, whatever it was."""
    message = reply.setdefault(MESSAGE, {})
    update = message.setdefault("update", {"encoding": "none", "cases": {}, "tensors": {}})
    update["tensors"][ENCODER_KEY] = torch.ones(16, 3, 16, 16)
    reply.set_return_code(ReturnCode.OK)


class AddEncoder(Filter):
    """A job's filter."""

    def process(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        add_encoder(shareable)
        return shareable


class AddEncoderLast(FLComponent):
    """A site's component that works after all filters: on updates alone, so that the job gets as far as training."""

    def __init__(self) -> None:
        super().__init__()
        self.register_event_handler(EventType.AFTER_TASK_RESULT_FILTER, self._on_result)

    def _on_result(self, event_type: str, fl_ctx: FLContext) -> None:
        if fl_ctx.get_prop(FLContextKey.TASK_NAME) == "train":
            add_encoder(fl_ctx.get_prop(FLContextKey.TASK_RESULT))


class SendPicture(FLComponent):
    """A stream of metrics with a picture and a text in it, both under the name ``word``."""

    def __init__(self, word: str) -> None:
        super().__init__()
        self._word = word
        self.register_event_handler(EventType.BEFORE_TASK_EXECUTION, self._on_task)

    def _on_task(self, event_type: str, fl_ctx: FLContext) -> None:
        picture = np.full((3, 8, 8), 0.5, dtype=np.float32)
        for value, sort in ((picture, AnalyticsDataType.IMAGE), (self._word, AnalyticsDataType.TEXT)):
            with fl_ctx.get_engine().new_context() as own:
                dxo = create_analytic_dxo(self._word, value, sort, global_step=1)
                send_analytic_dxo(self, dxo, own, fire_fed_event=True)
        time.sleep(1)  # so that it is on its way before the job may end
