"""The record of what left a site as one page to read, print and file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from fedfms import __version__
from fedfms.errors import CATALOGUE, JOB_UNKNOWN, FedfmsError, fail
from fedfms.files import atomic_path
from fedfms.site.application import read_application
from fedfms.site.description import describe
from fedfms.site.egress import read_record, record_file, totals
from fedfms.site.policy import load_policy
from fedfms.site.records import utc_now
from fedfms.site.review import find_application


def figures(report: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """The figures of a report as they left, nested ones with dots; ``null`` is withheld or not estimable."""
    found: list[tuple[str, str]] = []

    def collect(values: Mapping[str, Any], prefix: str) -> None:
        for name, value in values.items():
            if isinstance(value, Mapping):
                collect(value, f"{prefix}{name}.")
            else:
                found.append((prefix + name, "null" if value is None else str(value)))

    collect(report or {}, "")
    return found


def write_egress_page(kit: Path, job_id: str) -> Path:
    """Write the record as one HTML page without scripts or anything from elsewhere.

    Args:
        kit: The site's kit.
        job_id: The job.

    Returns:
        The page's path.

    Raises:
        FedfmsError: FMS-S010 when nothing of the job has left, FMS-S008 when the record is damaged, FMS-D011 when the
            page cannot be written.
    """
    lines = read_record(kit, job_id)
    if not lines:
        raise fail(JOB_UNKNOWN, job_id, f"there is no record {record_file(kit, job_id)}")
    environment = Environment(
        loader=PackageLoader("fedfms.site", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("egress.html").render(
        job_id=job_id,
        site=kit.name,
        facts=_facts(kit, job_id),
        lines=lines,
        totals=totals(lines),
        figures=figures,
        titles={name: kind.title for name, kind in CATALOGUE.items()},
        version=__version__,
        written=utc_now(),
    )
    path = record_file(kit, job_id).with_suffix(".html")
    with atomic_path(path) as temporary:
        temporary.touch(mode=0o600)
        temporary.write_text(page, encoding="utf-8")
    return path


def _facts(kit: Path, job_id: str) -> list[tuple[str, str]]:
    """What the job is; nothing when its files have been cleared away or are not those of a job."""
    try:
        application = read_application(find_application(kit, job_id))
    except FedfmsError:
        return []
    policy_file = kit / "local" / "policy.yaml"
    try:
        policy = load_policy(policy_file)
    except FedfmsError:
        policy = None
    return describe(application, kit=kit, policy=policy, run_folder=kit / job_id)
