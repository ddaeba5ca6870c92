"""The record of what has left a site, as one HTML page to read, print and file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from fedfms import __version__
from fedfms.errors import CATALOGUE, JOB_UNKNOWN, FedfmsError, fail
from fedfms.files import atomic_path
from fedfms.site.application import read_application
from fedfms.site.description import describe
from fedfms.site.egress import EgressLine, read_record, record_file, totals
from fedfms.site.job_location import require_owner
from fedfms.site.policy import SitePolicy, load_policy
from fedfms.site.records import last_digest, utc_now
from fedfms.site.review import Decision, decisions, find_application


def figures(report: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """Name and value of the figures of a report as they were sent.

    Names of nested figures are joined with dots; a value of ``null`` was withheld or is not estimable.
    """
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
    """Write the record as one HTML page that has no scripts and loads nothing.

    Args:
        kit: The site's kit.
        job_id: The job.

    Returns:
        The page's path.

    Raises:
        FedfmsError: FMS-S010 when nothing has been sent for the job, FMS-S008 when the record is damaged, FMS-D011 when
            the page cannot be written, or this account is not the kit's owner.
    """
    require_owner(kit, f"egress {job_id} --kit {kit}")
    lines = read_record(kit, job_id)
    if not lines:
        raise fail(JOB_UNKNOWN, job_id, f"nothing has left for it: there is no record {record_file(kit, job_id)}")
    environment = Environment(
        loader=PackageLoader("fedfms.site", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    facts, decided, policy = _about(kit, job_id)
    titles = {name: kind.title for name, kind in CATALOGUE.items()}
    page = environment.get_template("egress.html").render(
        job_id=job_id,
        site=kit.name,
        facts=facts,
        decisions=decided,
        policy=policy,
        lines=lines,
        totals=totals(lines),
        refusals=_reasons(lines, titles),
        figures=figures,
        titles=titles,
        version=__version__,
        written=utc_now(),
        last_line_sha256=last_digest(record_file(kit, job_id)),
    )
    path = record_file(kit, job_id).with_suffix(".html")
    with atomic_path(path) as temporary:
        temporary.touch(mode=0o600)
        temporary.write_text(page, encoding="utf-8")
    return path


def _reasons(lines: Sequence[EgressLine], titles: Mapping[str, str]) -> list[tuple[str, int]]:
    """The reasons for refusals, and how many replies each refused."""
    found = Counter(line.errors for line in lines if line.decision == "refused")
    return [
        ("; ".join(f"{name} {titles.get(name, '')}".rstrip() for name in ids), count) for ids, count in found.items()
    ]


def _about(kit: Path, job_id: str) -> tuple[list[tuple[str, str]], list[Decision], str]:
    """What the job is, who decided about it, and what the site's policy is.

    No facts when the job's files have been cleared away or are not those of a job; its decisions are then those that
    name its id.
    """
    policy: SitePolicy | None
    try:
        policy = load_policy(kit / "local" / "policy.yaml")
    except FedfmsError:
        policy = None
    digest, facts = None, []
    try:
        application = read_application(find_application(kit, job_id))
        digest = application.review_sha256
        facts = describe(application, kit=kit, policy=policy, run_folder=kit / job_id)
    except FedfmsError:
        pass
    decided = [item for item in decisions(kit) if item.digest == digest or item.job == job_id]
    return facts, decided, _rule(policy)


def _rule(policy: SitePolicy | None) -> str:
    """What ``policy.yaml`` says at present about who has to decide."""
    if policy is None:
        return "At present there is no readable local/policy.yaml."
    if policy.review.rule == "required":
        return "According to the present local/policy.yaml, no job starts before a person has approved it."
    return "According to the present local/policy.yaml, a job within the policy starts without a person's approval."
