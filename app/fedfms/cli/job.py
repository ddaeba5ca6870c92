"""``fedfms job``: make and check job folders."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

job_app = typer.Typer(no_args_is_help=True, help="Make and check job folders.")


def _set_help() -> str:
    from fedfms.job.folder import job_keys

    return "KEY=VALUE, repeated. Keys: " + ", ".join(job_keys()) + ". jobs/README.md explains each one."


@job_app.command("new")
def job_new(
    source: Annotated[Path, typer.Option("--from", help="An existing job folder.")],
    out: Annotated[Path, typer.Option(help="The new folder; must not exist.")],
    settings: Annotated[list[str] | None, typer.Option("--set", help=_set_help())] = None,
) -> None:
    """Make a job folder from an existing one with other settings.

    Example: `fedfms job new --from jobs/fedmsa --set structures=tumour --set local_work.epochs=1 --set rounds=5
    --out my_job`. Lists are written `a,b`. Another backbone sets its published digest. Another rule for grey values
    drops the keys of the old one: `--set preprocessing.intensity.rule=range` for photographs, or `--set
    preprocessing.intensity.rule=window --set preprocessing.intensity.center=40 --set preprocessing.intensity.width=400`
    for CT.
    """
    from fedfms.job.folder import new_job

    job = new_job(source, settings or [], out)
    print(f"{out}: task {job.task}, structures {', '.join(job.structures)}, {job.backbone}, scope {job.scope}")
    intensity = job.preprocessing.intensity
    values = "".join(f", {name} {value:g}" for name, value in intensity if isinstance(value, float))
    print(f"grey values: {intensity.rule}{values}. Choose by modality, with --set preprocessing.intensity.rule=RULE:")
    print("  percentile (low, high) for MR, window (center, width) for CT, range for photographs; see jobs/README.md")
    print(f"job configuration digest {job.sha256}")


@job_app.command("check")
def job_check(
    folder: Annotated[Path, typer.Argument(help="A job folder.")],
    policy: Annotated[
        Path | None,
        typer.Option(help="A site's policy.yaml, to include that site's objections."),
    ] = None,
) -> None:
    """Check a job folder as server and sites will check it: meta.json, FLARE's two files, training.yaml.

    All problems are reported at once. Prints the digest that a site's approval is bound to.
    """
    from fedfms.sam.model import schema_of
    from fedfms.site.job_check import check_job_folder
    from fedfms.site.policy import load_policy

    checked = check_job_folder(folder, None if policy is None else load_policy(policy))
    schema = schema_of(checked.application.job.model)
    print(f"{folder}: valid; exchanges {schema.parameters:,} parameters, {schema.bytes:,} bytes each way and round")
    print(f"digest for review {checked.application.review_sha256}")
