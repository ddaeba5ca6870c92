"""The job folders are valid, say nothing twice, load nothing that the list does not name, and are explained."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from nvflare.apis.shareable import Shareable
from nvflare.app_common.widgets.component_path_authorizer import ComponentPathAuthorizer
from nvflare.fuel.utils import fobs

from fedfms.exchange.messages import JobContract, Task, reply_message, task_message
from fedfms.exchange.replies import KINDS
from fedfms.flare.messages import register_types, serialized_bytes, to_shareable
from fedfms.job.training import TrainingJob, load_job
from fedfms.sam.model import schema_of
from fedfms.site.allowed_classes import SERVER_CLASSES, SITE_CLASSES
from tests.flare.builders import train_report

PROJECT = Path(__file__).parents[2]
LOCAL = PROJECT / "simulator_workspace" / "local"
JOBS = ["fedmsa", "fedsam"]


def config(job: str, name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((PROJECT / "jobs" / job / "app" / "config" / name).read_text())
    return content


def training(job: str) -> TrainingJob:
    return load_job(PROJECT / "jobs" / job / "app" / "config" / "training.yaml")


def paths(value: object) -> Iterator[str]:
    """Every class that a configuration names."""
    if isinstance(value, dict):
        if isinstance(value.get("path"), str):
            yield value["path"]
        for item in value.values():
            yield from paths(item)
    elif isinstance(value, list):
        for item in value:
            yield from paths(item)


@pytest.mark.parametrize("job", JOBS)
def test_a_job_is_valid_and_brings_no_code(job: str) -> None:
    assert training(job).backbone == "vit_t"
    files = {path.relative_to(PROJECT / "jobs" / job).as_posix() for path in (PROJECT / "jobs" / job).rglob("*.*")}
    assert files == {
        "meta.json",
        "app/config/config_fed_client.json",
        "app/config/config_fed_server.json",
        "app/config/training.yaml",
    }


@pytest.mark.parametrize("job", JOBS)
def test_the_json_files_repeat_nothing_of_training_yaml(job: str) -> None:
    for name in ("config_fed_client.json", "config_fed_server.json"):
        text = json.dumps(config(job, name))
        assert not [key for key in TrainingJob.model_fields if f'"{key}"' in text]


@pytest.mark.parametrize("job", JOBS)
def test_executor_and_filter_serve_every_task(job: str) -> None:
    content = config(job, "config_fed_client.json")
    assert content["executors"][0]["tasks"] == list(KINDS) == content["task_result_filters"][0]["tasks"]
    assert min(content["get_task_timeout"], content["submit_task_result_timeout"]) >= 600


def test_the_list_names_exactly_the_classes_of_the_jobs() -> None:
    listed = json.loads((LOCAL / "resources.json").read_text())["class_allow_list"]
    sides = {"config_fed_client.json": SITE_CLASSES, "config_fed_server.json": SERVER_CLASSES}
    for name, classes in sides.items():
        used = {path for job in JOBS for path in paths(config(job, name))}
        assert set(classes) == used and len(classes) == len(used)
    # The simulator's file serves server and sites.
    assert sorted(listed) == sorted((*SITE_CLASSES, *SERVER_CLASSES))
    assert not [path for path in listed if path.endswith(".") or path == "*"], "prefixes admit more than is meant"
    for path in listed:
        module, name = path.rsplit(".", 1)
        assert isinstance(getattr(importlib.import_module(module), name), type)


def test_flare_reads_the_list_as_meant() -> None:
    authorizer = ComponentPathAuthorizer()
    allowed, mode, uses_default = authorizer._get_policy_from_file(str(LOCAL / "resources.json"))
    assert (mode.value, uses_default) == ("enforce", False)
    assert not any(authorizer._path_matches_prefix("fedfms.flare.gates.ExitGate", prefix) for prefix in allowed)


def test_the_simulators_local_folder_needs_nothing_done_by_the_user() -> None:
    assert {path.name for path in LOCAL.iterdir()} == {"policy.yaml", "privacy.json", "resources.json"}
    ignored = (PROJECT / ".gitignore").read_text().splitlines()
    assert "!/simulator_workspace/local/" in ignored


def test_the_readme_explains_every_value() -> None:
    text = (PROJECT / "jobs" / "README.md").read_text()
    explained = set(re.findall(r"`([a-z0-9_]+)`", text))

    def keys(model: Any) -> Iterator[str]:
        for name, item in model.model_fields.items():
            yield name
            if hasattr(item.annotation, "model_fields"):
                yield from keys(item.annotation)

    missing = set(keys(TrainingJob)) - explained
    assert not missing, f"jobs/README.md does not explain {sorted(missing)}"
    rows = set(re.findall(r"^\| `([a-z0-9_]+)` \|", text, re.MULTILINE))
    assert set(TrainingJob.model_fields) <= rows | {"fedmsa", "fedsam"}


@pytest.mark.parametrize("job", JOBS)
def test_no_message_is_larger_than_its_tensors_by_more_than_two_percent(job: str) -> None:
    register_types()
    content = training(job)
    contract = JobContract(content, schema_of(content.model))
    state = {spec.name: torch.zeros(spec.shape) for spec in contract.schema.tensors}
    task = task_message(Task("train", 0, state), contract)
    scores = {name: {"dice": 0.123456, "iou": 0.123456, "n": 1000} for name in content.structures}
    report = train_report(received=scores, local=scores)
    reply = {
        **task_message(Task("ready", 0, None), contract),
        "kind": "train",
        "site": "a-hospital-with-a-long-name",
        "report": report.model_dump(mode="json"),
        "update": {"encoding": "fp32-difference", "cases": {"organ": 9, "lesion": 9}, "tensors": state},
    }
    for message in (task, reply):
        real = len(fobs.dumps(to_shareable(message)))
        assert contract.schema.bytes < real < 1.02 * contract.schema.bytes
        assert serialized_bytes(message) == pytest.approx(real, rel=1e-4)


def test_nothing_but_the_flare_folder_imports_flare() -> None:
    package = PROJECT / "app" / "fedfms"
    outside = [path for path in package.rglob("*.py") if path.parent != package / "flare"]
    found = [path.name for path in outside if re.search(r"^\s*(from|import) nvflare", path.read_text(), re.MULTILINE)]
    assert not found
    assert reply_message.__module__ in sys.modules


def test_measuring_a_message_leaves_fobs_able_to_carry_tensors_and_what_flare_sends(tmp_path: Path) -> None:
    """In a process of its own: what FOBS does with a type is decided by the first one it meets."""
    register_types()
    (tmp_path / "sent").write_bytes(fobs.dumps(Shareable({"certificate": b"PEM"})))
    code = (
        "import sys; from pathlib import Path; import torch; from nvflare.fuel.utils import fobs\n"
        "from fedfms.flare.messages import serialized_bytes, to_shareable\n"
        "message = {'tensors': {'t': torch.ones(3)}}\n"
        "serialized_bytes(message)\n"
        "back = fobs.loads(fobs.dumps(to_shareable(message)))\n"
        "print(back['fedfms']['tensors']['t'].tolist(), fobs.loads(Path(sys.argv[1]).read_bytes())['certificate'])"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "sent")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert result.stdout.strip() == "[1.0, 1.0, 1.0] b'PEM'"
