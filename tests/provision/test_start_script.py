"""A kit's start.sh asks the doctor first, with the Python that then starts FLARE; its stop_fl.sh stops the kit."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from fedfms.doctor.examination import Examination
from fedfms.doctor.processes import stale
from fedfms.site.kit import open_kit
from tests.provision.conftest import Central

FAKE = """#!/usr/bin/env bash
[[ "$1" == "-c" ]] && exit "${NO_PACKAGES:-0}"
echo "python3 $* | cwd=$PWD store=${FEDFMS_STORE:-} kit=${FEDFMS_KIT:-} umask=$(umask)" >>"$CALLS"
[[ "$*" == *doctor* ]] && exit "${DOCTOR_CODE:-0}"
[[ -n "${WAIT:-}" ]] && exec sleep 60
exit 0
"""


class Starter:
    """Runs a kit's start.sh with a ``python3`` that writes down how it was called."""

    def __init__(self, kit: Path, folder: Path) -> None:
        self.kit = kit
        self.calls = folder / "calls.txt"
        (folder / "bin").mkdir()
        (folder / "bin" / "python3").write_text(FAKE)
        (folder / "bin" / "python3").chmod(0o755)
        self.path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"

    def __call__(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = self.environment(**variables)
        return subprocess.run(
            self.command(*arguments), env=environment, capture_output=True, text=True, timeout=60, check=False
        )

    def command(self, *arguments: str) -> list[str]:
        return ["bash", str(self.kit / "startup" / "start.sh"), *arguments]

    def environment(self, **variables: str) -> dict[str, str]:
        environment = {**os.environ, "PATH": self.path, "CALLS": str(self.calls), **variables}
        for name in ("FEDFMS_SKIP_DOCTOR", "NVFL_WORKSPACE"):
            if name not in variables:
                environment.pop(name, None)
        return environment

    def lines(self) -> list[str]:
        return self.calls.read_text().splitlines() if self.calls.exists() else []


@pytest.fixture
def starter(kit: Path, tmp_path: Path) -> Starter:
    (tmp_path / "fake").mkdir()
    return Starter(kit, tmp_path / "fake")


def test_the_doctor_comes_first_and_flare_after_it(starter: Starter) -> None:
    result = starter("--once")
    assert result.returncode == 0, result.stderr
    doctor, flare = starter.lines()
    assert doctor.startswith(f"python3 -m fedfms.cli doctor {starter.kit} |")
    assert "nvflare.private.fed.app.client.client_train" in flare
    for line in (doctor, flare):
        assert f"cwd={starter.kit}/startup store={starter.kit}/store kit={starter.kit} umask=0077" in line


def test_nothing_starts_when_the_doctor_says_fail(starter: Starter) -> None:
    result = starter("--once", DOCTOR_CODE="1")
    assert result.returncode == 1 and "not started" in result.stderr
    assert len(starter.lines()) == 1


def test_the_check_is_skipped_only_with_the_variable_and_loudly(starter: Starter) -> None:
    result = starter("--once", FEDFMS_SKIP_DOCTOR="1", DOCTOR_CODE="1")
    assert result.returncode == 0 and "UNCHECKED" in result.stderr
    assert len(starter.lines()) == 1 and "doctor" not in starter.lines()[0]
    assert "[A:start unchecked] FEDFMS_SKIP_DOCTOR=1" in (starter.kit / "audit.log").read_text()
    assert starter("--once", FEDFMS_SKIP_DOCTOR="yes", DOCTOR_CODE="1").returncode == 1


def test_an_unknown_argument_is_refused(starter: Starter) -> None:
    result = starter("--cloud", "aws")
    assert result.returncode == 2 and "--cloud" in result.stderr and starter.lines() == []


def test_the_store_follows_flares_own_workspace_variable(starter: Starter, tmp_path: Path) -> None:
    starter("--once", NVFL_WORKSPACE=str(tmp_path / "elsewhere"))
    assert f"store={tmp_path}/elsewhere/store" in starter.lines()[0]


def test_a_kit_does_not_run_twice(starter: Starter) -> None:
    """In the foreground FLARE writes no process file: the lock tells, from before the doctor until FLARE has ended."""
    first = subprocess.Popen(starter.command("--once"), env=starter.environment(WAIT="1"), start_new_session=True)
    try:
        while len(starter.lines()) < 2:
            assert first.poll() is None
            time.sleep(0.05)
        (line,) = stale(Examination(open_kit(starter.kit)))
        assert line.severity == "WARN" and "start.lock is held" in line.what
        for arguments in (("--once",), ()):
            second = starter(*arguments)
            assert second.returncode == 1 and "runs already" in second.stderr
        assert len(starter.lines()) == 2, "neither doctor nor FLARE a second time"
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
    assert starter("--once").returncode == 0
    (line,) = stale(Examination(open_kit(starter.kit)))
    assert line.severity == "PASS"


def test_the_doctor_in_a_start_does_not_take_it_for_a_running_kit(
    starter: Starter, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = Path(starter.path.split(os.pathsep)[0]) / "python3"
    fake.write_text(FAKE.replace("umask=$(umask)", "umask=$(umask) starting=${FEDFMS_STARTING:-}"))
    assert starter("--once").returncode == 0
    assert [line.rpartition(" ")[2] for line in starter.lines()] == ["starting=1", "starting="]
    monkeypatch.setenv("FEDFMS_STARTING", "1")
    with (starter.kit / "start.lock").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        (line,) = stale(Examination(open_kit(starter.kit)))
    assert line.severity == "PASS"


def test_a_start_in_the_background_says_so(starter: Starter) -> None:
    result = starter()
    assert result.returncode == 0 and not result.stderr
    assert f"its output is in {starter.kit}/console.log" in result.stdout
    assert f"{starter.kit}/startup/stop_fl.sh" in result.stdout and (starter.kit / "startup" / "stop_fl.sh").is_file()
    process = re.search(r"process (\d+);", result.stdout)
    assert process is not None
    with suppress(ProcessLookupError):
        os.kill(int(process[1]), signal.SIGKILL)


def test_a_python_without_the_packages_is_not_the_doctors_fault(starter: Starter) -> None:
    for variables in ({}, {"FEDFMS_SKIP_DOCTOR": "1"}):
        result = starter("--once", NO_PACKAGES="1", **variables)
        assert result.returncode == 1 and starter.lines() == []
        python = Path(starter.path.split(os.pathsep)[0]) / "python3"
        assert f"{python} has no packages fedfms and nvflare: activate" in result.stderr
        assert "doctor" not in result.stderr


@pytest.mark.parametrize("packages", [("fedfms",), ("nvflare",), ("fedfms", "nvflare")])
def test_the_packages_are_looked_for(packages: tuple[str, ...], starter: Starter, tmp_path: Path) -> None:
    """With a Python that has nothing but what is put into a folder."""
    for name in packages:
        (tmp_path / "site" / name).mkdir(parents=True)
        (tmp_path / "site" / name / "__init__.py").touch()
    (tmp_path / "site").mkdir(exist_ok=True)
    fake = Path(starter.path.split(os.pathsep)[0]) / "python3"
    line = f'[[ "$1" == "-c" ]] && exec env PYTHONPATH={tmp_path}/site {sys.executable} -S "$@"'
    fake.write_text(fake.read_text().replace('[[ "$1" == "-c" ]] && exit "${NO_PACKAGES:-0}"', line))
    assert starter("--once").returncode == (0 if len(packages) == 2 else 1)


def test_no_python_at_all(starter: Starter, tmp_path: Path) -> None:
    (tmp_path / "few").mkdir()
    for name in ("bash", "dirname", "env"):
        (tmp_path / "few" / name).symlink_to(shutil.which(name) or "")
    result = starter("--once", PATH=str(tmp_path / "few"))
    assert result.returncode == 1 and "there is no python3 in PATH" in result.stderr and "doctor" not in result.stderr


def test_a_doctor_that_was_ended_found_nothing(starter: Starter) -> None:
    result = starter("--once", DOCTOR_CODE="137")
    assert result.returncode == 1 and "itself was ended (exit code 137" in result.stderr
    assert "found something wrong" not in result.stderr and len(starter.lines()) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives a kit to another account")
@pytest.mark.parametrize("variables", [{}, {"FEDFMS_SKIP_DOCTOR": "1"}], ids=["checked", "unchecked"])
def test_another_account_does_not_start_the_kit(starter: Starter, variables: dict[str, str]) -> None:
    """As root it would leave files that the kit's own account can neither read nor lock."""
    os.chown(starter.kit, 4711, 4712)
    result = starter("--once", **variables)
    assert result.returncode == 1 and "the kit belongs to 4711 and this account is " in result.stderr
    assert starter.lines() == [] and not (starter.kit / "start.lock").exists()


def stop(
    starter: Starter, *arguments: str, words: str = "", kit: Path | None = None
) -> subprocess.CompletedProcess[str]:
    command = ["bash", str((kit or starter.kit) / "startup" / "stop_fl.sh"), *arguments]
    environment = starter.environment()
    return subprocess.run(
        command, env=environment, input=words, capture_output=True, text=True, timeout=180, check=False
    )


def test_stop_says_what_flares_own_script_says_nowhere(starter: Starter, central: Central) -> None:
    for kit in (starter.kit, central.kits / "localhost"):
        text = (kit / "startup" / "stop_fl.sh").read_text()
        assert "admin console" not in text and "last resort" not in text
    assert stop(starter, "--now").returncode == 2
    result = stop(starter)
    assert result.returncode == 0 and "does not run" in result.stdout
    assert not (starter.kit / "shutdown.fl").exists(), "it would end the next start"


def test_stop_in_the_foreground_says_how(starter: Starter) -> None:
    first = subprocess.Popen(starter.command("--once"), env=starter.environment(WAIT="1"), start_new_session=True)
    try:
        while len(starter.lines()) < 2:
            assert first.poll() is None
            time.sleep(0.05)
        result = stop(starter)
        assert result.returncode == 1 and "foreground" in result.stderr and "TERM" in result.stderr
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()


@pytest.mark.slow
def test_stop_ends_every_process_of_a_site_without_a_question(starter: Starter) -> None:
    assert starter(WAIT="1").returncode == 0
    try:
        while len(starter.lines()) < 2:
            time.sleep(0.1)
        result = stop(starter)
        assert result.returncode == 0 and result.stdout.endswith("stopped\n"), result
        assert [name for name in ("daemon_pid.fl", "pid.fl", "shutdown.fl") if (starter.kit / name).exists()] == []
        with (starter.kit / "start.lock").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        (starter.kit / "shutdown.fl").touch()


def test_stop_asks_at_a_server(starter: Starter, central: Central) -> None:
    server = central.kits / "localhost"
    with subprocess.Popen(["sleep", "60"]) as loop:
        try:
            (server / "daemon_pid.fl").write_text(str(loop.pid))
            for words in ("n\n", "\n", ""):
                refused = stop(starter, words=words, kit=server)
                assert refused.returncode == 1 and "not stopped" in refused.stderr and "--yes" in refused.stderr
            assert not (server / "shutdown.fl").exists()
            waiting = subprocess.Popen(["bash", str(server / "startup" / "stop_fl.sh"), "--yes"])
            while not (server / "shutdown.fl").exists():
                assert waiting.poll() is None
                time.sleep(0.05)
        finally:
            loop.kill()
        loop.wait()
    assert waiting.wait(30) == 0
