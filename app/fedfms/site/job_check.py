"""Check a job folder before submission the way sites will."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedfms.errors import JOB_FOLDER, JOB_REFUSED, FedfmsError, Problem, fail
from fedfms.site.application import CLIENT, SERVER, Application, nested_first_key, read_application
from fedfms.site.policy import SitePolicy

META = "meta.json"
_EVERYBODY = "@ALL"
# It becomes part of paths.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True)
class CheckedJob:
    """A job folder that passed.

    Attributes:
        name: The job's name.
        application: Its one application.
    """

    name: str
    application: Application


def application_folder(folder: Path) -> Path:
    """The folder of the one application of a job folder.

    Raises:
        FedfmsError: FMS-J004 when it is no job folder, FMS-J005 when ``meta.json`` is not as it should be.
    """
    meta, problems = _read_meta(folder)
    if problems:
        raise FedfmsError(problems)
    return folder / str(next(iter(meta["deploy_map"])))


def check_job_folder(folder: Path, policy: SitePolicy | None = None) -> CheckedJob:
    """Hold a job folder against everything that server and sites will demand.

    Args:
        folder: The job folder.
        policy: A site's policy, to see its objections as well.

    Raises:
        FedfmsError: with all problems at once: FMS-J001, FMS-J002, FMS-M005, FMS-J004, FMS-J005 and FMS-S002.
    """
    meta, problems = _read_meta(folder)
    deploy_map = meta.get("deploy_map")
    names = [str(name) for name in deploy_map] if isinstance(deploy_map, dict) else []
    name = names[0] if len(names) == 1 and _NAME.fullmatch(names[0]) else "app"
    problems += [
        Problem(JOB_REFUSED, str(path), "belongs to no job of this package", "Take it out.")
        for path in (sorted(folder.iterdir()) if folder.is_dir() else ())
        if path.name not in (META, name)
    ]
    application = None
    for file in (CLIENT, SERVER):
        path = folder / name / file
        if path.is_file():
            # What cannot be read is named once, by the reading below.
            problems += [item for item in nested_first_key(path) if "first key" in item.detail]
        elif file == SERVER:
            problems.append(Problem(JOB_REFUSED, str(path), "is missing"))
    try:
        application = read_application(folder / name)
    except FedfmsError as error:
        problems += error.problems
    if application is not None and policy is not None:
        problems += policy.objections(application.job)
    if problems or application is None:
        raise FedfmsError(problems)
    return CheckedJob(str(meta["name"]), application)


def _read_meta(folder: Path) -> tuple[dict[str, Any], list[Problem]]:
    """``meta.json`` and what is wrong with it; an empty one when it cannot be read."""
    path = folder / META
    if not path.is_file():
        raise fail(JOB_FOLDER, folder, f"not a job folder: it has no {META}", "Name a folder such as jobs/fedmsa.")
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return {}, [Problem(JOB_REFUSED, str(path), f"not JSON: {error}")]
    if not isinstance(meta, dict):
        return {}, [Problem(JOB_REFUSED, str(path), f"expected a JSON object, found {type(meta).__name__}")]
    problems = nested_first_key(path)
    if not isinstance(meta.get("name"), str) or not meta["name"]:
        problems.append(Problem(JOB_REFUSED, f"{path}: name", "is missing", 'Write "name": "my_job" first.'))
    deploy_map = meta.get("deploy_map")
    one = isinstance(deploy_map, dict) and len(deploy_map) == 1
    sites = next(iter(deploy_map.values())) if one and isinstance(deploy_map, dict) else None
    named = isinstance(sites, list) and bool(sites) and all(isinstance(site, str) for site in sites)
    plain = one and isinstance(deploy_map, dict) and _NAME.fullmatch(str(next(iter(deploy_map)))) is not None
    if not (plain and named and isinstance(sites, list) and (sites == [_EVERYBODY] or "server" in sites)):
        problems.append(
            Problem(
                JOB_REFUSED,
                f"{path}: deploy_map",
                f"expected one application for server and sites, found {json.dumps(deploy_map)}",
                'Write {"app": ["@ALL"]}, or {"app": ["server", "site-a", "site-b"]}.',
            )
        )
    return meta, problems
