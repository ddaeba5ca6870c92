"""Attacks on the running federation: each is refused, and says why where the people concerned look."""

from __future__ import annotations

import json
import os
import socket
import ssl
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from nvflare.fuel.hci.client import file_transfer
from nvflare.lighter.utils import verify_folder_signature

from fedfms.errors import CERTIFICATE_CHAIN, CERTIFICATE_VALIDITY, FedfmsError
from fedfms.provision.central import add_participants
from fedfms.provision.local import admin_command, connected_sites
from fedfms.provision.poc import ADMIN, LEAD, SITES
from fedfms.provision.submission import COMPLETED
from fedfms.site.egress import read_record
from fedfms.site.kit import open_kit
from fedfms.site.review import pending_jobs
from tests.integration.planting import holders
from tests.integration.records import arrived
from tests.integration.secure.federation import Running, changed, install, policy

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

ENCODER_FILTER = "careless.AddEncoder"
LEAKED_WORD = "zqx8leakedpicture"


def allow(kit: Path, path: str) -> Any:
    """A site's allow-list with one class more."""
    return changed(kit / "local" / "resources.json", lambda content: content["class_allow_list"].append(path))


def client_file(job: Path) -> Path:
    return job / "app" / "config" / "config_fed_client.json"


def aborted(running: Running, job_id: str) -> str:
    """The line about a job in the server's audit log."""
    lines = [line for line in running.audit("localhost").splitlines() if f"[R:{job_id}]" in line]
    assert len(lines) == 1 and "[A:job aborted]" in lines[0], lines
    return lines[0]


def test_a_jobs_filter_that_adds_encoder_weights_meets_the_sites_gate(running: Running) -> None:
    """The sites let FLARE load the filter. Hospital c has no gate: there the same attack gets out, and the picture."""
    job = running.job()
    running.approve(job)
    content = json.loads(client_file(job).read_text())
    content["task_result_filters"][0]["filters"].append({"path": ENCODER_FILTER, "args": {}})
    client_file(job).write_text(json.dumps(content))
    kits = running.trial.sites
    with ExitStack() as stack:
        for kit in kits.values():
            stack.enter_context(allow(kit, ENCODER_FILTER))
        stack.enter_context(install(kits["hospital-c"], "SendPicture", word=LEAKED_WORD, gate=False))
        job_id = running.submit_unchecked(job)
        word = running.outcome(job_id)
    assert word != COMPLETED
    messages = {site: (digest, size) for site, _, digest, size in arrived(running.ledger(job_id))}
    for name in ("hospital-a", "hospital-b"):
        assert ENCODER_FILTER in running.told(name, job_id)
        assert "site refused task ready: FMS-J005" in running.audit(name, job_id)
        assert "egress gate closed: FMS-X009 FMS-J005" in running.audit(name, job_id)
        (line,) = read_record(kits[name], job_id)
        assert (line.decision, line.errors, line.tensors) == ("refused", ("FMS-X009", "FMS-J005"), ())
        assert messages[name] == (line.sha256, line.bytes) and line.bytes < 500
    assert messages["hospital-c"][1] > 4 * 16 * 3 * 16 * 16, "without the gate the weights get out"
    assert holders(running.server, [LEAKED_WORD])[LEAKED_WORD] != [], "without the gate the picture gets out"


def test_three_hospitals_refuse_one_job_each_for_its_own_reason(running: Running) -> None:
    """Scope, backbone and review."""
    job = running.job("scope=full")
    kits = running.trial.sites
    digest = "0" * 64
    both = ["full", "adapters+decoder"]
    review = {"rule": "required", "hold_minutes": 0.01, "valid_days": 1}
    with ExitStack() as stack:
        stack.enter_context(policy(kits["hospital-b"], scopes=both, backbones=[digest]))
        stack.enter_context(policy(kits["hospital-c"], scopes=both, review=review))
        running.approve(job, "hospital-a", "hospital-b")
        job_id = running.submit_unchecked(job)
        word = running.outcome(job_id)
    assert word != COMPLETED
    reasons = {
        "hospital-a": ("FMS-S002", "found full"),
        "hospital-b": ("FMS-S002", digest),
        "hospital-c": ("FMS-S004", "nobody has decided"),
    }
    for name, (kind, reason) in reasons.items():
        assert kind in running.told(name, job_id) and reason in running.told(name, job_id), name
        assert f"site refused task ready: {kind}" in running.audit(name, job_id)
        assert [(line.decision, line.errors) for line in read_record(kits[name], job_id)] == [("refused", (kind,))]
        assert pending_jobs(kits[name]) == []


def test_code_is_refused_when_it_arrives(running: Running) -> None:
    job = running.job()
    (job / "app" / "custom").mkdir()
    (job / "app" / "custom" / "mine.py").write_text("print('here')\n")
    job_id = running.submit_unchecked(job)
    assert running.outcome(job_id) == "FINISHED:FAILED_TO_RUN"
    assert "BYOC not permitted" in running.meta(job_id)
    assert "deployment: server: BYOC not permitted" in aborted(running, job_id)
    # It has not come as far as a site.
    assert not any((kit / job_id).exists() for kit in running.trial.sites.values())


def test_a_class_outside_the_list_is_not_built(running: Running) -> None:
    """Nor where it is nested in another one's arguments. The simulator's tests have one that is not nested."""
    job = running.job()
    content = json.loads(client_file(job).read_text())
    content["executors"][0]["executor"]["args"] = {"helper": {"path": "subprocess.Popen", "args": {"args": ["true"]}}}
    client_file(job).write_text(json.dumps(content))
    job_id = running.submit_unchecked(job)
    assert running.outcome(job_id) != COMPLETED
    for name in SITES:
        said = running.console(name)
        # The site's own look, when the job arrives; then FLARE's, in the job's process.
        assert f"job {job_id} is refused here: FMS-J005" in said and "subprocess.Popen" in said, name
        assert "Component 'subprocess.Popen' at config path" in said, name
        assert [line for line in running.audit(name).splitlines() if f"[R:{job_id}]" in line and "FMS-J005" in line]
        assert read_record(running.trial.sites[name], job_id) == []


def test_a_job_altered_after_signing_is_not_deployed(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    job = running.job()
    running.approve(job)
    pack = file_transfer.zip_directory_to_file
    root = str(running.lead / "startup" / "rootCA.pem")
    signed: list[bool] = []

    def alter_then_pack(folder: str, name: str, *arguments: Any) -> None:
        # Signed rightly at this moment, and in nothing but the alteration another job than one that sites accept.
        app = Path(folder) / name / "app"
        signed.append(verify_folder_signature(str(app), root))
        training = app / "config" / "training.yaml"
        training.write_text(training.read_text() + "# altered\n")
        signed.append(verify_folder_signature(str(app), root))
        pack(folder, name, *arguments)

    monkeypatch.setattr(file_transfer, "zip_directory_to_file", alter_then_pack)
    job_id = running.submit_unchecked(job)
    assert signed == [True, False]
    assert running.outcome(job_id) == "FINISHED:FAILED_TO_RUN"
    # The server refuses it first; a site that it reached all the same would.
    assert "does not pass signature verification" in running.meta(job_id)
    assert "deployment: server: app app does not pass signature verification" in aborted(running, job_id)
    assert not any((kit / job_id).exists() for kit in running.trial.sites.values())


def test_the_lead_gives_no_admin_command(running: Running) -> None:
    with pytest.raises(FedfmsError, match=r"FMS-K019"):
        admin_command(running.lead, "system", "shutdown", "all", "--force")
    # Without what FLARE's own command line may hold back.
    with running.session() as session:
        for command in ("shutdown client", "restart all", "disable_client hospital-a"):
            answer = session.api.server_execute(command)
            assert "not_authorized" in str(answer).lower().replace(" ", "_"), answer
    log = running.audit("localhost")
    for command in ("shutdown all", "shutdown client", "restart all", "disable_client hospital-a"):
        assert f"[U:{LEAD}][A:{command}] refused" in log
    assert connected_sites(running.trial.kits / ADMIN) == set(SITES)


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


def taken(kit: Path) -> bool:
    """Whether the server's TLS takes a kit's certificate. It closes the connection if not, without a word."""
    opened = open_kit(kit)
    context = ssl.create_default_context(cafile=str(opened.root_file))
    context.load_cert_chain(opened.certificate_file, kit / "startup" / "client.key")
    context.set_alpn_protocols(["h2"])
    with socket.create_connection((opened.server.host, opened.server.port), 10) as plain:
        try:
            with context.wrap_socket(plain, server_hostname=opened.server.host) as connection:
                # In TLS 1.3 the verdict comes after the handshake; else the server's first HTTP/2 frame does.
                return bool(connection.recv(1))
        except (ssl.SSLError, ConnectionError):
            return False


def refused_start(kit: Path) -> str:
    """The kit's audit log after its own start.sh has refused to start it."""
    environment = {name: value for name, value in os.environ.items() if name != "FEDFMS_SKIP_DOCTOR"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    command = ["bash", str(kit / "startup" / "start.sh"), "--once"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert result.returncode == 1 and "not started" in result.stderr, result
    return (kit / "audit.log").read_text()


def test_an_expired_certificate_and_one_of_another_authority_do_not_connect(running: Running) -> None:
    trial = running.trial
    names = ("hospital-d", "hospital-e", "hospital-f")
    content = yaml.safe_load((trial.folder / "project.yml").read_text())
    content["participants"] += [{"name": name, "type": "client", "org": name.replace("-", "_")} for name in names]
    project = running.folder / "more.yml"
    project.write_text(yaml.safe_dump(content))
    more = running.folder / "more"
    add_participants(project, names, more, trial.folder / "ca")
    state = json.loads((trial.folder / "ca" / "cert.json").read_text())
    root = serialization.load_pem_private_key(state["root_pri_key"].encode(), None)
    resign(more / "hospital-d", root, (-20, -10))
    resign(more / "hospital-e", rsa.generate_private_key(65537, 2048), (-10, 10))
    # The same work on the certificate, but rightly signed and valid: it connects.
    resign(more / "hospital-f", root, (-10, 10))

    # The reason at the site, before it starts. FLARE's server writes none.
    with ThreadPoolExecutor() as side_by_side:
        found = dict(zip(names, side_by_side.map(refused_start, [more / name for name in names]), strict=True))
    assert all("[A:start refused]" in text for text in found.values()), "none has its data described"
    assert CERTIFICATE_VALIDITY.id in found["hospital-d"] and CERTIFICATE_CHAIN.id in found["hospital-e"], found
    assert not any(kind.id in found["hospital-f"] for kind in (CERTIFICATE_VALIDITY, CERTIFICATE_CHAIN)), found
    assert {name: taken(more / name) for name in names} == {
        "hospital-d": False,
        "hospital-e": False,
        "hospital-f": True,
    }

    strangers = running.federation.start_together([more / name for name in names])
    try:
        running.federation.wait_connected(["hospital-f"], 240)
        with pytest.raises(FedfmsError, match=r"FMS-K018 .*hospital-d, hospital-e"):
            running.federation.wait_connected(["hospital-d", "hospital-e"], 5)
    finally:
        running.federation.stop(strangers)
    log = running.console("localhost")
    assert "SSL hospital-f" in log and not any(f"SSL {name}" in log for name in names[:2])
    assert all(psutil.pid_exists(int((kit / "pid.fl").read_text())) for kit in trial.sites.values())
