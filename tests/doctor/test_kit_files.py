"""Manifest, modes, allow-list, folders, processes: each made to fail."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from fedfms.errors import (
    ALLOW_LIST,
    FILE_REFUSED,
    FOLDERS,
    KIT_CHANGED,
    KIT_MODES,
    SERVER_PORT,
    STALE_PROCESS,
    STUDIES,
)
from fedfms.site.kit import open_kit
from fedfms.site.manifest import verify_manifest
from tests.accounts import shut
from tests.command import Command
from tests.doctor.conftest import Patient


@contextmanager
def program(*arguments: str) -> Iterator[int]:
    """A process that waits; its id."""
    code = "import time; print(flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None and process.stdout.readline()
        yield process.pid
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_kit_as_handed_out_passes(site: Patient, server: Patient) -> None:
    (site.kit / "local" / "policy.yaml").chmod(0o600)
    (site.kit / "local" / "site.yaml").chmod(0o600)
    for patient in (site, server):
        for kind in (KIT_CHANGED, KIT_MODES, ALLOW_LIST, STALE_PROCESS, FOLDERS):
            assert patient.line(kind).severity == "PASS", kind


def test_a_changed_file(site: Patient) -> None:
    with (site.kit / "local" / "privacy.json").open("a") as file:
        file.write(" ")
    line = site.line(KIT_CHANGED)
    assert line.severity == "FAIL" and line.what.startswith("FMS-K013 local/privacy.json: ")


def test_a_missing_and_an_extra_file(site: Patient) -> None:
    (site.kit / "local" / "authorization.json").unlink()
    for number in range(9):
        (site.kit / "local" / f"extra{number}__resources.json").write_text("{}")
    line = site.line(KIT_CHANGED)
    assert "FMS-K014 local/authorization.json" in line.what and "FMS-K015 local/extra0" in line.what
    assert "5 more" in line.what


CLOSED = ("manifest.json", "review", "egress", "notices", "store", "transfer")


@pytest.mark.parametrize("name", ["startup/client.key", "local", "local/site.yaml", *CLOSED])
def test_a_file_that_others_can_read(name: str, site: Patient, fedfms: Command) -> None:
    if not (site.kit / name).exists():
        (site.kit / name).mkdir()
    (site.kit / name).chmod(0o755)
    line = site.line(KIT_MODES)
    assert line.severity == "FAIL" and f"FMS-K006 {name}: mode 0755" in line.what
    assert f"{name}: mode 0755" in fedfms("kit", "verify", site.kit).failed_with("FMS-K006")


def test_a_kit_that_others_can_write_into(site: Patient, fedfms: Command) -> None:
    """Who can write into the kit's folder can put another startup/ and manifest in place of these."""
    (site.kit / "local" / "policy.yaml").chmod(0o600)
    (site.kit / "local" / "site.yaml").chmod(0o600)
    assert site.line(KIT_MODES).severity == "PASS"
    site.kit.chmod(0o777)
    line = site.line(KIT_MODES)
    assert line.severity == "FAIL" and f"FMS-K006 {site.kit}: mode 0777" in line.what
    fedfms("kit", "verify", site.kit).failed_with("FMS-K006")


def test_a_kit_of_another_user(site: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    user = os.geteuid()
    monkeypatch.setattr("fedfms.site.kit.os.geteuid", lambda: user + 1)
    line = site.line(KIT_MODES)
    assert line.severity == "FAIL" and f"(uid {user}), this is run by account " in line.what
    assert f"chown -R {user + 1} KIT" in line.remedy and "sudo -u" in line.remedy


@pytest.mark.parametrize("file", ["resources.json", "resources.json.default"])
@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda content: content["class_allow_list"].append("os.system"), "allows os.system too"),
        (lambda content: content["class_allow_list"].pop(), "does not allow"),
        (lambda content: content.update(site_config={"where": "ward 3"}), "extra key 'site_config'"),
        (lambda content: content.pop("class_list_enforcement_mode"), "key 'class_list_enforcement_mode' is missing"),
        (lambda content: content.update(class_list_enforcement_mode="warn"), "'class_list_enforcement_mode' is not"),
        (lambda content: content.update(allow_log_streaming=True), "'allow_log_streaming' is not"),
        (lambda content: content["components"].pop(), "'components' is not"),
    ],
)
def test_another_allow_list(file: str, change: object, text: str, site: Patient) -> None:
    site.write_json(f"local/{file}", change)  # type: ignore[arg-type]
    line = site.line(ALLOW_LIST)
    assert line.severity == "FAIL" and line.what.startswith(f"{file}: ") and text in line.what


def test_a_missing_allow_list(site: Patient) -> None:
    (site.kit / "local" / "resources.json").unlink()
    assert site.line(ALLOW_LIST).what.startswith("FMS-K001 local/resources.json")


def test_a_server_without_studies_does_not_start(server: Patient, fedfms: Command) -> None:
    """As version 0.1 packaged it without --profile."""
    line = server.line(STUDIES)
    assert line.severity == "PASS" and line.what == "segmentation (2 sites)"
    (server.kit / "local" / "study_registry.json").unlink()
    line = server.line(STUDIES)
    assert line.severity == "FAIL" and "without --profile" in line.what and "fedfms kit study KIT STUDY" in line.remedy
    new = ("--new", "--add-site", "hospital_a:hospital-a", "--add-person", "lead@example.org")
    assert fedfms("kit", "study", server.kit, "first", *new).code == 0
    assert server.line(STUDIES).severity == "PASS"


def test_a_server_with_an_empty_or_broken_list(server: Patient, fedfms: Command) -> None:
    changed = server.kit / "study_registry.json"
    changed.write_text('{"format_version": "1.0", "studies": {}}')
    line = server.line(STUDIES)
    assert line.severity == "WARN" and "only jobs without --study" in line.what
    changed.write_text("{")
    assert server.line(STUDIES).what.startswith("FMS-K001 study_registry.json")
    changed.unlink()
    assert fedfms("kit", "block", "hospital-b", "--server", server.kit, "--reason", "left").code == 0
    assert server.line(STUDIES).what.endswith("; blocked: hospital-b")
    (server.kit / "blocked.json").write_text("[]")
    line = server.line(STUDIES)
    assert line.severity == "FAIL" and line.what.startswith("FMS-K001 blocked.json")


@pytest.mark.parametrize("name", ["egress", "review", "notices", "transfer"])
def test_a_folder_that_cannot_be_written(name: str, site: Patient) -> None:
    # Works for root too, for whom no mode is in the way.
    if (site.kit / name).is_dir():
        (site.kit / name).rmdir()
    (site.kit / name).write_text("a file")
    line = site.line(FOLDERS)
    assert line.severity == "FAIL" and line.what.startswith(f"{name}/ in the kit: ")
    assert not list(site.kit.rglob(".fedfms-doctor-*"))


def test_a_cache_folder_that_cannot_be_written(site: Patient, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    path = site.kit / "local" / "site.yaml"
    content = yaml.safe_load(path.read_text())
    content["compute"]["cache_dir"] = str(tmp_path / "cache")
    path.write_text(yaml.safe_dump(content))
    assert site.line(FOLDERS).what.startswith("compute.cache_dir: ")


def test_a_read_only_kit(site: Patient) -> None:
    with shut(site.kit, 0o500):
        line = site.line(FOLDERS)
    assert "the kit: account " in line.what and f"{site.kit}: it belongs to " in line.what
    assert f":rwx {site.kit}'" in line.remedy


@pytest.mark.parametrize(
    ("number", "cause", "remedy"),
    [(errno.ENOSPC, "is full", "Free space"), (errno.EROFS, "read-only", "mount"), (errno.EDQUOT, "quota", "quota")],
)
def test_a_folder_that_cannot_be_written_for_another_reason_than_rights(
    number: int, cause: str, remedy: str, site: Patient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fedfms.doctor.kit_files.tempfile.NamedTemporaryFile", refuse)
    line = site.line(FOLDERS)
    assert line.severity == "FAIL" and cause in line.what and remedy in line.remedy
    assert "right" not in line.remedy and "chown" not in line.remedy


@pytest.mark.parametrize("mode", [0o000, 0o400])
@pytest.mark.parametrize("name", ["review/decisions.jsonl", "review/waiting/job.json", "egress/job.jsonl"])
def test_a_record_that_the_kits_account_cannot_use(name: str, mode: int, site: Patient) -> None:
    path = site.kit / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    assert site.line(FOLDERS).severity == "PASS"
    with shut(path, mode):
        line = site.line(FOLDERS)
    assert line.severity == "FAIL" and line.what.startswith(f"{name}: ") and f"mode {mode:04o}" in line.what
    assert "it belongs to " in line.what and "chown" in line.remedy


def test_a_folder_of_records_that_the_kits_account_cannot_list(site: Patient) -> None:
    (site.kit / "review" / "runs").mkdir(parents=True, exist_ok=True)
    with shut(site.kit / "review" / "runs"):
        line = site.line(FOLDERS)
    assert line.severity == "FAIL" and "review/: account " in line.what


COPIES = ("policy.yaml~", ".policy.yaml.swp", "#policy.yaml#", ".#site.yaml", "site.yaml.bak", "policy.yaml.orig")


@pytest.mark.parametrize("name", COPIES)
def test_an_editors_copy_is_no_incident(name: str, site: Patient, fedfms: Command) -> None:
    for file in ("policy.yaml", "site.yaml"):
        (site.kit / "local" / file).chmod(0o600)
    path = site.kit / "local" / name
    if name.startswith(".#"):
        path.symlink_to("admin@machine.4711")
    else:
        path.touch(mode=0o600)
    line = site.line(KIT_CHANGED)
    assert line.severity == "WARN" and line.what == f"an editor's copy: local/{name}"
    assert "Move it out of local/" in line.remedy
    result = fedfms("kit", "verify", site.kit)
    assert result.code == 0 and f"warning: {path} is an editor's copy" in result.err


@pytest.mark.parametrize(
    "name",
    [
        "policy__resources.json",
        "policy.yaml__resources.json",
        "custom/policy.yaml~",
        "policy.yaml.bak/code.py",
        "policy.yaml.py",
        "privacy.json~",
        "site.yaml.bak.json",
    ],
)
def test_what_flare_may_load_is_not_taken_for_an_editors_copy(name: str, site: Patient, fedfms: Command) -> None:
    path = site.kit / "local" / name
    path.parent.mkdir(exist_ok=True)
    path.touch(mode=0o600)
    line = site.line(KIT_CHANGED)
    assert line.severity == "FAIL" and f"FMS-K015 local/{name}" in line.what
    fedfms("kit", "verify", site.kit).failed_with("FMS-K015")


def test_files_of_a_kit_that_may_not_be_read_are_neither_missing_nor_changed(site: Patient, fedfms: Command) -> None:
    with shut(site.kit / "local" / "privacy.json"):
        line = site.line(KIT_CHANGED)
        fedfms("kit", "verify", site.kit).failed_with("FMS-D019")
    assert line.severity == "FAIL" and line.what.startswith("FMS-D019 local/privacy.json: account ")
    assert "chown" in line.remedy and "incident" not in line.remedy
    with shut(site.kit / "local"):
        problems = verify_manifest(open_kit(site.kit))
    assert [problem.kind for problem in problems] == [FILE_REFUSED], problems


def test_a_pid_file_of_a_process_that_is_gone(site: Patient) -> None:
    with program() as pid:
        pass
    (site.kit / "daemon_pid.fl").write_text(f"{pid}\n")
    (site.kit / "pid.fl").write_text("no number")
    daemon, own = site.lines(STALE_PROCESS)
    assert daemon.severity == own.severity == "WARN"
    assert daemon.what.startswith("daemon_pid.fl is from an earlier start") and own.what.startswith("pid.fl")


def test_a_pid_file_whose_number_another_program_has(site: Patient) -> None:
    with program() as pid:
        (site.kit / "daemon_pid.fl").write_text(str(pid))
        line = site.line(STALE_PROCESS)
    assert line.severity == "FAIL" and f"its number {pid} belongs to another program" in line.what


def test_the_process_of_a_kit_whose_name_only_begins_the_same(site: Patient) -> None:
    with program(f"{site.kit}b", f"{site.kit}b/startup") as pid:
        (site.kit / "daemon_pid.fl").write_text(str(pid))
        line = site.line(STALE_PROCESS)
    assert line.severity == "FAIL" and "belongs to another program" in line.what


def test_the_kit_runs_already(site: Patient, server: Patient) -> None:
    with program(str(site.kit)) as pid:
        (site.kit / "daemon_pid.fl").write_text(str(pid))
        line = site.line(STALE_PROCESS)
    assert line.severity == "WARN" and "running already" in line.what
    with program(str(server.kit)) as pid:
        (server.kit / "pid.fl").write_text(str(pid))
        line = server.line(SERVER_PORT)
    assert line.severity == "PASS" and f"own process {pid}" in line.what
