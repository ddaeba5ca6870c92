"""FLARE's commands run apart from the user's own files; a failure says why."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from fedfms.errors import ADMIN_COMMAND_FAILED, FedfmsError
from fedfms.provision.flare_command import flare, private_folder
from tests.provision.federations import profile_content, write_yaml


def test_a_failure_has_flares_reason_and_the_kind_asked_for(tmp_path: Path) -> None:
    with pytest.raises(FedfmsError, match="FMS-K004 nvflare: 'nvflare cert init' ended with 4: .*not found"):
        flare(("cert", "init", "--profile", tmp_path / "x", "--output-dir", tmp_path / "ca"), tmp_path)
    with pytest.raises(FedfmsError, match="FMS-K019 me: "):
        flare(("no", "such"), tmp_path, failure=ADMIN_COMMAND_FAILED, where="me")


def test_a_command_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    with pytest.raises(FedfmsError, match="FMS-K004 .*TimeoutExpired"):
        flare(("system", "status"), tmp_path, seconds=0.01)


def test_flare_writes_secrets_closed_to_others_and_nothing_stays(tmp_path: Path) -> None:
    profile = write_yaml(tmp_path / "profile.yaml", profile_content())
    with private_folder(tmp_path / "ca") as work:
        assert work.parent == tmp_path and stat.S_IMODE(work.stat().st_mode) == 0o700
        flare(("cert", "init", "--profile", profile, "--output-dir", work / "ca"), work)
        assert (work / "ca" / "rootCA.key").is_file()
        # FLARE itself opens the root certificate, which is public anyway.
        open_to_others = {path.name for path in work.rglob("*") if path.is_file() and path.stat().st_mode & 0o077}
        assert open_to_others <= {"rootCA.pem"}
    assert [path.name for path in tmp_path.iterdir()] == ["profile.yaml"]
