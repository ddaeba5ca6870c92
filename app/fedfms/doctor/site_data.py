"""Checks of the site's data, reported in numbers: no name of a patient, file or dataset."""

from __future__ import annotations

from collections import Counter

from fedfms.access import is_file, refusal
from fedfms.doctor.examination import Examination
from fedfms.doctor.result import Result, failed, passed, warned
from fedfms.errors import SITE_DATA, SITE_FILE, FedfmsError
from fedfms.provision.overlay import template
from fedfms.site.withholding import validation_slices_by_task, withheld_structures

MORE_SLICES = (
    "Add validation cases, or lower metrics.min_slices in local/policy.yaml; or leave it so, if that is meant."
)
SHOW = "See each one with 'fedfms data check {path}'."


def site_file(examination: Examination) -> Result:
    """``site.yaml`` is filled in and every key is valid."""
    path = examination.site_file
    if not is_file(path):
        return failed(SITE_FILE, "local/site.yaml is missing")
    if (refused := refusal(path)) is not None:
        return failed(SITE_FILE, f"local/site.yaml: {refused.detail}", refused.kind.remedy)
    if path.read_text(encoding="utf-8", errors="replace") == template("site.yaml"):
        return failed(SITE_FILE, "local/site.yaml is still the template")
    try:
        site = examination.site
    except FedfmsError as error:
        # The message about a wrong key quotes the file's content.
        return failed(SITE_FILE, error.public, SHOW.format(path=path))
    tasks = len({dataset.task for dataset in site.datasets})
    return passed(SITE_FILE, f"{len(site.datasets)} dataset(s) for {tasks} task(s)")


def data(examination: Examination) -> list[Result]:
    """The site's data have no errors and offer what the job needs."""
    remedy = SHOW.format(path=examination.site_file)
    tasks = {dataset.task for dataset in examination.site.datasets}
    if examination.job_folder is not None and examination.job.task not in tasks:
        return [failed(SITE_DATA, f"no dataset is for the job's task '{examination.job.task}'", remedy)]
    if examination.quick:
        return [warned(SITE_DATA, "not read (--quick)", "Let 'fedfms doctor' run again without --quick.")]
    report = examination.data
    rows = report.rows
    slices: Counter[str] = Counter()
    for row in rows:
        slices.update(row.slices_per_split or {})
    text = f"{sum(row.cases for row in rows)} cases of {sum(row.patients for row in rows)} patients"
    text += f"; slices: {', '.join(f'{split} {count}' for split, count in slices.items()) or 'unknown'}"
    fails = _numbers(examination, "FAIL")
    warnings = _numbers(examination, "WARN")
    results = [passed(SITE_DATA, text)]
    if fails:
        results = [failed(SITE_DATA, f"{text}; FAIL {fails}; WARN {warnings or 'none'}", remedy)]
    elif warnings:
        results = [warned(SITE_DATA, f"{text}; WARN {warnings}", remedy)]
    return [*results, *_for_the_job(examination), *_never_reported(examination)]


def _numbers(examination: Examination, severity: str) -> str:
    counts: Counter[str] = Counter()
    for finding in examination.data.findings:
        if finding.severity == severity:
            counts[finding.kind.id] += finding.count
    return ", ".join(f"{identifier} ({count}x)" for identifier, count in counts.items())


def _never_reported(examination: Examination) -> list[Result]:
    """Scores that the policy will withhold in every round, because there are too few validation slices."""
    try:
        policy = examination.policy
    except FedfmsError:
        return []  # another line says so
    job = examination.job if examination.job_folder is not None else None
    results = []
    for task, slices in validation_slices_by_task(examination.data).items():
        if job is not None and task != job.task:
            continue
        asked = {name: count for name, count in slices.items() if job is None or name in job.structures}
        if sentences := withheld_structures(policy, asked).values():
            results.append(warned(SITE_DATA, f"task {task}: {'; '.join(sentences)}", MORE_SLICES))
    return results


def _for_the_job(examination: Examination) -> list[Result]:
    """Reasons that are certain to exclude the site from the job."""
    if examination.job_folder is None:
        return []
    job = examination.job
    annotated: Counter[str] = Counter()
    for row in examination.data.rows:
        if row.task == job.task:
            for structure in row.structures:
                annotated[structure.name] += structure.annotated_cases
    lacking = [name for name in job.structures if not annotated[name]]
    results = []
    if lacking and (job.missing_structure == "error" or len(lacking) == len(job.structures)):
        results.append(failed(SITE_DATA, f"no case is annotated for the job's structures {', '.join(lacking)}"))
    try:
        least = examination.policy.min_training_cases
    except FedfmsError:
        return results  # another line says so
    few = [name for name in job.structures if 0 < annotated[name] < least]
    if few:
        text = f"{', '.join(few)}: fewer annotated cases than the {least} training cases that the policy requires"
        results.append(failed(SITE_DATA, text, "Add cases, or lower min_training_cases in local/policy.yaml."))
    return results
