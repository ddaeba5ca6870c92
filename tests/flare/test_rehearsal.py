"""The rehearsal tells closed gates from open ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from fedfms.errors import FedfmsError
from fedfms.flare.rehearsal import rehearse
from tests.flare.builders import PROJECT, write_application, write_policy


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    folder = tmp_path / "hospital-a"
    write_policy(folder, review={"rule": "required", "hold_minutes": 0, "valid_days": 1})
    shutil.copyfile(PROJECT / "simulator_workspace" / "local" / "privacy.json", folder / "local" / "privacy.json")
    return folder


@pytest.fixture
def application(tmp_path: Path, job_content: dict[str, object]) -> Path:
    return write_application(tmp_path / "app", job_content)


def test_an_active_gate_lets_out_what_was_agreed_and_nothing_else(
    kit: Path, application: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(kit.rglob("*"))
    attempts = rehearse(kit, application)
    assert [attempt.left for attempt in attempts] == [True, *[False] * 7]
    assert all(attempt.as_expected for attempt in attempts)
    assert [attempt.ids for attempt in attempts[1:4]] == [
        ("FMS-X009", "FMS-X001"),
        ("FMS-X009", "FMS-X003"),
        ("FMS-X009", "FMS-X002"),
    ]
    assert sorted(kit.rglob("*")) == before, "the kit is only read"
    assert not capsys.readouterr().err


def test_a_policy_that_forbids_the_job_lets_nothing_out(kit: Path, application: Path) -> None:
    write_policy(kit, scopes=["decoder"])
    attempts = rehearse(kit, application)
    assert not any(attempt.left for attempt in attempts) and all(attempt.as_expected for attempt in attempts)


@pytest.mark.parametrize("fault", ["no file", "no scope", "no component"])
def test_a_gate_that_is_not_there_is_found(fault: str, kit: Path, application: Path) -> None:
    path = kit / "local" / "privacy.json"
    content = json.loads(path.read_text())
    if fault == "no file":
        path.unlink()
    else:
        content["scopes" if fault == "no scope" else "components"] = []
        if fault == "no scope":
            del content["default_scope"]
        path.write_text(json.dumps(content))
    attempts = rehearse(kit, application)
    assert all(attempt.left for attempt in attempts)
    assert [attempt.as_expected for attempt in attempts] == [True, *[False] * 7]


def test_a_kit_without_a_policy_is_an_error(kit: Path, application: Path) -> None:
    (kit / "local" / "policy.yaml").unlink()
    with pytest.raises(FedfmsError, match="FMS-S001"):
        rehearse(kit, application)
