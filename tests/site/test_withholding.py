"""Scores that never leave because a site has too few validation slices: one rule, told in three places."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedfms.data.description.site import load_site
from fedfms.data.quality.check import check_site
from fedfms.data.slices import case_pixels
from fedfms.errors import FedfmsError
from fedfms.exchange.replies import FIGURES, ValidateReport
from fedfms.job.training import TrainingJob
from fedfms.site import withholding
from fedfms.site.policy import SitePolicy
from fedfms.site.withholding import count_validation_slices, validation_slices_by_task, withheld_structures
from tests.accounts import shut
from tests.command import Command
from tests.data.quality.sites import volume_site
from tests.flare.builders import policy_content, write_policy


def policy(least: int, allowed: tuple[str, ...] = ("dice", "iou")) -> SitePolicy:
    return SitePolicy.model_validate(policy_content(metrics={"allowed": list(allowed), "min_slices": least}))


def test_each_sentence_has_the_numbers() -> None:
    slices = {"organ": 12, "lesion": 5, "vessel": 0, "cyst": 10}
    assert withheld_structures(policy(10), slices) == {
        "lesion": "5 validation slices of lesion, policy min_slices is 10: its Dice and IoU will never be reported"
    }
    assert "its Dice will" in withheld_structures(policy(10, ("dice", "loss")), slices)["lesion"]
    assert withheld_structures(policy(10, ("loss",)), slices) == {}


@pytest.mark.parametrize("count", [0, 1, 9, 10, 11])
def test_it_is_the_rule_by_which_the_gate_withholds(count: int) -> None:
    score = {"dice": 0.5, "iou": 0.4, "n": count} if count else {"dice": None, "iou": None, "n": 0}
    report = ValidateReport.model_validate({"received": {"organ": score}, "seconds": 1, "peak_memory_bytes": 1})
    rule = SitePolicy.model_validate(policy_content(metrics={"allowed": list(FIGURES), "min_slices": 10}))
    assert bool(rule.withhold(report)[1]) == bool(withheld_structures(rule, {"organ": count})) == (count in (1, 9))


def job(content: dict[str, Any], site: Path, **changes: Any) -> TrainingJob:
    task = load_site(site).datasets[0].task
    return TrainingJob.model_validate({**content, "task": task, "structures": ["organ"], **changes})


def test_validation_slices_are_counted(
    tmp_path: Path, job_content: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    site = volume_site(tmp_path)
    (task, counted), *more = validation_slices_by_task(check_site(site)).items()
    assert not more and task == load_site(site).datasets[0].task
    asked = job(job_content, site)
    assert counted == count_validation_slices(load_site(site), asked, 10**6) == {"organ": 12}
    read = []
    monkeypatch.setattr(withholding, "read_case", lambda *args: read.append(args) or case_pixels.read_case(*args))
    assert count_validation_slices(load_site(site), asked, 4)["organ"] >= 4
    assert len(read) == 2, "no more cases of three slices each than are needed"


def test_what_stops_the_job_is_an_error(tmp_path: Path, job_content: dict[str, Any]) -> None:
    site = volume_site(tmp_path)
    content = yaml.safe_load(site.read_text())
    site.write_text(yaml.safe_dump({**content, "strict": False}))
    counted = count_validation_slices(load_site(site), job(job_content, site), 10**6)
    for path in tmp_path.glob("*_mask.nii.gz"):
        with shut(path), pytest.raises(FedfmsError, match="FMS-D019"):
            check_or_count(site, job(job_content, site))
    for path in tmp_path.glob("*_mask.nii.gz"):
        path.write_bytes(b"damaged")
    assert count_validation_slices(load_site(site), job(job_content, site), 10**6) == {"organ": 0} != counted
    site.write_text(yaml.safe_dump({**content, "strict": True}))
    with pytest.raises(FedfmsError, match="FMS-D004"):
        count_validation_slices(load_site(site), job(job_content, site), 10**6)


def check_or_count(site: Path, asked: TrainingJob) -> None:
    """Count; a case of another split is not read, so that only the check finds it."""
    count_validation_slices(load_site(site), asked, 10**6)
    if problems := check_site(site).problems:
        raise FedfmsError(problems)


def test_the_check_of_the_data_says_so(tmp_path: Path, fedfms: Command) -> None:
    site = volume_site(tmp_path)
    assert "never be reported" not in fedfms("data", "check", site).err, "there is no policy beside it"
    path = write_policy(tmp_path, metrics={"allowed": ["dice"], "min_slices": 40})
    path = Path(shutil.move(path, tmp_path / "policy.yaml"))
    sentence = "12 validation slices of organ, policy min_slices is 40: its Dice will never be reported"
    result = fedfms("data", "check", site)
    assert result.code == 0 and sentence in result.err
    (line,) = fedfms("data", "check", site, "--json").json()["never_reported"]
    assert line.endswith(sentence)
    path.write_text("scopes: [")
    assert "is not known (FMS-S001)" in fedfms("data", "check", site).err


def test_the_review_of_a_job_says_so(
    kit: Path, job_folder: Path, job_content: dict[str, Any], tmp_path: Path, fedfms: Command
) -> None:
    site = volume_site(tmp_path / "data")
    content = yaml.safe_load(site.read_text())
    content["datasets"][0]["root"] = str(tmp_path / "data")
    (kit / "local" / "site.yaml").write_text(yaml.safe_dump(content))
    training = job_folder / "app" / "config" / "training.yaml"
    training.write_text(yaml.safe_dump(job(job_content, site).model_dump(mode="json")))
    write_policy(kit, metrics={"allowed": ["dice"], "min_slices": 40})
    sentence = "12 validation slices of organ, policy min_slices is 40: its Dice will never be reported"
    shown = fedfms("review", "show", job_folder, "--kit", kit, "--json").json()
    assert sentence in shown["what is withheld"]
    write_policy(kit, metrics={"allowed": ["dice"], "min_slices": 12})
    shown = fedfms("review", "show", job_folder, "--kit", kit, "--json").json()
    assert "never be reported" not in shown["what is withheld"]
    shutil.rmtree(tmp_path / "data")
    result = fedfms("review", "show", job_folder, "--kit", kit)
    assert (
        "never be reported" not in result.out
        and "is not known, because the data cannot be read: FMS-D003" in result.err
    )
