"""What a job folder is checked for before submission, and at each site before each task."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from nvflare.tool.job import job_cli

from fedfms.errors import FedfmsError
from fedfms.site.application import read_application
from fedfms.site.job_check import application_folder, check_job_folder
from fedfms.site.policy import load_policy
from tests.command import Command
from tests.flare.builders import write_policy

PROJECT = Path(__file__).parents[2]
CLIENT = "app/config/config_fed_client.json"
SERVER = "app/config/config_fed_server.json"


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    content = json.loads(path.read_text())
    changed = change(content)
    path.write_text(json.dumps(content if changed is None else changed))


def problems(folder: Path) -> str:
    with pytest.raises(FedfmsError) as caught:
        check_job_folder(folder)
    assert caught.value.ids == ("FMS-J005",), str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("job", ["fedmsa", "fedsam"])
def test_the_projects_jobs_pass(job: str) -> None:
    assert check_job_folder(PROJECT / "jobs" / job).name == job


def test_a_good_job_passes_and_signatures_do_not_count(job_folder: Path) -> None:
    before = check_job_folder(job_folder).application.review_sha256
    for name in (".__nvfl_sig.json", ".__nvfl_submitter.crt"):
        (job_folder / "app" / "config" / name).write_text("signature")
    assert check_job_folder(job_folder).application.review_sha256 == before


def test_the_digest_is_over_content_and_not_over_spelling(job_folder: Path) -> None:
    """FLARE writes the JSON files anew when a job is submitted."""
    before = read_application(job_folder / "app").review_sha256
    for name in (CLIENT, SERVER):
        path = job_folder / name
        path.write_text(json.dumps(json.loads(path.read_text()), indent=7, sort_keys=True))
    training = job_folder / "app" / "config" / "training.yaml"
    training.write_text("# a comment\n" + training.read_text())
    assert read_application(job_folder / "app").review_sha256 == before


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: edit(folder / CLIENT, lambda content: content.update(get_task_timeout=1)),
        lambda folder: edit(folder / SERVER, lambda content: content["components"].__delitem__(0)),
        lambda folder: (folder / "app" / "config" / "training.yaml").write_text(
            (folder / "app" / "config" / "training.yaml").read_text().replace("rounds: 2", "rounds: 3")
        ),
        lambda folder: (folder / SERVER).unlink(),
    ],
)
def test_the_digest_changes_with_the_job(change: Callable[[Path], Any], job_folder: Path) -> None:
    before = read_application(job_folder / "app").review_sha256
    change(job_folder)
    assert read_application(job_folder / "app").review_sha256 != before


def test_the_digest_is_bound_to_the_package(job_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = read_application(job_folder / "app").review_sha256
    monkeypatch.setattr("fedfms.site.application.__version__", "9.9")
    assert read_application(job_folder / "app").review_sha256 != before


def outside(content: Any) -> None:
    content["components"].append({"id": "x", "path": "nvflare.app_common.executors.client_api.ClientAPIExecutor"})


def nested(content: Any) -> None:
    content["executors"][0]["executor"]["args"] = {"deep": [{"path": "subprocess.Popen", "args": {}}]}


def nested_class_path(content: Any) -> None:
    content["executors"][0]["executor"]["args"] = {"deep": {"class_path": "subprocess.Popen"}}


def by_name(content: Any) -> None:
    content["executors"][0]["executor"]["name"] = "FedfmsExecutor"


def disabled(content: Any) -> None:
    content["task_result_filters"][0]["filters"][0]["disabled"] = True


def inward(content: Any) -> None:
    content["task_result_filters"][0]["direction"] = "in"


def no_filters(content: Any) -> None:
    del content["task_result_filters"]


def one_task_unfiltered(content: Any) -> None:
    content["task_result_filters"][0]["tasks"] = ["ready", "validate", "final"]


def other_executor(content: Any) -> None:
    content["executors"][0]["executor"]["path"] = "fedfms.flare.ledger.Ledger"


def gate_as_executor(content: Any) -> None:
    content["executors"][0]["executor"]["path"] = "fedfms.flare.gates.EgressFilter"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            outside,
            "components: jobs of this package have nothing here; leave it empty (found [{'id': 'x'",
        ),
        (nested, "executors.0.executor.args.deep: unknown key"),
        (nested_class_path, "executors.0.executor.args.deep: unknown key"),
        (by_name, "executors.0.executor.name: unknown key"),
        (disabled, "filters.0.disabled: unknown key"),
        (inward, "direction: unknown key"),
        (no_filters, "the tasks ready, train, validate, final have no fedfms.flare.gates.EgressFilter"),
        (one_task_unfiltered, "the tasks train have no fedfms.flare.gates.EgressFilter"),
        (
            other_executor,
            "executors.0.executor.path: not a class that may be loaded here; write one of fedfms",
        ),
        (gate_as_executor, "have no fedfms.flare.executor.FedfmsExecutor"),
    ],
)
def test_a_client_file_that_sites_refuse(change: Callable[[Any], None], words: str, job_folder: Path) -> None:
    edit(job_folder / CLIENT, change)
    assert words in problems(job_folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda content: content["workflows"][0].update(path="fedfms.flare.ledger.Ledger"),
            "expected fedfms.flare.controller.FedfmsController",
        ),
        (
            lambda content: content["components"][0].update(path="fedfms.flare.executor.FedfmsExecutor"),
            "components.0.path: not a class that may be loaded here",
        ),
        (lambda content: content["components"][4]["args"].update(tb_folder="x"), "args.tb_folder: unknown key"),
        (
            lambda content: content.update(task_data_filters=[{}]),
            "task_data_filters: jobs of this package have nothing",
        ),
    ],
)
def test_a_server_file_that_sites_refuse(change: Callable[[Any], None], words: str, job_folder: Path) -> None:
    edit(job_folder / SERVER, change)
    assert words in problems(job_folder)


@pytest.mark.parametrize(
    "name", ["app/custom/code.py", "app/config/extra.json", "app/config/config_fed_client.conf", "app/.hidden", "notes"]
)
def test_any_other_file_is_refused(name: str, job_folder: Path) -> None:
    (job_folder / name).parent.mkdir(exist_ok=True)
    (job_folder / name).write_text("x")
    assert str(job_folder / name) in problems(job_folder)


def test_an_empty_folder_for_code_and_a_link_are_refused(job_folder: Path) -> None:
    (job_folder / "app" / "custom").mkdir()
    (job_folder / "app" / "config" / ".__nvfl_link").symlink_to("/etc/hostname")
    assert all(f"{name}: does not belong to a job" in problems(job_folder) for name in ("app/custom", ".__nvfl_link"))


def test_a_file_that_begins_with_a_nested_key_is_refused(job_folder: Path) -> None:
    """'nvflare job submit' sends that key's value alone."""
    for name, first in (("meta.json", "deploy_map"), (CLIENT, "executors")):
        edit(job_folder / name, lambda content, first=first: {first: content.pop(first), **content})
    text = problems(job_folder)
    assert f"{job_folder / 'meta.json'}: its first key 'deploy_map' holds a nested value" in text
    assert "Write 'name' first." in text and "Write 'format_version' first." in text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": ""}, "name: String should have at least 1 character"),
        ({"deploy_map": {"app": ["@ALL"], "other": ["site-2"]}}, "one application for all"),
        ({"deploy_map": {"app": ["site-1"]}}, "one application for all"),
        ({"deploy_map": None}, "deploy_map: Input should be a valid dictionary"),
        ({"min_clients": 0}, "min_clients: "),
        ({"scope": "other"}, "scope: unknown key"),
        ({"launcher_spec": {"site-1": {"docker": {"image": "x"}}}}, "launcher_spec: unknown key"),
        ({"resource_spec": {"site-1": {"num_of_gpus": 1}}}, "resource_spec: jobs of this package have nothing"),
    ],
)
def test_meta_json_is_checked(change: dict[str, Any], words: str, job_folder: Path) -> None:
    edit(job_folder / "meta.json", lambda content: content.update(change))
    assert words in problems(job_folder)


@pytest.mark.parametrize("text", ["{", "[]", '{"name": "a", "name": "b", "deploy_map": {"app": ["@ALL"]}}'])
def test_a_file_that_is_no_json_object_is_told(text: str, job_folder: Path) -> None:
    (job_folder / CLIENT).write_text(text)
    assert CLIENT in problems(job_folder)


def test_all_problems_come_in_one_message(fedfms: Command, job_folder: Path) -> None:
    edit(job_folder / "meta.json", lambda content: content.update(deploy_map={"app": []}))
    edit(job_folder / CLIENT, no_filters)
    edit(job_folder / SERVER, outside)
    (job_folder / "app" / "custom").mkdir()
    training = job_folder / "app" / "config" / "training.yaml"
    training.write_text(training.read_text().replace("rounds: 2", "rounds: 0") + "colour: blue\n")
    error = fedfms("job", "check", job_folder).failed_with("FMS-J002", "FMS-J005", "6 problem(s)")
    for words in ("deploy_map", "EgressFilter", "ClientAPIExecutor", "custom", "rounds", "colour"):
        assert words in error


def test_the_objections_of_a_site_are_shown(fedfms: Command, job_folder: Path, tmp_path: Path) -> None:
    result = fedfms("job", "check", job_folder, "--policy", write_policy(tmp_path))
    assert result.code == 0 and read_application(job_folder / "app").review_sha256 in result.out
    strict = write_policy(tmp_path, scopes=["decoder"], max_rounds=1)
    fedfms("job", "check", job_folder, "--policy", strict).failed_with("FMS-S002", "scope", "rounds", "2 problem(s)")
    with pytest.raises(FedfmsError, match="FMS-S002"):
        check_job_folder(job_folder, load_policy(strict))


def test_no_job_folder(fedfms: Command, tmp_path: Path) -> None:
    fedfms("job", "check", tmp_path).failed_with("FMS-J004", "meta.json")


def submitted(folder: Path, to: Path) -> Path:
    """The folder as 'nvflare job submit' of FLARE prepares it before it goes to the server."""
    shutil.copytree(folder, to)
    arguments = argparse.Namespace(job_folder=str(folder), config_file=None, app_config=None, debug=False, force=True)
    job_cli.prepare_job_config(arguments, ["app"], str(to))
    return to


@pytest.mark.parametrize("job", ["fedmsa", "fedsam"])
def test_submission_by_flare_keeps_the_digest(job: str, tmp_path: Path) -> None:
    """What a site approves as a folder is what arrives there, although FLARE writes the JSON files anew."""
    folder = PROJECT / "jobs" / job
    arrived = submitted(folder, tmp_path / "sent")
    assert (arrived / CLIENT).read_bytes() != (folder / CLIENT).read_bytes()
    assert read_application(arrived / "app").review_sha256 == read_application(folder / "app").review_sha256


def test_submission_by_flare_cuts_a_file_that_begins_with_a_nested_key(job_folder: Path, tmp_path: Path) -> None:
    """Why job check refuses such a file; when this test fails, FLARE has mended it."""
    edit(job_folder / CLIENT, lambda content: {"executors": content.pop("executors"), **content})
    cut = json.loads((submitted(job_folder, tmp_path / "sent") / CLIENT).read_text())
    assert isinstance(cut, list) and "executor" in cut[0]


@pytest.mark.parametrize("name", ["..", ".", "", "../other", "/etc", "app/x", ".hidden", "a b", "app\n"])
def test_the_applications_name_leads_nowhere_else(name: str, job_folder: Path) -> None:
    """Also where a job is only looked at: ``review show`` and ``approve`` take the folder from the same place."""
    (job_folder / "meta.json").write_text(json.dumps({"name": "mine", "deploy_map": {name: ["@ALL"]}}))
    for look in (application_folder, check_job_folder):
        with pytest.raises(FedfmsError, match="FMS-J005 .*deploy_map"):
            look(job_folder)
