"""One federation of real FLARE processes over mutual TLS on loopback, for all tests of this package."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedfms.provision.poc import prepare, started
from tests.integration.planting import plant
from tests.integration.secure.federation import JOB, TINY, WORDS, Finished, Running, run_to_the_end
from tests.integration.test_provisioning import left_behind
from tests.provision.federations import free_port


@pytest.fixture(scope="package")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Server and three hospitals, with words in the hospitals' data that exist nowhere else."""
    folder = tmp_path_factory.mktemp("secure")
    trial = prepare(folder, JOB, TINY, port=free_port())
    for name, kit in trial.sites.items():
        plant(trial.folder / "data" / name, kit / "local" / "site.yaml", WORDS[name])
    with pytest.MonkeyPatch.context() as patch:
        # A module that the sites' administrators have installed beside the package: careless.py.
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).with_name("installed")), *_python_path()]))
        try:
            with started(trial) as federation:
                yield Running(trial, federation, folder)
        finally:
            assert left_behind(folder) == []


@pytest.fixture(scope="package")
def finished(running: Running) -> Finished:
    """A job from the lead's console to its result, with an attack on it at two hospitals and the third one late."""
    return run_to_the_end(running)


def _python_path() -> list[str]:
    return [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
