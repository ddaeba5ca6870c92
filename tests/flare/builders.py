"""Messages, and just enough of FLARE's engine to call the components directly."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext, FLContextManager
from nvflare.apis.workspace import Workspace

from fedfms.exchange import messages
from fedfms.exchange.messages import JobContract, Update
from fedfms.exchange.replies import FIGURES, TrainReport
from fedfms.sam.backbones import published_sha256

JOB_ID = "job"
PROJECT = Path(__file__).parents[2]


def policy_content(**changes: Any) -> dict[str, Any]:
    """A policy of a real site that the job of the tests agrees with."""
    content: dict[str, Any] = {
        "scopes": ["adapters+decoder", "decoder"],
        "backbones": [published_sha256("vit_test")],
        "update_norm_limit": 100.0,
        "min_training_cases": 3,
        "min_slices_per_update": 4,
        "metrics": {"allowed": list(FIGURES), "min_slices": 1},
        "max_rounds": 10,
        "max_hours": 1.0,
        "review": {"rule": "not_required", "hold_minutes": 0, "valid_days": 30},
    }
    return {**content, **changes}


def write_policy(kit: str | Path, **changes: Any) -> Path:
    """``local/policy.yaml`` of a site."""
    path = Path(kit) / "local" / "policy.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(policy_content(**changes)))
    return path


def write_application(folder: Path, job: dict[str, Any]) -> Path:
    """The application of the project's own job with another ``training.yaml``."""
    config = folder / "config"
    config.mkdir(parents=True, exist_ok=True)
    for name in ("config_fed_client.json", "config_fed_server.json"):
        shutil.copyfile(PROJECT / "jobs" / "fedmsa" / "app" / "config" / name, config / name)
    (config / "training.yaml").write_text(yaml.safe_dump(job))
    return folder


@dataclass
class FakeEngine:
    """The part of FLARE's engine that the components use."""

    workspace: Workspace
    identity: str
    process_type: str
    components: dict[str, Any] = field(default_factory=dict)
    events: list[tuple[str, Any]] = field(default_factory=list)
    private: dict[str, Any] = field(default_factory=dict)
    audit: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._manager = FLContextManager(
            engine=self,
            identity_name=self.identity,
            job_id=JOB_ID,
            private_stickers={FLContextKey.PROCESS_TYPE: self.process_type, **self.private},
        )

    def new_context(self) -> FLContext:
        return self._manager.new_context()

    def get_workspace(self) -> Workspace:
        return self.workspace

    def get_component(self, identifier: str) -> Any:
        return self.components.get(identifier)

    def fire_event(self, event_type: str, fl_ctx: FLContext) -> None:
        self.events.append((event_type, fl_ctx.get_prop(FLContextKey.EVENT_DATA)))


MakeEngine = Callable[..., FakeEngine]


def make_tensors(contract: JobContract, seed: int = 0, scale: float = 1e-3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {spec.name: scale * torch.randn(spec.shape, generator=generator) for spec in contract.schema.tensors}


def make_update(
    contract: JobContract,
    site: str = "site-1",
    *,
    round_number: int = 0,
    seed: int = 0,
    cases: dict[str, int] | None = None,
) -> Update:
    return Update(
        **contract.digests,  # type: ignore[arg-type]
        round=round_number,
        site=site,
        cases=cases or {"organ": 5, "lesion": 3},
        tensors=make_tensors(contract, seed),
    )


def train_report(**changes: Any) -> TrainReport:
    scores = {"organ": {"dice": 0.5, "iou": 0.4, "n": 7}, "lesion": {"dice": None, "iou": None, "n": 0}}
    content = {
        "steps": 2,
        "training_seconds": 1.0,
        "seconds": 1.5,
        "loss": 0.7,
        "learning_rate": 1e-3,
        "peak_memory_bytes": 10**8,
        "received": scores,
        "local": scores,
        **changes,
    }
    return TrainReport.model_validate(content)


def train_message(contract: JobContract, site: str = "site-1", round_number: int = 0, seed: int = 0) -> dict[str, Any]:
    update = make_update(contract, site, round_number=round_number, seed=seed)
    reply = messages.Reply("train", site, round_number, train_report(), update)
    return messages.reply_message(reply, contract)
