"""A site's kit with a filled-in site.yaml, and a small job."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedfms.doctor.checkup import CHECKS
from fedfms.doctor.examination import Examination
from fedfms.doctor.result import Result
from fedfms.errors import ErrorKind
from fedfms.site.kit import open_kit
from tests.flare.builders import write_application, write_policy
from tests.integration.simulation import tiny_job, write_site
from tests.provision.conftest import Central, central, shared_central

__all__ = ["Central", "central", "shared_central"]

#: Names of patients and files that no line may show.
SECRET = "patient-4711"


@dataclass
class Patient:
    """What the doctor is shown."""

    kit: Path

    def lines(self, kind: ErrorKind, **options: Any) -> list[Result]:
        """What one check says."""
        examination = Examination(open_kit(self.kit), **{"patience": 0.0, **options})
        checks = [check for check in CHECKS[examination.kit.kind] if check.kind is kind]
        assert len(checks) == 1
        return checks[0](examination)

    def line(self, kind: ErrorKind, **options: Any) -> Result:
        (found,) = self.lines(kind, **options)
        assert found.kind is kind and bool(found.remedy) == (found.severity != "PASS")
        return found

    def write_json(self, name: str, change: Callable[[dict[str, Any]], None]) -> None:
        path = self.kit / name
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))


def prepare(kit: Path, folder: Path) -> Patient:
    """Give a site's kit data and a policy that fits the tiny job."""
    content = yaml.safe_load(write_site(folder, SECRET, seed=1).read_text())
    content["datasets"][0]["root"] = str(folder / SECRET)
    (kit / "local" / "site.yaml").write_text(yaml.safe_dump(content))
    write_policy(kit, min_training_cases=2)
    return Patient(kit)


@pytest.fixture
def site(central: Central, tmp_path: Path) -> Patient:
    """Hospital a, ready to start."""
    return prepare(central.kits / "hospital-a", tmp_path / "data")


@pytest.fixture
def server(central: Central) -> Patient:
    return Patient(central.kits / "localhost")


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A job folder that the site's policy agrees with."""
    return write_job(tmp_path / "job")


def write_job(folder: Path, **changes: Any) -> Path:
    write_application(folder / "app", tiny_job(**changes))
    meta = {"name": "tiny", "deploy_map": {"app": ["@ALL"]}, "resource_spec": {}}
    (folder / "meta.json").write_text(json.dumps(meta))
    return folder
