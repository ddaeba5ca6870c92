"""A whole trial federation on this machine: provisioned, with mutual TLS, review and records as between hospitals.

Only the data are synthetic. FLARE's own ``nvflare poc`` listens on all addresses and does not use this project's
policy; here everything listens on the loopback address only.
"""

from __future__ import annotations

import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fedfms.datasets.phantom import write_demo_site
from fedfms.errors import JOB_UNFINISHED, TRIAL_BLOCKED, FedfmsError, Problem, fail
from fedfms.files import atomic_path
from fedfms.job.folder import new_job
from fedfms.provision.central import provision
from fedfms.provision.local import START_LOG, LocalFederation, local_federation, running_kits, start_log
from fedfms.provision.submission import COMPLETED, download, submit, wait
from fedfms.site.egress import record_file
from fedfms.site.job_check import check_job_folder
from fedfms.site.kit import Kit
from fedfms.site.policy import site_policy
from fedfms.site.review import decide

STUDY = "segmentation"
SERVER, ADMIN, LEAD = "localhost", "admin@example.org", "lead@example.org"
SITES = ("hospital-a", "hospital-b", "hospital-c")
#: Everything generated is below this folder of the workspace and is removed by the next run.
GENERATED = "generated"
_UNCHECKED = {"FEDFMS_SKIP_DOCTOR": "1"}
_COUNTS = re.compile(r"^\d+ PASS, \d+ WARN, \d+ FAIL$", re.MULTILINE)


@dataclass(frozen=True)
class TrialResult:
    """The results of a trial.

    Attributes:
        job_id: The job's id.
        result: Folder of the downloaded job.
        records: File with the record of what has left, for each site.
    """

    job_id: str
    result: Path
    records: dict[str, Path]


@dataclass(frozen=True)
class Trial:
    """A prepared federation.

    Attributes:
        folder: Folder with everything generated.
        job: The job folder to submit.
    """

    folder: Path
    job: Path

    @property
    def kits(self) -> Path:
        """Folder with the kits, one below it for each participant."""
        return self.folder / "kits"

    @property
    def sites(self) -> dict[str, Path]:
        """The kits of the sites, by name of the site."""
        return {name: self.kits / name for name in SITES}


def prepare(workspace: Path, job: Path, settings: Sequence[str] = (), *, port: int) -> Trial:
    """Provision server, sites and people, and give every site demo data, a ``site.yaml`` and a policy.

    Args:
        workspace: Its folder ``generated`` is replaced.
        job: A job folder.
        settings: ``KEY=VALUE`` changes of the job, as `fedfms.job.folder.new_job` takes them.
        port: The server's port.

    Raises:
        FedfmsError: FMS-K020 when the port is in use or an earlier trial still runs; what the job's check finds;
            FMS-K002 to FMS-K005.
    """
    folder = workspace.resolve() / GENERATED
    _require_nothing_runs(folder)
    _require_free(port)
    check_job_folder(job)
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(mode=0o700, parents=True)
    # First of all: by this file the next run knows the folder.
    project = folder / "project.yml"
    _write_yaml(project, _project(port))
    trial = Trial(folder, folder / "job" if settings else job.resolve())
    if settings:
        new_job(job, settings, trial.job)
    backbone = check_job_folder(trial.job).application.job.backbone_sha256
    provision(project, trial.kits, folder / "ca")
    for name, kit in trial.sites.items():
        furnish(kit, folder / "data" / name, backbone)
    return trial


def furnish(kit: Path, data: Path, backbone: str) -> None:
    """Put demo data, a ``site.yaml`` about them and a fitting policy into a site's kit.

    Args:
        kit: The kit of a site with one of the demo's names.
        data: Folder to write the data to.
        backbone: SHA-256 of the weight file that the site allows.
    """
    described = write_demo_site(data, kit.name)
    site = yaml.safe_load(described.read_text(encoding="utf-8"))
    site["compute"] = {"device": "auto", "threads": 1}  # all sites share this machine
    for dataset in site["datasets"]:
        dataset["root"] = str(described.parent)
    _write_yaml(kit / "local" / "site.yaml", site)
    policy_file = kit / "local" / "policy.yaml"
    policy = yaml.safe_load(policy_file.read_text(encoding="utf-8"))
    # The demo sites are small: four validation patients of three slices. Review stays required.
    policy["metrics"]["min_slices"] = 5
    # So is the work of a round.
    policy["min_slices_per_update"] = 1
    # This job's alone: the doctor times a step with what the policy allows.
    policy["backbones"] = [backbone]
    _write_yaml(policy_file, policy)


def approve(trial: Trial, say: Callable[[str], None]) -> None:
    """Review the job at each site and approve it, as ``fedfms review approve`` does.

    Raises:
        FedfmsError: FMS-S002 with a site's objections; then nothing is approved there.
    """
    application = check_job_folder(trial.job).application
    for name, kit in trial.sites.items():
        policy = site_policy(kit)
        if objections := policy.objections(application.job):
            raise FedfmsError(objections)
        made = decide(kit, application, "approve", job=str(trial.job), valid_days=policy.review.valid_days)
        say(f"{name}: fedfms review approve {_shown(trial.job)} --kit {_shown(kit)}")
        say(f"{name}: approved until {made.expires:%Y-%m-%d}; digest {made.digest[:12]}")


@contextmanager
def started(
    trial: Trial, say: Callable[[str], None] = lambda line: None, *, doctor: bool = False
) -> Iterator[LocalFederation]:
    """Run server and sites; all are stopped by process id at the end in any case.

    Args:
        trial: What to start.
        say: Called with a line about each kit that runs.
        doctor: Whether each kit's start.sh runs ``fedfms doctor`` first. Tests of kits that the doctor would reject
            switch it off.

    Raises:
        FedfmsError: FMS-K018
    """
    begin = time.monotonic()

    def tell(kit: Kit) -> None:
        counts = _COUNTS.search(start_log(kit))
        found = f"fedfms doctor: {counts[0]} ({_shown(kit.folder / START_LOG)})" if counts else "not looked at"
        say(f"{kit.name} runs after {time.monotonic() - begin:.0f} s; {found}")

    environment = {} if doctor else _UNCHECKED
    sites = list(trial.sites.values())
    with local_federation(trial.kits / SERVER, sites, trial.kits / ADMIN, environment, tell) as federation:
        say(f"all sites are connected after {time.monotonic() - begin:.0f} s")
        yield federation


def run(trial: Trial, say: Callable[[str], None], *, seconds: float) -> TrialResult:
    """Submit the job to the started federation, wait for its end and download the result.

    Raises:
        FedfmsError: FMS-K019, or FMS-K021 when the job fails or the time is up, with the errors that the sites logged.
    """
    lead = trial.kits / LEAD
    job_id = submit(lead, trial.job, STUDY)
    say(f"submitted as {LEAD}: job {job_id}")
    consoles = {"server": trial.kits / SERVER, **trial.sites}
    follow = _Follower({name: kit / "console.log" for name, kit in consoles.items()}, say)
    try:
        state = wait(lead, job_id, STUDY, seconds, meanwhile=follow)
        say(f"FLARE says {state}")
        if state != COMPLETED:
            raise fail(JOB_UNFINISHED, job_id, f"FLARE says {state}")
    except FedfmsError as error:
        raise FedfmsError([*error.problems, *_reasons(trial, job_id)]) from error
    result = download(lead, job_id, STUDY, trial.folder / "result")
    return TrialResult(job_id, result, {name: record_file(kit, job_id) for name, kit in trial.sites.items()})


def _reasons(trial: Trial, job_id: str) -> Iterator[Problem]:
    """The local errors of server and sites, which in a trial are all for the same person."""
    for name, kit in {"server": trial.kits / SERVER, **trial.sites}.items():
        for path in sorted((kit / job_id).rglob("errors.log")):
            text = path.read_text(encoding="utf-8", errors="replace").strip()
            yield Problem(JOB_UNFINISHED, name, text or "nothing", f"The whole log: {_shown(path)}")


class _Follower:
    """Repeats the lines about progress that server and sites print on their consoles."""

    def __init__(self, files: Mapping[str, Path], say: Callable[[str], None]) -> None:
        self._files, self._say = files, say
        self._read = {name: _size(path) for name, path in files.items()}

    def __call__(self) -> None:
        for name, path in self._files.items():
            if _size(path) <= self._read[name]:
                continue
            with path.open("rb") as file:
                file.seek(self._read[name])
                new = file.read()
            # The last line may be half written.
            whole, end, _ = new.rpartition(b"\n")
            self._read[name] += len(whole) + len(end)
            for line in whole.decode(errors="replace").splitlines():
                if line.startswith(f"[{name}]"):
                    self._say(line)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _require_nothing_runs(folder: Path) -> None:
    if names := running_kits(folder / "kits"):
        detail = f"an earlier trial still runs here: {', '.join(names)}"
        raise fail(TRIAL_BLOCKED, folder, detail, "Stop the command that started it, or the processes it lists.")
    if folder.exists() and not (folder.is_dir() and (folder / "project.yml").is_file()):
        raise FedfmsError([Problem(TRIAL_BLOCKED, str(folder), "was not made by this command; it would be removed")])


def _require_free(port: int) -> None:
    with socket.socket() as probe:
        # As FLARE's server does, so that connections of an earlier run that are still closing do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            detail = f"port {port} of 127.0.0.1 cannot be used: {error.strerror or error}"
            raise fail(TRIAL_BLOCKED, port, detail) from error


def _project(port: int) -> dict[str, Any]:
    """As ``provision/project.yml``, on this machine; a server of this name listens on loopback alone."""
    organisations = {name: name.replace("-", "_") for name in SITES}
    return {
        "api_version": 4,
        "name": "fedfms-trial",
        "participants": [
            {"name": SERVER, "type": "server", "org": "coordinator", "fed_learn_port": port},
            *({"name": name, "type": "client", "org": org} for name, org in organisations.items()),
            {"name": ADMIN, "type": "admin", "org": "coordinator", "role": "project_admin"},
            {"name": LEAD, "type": "admin", "org": "coordinator", "role": "lead"},
        ],
        "builders": [
            {"path": "nvflare.lighter.impl.workspace.WorkspaceBuilder"},
            {
                "path": "nvflare.lighter.impl.static_file.StaticFileBuilder",
                "args": {"config_folder": "config", "scheme": "grpc"},
            },
            {"path": "nvflare.lighter.impl.cert.CertBuilder", "args": {"root_valid_days": 60}},
        ],
        "studies": {
            STUDY: {"site_orgs": {org: [name] for name, org in organisations.items()}, "admins": [LEAD, ADMIN]}
        },
    }


def _write_yaml(path: Path, content: dict[str, Any]) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        temporary.chmod(0o600)


def _shown(path: Path) -> str:
    """A path as a person would write it: relative, if it is below the current folder."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
