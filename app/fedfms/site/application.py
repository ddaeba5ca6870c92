"""A job's application folder as a site reads it: ``training.yaml``, FLARE's two JSON files, and nothing else.

The same checks run at a site before each task and in ``fedfms job check`` before submission.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from fedfms import __version__
from fedfms.access import exists
from fedfms.configuration import Strict, read_json, validated
from fedfms.errors import JOB_REFUSED, FedfmsError, Problem
from fedfms.exchange.replies import KINDS
from fedfms.files import sha256_json
from fedfms.job.training import TrainingJob, load_job
from fedfms.site.allowed_classes import CONTROLLER, EGRESS_FILTER, EXECUTOR, SERVER_CLASSES, SITE_CLASSES

TRAINING = "config/training.yaml"
CLIENT = "config/config_fed_client.json"
SERVER = "config/config_fed_server.json"
# FLARE writes these beside the files when a job is submitted: signatures and the submitter's certificate.
_SIGNATURE = ".__nvfl_"


def _one_of(*classes: str) -> AfterValidator:
    def check(path: str) -> str:
        if path not in classes:
            raise ValueError(f"not a class that may be loaded here; write one of {', '.join(classes)}")
        return path

    return AfterValidator(check)


class _NoArguments(Strict):
    """FLARE builds every class that it finds in arguments; our classes take none."""


class _Events(Strict):
    """The arguments of FLARE's receiver of metrics."""

    events: list[str] = Field(default_factory=list)


class _SiteComponent(Strict):
    """Has no ``name``, ``class_path``, ``disabled`` or ``config_type``: FLARE reads them, our jobs need none."""

    path: Annotated[str, _one_of(*SITE_CLASSES)]
    args: _NoArguments = _NoArguments()


class _ServerComponent(Strict):
    id: str
    path: Annotated[str, _one_of(*SERVER_CLASSES)]
    args: _Events = _Events()


class _Executor(Strict):
    tasks: list[str]
    executor: _SiteComponent


class _FilterChain(Strict):
    tasks: list[str]
    filters: list[_SiteComponent]


def _empty(content: Any) -> Any:
    if content:
        raise ValueError("jobs of this package have nothing here; leave it empty")
    return content


EMPTY = AfterValidator(_empty)
_Nothing = Annotated[list[Any], EMPTY]


class _Client(Strict):
    format_version: int
    get_task_timeout: float | None = None
    submit_task_result_timeout: float | None = None
    executors: list[_Executor]
    task_result_filters: tuple[_FilterChain, ...] = ()
    task_data_filters: _Nothing = Field(default_factory=list)
    components: _Nothing = Field(default_factory=list)


class _Server(Strict):
    format_version: int
    workflows: list[_ServerComponent]
    components: tuple[_ServerComponent, ...] = ()
    task_result_filters: _Nothing = Field(default_factory=list)
    task_data_filters: _Nothing = Field(default_factory=list)


@dataclass(frozen=True)
class Application:
    """The files of a job's application, read and checked.

    Attributes:
        job: Content of ``training.yaml``.
        client: Parsed ``config_fed_client.json``.
        server: Parsed ``config_fed_server.json``; None at a site that did not receive it.
    """

    job: TrainingJob
    client: Any
    server: Any

    @property
    def review_sha256(self) -> str:
        """The digest that an approval is bound to: of the parsed job, this package's version and the backbone.

        It is taken over the parsed content, because FLARE rewrites the JSON files when a job is submitted.
        """
        parsed = {"training": self.job.content, "client": self.client, "server": self.server}
        return sha256_json({"job": parsed, "package": __version__, "backbone_sha256": self.job.backbone_sha256})


def read_application(folder: Path) -> Application:
    """Read an application folder and check that it is one of this package.

    Args:
        folder: ``app`` of a job folder, or ``app_<site>`` in the run folder of a deployed job.

    Raises:
        FedfmsError: with all problems: FMS-J001, FMS-J002 and FMS-M005 in ``training.yaml``, FMS-J005 in
            the FLARE files or because of other files (except signatures).
    """
    problems: list[Problem] = []
    job = None
    try:
        job = load_job(folder / TRAINING)
    except FedfmsError as error:
        problems += error.problems
    client, found = _read_json(folder / CLIENT)
    problems += found
    if client is not None:
        problems += _client_problems(client, folder / CLIENT)
    server = None
    # A job may be deployed to a site without the server's part.
    if exists(folder / SERVER):
        server, found = _read_json(folder / SERVER)
        problems += found
        if server is not None:
            problems += _server_problems(server, folder / SERVER)
    for name in _other_files(folder):
        remedy = "Remove it; a job contains no code and no other files."
        problems.append(Problem(JOB_REFUSED, str(folder / name), "does not belong to a job of this package", remedy))
    if problems or job is None:
        raise FedfmsError(problems)
    return Application(job, client, server)


def _other_files(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        expected = name == "config" if path.is_dir() else name in (TRAINING, CLIENT, SERVER)
        # A link may point anywhere. FLARE takes even an empty folder 'custom' for code.
        if path.is_symlink() or not (expected or path.name.startswith(_SIGNATURE)):
            yield name


def _read_json(path: Path) -> tuple[Any, list[Problem]]:
    """The content (None if the file cannot be read), and the problems of reading it."""
    try:
        return read_json(path, JOB_REFUSED), []
    except FedfmsError as error:
        return None, list(error.problems)


def nested_first_key(path: Path) -> list[Problem]:
    """FMS-J005 when a JSON file begins with a key that holds an object or a list.

    ``nvflare job submit`` of FLARE 2.9 sends only that key's value of such a file.
    """
    content, problems = _read_json(path)
    if problems or not content:
        return problems
    first = next(iter(content))
    if not (isinstance(content[first], dict | list) and content[first]):
        return []
    detail = f"its first key '{first}' holds a nested value: 'nvflare job submit' would cut the file"
    plain = "name" if "name" in content else "format_version"
    return [Problem(JOB_REFUSED, str(path), detail, f"Write '{plain}' first.")]


def _client_problems(content: dict[str, Any], path: Path) -> list[Problem]:
    try:
        client = validated(_Client, content, JOB_REFUSED, path)
    except FedfmsError as error:
        return list(error.problems)
    problems = []
    served = {task for entry in client.executors if entry.executor.path == EXECUTOR for task in entry.tasks}
    filtered = {
        task
        for chain in client.task_result_filters
        if chain.filters and chain.filters[-1].path == EGRESS_FILTER
        for task in chain.tasks
    }
    for key, found, what in (
        ("executors", served, EXECUTOR),
        ("task_result_filters", filtered, EGRESS_FILTER),
    ):
        if missing := [task for task in KINDS if task not in found]:
            detail = f"the tasks {', '.join(missing)} have no {what}"
            problems.append(Problem(JOB_REFUSED, f"{path}: {key}", detail, f"Name {what} for {', '.join(KINDS)}."))
    return problems


def _server_problems(content: dict[str, Any], path: Path) -> list[Problem]:
    try:
        server = validated(_Server, content, JOB_REFUSED, path)
    except FedfmsError as error:
        return list(error.problems)
    if [item.path for item in server.workflows] != [CONTROLLER]:
        return [Problem(JOB_REFUSED, f"{path}: workflows", f"expected {CONTROLLER} and nothing else")]
    return []
