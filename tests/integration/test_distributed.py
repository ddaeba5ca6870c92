"""The distributed way in full: keys made where they are used, the doctor before every start, a job to its records."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fedfms.errors import KIT_CHANGED, FedfmsError
from fedfms.job.folder import new_job
from fedfms.provision.certificate_request import ParticipantKind
from fedfms.provision.distributed import make_authority
from fedfms.provision.local import LocalFederation, admin_command, connected_sites, local_federation
from fedfms.provision.poc import LEAD, SERVER, STUDY, furnish
from fedfms.provision.submission import COMPLETED, download, submit, wait
from fedfms.results.run_folder import open_run
from fedfms.site.job_check import check_job_folder
from fedfms.site.kit import open_kit
from fedfms.site.manifest import verify_manifest
from tests.command import Command
from tests.integration.records import arrived, sent
from tests.integration.secure.federation import JOB, JOB_SECONDS, TINY
from tests.integration.test_provisioning import UNCHECKED, handed_out, is_loopback, left_behind, listening
from tests.provision.federations import profile_content, write_yaml

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

FIRST, LATE = ("hospital-a", "hospital-b"), "hospital-c"


class Consortium:
    """A coordinator and participants, each with the ``fedfms kit`` commands of their guide."""

    def __init__(self, folder: Path, fedfms: Command) -> None:
        self.folder, self.fedfms = folder, fedfms
        self.kits = folder / "kits"
        self.profile = write_yaml(folder / "profile.yaml", profile_content())
        self.fingerprint = make_authority(self.profile, folder / "ca").root_fingerprint

    def _run(self, *arguments: object) -> str:
        result = self.fedfms(*arguments)
        assert result.code == 0, result
        return result.out

    def join(self, name: str, organisation: str, kind: ParticipantKind) -> None:
        asked, signed = self.folder / f"request-{name}", self.folder / f"{name}.zip"
        who = ("--org", organisation, "--kind", kind)
        told = self._run("kit", "request", name, *who, "--project", "fedfms", "--out", asked)
        key = told.partition("key: ")[2].split("\n")[0]
        file = asked / f"{name}.request.zip"
        authority = ("--ca", self.folder / "ca", "--profile", self.profile, "--key", key)
        self._run("kit", "approve", file, "--name", name, *who, *authority, "--out", signed)
        studies = ("--profile", self.profile) if kind == "server" else ()
        options = ("--request", asked, "--fingerprint", self.fingerprint, "--out", self.kits)
        self._run("kit", "package", signed, *options, *studies)
        self._run("kit", "verify", self.kits / name)

    def join_site(self, name: str) -> Path:
        self.join(name, name.replace("-", "_"), "site")
        return self.kits / name

    def study(self, *arguments: object) -> str:
        """``fedfms kit study``, at the server."""
        return self._run("kit", "study", self.kits / SERVER, *arguments)

    def block(self, name: str) -> None:
        """``fedfms kit block``, at the server and where the authority is."""
        lists = ("--server", self.kits / SERVER, "--ca", self.folder / "ca")
        self._run("kit", "block", name, *lists, "--reason", "left the project")

    def unblock(self, name: str) -> None:
        """``fedfms kit unblock``, at the server alone."""
        self._run("kit", "unblock", name, "--server", self.kits / SERVER)


def start_log(kit: Path) -> str:
    """What its start.sh printed, without line breaks."""
    return " ".join((kit / "start.log").read_text(encoding="utf-8").split())


def require_checked(kit: Path) -> None:
    """The doctor looked before the kit started and found nothing that must not be."""
    said = start_log(kit)
    assert " 0 FAIL" in said and "UNCHECKED" not in said and "SKIP_DOCTOR" not in said, said


def require_refused(federation: LocalFederation, kit: Path, *reasons: str) -> None:
    """The doctor finds what must not be: nothing starts, and it says why."""
    with pytest.raises(FedfmsError, match=r"FMS-K018 .*start.sh ended with 1"):
        federation.start(kit)
    said = start_log(kit)
    assert all(reason in said for reason in (*reasons, "not started")), said
    assert not (kit / "pid.fl").exists()
    last = (kit / "audit.log").read_text(encoding="utf-8").splitlines()[-1]
    assert "[A:start refused]" in last and reasons[0] in last


def test_from_requests_to_the_records_of_what_left_and_a_later_site(
    tmp_path: Path, fedfms: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FEDFMS_SKIP_DOCTOR", raising=False)
    consortium = Consortium(tmp_path, fedfms)
    job = tmp_path / "job"
    new_job(JOB, [*TINY, "rounds=1"], job)
    backbone = check_job_folder(job).application.job.backbone_sha256
    server, lead = consortium.kits / SERVER, consortium.kits / LEAD

    consortium.join(SERVER, "coordinator", "server")
    consortium.join(LEAD, "coordinator", "lead")
    kits = {name: consortium.join_site(name) for name in FIRST}
    for name, kit in kits.items():
        furnish(kit, tmp_path / "data" / name, backbone)
        assert fedfms("review", "approve", job, "--kit", kit).code == 0
    everyone = (SERVER, LEAD, *FIRST)
    before = handed_out(consortium.kits, *everyone)
    environment = {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    try:
        with local_federation(server, list(kits.values()), lead, environment) as federation:
            require_checked(server)
            for kit in kits.values():
                require_checked(kit)
                said = start_log(kit)
                assert "mutual TLS with localhost" in said and "forbidden replies were stopped" in said, said
            sockets = listening(federation)
            assert sockets and all(is_loopback(address) for address in sockets.values()), sockets
            job_id = submit(lead, job, STUDY)

            # While the job runs: another site. Its kit as it was handed out, with nothing filled in, does not start.
            late = consortium.join_site(LATE)
            require_refused(federation, late, "FMS-H013", "still the template")
            furnish(late, tmp_path / "data" / LATE, backbone)
            federation.start(late)
            require_checked(late)
            federation.wait_connected([*FIRST, LATE])

            word = wait(lead, job_id, STUDY, JOB_SECONDS, poll_seconds=4)
            logs = (consortium.kits / name / job_id for name in (SERVER, *FIRST, LATE))
            assert word == COMPLETED, [path.read_text() for log in logs for path in log.rglob("errors.log")]
            result = download(lead, job_id, STUDY, tmp_path / "result")
            assert connected_sites(lead) == {*FIRST, LATE}

            # Once more beside the running site.
            command = [sys.executable, "-m", "fedfms.cli", "doctor", str(late), "--quick"]
            again = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
            assert again.returncode == 0 and "running already" in " ".join(again.stdout.split()), again.stdout

            # One byte of one file more than was handed out.
            federation.stop([open_kit(late)])
            changed = late / "local" / "privacy.json"
            changed.write_text(changed.read_text() + "\n")
            require_refused(federation, late, KIT_CHANGED.id, "privacy.json")
    finally:
        assert left_behind(tmp_path) == []
    assert handed_out(consortium.kits, *everyone) == before, "the kits handed out before are the same to the byte"

    found = open_run(result)
    assert set(found.result.sites) == set(FIRST) and found.result.refusals == []
    inspected = fedfms("inspect", found.model_file, "--json")
    assert inspected.code == 0 and inspected.json()["rounds"] == found.result.chosen_rounds, inspected.err
    (ledger_file,) = result.rglob("ledger.jsonl")
    left = sent(kits, job_id)
    assert len(left) == 2 * (1 + 1 + 1 + 1) and left == arrived(ledger_file)


#: A command starts Python and connects; on a busy machine that takes long, and no time limit is a refusal.
COMMAND_SECONDS = 300.0


def refuses(person: Path, *command: str) -> bool:
    """Whether the server answers a person's command with a refusal."""
    try:
        admin_command(person, *command, seconds=COMMAND_SECONDS)
    except FedfmsError as error:
        assert error.ids == ("FMS-K019",) and "TimeoutExpired" not in str(error), error
        return True
    return False


def may_use(lead: Path, study: str) -> bool:
    """Whether the server lets a person into a study."""
    return not refuses(lead, "job", "list", "--study", study)


def waits_until(true: Callable[[], bool], seconds: float = 60) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if true():
            return True
        time.sleep(1)
    return False


def log_of(kit: Path) -> str:
    return (kit / "log.txt").read_text(errors="replace")


def test_who_takes_part_changes_while_the_server_runs(tmp_path: Path, fedfms: Command) -> None:
    """A site, a person and a study that profile.yaml does not know; then the site is blocked, and unblocked."""
    consortium = Consortium(tmp_path, fedfms)
    server, lead, other = (consortium.kits / name for name in (SERVER, LEAD, "other@example.org"))
    consortium.join(SERVER, "coordinator", "server")
    consortium.join(LEAD, "coordinator", "lead")
    first = consortium.join_site("hospital-a")
    try:
        with local_federation(server, [first], lead, UNCHECKED) as federation:
            process = (server / "pid.fl").read_text()
            assert may_use(lead, STUDY) and not may_use(lead, "second")
            new = consortium.join_site("hospital-d")
            federation.start(new)
            federation.wait_connected(["hospital-a", "hospital-d"])
            consortium.study("second", "--new", "--add-site", "hospital_d:hospital-d", "--add-person", LEAD)
            assert may_use(lead, "second"), "the running server knows the study at once"
            consortium.join(other.name, "coordinator", "lead")
            assert not may_use(other, "second")
            consortium.study("second", "--add-person", other.name)
            assert may_use(other, "second")
            consortium.study("second", "--remove-person", LEAD)
            assert not may_use(lead, "second") and may_use(lead, STUDY)

            consortium.block("hospital-d")
            assert waits_until(lambda: connected_sites(lead) == {"hospital-a"})
            assert waits_until(lambda: "FMS-H028" in log_of(new)), "the site says why"
            time.sleep(12)
            assert log_of(new).count("FMS-H028") == 1 and log_of(new).count("Failed to send heartbeat") == 0
            federation.stop([open_kit(new)])
            federation.start(new)
            with pytest.raises(FedfmsError, match=r"FMS-K018 .*hospital-d"):
                federation.wait_connected(["hospital-d"], 15)
            told = fedfms("doctor", new, "--quick", "--json").json()["results"]
            (line,) = (entry for entry in told if entry["id"] == "FMS-H028")
            assert line["severity"] == "WARN" and "is disabled" in line["what"]

            audit = (server / "audit.log").read_text()
            assert "[A:site disconnected] blocked" in audit and "[R:hospital-d]" in audit

            consortium.unblock("hospital-d")
            federation.stop([open_kit(new)])
            federation.start(new)
            federation.wait_connected(["hospital-a", "hospital-d"])
            assert waits_until(lambda: not (new / "refused.json").exists(), 30)
            assert (server / "pid.fl").read_text() == process, "the server was not started again"
            assert verify_manifest(open_kit(server)) == []
    finally:
        assert left_behind(tmp_path) == []


def test_a_blocked_person_gives_no_command_to_the_running_server(tmp_path: Path, fedfms: Command) -> None:
    consortium = Consortium(tmp_path, fedfms)
    server, lead = consortium.kits / SERVER, consortium.kits / LEAD
    consortium.join(SERVER, "coordinator", "server")
    consortium.join(LEAD, "coordinator", "lead")
    federation = LocalFederation(lead, UNCHECKED)
    try:
        federation.start(server)
        # Not the status: without a site FLARE answers it with an error.
        assert waits_until(lambda: may_use(lead, STUDY), COMMAND_SECONDS)
        consortium.block(LEAD)
        assert not may_use(lead, STUDY) and not may_use(lead, "default"), "not even FLARE's own study"
        assert f"Reject disabled client registration: {LEAD}" in log_of(server)
        consortium.unblock(LEAD)
        assert may_use(lead, STUDY)
    finally:
        federation.stop()
        assert left_behind(tmp_path) == []
