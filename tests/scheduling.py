"""Which tests run in one process, and in what order, when pytest-xdist runs them side by side (``make test``)."""

from __future__ import annotations

import os

import pytest
from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

#: Federations of several processes, the longest first. They mostly wait, and need most of the memory.
FEDERATIONS = (
    "tests/integration/secure",
    "tests/integration/test_distributed.py",
    "tests/integration/test_simulator.py",
    "tests/integration/test_poc.py",
    "tests/integration/test_simulator_afresh.py",
    "tests/integration/test_provisioning.py",
)
#: What computes for a minute, the longest first.
LONG = (
    "tests/training/test_worker.py",
    "tests/provision/test_distributed.py",
    "tests/benchmarks/test_steps.py",
    "tests/sam/test_adapter.py",
    "tests/flare/test_server.py",
    "tests/sam/test_agreement.py",
    "tests/data/readers/test_fuzz.py",
    "tests/provision/test_packaging.py",
)


def processes() -> int:
    """One more than there are cores, because federations mostly wait; few enough for the memory of a small machine."""
    return min((os.cpu_count() or 1) + 1, 4)


def unit_of(nodeid: str) -> str:
    """The tests of one file run in one process, one after the other, where they share what their fixtures made.

    So do all tests of the folder whose federation is a fixture of the folder.
    """
    return FEDERATIONS[0] if nodeid.startswith(f"{FEDERATIONS[0]}/") else nodeid.partition("::")[0]


class SideBySide(LoadScopeScheduling):
    """All processes but one start with the federations, one with what computes; who has done all that takes the rest.

    ``xdist_group`` would say the same beside the tests, but pytest-xdist 3.8 overlooks it under pytest 9.2.
    """

    def _split_scope(self, nodeid: str) -> str:
        return unit_of(nodeid)

    def _assign_work_unit(self, node: WorkerController) -> None:
        self.workqueue.move_to_end(self._next(node), last=False)
        super()._assign_work_unit(node)

    def _next(self, node: WorkerController) -> str:
        """What a process gets next, asked for while it still has one or two tests to do."""
        waiting = [name for name in FEDERATIONS if name in self.workqueue]
        others = sum(self._has_federation(other) for other in self.nodes if other is not node)
        if len(waiting) == len(self.workqueue) or (waiting and others < max(len(self.nodes) - 1, 1)):
            return waiting[0]
        long = (name for name in LONG if name in self.workqueue)
        return next(long, None) or next(name for name in self.workqueue if name not in waiting)

    def _has_federation(self, node: WorkerController) -> bool:
        units = self.assigned_work.get(node, {})
        return any(name in FEDERATIONS and not all(tests.values()) for name, tests in units.items())


def make_scheduler(config: pytest.Config, log: object) -> SideBySide | None:
    """For ``--dist loadfile``; None leaves other ways to pytest-xdist."""
    return SideBySide(config, log) if config.getoption("dist") == "loadfile" else None
