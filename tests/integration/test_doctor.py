"""A federation that starts only because the doctor found nothing wrong: FLARE's real processes, loopback only."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from fedfms.datasets.phantom import write_demo_site
from fedfms.errors import KIT_CHANGED, FedfmsError
from fedfms.provision.central import provision
from fedfms.provision.local import LocalFederation, connected_sites, local_federation
from fedfms.site.kit import open_kit
from tests.integration.test_provisioning import ADMIN, left_behind
from tests.provision.federations import project_content, write_yaml

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_start_asks_the_doctor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEDFMS_SKIP_DOCTOR", raising=False)
    kits = tmp_path / "kits"
    provision(write_yaml(tmp_path / "project.yml", project_content()), kits, tmp_path / "ca")
    site = kits / "hospital-a"
    demo = write_demo_site(tmp_path / "demo", "hospital-a")
    text = demo.read_text(encoding="utf-8")
    described = re.sub(r"root: \.\s+", f"root: {demo.parent}  ", text)
    assert described != text
    try:
        # Not filled in: nothing starts.
        federation = LocalFederation(kits / ADMIN, ENVIRONMENT)
        try:
            with pytest.raises(FedfmsError, match=r"FMS-K018 .*start.sh ended with 1"):
                federation.start(site)
        finally:
            federation.stop()
        said = (site / "start.log").read_text(encoding="utf-8")
        assert "FMS-H013" in said and "still the template" in said and "not started" in said

        # The template's mode stays.
        (site / "local" / "site.yaml").write_text(described, encoding="utf-8")
        with local_federation(kits / "localhost", [site], kits / ADMIN, ENVIRONMENT) as federation:
            assert connected_sites(kits / ADMIN) == {"hospital-a"}
            for kit in ("localhost", "hospital-a"):
                said = (kits / kit / "start.log").read_text(encoding="utf-8")
                assert " 0 FAIL" in said and "SKIP_DOCTOR" not in said, said
            assert "mutual TLS with localhost" in said and "forbidden replies were stopped" in said
            # Once more beside the running site.
            command = [sys.executable, "-m", "fedfms.cli", "doctor", str(site), "--quick"]
            again = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
            assert again.returncode == 0 and "running already" in " ".join(again.stdout.split()), again.stdout

            # One byte of one file more than was handed out: nothing starts, and it says which file.
            federation.stop([open_kit(site)])
            changed = site / "local" / "privacy.json"
            changed.write_text(changed.read_text() + "\n")
            with pytest.raises(FedfmsError, match=r"FMS-K018 .*start.sh ended with 1"):
                federation.start(site)
            said = " ".join((site / "start.log").read_text(encoding="utf-8").split())
            assert KIT_CHANGED.id in said and "privacy.json" in said and "not started" in said, said
            assert not (site / "pid.fl").exists()
            last = (site / "audit.log").read_text(encoding="utf-8").splitlines()[-1]
            assert "[A:start refused]" in last and KIT_CHANGED.id in last
    finally:
        assert left_behind(kits) == []
