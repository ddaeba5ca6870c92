"""Checks of what the site decides: its policy is valid, its gates stop what must not leave, and the job fits it."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from fedfms.doctor.examination import Examination
from fedfms.doctor.result import Result, failed, passed
from fedfms.errors import JOB, POLICY_INACTIVE, POLICY_UNUSABLE, FedfmsError
from fedfms.files import write_json
from fedfms.site.application import CLIENT, TRAINING
from fedfms.site.job_check import check_job_folder


def policy(examination: Examination) -> Result:
    """``local/policy.yaml`` can be read and every key is valid."""
    found = examination.policy
    backbones = "any backbone" if found.backbones == "any" else f"{len(found.backbones)} backbones"
    text = f"{' or '.join(found.scopes)}, {backbones}, at most {found.max_rounds} rounds and {found.max_hours:g} hours"
    return passed(POLICY_UNUSABLE, f"{text}, review {found.review.rule.replace('_', ' ')}")


def active(examination: Examination) -> Result:
    """Send forbidden replies and a good one through the gates that the kit's files configure."""
    # FLARE takes seconds to load and is needed only here.
    from fedfms.flare.rehearsal import rehearse

    _ = examination.policy  # without it the gates stop everything, for a reason that has its own line
    with tempfile.TemporaryDirectory(prefix="fedfms-doctor-") as folder:
        application = Path(folder) / "app"
        (application / "config").mkdir(parents=True)
        shutil.copyfile(examination.application / CLIENT, application / CLIENT)
        # JSON is YAML; without --job this is the project's own job, made to fit the policy.
        write_json(application / TRAINING, examination.job.model_dump(mode="json"))
        attempts = rehearse(examination.kit.folder, application)
    wrong = [attempt for attempt in attempts if not attempt.as_expected]
    if wrong:
        faults = [f"{item.what} {'LEFT' if item.left else 'was stopped'}" for item in wrong]
        return failed(POLICY_INACTIVE, f"in a trial {', '.join(faults)}")
    stopped = [attempt for attempt in attempts if not attempt.left]
    left = len(attempts) - len(stopped)
    good = "an update as agreed left" if left else "the policy objects to the job, so nothing left"
    return passed(POLICY_INACTIVE, f"in a trial {good}, {len(stopped)} forbidden replies were stopped")


def job(examination: Examination) -> Result:
    """The job folder is valid and the policy has no objection."""
    assert examination.job_folder is not None
    found = check_job_folder(examination.job_folder).application.job
    if objections := examination.policy.objections(found):
        raise FedfmsError(objections)
    return passed(JOB, f"task {found.task}, {found.backbone}, {found.scope}, {found.rounds} rounds: the policy agrees")
