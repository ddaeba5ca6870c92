"""Checks a job folder before submission, as the sites will check it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from fedfms.access import children, is_file
from fedfms.configuration import Strict, read_json, validated
from fedfms.errors import JOB_FOLDER, JOB_REFUSED, FedfmsError, Problem, fail
from fedfms.site.application import CLIENT, EMPTY, SERVER, Application, nested_first_key, read_application
from fedfms.site.policy import SitePolicy

META = "meta.json"
_EVERYBODY = "@ALL"
# It becomes part of paths.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


def _one_application(content: dict[str, list[str]]) -> dict[str, list[str]]:
    plain = len(content) == 1 and all(_NAME.fullmatch(name) for name in content)
    if not (plain and all(sites == [_EVERYBODY] or "server" in sites for sites in content.values())):
        raise ValueError('write {"app": ["@ALL"]}, or {"app": ["server", "site-a", "site-b"]}: one application for all')
    return content


class _Meta(Strict):
    """``meta.json``, as a lead writes it. FLARE reads more keys (launchers, scopes, properties); our jobs need none.

    It decides who takes part and when FLARE starts the job, but nothing of what a site does, so no approval is bound
    to it.
    """

    name: Annotated[str, Field(min_length=1)]
    deploy_map: Annotated[dict[str, list[str]], AfterValidator(_one_application)]
    resource_spec: Annotated[dict[str, Any], EMPTY] = Field(default_factory=dict)
    min_clients: Annotated[int, Field(ge=1)] | None = None
    mandatory_clients: list[str] | None = None

    @property
    def application(self) -> str:
        """Name of the one application's folder."""
        return next(iter(self.deploy_map))


@dataclass(frozen=True)
class CheckedJob:
    """A job folder that passed all checks.

    Attributes:
        name: The job's name, from ``meta.json``.
        application: The files of its one application.
    """

    name: str
    application: Application


def application_folder(folder: Path) -> Path:
    """Find the folder of the one application of a job folder.

    Raises:
        FedfmsError: FMS-J004 when it is not a job folder, FMS-J005 with every problem of ``meta.json``.
    """
    meta, problems = _read_meta(folder)
    if problems or meta is None:
        raise FedfmsError(problems)
    return folder / meta.application


def check_job_folder(folder: Path, policy: SitePolicy | None = None) -> CheckedJob:
    """Check a job folder against everything that server and sites require.

    Args:
        folder: The job folder.
        policy: A site's policy, to include its objections.

    Raises:
        FedfmsError: with all problems at once: FMS-J001, FMS-J002, FMS-M005, FMS-J004, FMS-J005 and FMS-S002.
    """
    meta, problems = _read_meta(folder)
    name = "app" if meta is None else meta.application
    problems += [
        Problem(JOB_REFUSED, str(path), "does not belong to a job of this package", "Remove it.")
        for path in children(folder)
        if path.name not in (META, name)
    ]
    application = None
    for file in (CLIENT, SERVER):
        path = folder / name / file
        if is_file(path):
            # A file that cannot be read is reported once, below.
            problems += [item for item in nested_first_key(path) if "first key" in item.detail]
        elif file == SERVER:
            problems.append(Problem(JOB_REFUSED, str(path), "is missing"))
    try:
        application = read_application(folder / name)
    except FedfmsError as error:
        problems += error.problems
    if application is not None and policy is not None:
        problems += policy.objections(application.job)
    if problems or application is None or meta is None:
        raise FedfmsError(problems)
    return CheckedJob(meta.name, application)


def _read_meta(folder: Path) -> tuple[_Meta | None, list[Problem]]:
    """``meta.json`` (None if it is wrong), and its problems."""
    path = folder / META
    if not is_file(path):
        raise fail(JOB_FOLDER, folder, f"not a job folder: it has no {META}", "Name a folder such as jobs/fedmsa.")
    problems = nested_first_key(path)
    try:
        return validated(_Meta, read_json(path, JOB_REFUSED), JOB_REFUSED, path), problems
    except FedfmsError as error:
        # A file that cannot be read at all is in both lists.
        return None, list(dict.fromkeys((*problems, *error.problems)))
