"""The server's record of a run: one JSON object per line, in the downloaded part of the run folder."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any

from nvflare.apis.analytix import AnalyticsDataType
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_context import FLContext
from nvflare.apis.utils.analytix_utils import create_analytic_dxo, send_analytic_dxo

from fedfms.errors import LEDGER_DAMAGED
from fedfms.exchange.replies import LEDGER_FILE
from fedfms.flare.context import app_folder, public_errors
from fedfms.site.records import append_line, read_lines


class Ledger(FLComponent):
    """Writes ``ledger.jsonl`` and passes the same figures to FLARE's TensorBoard receiver.

    Each line names the SHA-256 of the line before it, as in a site's record (`fedfms.site.records`).

    The scalars are sent from here and not from the sites: what a site reports has passed its gates as the reply to
    a task, so a second stream that the gates do not see is not needed.

    Lines have ``event`` (``start``, ``ready``, ``update``, ``excluded``, ``round``, ``validate``, ``choice``, ``final``
    or ``stop``) and ``time`` (seconds since 1970); the other fields depend on the event.
    """

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self.register_event_handler(EventType.START_RUN, self._on_start)

    def _on_start(self, event_type: str, fl_ctx: FLContext) -> None:
        with public_errors(fl_ctx, "The ledger cannot be written:"):
            self.write(fl_ctx, "start")

    def has_begun(self, fl_ctx: FLContext) -> bool:
        """Whether an earlier process of this job has written more than that it started.

        Raises:
            FedfmsError: FMS-R003 when the ledger is damaged.
        """
        return any(line["event"] != "start" for line in read_lines(app_folder(fl_ctx) / LEDGER_FILE, LEDGER_DAMAGED))

    def write(self, fl_ctx: FLContext, event: str, **fields: Any) -> None:
        """Append one line and sync it to the disk.

        Raises:
            FedfmsError: FMS-D011.
        """
        with self._lock:
            line = {"event": event, "time": round(time.time(), 3), **fields}
            append_line(app_folder(fl_ctx) / LEDGER_FILE, line)

    def scalars(self, fl_ctx: FLContext, values: Mapping[str, float | None], step: int) -> None:
        """Send figures to the TensorBoard receiver of the server; None (not estimable) is left out."""
        with fl_ctx.get_engine().new_context() as own:
            for tag, value in values.items():
                if value is not None:
                    dxo = create_analytic_dxo(tag, float(value), AnalyticsDataType.SCALAR, global_step=step)
                    send_analytic_dxo(self, dxo, own)
