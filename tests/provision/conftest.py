"""Fixtures: a federation provisioned once, of which tests that change something take a copy."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from fedfms.provision.central import Provisioned, provision
from tests.provision.federations import project_content, without, write_yaml


@dataclass
class Central:
    """A project with hospitals a and b, of which ``full_project`` also names hospital-c."""

    project: Path
    full_project: Path
    kits: Path
    ca: Path
    made: Provisioned


@pytest.fixture(scope="session")
def shared_central(tmp_path_factory: pytest.TempPathFactory) -> Central:
    """Do not change its files."""
    folder = tmp_path_factory.mktemp("central")
    content = project_content()
    full = write_yaml(folder / "full.yml", content)
    project = write_yaml(folder / "project.yml", without(content, "hospital-c", "admin@hospital-c.example.org"))
    made = provision(project, folder / "kits", folder / "ca")
    return Central(project, full, folder / "kits", folder / "ca", made)


@pytest.fixture
def central(shared_central: Central, tmp_path: Path) -> Central:
    """A copy to change."""
    shutil.copytree(shared_central.kits, tmp_path / "kits")
    shutil.copytree(shared_central.ca, tmp_path / "ca")
    return Central(
        shared_central.project, shared_central.full_project, tmp_path / "kits", tmp_path / "ca", shared_central.made
    )


@pytest.fixture
def kit(central: Central) -> Path:
    """A site's kit to change."""
    return central.kits / "hospital-a"
