"""Says once, and with what to do, that the server refuses this site: FLARE repeats a bare line every five seconds."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from nvflare.fuel.f3.cellnet.defs import CellChannel, CellChannelTopic, MessageHeaderKey, ReturnCode
from nvflare.private.fed.client.communicator import Communicator

from fedfms.configuration import printable
from fedfms.errors import SITE_REFUSED
from fedfms.site.admittance import forget_refusal, note_refusal

_log = logging.getLogger(__name__)
_ASKED = (CellChannelTopic.Register, CellChannelTopic.HEART_BEAT)
#: How FLARE's line begins that it writes for each heartbeat that was refused or got no answer.
_REPEATED = "Failed to send heartbeat"


class ServerAnswers:
    """Looks at the server's answers to this site's registration and heartbeats.

    Args:
        kit: The site's kit, in which a refusal is noted for the doctor.
    """

    def __init__(self, kit: Path) -> None:
        self._kit = kit
        self._reason: str | None = None

    def watch(self, cell: Any) -> None:
        """Look at every answer from now on, and leave out FLARE's repeated line while the site is refused."""
        # Among the filters for all channels: one for this channel alone would take the place of FLARE's own.
        cell.core_cell.add_incoming_reply_filter(channel="*", topic="*", cb=self.look)
        logging.getLogger(f"{Communicator.__module__}.{Communicator.__qualname__}").addFilter(self._worth_a_line)

    def look(self, message: Any) -> None:
        """Note a refusal that is new, and that the site is admitted again."""
        if message.get_header(MessageHeaderKey.CHANNEL) != CellChannel.SERVER_MAIN:
            return
        if message.get_header(MessageHeaderKey.TOPIC) not in _ASKED:
            return
        code = message.get_header(MessageHeaderKey.RETURN_CODE)
        if code == ReturnCode.UNAUTHENTICATED:
            reason = printable(str(message.get_header(MessageHeaderKey.ERROR) or "without a reason"))
            if reason != self._reason:
                self._reason = reason
                note_refusal(self._kit, reason)
                _log.error("%s %s: %s -> %s", SITE_REFUSED.id, SITE_REFUSED.title, reason, SITE_REFUSED.remedy)
        elif code == ReturnCode.OK:
            if self._reason is not None:
                _log.warning("the server admits this site again")
            self._reason = None
            forget_refusal(self._kit)

    def _worth_a_line(self, record: logging.LogRecord) -> bool:
        return self._reason is None or not str(record.msg).startswith(_REPEATED)
