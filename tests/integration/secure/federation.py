"""The running federation that the tests of this package share."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from nvflare.fuel.flare_api.flare_api import MonitorReturnCode, Session, new_secure_session

from fedfms.job.folder import new_job
from fedfms.provision.local import LocalFederation
from fedfms.provision.poc import LEAD, SERVER, SITES, STUDY, Trial
from fedfms.provision.submission import COMPLETED
from fedfms.site.egress import read_record
from fedfms.site.job_check import check_job_folder
from fedfms.site.review import decide, pending_jobs
from tests.integration.test_provisioning import listening
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
#: Of the job that runs to its end.
ROUNDS = 3
#: What the hospitals' data are full of.
WORDS = {name: f"zqx{number}planted7w" for number, name in enumerate(SITES)}
#: What a component of a site with a gate tries to send.
STOPPED_WORD = "zqx7stolenpicture"
# Several times what the longest takes on two quiet cores: other tests run side by side.
JOB_SECONDS = 900.0


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

    def submit_by_console(self, job: Path) -> str:
        """As docs/study-lead.md shows it: the words of a lead who sits at FLARE's console."""
        shutil.copytree(job, self.lead / "transfer" / job.name)
        shown = subprocess.run(
            ["bash", str(self.lead / "startup" / "fl_admin.sh"), "--study", STUDY],
            input=f"{LEAD}\nsubmit_job {job.name}\nlist_jobs\nbye\n",
            capture_output=True,
            text=True,
            timeout=180,
            cwd=self.lead,
            check=False,
        )
        assert "Submitted job" in shown.stdout, shown.stdout + shown.stderr
        return shown.stdout.partition("Submitted job:")[2].split()[0]

    def outcome(self, job_id: str, meanwhile: Callable[[], None] = lambda: None) -> str:
        """FLARE's last word about a job. One connection asks often: a process for each question takes seconds."""

        def go_on(*_: object) -> bool:
            meanwhile()
            return True

        with self.session() as session:
            found = session.monitor_job(job_id, timeout=JOB_SECONDS, poll_interval=1.0, cb=go_on)
            word = str(session.get_job_meta(job_id)["status"])
        assert found == MonitorReturnCode.JOB_FINISHED, f"{job_id}: {found} {word}"
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

    def result(self, job_id: str) -> Path:
        """What the job store has of a job that is over, also of one that failed."""
        with self.session() as session:
            return Path(session.download_job_result(job_id))

    def ledger(self, job_id: str) -> Path:
        """The server's ledger of a job that is over."""
        (found,) = self.result(job_id).rglob("ledger.jsonl")
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


def install(kit: Path, component: str, *, gate: bool = True, **arguments: str) -> AbstractContextManager[None]:
    """A site's ``privacy.json`` with a component of ``careless.py`` before its own gate, or instead of it."""

    def change(content: dict[str, Any]) -> None:
        own = content["components"] if gate else []
        content["components"] = [{"id": component, "path": f"careless.{component}", "args": arguments}, *own]

    return changed(kit / "local" / "privacy.json", change)


def policy(kit: Path, **changes: Any) -> AbstractContextManager[None]:
    """A site's ``policy.yaml`` with other values."""
    return changed(kit / "local" / "policy.yaml", lambda content: content.update(changes))


@dataclass(frozen=True)
class Finished:
    """A job that ran to its end in this federation.

    Attributes:
        job_id: Its id.
        result: What was downloaded.
        sockets: Port and address of everything that listened while it ran.
        approved_late: What ``fedfms review approve`` printed at hospital-c.
    """

    job_id: str
    result: Path
    sockets: dict[int, str]
    approved_late: str

    @property
    def ledger(self) -> Path:
        """The server's ledger."""
        (found,) = self.result.rglob("ledger.jsonl")
        return found


def run_to_the_end(running: Running) -> Finished:
    """Three hospitals, one job. At a, something adds encoder weights to what every filter has let pass; at b, something
    streams a picture and a text, and the job waits there for its approval; c does not wait for it and gets it when
    training has begun."""
    job = running.job("min_clients=1", f"rounds={ROUNDS}", "local_work.steps=20")
    kits = running.trial.sites
    running.approve(job, "hospital-a")
    sockets: dict[int, str] = {}
    late: list[str] = []

    def approve_in_time() -> None:
        sockets.update(listening(running.federation))
        if pending_jobs(kits["hospital-b"]) and pending_jobs(kits["hospital-c"]):
            running.approve(job, "hospital-b")
        # When it has refused the first round: so the next one at the earliest is its first.
        if not late and any(line.task == "train" for line in read_record(kits["hospital-c"], job_id)):
            (waiting,) = pending_jobs(kits["hospital-c"])
            command = [sys.executable, "-m", "fedfms.cli", "review", "approve", job_id]
            command += ["--digest", waiting.digest[:12], "--kit", str(kits["hospital-c"])]
            done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
            assert waiting.job_id == job_id and done.returncode == 0, done
            late.append(done.stdout)

    with ExitStack() as stack:
        stack.enter_context(install(kits["hospital-a"], "AddEncoderLast"))
        stack.enter_context(install(kits["hospital-b"], "SendPicture", word=STOPPED_WORD))
        review = {"rule": "required", "hold_minutes": 0.01, "valid_days": 1}
        stack.enter_context(policy(kits["hospital-c"], review=review))
        job_id = running.submit_by_console(job)
        word = running.outcome(job_id, approve_in_time)
    assert word == COMPLETED, [running.told(name, job_id) for name in SITES]
    assert late
    return Finished(job_id, running.result(job_id), sockets, late[0])
