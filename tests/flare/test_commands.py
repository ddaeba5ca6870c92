"""A site answers only the commands that a job needs, whatever the server says about who asks."""

from __future__ import annotations

import json

import pytest
from nvflare.private.defs import SysCommandTopic, TrainingTopic
from nvflare.private.fed.client.client_req_processors import ClientRequestProcessors

from fedfms.flare.commands import ANSWERED, CommandGate
from fedfms.provision.overlay import template


@pytest.fixture(autouse=True)
def own_list(monkeypatch: pytest.MonkeyPatch) -> None:
    """FLARE's list is the process's own."""
    monkeypatch.setattr(ClientRequestProcessors, "request_processors", list(ClientRequestProcessors.request_processors))


def topics() -> set[str]:
    return {topic for item in ClientRequestProcessors.request_processors for topic in item.get_topics()}


def test_flare_itself_would_answer_more() -> None:
    refused = {
        SysCommandTopic.SHELL, SysCommandTopic.SYS_INFO, SysCommandTopic.REPORT_RESOURCES, SysCommandTopic.REPORT_ENV,
        SysCommandTopic.CONFIGURE_SITE_LOG, TrainingTopic.CONFIGURE_JOB_LOG,
        "info.show_stats", "info.show_errors", "info.reset_errors",
    }  # fmt: skip
    assert topics() - ANSWERED == refused, "FLARE has changed: decide about what is new"


def test_the_gate_leaves_what_a_job_needs_in_the_list_that_flare_holds() -> None:
    held = ClientRequestProcessors.request_processors
    CommandGate()
    assert ClientRequestProcessors.request_processors is held
    assert topics() == ANSWERED
    CommandGate()
    assert topics() == ANSWERED


def test_another_flare_is_refused() -> None:
    ClientRequestProcessors.request_processors[:] = ClientRequestProcessors.request_processors[3:]
    with pytest.raises(RuntimeError, match=r"train\.check_status"):
        CommandGate()


def test_every_sites_kit_has_the_gate() -> None:
    paths = [component["path"] for component in json.loads(template("site_resources.json"))["components"]]
    assert f"{CommandGate.__module__}.{CommandGate.__name__}" in paths
