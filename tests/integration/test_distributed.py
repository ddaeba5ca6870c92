"""The distributed way in full: keys made where they are used, the doctor before every start, a job to its records."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedfms.job.folder import new_job
from fedfms.provision.certificate_request import Kind
from fedfms.provision.distributed import make_authority
from fedfms.provision.local import connected_sites, local_federation
from fedfms.provision.poc import LEAD, SERVER, SITES, STUDY, furnish
from fedfms.provision.submission import COMPLETED, download, submit, wait
from fedfms.results.run_folder import open_run
from fedfms.site.job_check import check_job_folder
from tests.command import Command
from tests.integration.records import arrived, sent
from tests.integration.secure.federation import JOB, JOB_SECONDS, TINY
from tests.integration.test_provisioning import handed_out, is_loopback, left_behind, listening
from tests.provision.federations import profile_content, write_yaml

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

LATE = "hospital-d"


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

    def join(self, name: str, organisation: str, kind: Kind) -> None:
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


def test_from_requests_to_the_records_of_what_left_and_a_fourth_site(
    tmp_path: Path, fedfms: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FEDFMS_SKIP_DOCTOR", raising=False)
    consortium = Consortium(tmp_path, fedfms)
    job = tmp_path / "job"
    new_job(JOB, list(TINY), job)
    backbone = check_job_folder(job).application.job.backbone_sha256
    kits = {name: consortium.kits / name for name in SITES}
    lead = consortium.kits / LEAD

    def join_site(name: str) -> Path:
        consortium.join(name, name.replace("-", "_"), "site")
        furnish(consortium.kits / name, tmp_path / "data" / name, backbone)
        return consortium.kits / name

    consortium.join(SERVER, "coordinator", "server")
    consortium.join(LEAD, "coordinator", "lead")
    for name in SITES:
        join_site(name)
        assert fedfms("review", "approve", job, "--kit", kits[name]).code == 0
    everyone = (SERVER, LEAD, *SITES)
    before = handed_out(consortium.kits, *everyone)
    environment = {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    try:
        with local_federation(consortium.kits / SERVER, list(kits.values()), lead, environment) as federation:
            for name in (SERVER, *SITES):
                said = (consortium.kits / name / "start.log").read_text()
                assert " 0 FAIL" in said and "UNCHECKED" not in said, said
            sockets = listening(federation)
            assert sockets and all(is_loopback(address) for address in sockets.values()), sockets
            job_id = submit(lead, job, STUDY)

            # While the job runs: a fourth site.
            fourth = join_site(LATE)
            federation.start(fourth)
            federation.wait_connected([*SITES, LATE])

            word = wait(lead, job_id, STUDY, JOB_SECONDS, poll_seconds=2)
            logs = (consortium.kits / name / job_id for name in (SERVER, *SITES, LATE))
            assert word == COMPLETED, [path.read_text() for log in logs for path in log.rglob("errors.log")]
            result = download(lead, job_id, STUDY, tmp_path / "result")
            assert connected_sites(lead) == {*SITES, LATE}
    finally:
        assert left_behind(tmp_path) == []
    assert handed_out(consortium.kits, *everyone) == before, "the kits handed out before are the same to the byte"

    found = open_run(result)
    assert set(found.result.sites) == set(SITES) and found.result.refusals == []
    inspected = fedfms("inspect", found.model_file, "--json")
    assert inspected.code == 0 and inspected.json()["rounds"] == found.result.chosen_rounds, inspected.err
    (ledger_file,) = result.rglob("ledger.jsonl")
    left = sent(kits, job_id)
    assert len(left) == 3 * (1 + 2 + 1 + 1) and left == arrived(ledger_file)
