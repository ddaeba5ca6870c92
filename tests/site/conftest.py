"""A kit of a site and a job folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.flare.builders import write_application, write_policy
from tests.integration.simulation import tiny_job


@pytest.fixture
def job_content() -> dict[str, Any]:
    return tiny_job()


@pytest.fixture
def job_folder(tmp_path: Path, job_content: dict[str, Any]) -> Path:
    """A job folder as ``fedfms job new`` writes one."""
    folder = tmp_path / "mine"
    write_application(folder / "app", job_content)
    meta = {"name": "mine", "deploy_map": {"app": ["@ALL"]}, "resource_spec": {}}
    (folder / "meta.json").write_text(json.dumps(meta))
    return folder


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    """The kit of a real site whose policy agrees with the job."""
    folder = tmp_path / "hospital-a"
    (folder / "startup").mkdir(parents=True)
    write_policy(folder, review={"rule": "required", "hold_minutes": 0, "valid_days": 30})
    return folder
