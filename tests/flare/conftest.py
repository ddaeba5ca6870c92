"""A job and its contract, and a workspace as FLARE lays it out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from nvflare.apis.fl_constant import FLContextKey, ProcessType
from nvflare.apis.workspace import Workspace
from nvflare.fuel.sec.audit import AuditService

from fedfms.exchange.messages import JobContract
from fedfms.flare.context import run_contract
from fedfms.sam.backbones import published_sha256
from tests.flare.builders import JOB_ID, FakeEngine, MakeEngine, write_application, write_policy


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def job_content() -> dict[str, Any]:
    return {
        "task": "organ-lesion",
        "structures": ["organ", "lesion"],
        "missing_structure": "error",
        "backbone": "vit_test",
        "backbone_sha256": published_sha256("vit_test"),
        "scope": "adapters+decoder",
        "preprocessing": {
            "input_size": 64,
            "intensity": {"rule": "range"},
            "slice_axis": "axial",
        },
        "rounds": 3,
        "min_clients": 2,
        "straggler_minutes": 0,
        "local_work": {"steps": 2},
        "batch_size": 2,
        "learning_rate": 1e-3,
        "weight_decay": 0.0,
        "warmup": 0.0,
        "gradient_clip": 1.0,
        "server_momentum": 0.0,
        "augmentation": {"variants": 1},
        "update_norm_limit": 100.0,
        "precision": "fp32",
        "seed": 0,
    }


@pytest.fixture
def make_engine(tmp_path: Path, job_content: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> MakeEngine:
    """Make the engine of a site (or of the server) whose workspace holds the job."""
    audit: list[str] = []
    monkeypatch.setattr(AuditService, "add_job_event", lambda **arguments: audit.append(arguments["msg"]))

    def make(site: str = "site-1", *, server: bool = False, simulated: bool = True, **changes: Any) -> FakeEngine:
        root = tmp_path / site
        for folder in ("startup", "local"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        write_application(root / JOB_ID / f"app_{site}", {**job_content, **changes})
        if not simulated:
            write_policy(root)
        return FakeEngine(
            workspace=Workspace(str(root), site),
            identity=site,
            process_type=ProcessType.SERVER_JOB if server else ProcessType.CLIENT_JOB,
            private={FLContextKey.SIMULATE_MODE: simulated},
            audit=audit,
        )

    return make


@pytest.fixture
def contract(make_engine: MakeEngine) -> JobContract:
    return run_contract(make_engine("contract").new_context())
