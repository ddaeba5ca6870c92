"""A site that the server refuses says so once, with what to do, and notes it for the doctor."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.workspace import Workspace
from nvflare.fuel.f3.cellnet.core_cell import CoreCell
from nvflare.fuel.f3.cellnet.defs import CellChannel, CellChannelTopic, MessageHeaderKey, ReturnCode
from nvflare.fuel.f3.cellnet.registry import Registry
from nvflare.fuel.f3.message import Message
from nvflare.private.fed.client.client_req_processors import ClientRequestProcessors
from nvflare.private.fed.client.communicator import Communicator

from fedfms.flare.commands import CommandGate
from fedfms.site.admittance import read_refusal
from fedfms.site.kit import exposed_files

_REPEATED = logging.getLogger(f"{Communicator.__module__}.{Communicator.__qualname__}")


def answer(code: str, topic: str, *, channel: str = CellChannel.SERVER_MAIN, error: str = "") -> Message:
    headers = {MessageHeaderKey.CHANNEL: channel, MessageHeaderKey.TOPIC: topic, MessageHeaderKey.RETURN_CODE: code}
    return Message({**headers, MessageHeaderKey.ERROR: error}, None)


class Site:
    """The parent process of a site, as far as the gate sees it."""

    def __init__(self, kit: Path) -> None:
        self.kit = kit
        for name in ("startup", "local"):
            (kit / name).mkdir()
        # FLARE's own way to keep and find filters, without a network.
        self.core = SimpleNamespace(in_reply_filter_reg=Registry())
        self.core.add_incoming_reply_filter = lambda **given: CoreCell.add_incoming_reply_filter(self.core, **given)
        cell = SimpleNamespace(core_cell=self.core)
        fl_ctx = FLContext()
        fl_ctx.set_prop(FLContextKey.WORKSPACE_OBJECT, Workspace(str(kit), "hospital-a"), private=True)
        fl_ctx.get_engine = lambda: SimpleNamespace(get_cell=lambda: cell)
        self.flares_own: list[Message] = []
        self.core.add_incoming_reply_filter(channel="*", topic="*", cb=self.flares_own.append)
        for handler, arguments in CommandGate().get_event_handlers()[EventType.SYSTEM_BOOTSTRAP]:
            handler(EventType.SYSTEM_BOOTSTRAP, fl_ctx, **arguments)

    def gets(self, code: str, topic: str = CellChannelTopic.HEART_BEAT, **more: Any) -> None:
        message = answer(code, topic, **more)
        channel = message.get_header(MessageHeaderKey.CHANNEL)
        for entry in self.core.in_reply_filter_reg.find(channel, topic):
            entry.cb(message, *entry.args, **entry.kwargs)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    own = list(ClientRequestProcessors.request_processors)
    monkeypatch.setattr(ClientRequestProcessors, "request_processors", own)
    before = list(_REPEATED.filters)
    yield Site(tmp_path)
    _REPEATED.filters[:] = before


def test_a_refusal_is_said_once_with_the_remedy_and_noted(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for _ in range(3):
        site.gets(ReturnCode.UNAUTHENTICATED, error="Client 'hospital-a' is disabled\n")
        _REPEATED.info("Failed to send heartbeat. Will try again. Exception: %s", "x")
    (line,) = (record.getMessage() for record in caplog.records if record.levelno == logging.ERROR)
    assert line.startswith("FMS-H028 the server refuses this site: Client 'hospital-a' is disabled? -> Ask the coord")
    assert "Failed to send heartbeat" not in caplog.text
    refusal = read_refusal(site.kit)
    assert refusal is not None and refusal.reason == "Client 'hospital-a' is disabled?"
    assert exposed_files(site.kit / "refused.json") == []
    site.gets(ReturnCode.UNAUTHENTICATED, CellChannelTopic.Register, error="Maximum number of clients reached")
    assert "Maximum number" in caplog.text, "another reason is news"


def test_an_admitted_site_forgets_it(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    site.gets(ReturnCode.UNAUTHENTICATED, error="disabled")
    site.gets(ReturnCode.OK)
    site.gets(ReturnCode.OK)
    assert read_refusal(site.kit) is None and caplog.text.count("admits this site again") == 1
    _REPEATED.info("Failed to send heartbeat. Will try again. Exception: %s", "timeout")
    assert "Exception: timeout" in caplog.text, "a server that does not answer is another matter"


@pytest.mark.parametrize(
    ("code", "topic", "channel"),
    [
        (ReturnCode.TIMEOUT, CellChannelTopic.HEART_BEAT, CellChannel.SERVER_MAIN),
        (ReturnCode.UNAUTHENTICATED, CellChannelTopic.GET_TASK, CellChannel.SERVER_MAIN),
        (ReturnCode.UNAUTHENTICATED, CellChannelTopic.HEART_BEAT, "another"),
    ],
)
def test_other_answers_are_no_refusal(code: str, topic: str, channel: str, site: Site) -> None:
    site.gets(code, topic, channel=channel, error="x")
    assert read_refusal(site.kit) is None


def test_flares_own_filters_still_see_every_answer(site: Site) -> None:
    site.gets(ReturnCode.OK)
    site.gets(ReturnCode.OK, "anything", channel="another")
    assert len(site.flares_own) == 2
