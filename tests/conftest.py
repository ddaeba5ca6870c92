"""Fixtures for all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.command import Command

#: Federations and others that take minutes, the longest first; by the name of their group or the end of their file.
LONG = (
    "secure",
    "test_distributed.py",
    "poc",
    "simulator-afresh",
    "simulator-troubled",
    "test_worker.py",
    "provisioning",
    "test_samples.py",
    "poc-interrupted",
    "simulator-gate",
    "provisioning-refused",
    "simulator-class",
    "test_packaging.py",
    "test_adapter.py",
    "test_fuzz.py",
)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One more than there are cores, because federations mostly wait; few enough for the memory of a small machine."""
    return min((os.cpu_count() or 1) + 1, 4)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With ``--dist loadgroup``: tests of one file run in one process, where they share what their fixtures made.

    Files whose tests have nothing in common say so with ``xdist_group``. The long groups start within the first half of
    the others, so that none of them is left alone at the end, and neither all run at once.
    """
    if not getattr(config.option, "loadgroup", False):
        return
    groups: dict[str, list[pytest.Item]] = {}
    for item in items:
        marker = item.get_closest_marker("xdist_group")
        name = str(marker.args[0]) if marker else item.path.relative_to(config.rootpath).as_posix()
        if marker is None:
            item.add_marker(pytest.mark.xdist_group(name))
        groups.setdefault(name, []).append(item)
    long = {name: LONG.index(end) for name in groups for end in LONG if end in (name, Path(name).name)}
    short = [name for name in groups if name not in long]
    every = len(short) // (2 * len(long)) + 1 if long else 1
    order = []
    for number, name in enumerate(sorted(long, key=lambda name: long[name])):
        order += [name, *short[number * every : (number + 1) * every]]
    order += short[len(long) * every :]
    items[:] = [item for name in order for item in groups[name]]


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
