"""Runs all checks of a kit: which checks each kind of kit gets, in the order of the table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from fedfms.doctor import decisions, identity, kit_files, machine, network, notification, processes, site_data, timing
from fedfms.doctor.examination import Examination
from fedfms.doctor.result import Check, Result, without_unfounded_skips
from fedfms.errors import (
    ALLOW_LIST,
    BACKBONE_FILE,
    CERTIFICATE_CHAIN,
    CERTIFICATE_KEY,
    CERTIFICATE_VALIDITY,
    CLOCK,
    DISK_SPACE,
    FOLDERS,
    GPU,
    JOB,
    KIT_CHANGED,
    KIT_MODES,
    KIT_RECORD,
    MEMORY,
    NOTICES,
    POLICY_INACTIVE,
    POLICY_UNUSABLE,
    SERVER_IDENTITY,
    SERVER_NAME,
    SERVER_PORT,
    SHARED_MEMORY,
    SITE_DATA,
    SITE_FILE,
    SITE_REFUSED,
    STALE_PROCESS,
    STUDIES,
    TRAINING_STEP,
    VERSIONS,
)
from fedfms.site.kit import Kit, Role, open_kit
from fedfms.site.records import account_name

AUDIT_LOG = "audit.log"
#: A server that was just started opens its port after some seconds.
PATIENCE_SECONDS = 20.0

_KIT = (
    Check(KIT_RECORD, identity.record),
    Check(CERTIFICATE_CHAIN, identity.chain),
    Check(CERTIFICATE_KEY, identity.key),
    Check(CERTIFICATE_VALIDITY, identity.validity),
    Check(KIT_CHANGED, kit_files.manifest),
    Check(KIT_MODES, kit_files.modes),
)
_DECISIONS = (
    Check(POLICY_UNUSABLE, decisions.policy),
    Check(POLICY_INACTIVE, decisions.active),
)
_ALLOWED = (Check(ALLOW_LIST, kit_files.allow_list),)
_DATA = (
    Check(SITE_FILE, site_data.site_file, about_data=True),
    Check(SITE_DATA, site_data.data, about_data=True),
    Check(BACKBONE_FILE, machine.backbones),
)
_MACHINE = (
    Check(DISK_SPACE, machine.disk),
    Check(SHARED_MEMORY, machine.shared_memory),
    Check(MEMORY, machine.memory),
)
_TRAINING = (
    Check(GPU, machine.gpu),
    Check(TRAINING_STEP, timing.step, about_data=True),
)
_STARTING = (
    Check(NOTICES, notification.notices, about_data=True),
    Check(STALE_PROCESS, processes.stale),
    Check(FOLDERS, kit_files.folders),
    Check(VERSIONS, machine.versions),
)
# Last, so that a server that was just started can open its port while the other checks run.
_CONNECTION = (
    Check(SERVER_NAME, network.name),
    Check(SERVER_PORT, network.port),
    Check(SERVER_IDENTITY, network.identity),
    Check(CLOCK, identity.clock),
)
_ADMITTED = Check(SITE_REFUSED, network.admitted)
_OWN_PORT = (Check(SERVER_PORT, network.own_port), Check(CLOCK, identity.clock))
CHECKS: dict[Role, tuple[Check, ...]] = {
    "site": (*_KIT, *_DECISIONS, *_ALLOWED, *_DATA, *_MACHINE, *_TRAINING, *_STARTING, *_CONNECTION, _ADMITTED),
    "server": (*_KIT, *_ALLOWED, Check(STUDIES, kit_files.studies), *_MACHINE, *_STARTING, *_OWN_PORT),
    "admin": (*_KIT, *_CONNECTION),
}
_FOR_A_JOB = Check(JOB, decisions.job)


@dataclass(frozen=True)
class Report:
    """The results of all checks of a kit.

    Attributes:
        kit: The kit.
        results: At least one for each check, in the order of the checks.
    """

    kit: Kit
    results: tuple[Result, ...]

    @property
    def ok(self) -> bool:
        """Whether the kit may start: no check has failed."""
        return all(result.severity != "FAIL" for result in self.results)

    def as_json(self) -> dict[str, Any]:
        """The report as ``fedfms doctor --json`` prints it."""
        return {
            "ok": self.ok,
            "kind": self.kit.kind,
            "name": self.kit.name,
            "project": self.kit.project,
            "results": [result.as_json() for result in self.results],
        }


def check_up(
    folder: Path,
    job: Path | None = None,
    *,
    offline: bool = False,
    quick: bool = False,
    patience: float = PATIENCE_SECONDS,
    on_check: Callable[[Check], None] = lambda check: None,
) -> Report:
    """Run every check of a kit, even when others fail.

    Args:
        folder: The kit.
        job: A job folder to prepare for; used for sites only.
        offline: Do not connect to the server.
        quick: Read no data and time no training step.
        patience: Seconds to wait for a server that does not answer yet.
        on_check: Called before each check.

    Raises:
        FedfmsError: FMS-K001 or FMS-K010 if the folder is not a kit at all.
    """
    examination = Examination(open_kit(folder), job, offline, quick, patience)
    checks = CHECKS[examination.kit.kind]
    if job is not None and examination.kit.kind == "site":
        checks = (*checks, _FOR_A_JOB)
    results: list[Result] = []
    for check in checks:
        on_check(check)
        results += check(examination)
    return Report(examination.kit, without_unfounded_skips(results))


def note_refused_start(report: Report) -> None:
    """Append a line with the ids of the failed checks to the kit's audit log, in the form of FLARE's own lines.

    FLARE, whose log it is, does not run when the doctor prevents the start.
    """
    ids = dict.fromkeys(result.id for result in report.results if result.severity == "FAIL")
    line = f"[E:{uuid4()}][T:{datetime.now()}][U:{account_name()}][A:start refused] {' '.join(ids)}\n"
    path = report.kit.folder / AUDIT_LOG
    path.touch(mode=0o600)
    with path.open("a", encoding="utf-8") as file:
        file.write(line)
