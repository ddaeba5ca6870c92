"""The running federation that the tests of this package share."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from nvflare.fuel.flare_api.flare_api import Session, new_secure_session

from fedfms.job.folder import new_job
from fedfms.provision.local import LocalFederation
from fedfms.provision.poc import LEAD, SERVER, SITES, STUDY, Trial
from fedfms.site.job_check import check_job_folder
from fedfms.site.review import decide
from tests.provision.federations import PROJECT

JOB = PROJECT / "jobs" / "fedmsa"
TINY = (
    "backbone=vit_test",
    "preprocessing.input_size=64",
    "precision=fp32",
    "rounds=2",
    "local_work.steps=2",
    "empty_slices=0",
)
WORDS = {name: f"zqx{number}planted7w" for number, name in enumerate(SITES)}
# Thrice what the longest took on two cores that other work shared.
JOB_SECONDS = 270.0
#: FLARE's words for a job that will not go on.
OVER = ("FINISHED", "FAILED_TO_RUN", "ABANDONED")


@dataclass
class Running:
    """The federation, and what its tests do with it."""

    trial: Trial
    federation: LocalFederation
    folder: Path
    number: int = 0

    @property
    def lead(self) -> Path:
        return self.trial.kits / LEAD

    @property
    def server(self) -> Path:
        return self.trial.kits / SERVER

    def job(self, *settings: str) -> Path:
        """A tiny job of its own digest, so that no approval of another test counts for it."""
        self.number += 1
        folder = self.folder / f"job{self.number}"
        new_job(JOB, [*TINY, f"seed={self.number}", *settings], folder)
        return folder

    def approve(self, job: Path, *names: str) -> None:
        application = check_job_folder(job).application
        for name in names or SITES:
            decide(self.trial.sites[name], application, "approve", job=job.name, valid_days=1)

    @contextmanager
    def session(self) -> Iterator[Session]:
        session = new_secure_session(LEAD, str(self.lead), study=STUDY)
        try:
            yield session
        finally:
            session.close()

    def submit_unchecked(self, job: Path) -> str:
        """As somebody does who does not use this package."""
        with self.session() as session:
            return str(session.submit_job(str(job)))

    def outcome(self, job_id: str, meanwhile: Callable[[], None] = lambda: None) -> str:
        """FLARE's last word about a job. One connection asks often: a process for each question takes seconds."""
        deadline = time.monotonic() + JOB_SECONDS
        with self.session() as session:
            while not (word := str(session.get_job_meta(job_id)["status"])).startswith(OVER):
                assert time.monotonic() < deadline, f"{job_id}: {word}"
                meanwhile()
                time.sleep(0.5)
        return word

    def told(self, name: str, job_id: str) -> str:
        """What a site wrote down about a job, for its own people."""
        path = self.trial.sites[name] / job_id / "fedfms" / "errors.log"
        return path.read_text() if path.exists() else ""

    def audit(self, name: str, job_id: str = "") -> str:
        """The audit log of a site or the server, or that of one job there."""
        return "".join(path.read_text() for path in (self.trial.kits / name / job_id).rglob("audit.log"))

    def console(self, name: str) -> str:
        kit = self.trial.kits / name
        return "".join((kit / file).read_text(errors="replace") for file in ("console.log", "log.txt"))

    def meta(self, job_id: str) -> str:
        """What FLARE tells the lead about a job."""
        with self.session() as session:
            return str(session.get_job_meta(job_id))

    def ledger(self, job_id: str) -> Path:
        """The server's ledger of a job that is over, also of one that failed: from the job store."""
        with self.session() as session:
            (found,) = Path(session.download_job_result(job_id)).rglob("ledger.jsonl")
        return found


@contextmanager
def changed(file: Path, change: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """A JSON or YAML file of a kit with another content, for a while."""
    before = file.read_text()
    is_json = file.suffix == ".json"
    content = json.loads(before) if is_json else yaml.safe_load(before)
    change(content)
    file.write_text(json.dumps(content) if is_json else yaml.safe_dump(content))
    try:
        yield
    finally:
        file.write_text(before)
