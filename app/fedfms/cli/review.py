"""``fedfms review`` and ``fedfms egress``: what a site decides about jobs, and what has left it."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedfms.cli.printing import AsJson, print_json

if TYPE_CHECKING:
    from fedfms.site.application import Application
    from fedfms.site.policy import SitePolicy

_LEAST_DIGITS = 12

review_app = typer.Typer(no_args_is_help=True, help="At a site: look at jobs, approve or reject them.")

Kit = Annotated[
    Path | None,
    typer.Option(help="The site's startup kit. Default: the environment variable FEDFMS_KIT, else the current folder."),
]
Job = Annotated[str, typer.Argument(help="A job folder, or the id of a job that has reached this site.")]
Digest = Annotated[
    str,
    typer.Option(help="At least twelve first digits of the digest that 'review show' printed; needed for a job's id."),
]
Note = Annotated[str, typer.Option(help="Why, for the record.")]


@review_app.command("list")
def review_list(kit: Kit = None, as_json: AsJson = False) -> None:
    """List the jobs that wait for a decision, and the decisions with what was used of each approval.

    An approval is good for one run. One whose updates or hours are used up no longer counts: a second submission of the
    job needs a second approval.
    """
    from dataclasses import asdict

    from fedfms.configuration import printable
    from fedfms.errors import FedfmsError
    from fedfms.site.approvals import decision_status
    from fedfms.site.job_location import find_kit
    from fedfms.site.policy import site_policy
    from fedfms.site.records import utc_now
    from fedfms.site.review import decisions, pending_jobs

    folder = find_kit(kit)
    policy: SitePolicy | None = None
    unreadable = ""
    try:
        policy = site_policy(folder)
    except FedfmsError as error:
        unreadable = " ".join(error.ids)
    waiting, now = pending_jobs(folder), utc_now()
    made = [(item, decision_status(folder, item, policy, now)) for item in decisions(folder)]
    if as_json:
        print_json(
            {
                "waiting": [item.model_dump(mode="json") for item in waiting],
                "decisions": [
                    {**item.model_dump(mode="json"), "status": status.word, "used": status.use and asdict(status.use)}
                    for item, status in made
                ],
            }
        )
        return
    if not waiting:
        print("No job is waiting for a decision.")
    # No table: a narrow terminal would cut the ids, and they are there to be copied.
    for pending in waiting:
        print(f"job {pending.job_id} has been waiting for a decision since {pending.since:%Y-%m-%d %H:%M} UTC")
        print(f"  task {pending.task}, submitted by {pending.submitter}, digest {pending.digest[:12]}")
        print(f"  to see it: fedfms review show {pending.job_id}{_kit_option(kit)}")
    if made:
        print("decisions, the latest last:")
    for entry, status in made:
        note = f"; note: {printable(entry.note)}" if entry.note else ""
        print(f"{entry.time:%Y-%m-%d %H:%M} UTC  {entry.decision} by {entry.who}, status now: {status}{note}")
        print(f"  {printable(entry.job)}, digest {entry.digest[:12]}")
    if unreadable:
        print(f"local/policy.yaml cannot be read ({unreadable}): the site takes part in no job, whatever was approved")


@review_app.command("show")
def review_show(job: Job, kit: Kit = None, as_json: AsJson = False) -> None:
    """Show in plain words what a job trains, on which data, and what leaves the site.

    Example: `fedfms review show jobs/fedmsa --kit hospital-a`
    """
    from fedfms.errors import FedfmsError
    from fedfms.site.approvals import decision_status
    from fedfms.site.description import describe, review_words
    from fedfms.site.records import utc_now
    from fedfms.site.review import review_status

    folder, application, run_folder, policy = _look_at(job, kit)
    now = utc_now()
    _, decision = review_status(folder, application.review_sha256, now)
    status = None if decision is None else decision_status(folder, decision, policy, now)
    slices, unknown = _validation_slices(folder, application, policy)
    facts = describe(application, kit=folder, policy=policy, run_folder=run_folder, validation_slices=slices)
    facts.append(("review", review_words(decision, status)))
    objections = policy.objections(application.job)
    if as_json:
        print_json({**dict(facts), "objections": [str(item) for item in objections]})
    else:
        table = Table(show_header=False, title="The job")
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        for name, words in facts:
            table.add_row(name, Text(words))
        Console().print(table)
    if unknown:
        print(f"Which scores never leave is not known, because the data cannot be read: {unknown}", file=sys.stderr)
    if objections:
        raise FedfmsError(objections)
    if not as_json:
        digest = application.review_sha256[:_LEAST_DIGITS]
        print(f"To approve exactly this: fedfms review approve {shlex.quote(job)} --digest {digest}{_kit_option(kit)}")


def _kit_option(kit: Path | None) -> str:
    """The end of a printed command that names the same kit, when the user named one."""
    return "" if kit is None else f" --kit {shlex.quote(str(kit))}"


def _validation_slices(folder: Path, application: Application, policy: SitePolicy) -> tuple[dict[str, int], str]:
    """Validation slices of each structure up to the number that the policy asks for; and why they are not known."""
    from fedfms.data.description.site import load_site
    from fedfms.errors import FedfmsError
    from fedfms.site.withholding import count_validation_slices

    try:
        site = load_site(folder / "local" / "site.yaml")
        return count_validation_slices(site, application.job, policy.metrics.min_slices), ""
    except FedfmsError as error:
        return {}, error.public


@review_app.command("approve")
def review_approve(job: Job, kit: Kit = None, digest: Digest = "", note: Note = "") -> None:
    """Approve a job: a folder before it is submitted, or a waiting job by its id and the digest that `show` printed.

    The approval is bound to the job's content, this version of fedfms and the backbone. It is good for one run and
    expires after the number of days in policy.yaml.
    """
    from fedfms.errors import DIGEST_DIFFERS, FedfmsError, fail
    from fedfms.site.review import decide

    folder, application, run_folder, policy = _look_at(job, kit)
    seen = len(digest) >= _LEAST_DIGITS and application.review_sha256.startswith(digest.lower())
    if not seen and (digest or run_folder is not None):
        # The current digest is not printed: 'show' prints it, together with what it means.
        raise fail(DIGEST_DIFFERS, job, f"--digest says {digest or 'nothing'}")
    if objections := policy.objections(application.job):
        raise FedfmsError(objections)  # an approval would not let it run
    made = decide(folder, application, "approve", job=job, valid_days=policy.review.valid_days, note=note)
    run = f"one run of {application.job.rounds} rounds within {policy.max_hours:g} hours"
    print(f"approved until {made.expires:%Y-%m-%d %H:%M} UTC for {run}; digest {made.digest}")


@review_app.command("reject")
def review_reject(job: Job, kit: Kit = None, note: Note = "") -> None:
    """Reject a job, also one that is running: nothing more leaves the site for it."""
    from fedfms.site.review import decide

    folder, application, _, policy = _look_at(job, kit)
    made = decide(folder, application, "reject", job=job, valid_days=policy.review.valid_days, note=note)
    print(f"rejected; digest {made.digest}")


def _look_at(job: str, kit: Path | None) -> tuple[Path, Application, Path | None, SitePolicy]:
    """The kit, the job's application, its run folder if it has reached the site, and the site's policy."""
    from fedfms.site.application import read_application
    from fedfms.site.job_location import find_kit
    from fedfms.site.policy import site_policy
    from fedfms.site.review import find_application

    folder = find_kit(kit)
    application_folder = find_application(folder, job)
    run_folder = application_folder.parent if application_folder.parent.parent == folder else None
    return folder, read_application(application_folder), run_folder, site_policy(folder)


def egress(job: Annotated[str, typer.Argument(help="The job's id.")], kit: Kit = None, as_json: AsJson = False) -> None:
    """Show everything that has left this site for a job, and write it as an HTML page.

    The page is egress/JOB.html in the kit, beside the record egress/JOB.jsonl.
    """
    from dataclasses import asdict

    from fedfms.site.egress import read_record, record_file, totals
    from fedfms.site.job_location import find_kit
    from fedfms.site.page import write_egress_page
    from fedfms.site.records import last_digest

    folder = find_kit(kit)
    page = write_egress_page(folder, job)
    lines = read_record(folder, job)
    total, last = totals(lines), last_digest(record_file(folder, job))
    if as_json:
        content = [line.model_dump(mode="json") for line in lines]
        print_json({"totals": asdict(total), "last_line_sha256": last, "lines": content})
        return
    # Fits into 80 columns; page and --json have every digest, tensor and figure.
    table = Table(title="What has left", box=SIMPLE, pad_edge=False)
    for heading in ("time (UTC)", "task", "decision", "bytes", "norm"):
        justify: Literal["left", "right"] = "right" if heading in ("bytes", "norm") else "left"
        table.add_column(heading, no_wrap=heading != "decision", justify=justify)
    table.add_column("of it", overflow="fold")
    for line in lines:
        parts = [f"{len(line.tensors)} tensors"] if line.tensors else []
        parts += [f"{len(line.withheld)} of its figures withheld"] if line.withheld else []
        table.add_row(
            f"{line.time:%Y-%m-%d %H:%M:%S}",
            f"train {line.round + 1}" if line.task == "train" and line.round is not None else line.task,
            line.outcome,
            f"{line.bytes:,}",
            "" if line.norm is None else f"{line.norm:.4g}",
            " ".join(line.errors) or ", ".join(parts),
        )
    Console().print(table)
    print(
        f"{total.messages} replies sent, {total.updates} of them with an update; {total.refusals} refused; "
        f"{total.bytes:,} bytes in total"
    )
    print("SHA-256 of the record's last line; each line contains that of the one before, so it vouches for all:")
    print(f"  {last}")
    print(f"page: {page}")
