"""Policy, gates, data, job: each made to fail; no line names a patient or file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedfms.doctor import decisions
from fedfms.doctor.checkup import check_up
from fedfms.doctor.examination import Examination, fitted
from fedfms.errors import (
    BACKBONE_FILE,
    JOB,
    POLICY_INACTIVE,
    POLICY_UNUSABLE,
    SITE_DATA,
    SITE_FILE,
    TRAINING_STEP,
    FedfmsError,
)
from fedfms.job.training import load_job
from fedfms.provision.overlay import template
from fedfms.site.kit import open_kit
from fedfms.site.policy import load_policy
from tests.accounts import shut
from tests.doctor.conftest import SECRET, Patient, write_job
from tests.flare.builders import PROJECT, policy_content, write_policy


def change_site(site: Patient, **changes: Any) -> None:
    path = site.kit / "local" / "site.yaml"
    content = yaml.safe_load(path.read_text())
    content["datasets"][0].update(changes)
    path.write_text(yaml.safe_dump(content))


def silent(*texts: str) -> None:
    for text in texts:
        assert SECRET not in text and "p0.png" not in text


def test_the_job_that_comes_with_the_package_is_the_projects_own() -> None:
    folder = PROJECT / "app" / "fedfms" / "doctor" / "application" / "config"
    for name in ("training.yaml", "config_fed_client.json", "config_fed_server.json"):
        assert (folder / name).read_bytes() == (PROJECT / "jobs" / "fedmsa" / "app" / "config" / name).read_bytes()


def test_a_site_that_is_ready(site: Patient, job: Path) -> None:
    policy, file, data = site.line(POLICY_UNUSABLE), site.line(SITE_FILE), site.line(SITE_DATA)
    assert {policy.severity, file.severity} == {"PASS"} and data.severity in ("PASS", "WARN")
    assert "5 cases of 5 patients; slices: train" in data.what
    assert "review not required" in policy.what
    active = site.line(POLICY_INACTIVE)
    assert active.severity == "PASS" and "as agreed left, 7 forbidden replies were stopped" in active.what
    with_job = site.lines(SITE_DATA, job_folder=job)
    assert len(with_job) == 1
    silent(file.what, data.what, data.remedy)


@pytest.mark.parametrize("text", [None, "scopes: [everything]"])
def test_a_policy_that_cannot_be_used(text: str | None, site: Patient) -> None:
    path = site.kit / "local" / "policy.yaml"
    path.unlink() if text is None else path.write_text(text)
    line = site.line(POLICY_UNUSABLE)
    assert line.severity == "FAIL" and line.what.startswith("FMS-S001 local/policy.yaml")
    for kind in (POLICY_INACTIVE, BACKBONE_FILE):
        line = site.line(kind)
        assert (line.severity, line.what) == ("SKIP", "not checked, because of FMS-H010")
        assert line.remedy == "Correct FMS-H010 first.", "neither privacy.json nor the package is to blame"


def test_a_job_is_checked_without_the_policy_as_far_as_that_goes(site: Patient, job: Path, tmp_path: Path) -> None:
    (site.kit / "local" / "policy.yaml").write_text("scopes: [everything]")
    bad = write_job(tmp_path / "bad", rounds=-1)
    for folder, severity in ((job, "SKIP"), (bad, "FAIL")):
        report = check_up(site.kit, folder, offline=True, quick=True)
        (line,) = [item for item in report.results if item.kind is JOB]
        assert line.severity == severity and not report.ok


def test_checks_that_need_the_job_wait_for_it(site: Patient, tmp_path: Path) -> None:
    for name in ("policy.yaml", "site.yaml"):
        (site.kit / "local" / name).chmod(0o600)
    job = write_job(tmp_path / "bad", rounds=-1)
    results = check_up(site.kit, job, offline=True).results
    severities = {item.id: item.severity for item in results}
    needing = ("FMS-H011", "FMS-H014", "FMS-H015", "FMS-H016", "FMS-H018", "FMS-H020")
    assert [severities[name] for name in needing] == ["SKIP"] * len(needing) and severities["FMS-H024"] == "FAIL"
    assert [item.id for item in results if item.severity == "FAIL"] == ["FMS-H024"]


@pytest.mark.parametrize("fault", ["no component", "no scope", "no file"])
def test_forged_gates(fault: str, site: Patient) -> None:
    path = site.kit / "local" / "privacy.json"
    content = json.loads(path.read_text())
    if fault == "no component":
        content["components"] = []
    elif fault == "no scope":
        content = {"scopes": [], "components": content["components"]}
    path.write_text(json.dumps(content))
    if fault == "no file":
        path.unlink()
    line = site.line(POLICY_INACTIVE)
    assert line.severity == "FAIL" and "an update with another tensor LEFT" in line.what


def test_a_job_that_the_policy_does_not_want(site: Patient, tmp_path: Path) -> None:
    job = write_job(tmp_path / "much", rounds=99)
    line = site.line(POLICY_INACTIVE, job_folder=job)
    assert line.severity == "PASS" and "the policy objects to the job, so nothing left" in line.what
    examination = Examination(open_kit(site.kit), job)
    with pytest.raises(FedfmsError, match="FMS-S002 rounds"):
        decisions.job(examination)
    (line,) = [item for item in check_up(site.kit, job, offline=True, quick=True).results if item.kind is JOB]
    assert line.severity == "FAIL" and "FMS-S002 rounds: found 99" in line.what


def test_a_job_that_the_policy_wants(site: Patient, job: Path) -> None:
    assert decisions.job(Examination(open_kit(site.kit), job)).severity == "PASS"


@pytest.mark.parametrize("scopes", [["decoder"], ["full"], ["full", "adapters+decoder"]])
@pytest.mark.parametrize("backbones", ["any", ["a" * 64], policy_content()["backbones"]])
def test_without_a_job_the_policy_says_which(scopes: list[str], backbones: Any, tmp_path: Path) -> None:
    policy = load_policy(write_policy(tmp_path, scopes=scopes, backbones=backbones, max_rounds=1))
    job = load_job(PROJECT / "jobs" / "fedmsa" / "app" / "config" / "training.yaml")
    assert policy.objections(job) and not policy.objections(fitted(job, policy))


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, "is missing"),
        (template("site.yaml"), "still the template"),
        (f"datasets: [{{name: {SECRET}}}]", "FMS-D002"),
        (f"{SECRET}: [", "FMS-D001"),
    ],
)
def test_a_site_file_that_cannot_be_used(content: str | None, text: str, site: Patient) -> None:
    path = site.kit / "local" / "site.yaml"
    path.unlink() if content is None else path.write_text(content)
    file, data, step = site.line(SITE_FILE), site.line(SITE_DATA), site.line(TRAINING_STEP)
    assert file.severity == "FAIL" and text in file.what
    assert data.severity == step.severity == "SKIP" and data.what == step.what == "not checked, because of FMS-H013"
    silent(file.what, data.what)


def test_faults_of_the_data_are_counted_and_not_named(site: Patient, tmp_path: Path) -> None:
    (tmp_path / "data" / SECRET / "images" / "p0.png").write_bytes(b"no image")
    line = site.line(SITE_DATA)
    assert line.severity == "FAIL" and "FAIL FMS-D" in line.what and "(1x)" in line.what
    silent(line.what, line.remedy)


def test_a_check_of_data_that_breaks_names_nothing(site: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Path, **__: object) -> None:
        raise OSError(5, "Input/output error", SECRET)

    monkeypatch.setattr("fedfms.doctor.examination.check_site", broken)
    line = site.line(SITE_DATA)
    assert line.severity == "FAIL" and line.what == "the check itself failed: OSError"


def test_what_the_job_asks_of_the_data(site: Patient, tmp_path: Path) -> None:
    line = site.line(SITE_DATA, job_folder=write_job(tmp_path / "task", task="heart"))
    assert line.severity == "FAIL" and "task 'heart'" in line.what
    job = write_job(tmp_path / "structures", structures=["organ", "vessel"])
    assert "structures vessel" in site.lines(SITE_DATA, job_folder=job)[-1].what
    write_policy(site.kit, min_training_cases=50)
    few = site.lines(SITE_DATA, job_folder=write_job(tmp_path / "few"))[-1]
    assert few.severity == "FAIL" and "organ, lesion: fewer annotated cases than the 50" in few.what


def test_quick_reads_no_data(site: Patient, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "data")
    line = site.line(SITE_DATA, quick=True)
    assert line.severity == "WARN" and "--quick" in line.what


def test_files_that_may_not_be_read(site: Patient, tmp_path: Path) -> None:
    """The kit's own file is named with owner and mode; of the data only the id is shown."""
    with shut(site.kit / "local" / "site.yaml"):
        line = site.line(SITE_FILE)
        assert line.severity == "FAIL" and "local/site.yaml: account " in line.what and "mode 0000" in line.what
        assert "chown" in line.remedy and "data init" not in line.remedy
        assert site.line(SITE_DATA).severity == "SKIP"
    with shut(site.kit / "local" / "policy.yaml"):
        line = site.line(POLICY_UNUSABLE)
        assert (
            line.severity == "FAIL" and "FMS-D019 local/policy.yaml: account " in line.what and "chown" in line.remedy
        )
    with shut(tmp_path / "data" / SECRET / "images"):
        line = site.line(SITE_DATA)
    assert line.severity == "FAIL" and "FAIL FMS-D019 (1x)" in line.what
    silent(line.what, line.remedy)


def test_scores_that_will_never_be_reported(site: Patient, job: Path, tmp_path: Path) -> None:
    write_policy(site.kit, min_training_cases=2, metrics={"allowed": ["dice", "loss"], "min_slices": 10})
    for options in ({}, {"job_folder": job}):
        _, line = site.lines(SITE_DATA, **options)
        assert line.severity == "WARN" and "min_slices" in line.remedy
        assert "1 validation slice of organ, policy min_slices is 10: its Dice will never be reported" in line.what
        assert "1 validation slice of lesion, policy" in line.what
        silent(line.what)
    one = write_job(tmp_path / "one", structures=["organ"])
    assert "slice of lesion" not in site.lines(SITE_DATA, job_folder=one)[-1].what
    write_policy(site.kit, min_training_cases=2, metrics={"allowed": ["loss"], "min_slices": 10})
    assert len(site.lines(SITE_DATA)) == 1, "this site reports no scores at all"
