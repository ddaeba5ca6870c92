"""One federation of real FLARE processes over mutual TLS on loopback: jobs that run, and jobs that sites refuse.

The order of the tests counts: they share the running federation and the first job's result.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from nvflare.fuel.flare_api.flare_api import Session, new_secure_session
from nvflare.fuel.hci.client import file_transfer

from fedfms.errors import FedfmsError
from fedfms.job_folder import new_job
from fedfms.provision.central import add_participants
from fedfms.provision.local import LocalFederation, admin_command, connected_sites
from fedfms.provision.poc import ADMIN, LEAD, SERVER, SITES, STUDY, Trial, approve, prepare, started
from fedfms.provision.submission import COMPLETED, download, status, submit, wait
from fedfms.report.run import open_run
from fedfms.sam.checkpoint import load_segmenter
from fedfms.site.egress import read_record, record_file
from fedfms.site.job_check import check_job_folder
from fedfms.site.review import decide, waiting_jobs
from tests.integration.planting import holders, pixel_words, plant
from tests.integration.test_provisioning import is_loopback, left_behind, listening
from tests.provision.federations import PROJECT, free_port

# Twice what the longest took on two cores that other work shared.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

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
JOB_SECONDS = 270.0


@dataclass
class Running:
    """The federation of this module."""

    trial: Trial
    federation: LocalFederation
    folder: Path
    first_job: str = ""
    number: int = 0

    @property
    def lead(self) -> Path:
        return self.trial.kits / LEAD

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

    def session(self) -> Session:
        return new_secure_session(LEAD, str(self.lead), study=STUDY)

    def submit_unchecked(self, job: Path) -> str:
        """As somebody does who does not use this package."""
        session = self.session()
        try:
            return str(session.submit_job(str(job)))
        finally:
            session.close()

    def outcome(self, job_id: str) -> str:
        return wait(self.lead, job_id, STUDY, JOB_SECONDS, poll_seconds=3)

    def told(self, name: str, job_id: str) -> str:
        """What a site wrote down about a job, for its own people."""
        path = self.trial.sites[name] / job_id / "fedfms" / "errors.log"
        return path.read_text() if path.exists() else ""

    def audit(self, name: str) -> str:
        return "".join(path.read_text() for path in self.trial.sites[name].rglob("audit.log"))

    def console(self, name: str) -> str:
        kit = self.trial.kits / name
        return "".join((kit / file).read_text(errors="replace") for file in ("console.log", "log.txt"))


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("secure")
    trial = prepare(folder, JOB, TINY, port=free_port())
    for name, kit in trial.sites.items():
        plant(trial.folder / "data" / name, kit / "local" / "site.yaml", WORDS[name])
    try:
        with started(trial) as federation:
            yield Running(trial, federation, folder)
    finally:
        assert left_behind(folder) == []


def policy(kit: Path, **changes: Any) -> str:
    """Change a site's policy; returns what it was."""
    path = kit / "local" / "policy.yaml"
    before = path.read_text()
    path.write_text(yaml.safe_dump({**yaml.safe_load(before), **changes}))
    return before


def test_a_job_from_submission_to_its_model_and_the_records_of_what_left(running: Running) -> None:
    trial = running.trial
    sockets: dict[int, str] = {}
    approve(trial, print)
    running.first_job = job_id = submit(running.lead, trial.job, STUDY)
    word = wait(
        running.lead,
        job_id,
        STUDY,
        JOB_SECONDS,
        poll_seconds=4,
        meanwhile=lambda: sockets.update(listening(running.federation)),
    )
    assert word == COMPLETED, [running.told(name, job_id) for name in SITES]
    # The job's own processes were looked at, too: more than the parents of server and sites listen.
    assert len(sockets) > 4 and all(is_loopback(address) for address in sockets.values()), sockets

    result = download(running.lead, job_id, STUDY, running.folder / "result")
    found = open_run(result)
    assert found.result.rounds == 2 and set(found.result.sites) == set(SITES) and found.result.refusals == []
    assert load_segmenter(found.model_file)[1].rounds == found.result.chosen_rounds

    (ledger_file,) = result.rglob("ledger.jsonl")
    ledger = [json.loads(line) for line in ledger_file.read_text().splitlines()]
    tasks = {"ready": "ready", "update": "train", "validate": "validate", "final": "final"}
    arrived = [
        (line["site"], tasks[line["event"]], line["message_sha256"], line["bytes_up"])
        for line in ledger
        if line["event"] in tasks
    ]
    sent = [
        (name, line.task, line.sha256, line.bytes)
        for name, kit in trial.sites.items()
        for line in read_record(kit, job_id)
    ]
    assert len(sent) == 3 * (1 + 2 + 1 + 1) and sorted(sent) == sorted(arrived)
    for kit in trial.sites.values():
        assert record_file(kit, job_id).with_suffix(".html").is_file()


def test_nothing_of_the_sites_data_is_in_any_byte_the_server_holds(running: Running) -> None:
    words = list(WORDS.values())
    for name, word in WORDS.items():
        data = running.trial.folder / "data" / name
        assert pixel_words(data, word) > 0 or name != "hospital-a", "the words are in the pixels"
        assert len(holders(data, [word])[word]) > 60, "the search finds what was planted"
    server = running.trial.kits / SERVER
    known = holders(server, ["hospital-a", running.first_job])
    assert any("!" in place for place in known["hospital-a"]), "the search looks into the packed job store"
    assert holders(server, words) == {word: [] for word in words}
    assert holders(running.folder / "result", words) == {word: [] for word in words}


def test_submission_through_the_console_and_from_python(running: Running) -> None:
    job = running.job("rounds=1", "local_work.steps=1")
    running.approve(job)
    transfer = running.lead / "transfer"
    transfer.mkdir(exist_ok=True)
    shutil.copytree(job, transfer / "second")
    typed = f"{LEAD}\nsubmit_job second\nlist_jobs\nbye\n"
    shown = subprocess.run(
        ["bash", str(running.lead / "startup" / "fl_admin.sh"), "--study", STUDY],
        input=typed,
        capture_output=True,
        text=True,
        timeout=90,
        cwd=running.lead,
        check=False,
    )
    print(shown.stdout)
    assert "Submitted job" in shown.stdout, shown.stdout + shown.stderr
    job_id = shown.stdout.partition("Submitted job:")[2].split()[0]
    assert running.outcome(job_id) == COMPLETED, shown.stdout

    session = running.session()
    try:
        again = session.submit_job(str(job))
        session.monitor_job(again, timeout=JOB_SECONDS)
        assert session.get_job_meta(again)["status"] == COMPLETED
        assert open_run(Path(session.download_job_result(again))).result.rounds == 1
    finally:
        session.close()
    # The approval is the content's and holds for the second submission.
    assert all(len(read_record(kit, again)) == 4 for kit in running.trial.sites.values())


def test_three_hospitals_refuse_one_job_each_for_its_own_reason(running: Running) -> None:
    """Scope, backbone and review."""
    job = running.job("scope=full")
    kits = running.trial.sites
    digest = "0" * 64
    both = ["full", "adapters+decoder"]
    before = {
        "hospital-b": policy(kits["hospital-b"], scopes=both, backbones=[digest]),
        "hospital-c": policy(
            kits["hospital-c"], scopes=both, review={"rule": "required", "hold_minutes": 0.05, "valid_days": 1}
        ),
    }
    try:
        running.approve(job, "hospital-a", "hospital-b")
        job_id = running.submit_unchecked(job)
        word = running.outcome(job_id)
    finally:
        for name, text in before.items():
            (kits[name] / "local" / "policy.yaml").write_text(text)
    assert word != COMPLETED
    reasons = {
        "hospital-a": ("FMS-S002", "found full"),
        "hospital-b": ("FMS-S002", digest),
        "hospital-c": ("FMS-S004", "nobody has decided"),
    }
    for name, (kind, reason) in reasons.items():
        assert kind in running.told(name, job_id) and reason in running.told(name, job_id), name
        assert f"site refused task ready: {kind}" in running.audit(name)
        assert [(line.decision, line.errors) for line in read_record(kits[name], job_id)] == [("refused", (kind,))]
        assert waiting_jobs(kits[name]) == []


def test_a_job_without_the_gate_is_refused(running: Running) -> None:
    job = running.job()
    running.approve(job)
    path = job / "app" / "config" / "config_fed_client.json"
    content = json.loads(path.read_text())
    del content["task_result_filters"]
    path.write_text(json.dumps(content))
    job_id = running.submit_unchecked(job)
    assert running.outcome(job_id) != COMPLETED
    for name in SITES:
        assert "FMS-J005" in running.told(name, job_id) and "the tasks ready, train" in running.told(name, job_id)
        assert "site refused task ready: FMS-J005" in running.audit(name)


def test_code_is_refused_when_it_arrives(running: Running) -> None:
    job = running.job()
    (job / "app" / "custom").mkdir()
    (job / "app" / "custom" / "mine.py").write_text("print('here')\n")
    job_id = running.submit_unchecked(job)
    assert running.outcome(job_id) != COMPLETED
    meta = str(running_meta(running, job_id))
    assert "byoc" in meta.lower(), meta


@pytest.mark.parametrize("nested", [False, True])
def test_a_class_outside_the_list_is_not_built(running: Running, nested: bool) -> None:
    job = running.job()
    path = job / "app" / "config" / "config_fed_client.json"
    content = json.loads(path.read_text())
    stranger = {"path": "subprocess.Popen", "args": {"args": ["true"]}}
    if nested:
        content["executors"][0]["executor"]["args"] = {"helper": stranger}
    else:
        content["components"].append({"id": "stranger", **stranger})
    path.write_text(json.dumps(content))
    job_id = running.submit_unchecked(job)
    assert running.outcome(job_id) != COMPLETED
    for name in SITES:
        assert "subprocess.Popen" in running.console(name), name
        assert read_record(running.trial.sites[name], job_id) == []


def test_a_job_altered_after_signing_is_not_deployed(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    job = running.job()
    running.approve(job)
    sign = file_transfer.sign_folders

    def sign_then_alter(folder: str, *arguments: Any, **options: Any) -> None:
        sign(folder, *arguments, **options)
        for path in Path(folder).rglob("training.yaml"):
            path.write_text(path.read_text() + "# altered\n")

    monkeypatch.setattr(file_transfer, "sign_folders", sign_then_alter)
    try:
        job_id = running.submit_unchecked(job)
    except Exception as error:  # noqa: BLE001 - whatever FLARE raises, the server refused it
        assert "sign" in str(error).lower() or "verif" in str(error).lower(), error
        return
    assert running.outcome(job_id) != COMPLETED
    assert "sign" in str(running_meta(running, job_id)).lower()


def running_meta(running: Running, job_id: str) -> Any:
    return admin_command(running.lead, "job", "meta", job_id, "--study", STUDY)


def test_the_lead_gives_no_admin_command(running: Running) -> None:
    for command in (("shutdown", "all"), ("disable-client", "hospital-a")):
        with pytest.raises(FedfmsError, match=r"FMS-K019"):
            admin_command(running.lead, "system", *command, "--force")
    assert connected_sites(running.trial.kits / ADMIN) == set(SITES)
    assert status(running.lead, running.first_job, STUDY) == COMPLETED


def resign(kit: Path, key: Any, days: tuple[int, int]) -> None:
    """Replace the kit's certificate by one of the same words, signed by ``key`` and valid for other days."""
    path = kit / "startup" / "client.crt"
    old = x509.load_pem_x509_certificate(path.read_bytes())
    now = datetime.now(timezone.utc)
    builder = x509.CertificateBuilder().subject_name(old.subject).issuer_name(old.issuer)
    builder = builder.public_key(old.public_key()).serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now + timedelta(days=days[0])).not_valid_after(now + timedelta(days=days[1]))
    for extension in old.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    path.write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))


def test_an_expired_certificate_and_one_of_another_authority_do_not_connect(running: Running) -> None:
    trial = running.trial
    names = ("hospital-d", "hospital-e", "hospital-f")
    content = yaml.safe_load((trial.folder / "project.yml").read_text())
    content["participants"] += [{"name": name, "type": "client", "org": name.replace("-", "_")} for name in names]
    project = running.folder / "more.yml"
    project.write_text(yaml.safe_dump(content))
    add_participants(project, names, running.folder / "more", trial.folder / "ca")
    state = json.loads((trial.folder / "ca" / "cert.json").read_text())
    root = serialization.load_pem_private_key(state["root_pri_key"].encode(), None)
    resign(running.folder / "more" / "hospital-d", root, (-20, -10))
    resign(running.folder / "more" / "hospital-e", rsa.generate_private_key(65537, 2048), (-10, 10))
    # The same work on the certificate, but rightly signed and valid: it connects.
    resign(running.folder / "more" / "hospital-f", root, (-10, 10))
    strangers = [running.federation.start(running.folder / "more" / name) for name in names]
    try:
        running.federation.wait_connected(["hospital-f"], 60)
        with pytest.raises(FedfmsError, match=r"FMS-K018 .*hospital-d, hospital-e"):
            running.federation.wait_connected(["hospital-d", "hospital-e"], 10)
    finally:
        running.federation.stop(strangers)
    assert all(psutil.pid_exists(int((kit / "pid.fl").read_text())) for kit in trial.sites.values())
