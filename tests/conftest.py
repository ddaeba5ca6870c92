"""Fixtures for all tests."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest

from tests import scheduling
from tests.command import Command


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    return scheduling.processes()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> scheduling.SideBySide | None:
    return scheduling.make_scheduler(config, log)


def pytest_collection_finish() -> None:
    """Leave the imported modules to no garbage collection: FLARE calls for one in every round."""
    gc.freeze()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The development data folder: ``FEDFMS_SHARED_DATA``, or ``shared/data`` beside the project."""
    named = os.environ.get("FEDFMS_SHARED_DATA")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"the development data folder is missing ({folder}); set FEDFMS_SHARED_DATA")
    return folder


@pytest.fixture(scope="session")
def demo_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``site.yaml`` of a generated demo site; do not change its files."""
    from fedfms.datasets.phantom import write_demo_site

    return write_demo_site(tmp_path_factory.mktemp("demo"), "site-3")


@pytest.fixture
def fedfms(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """The ``fedfms`` command, in this process."""
    return Command(capsys, monkeypatch)
