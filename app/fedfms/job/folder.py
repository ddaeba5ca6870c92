"""Makes a job folder from an existing one; comments in ``training.yaml`` are kept."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import YAMLError

from fedfms.access import exists, is_file, unwritable
from fedfms.configuration import read_json
from fedfms.errors import JOB_FOLDER, JOB_INVALID, FedfmsError, Problem, fail
from fedfms.files import atomic_path
from fedfms.job.training import LocalWork, TrainingJob, load_job
from fedfms.preprocessing import INTENSITY_RULES

TRAINING_FILE = Path("app/config/training.yaml")
META_FILE = Path("meta.json")


def job_keys() -> list[str]:
    """Every key of ``training.yaml``, nested ones with dots."""
    return list(_keys(TrainingJob, ""))


def _keys(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        nested = [part for part in _parts(field.annotation) if issubclass(part, BaseModel)]
        if not nested:
            yield prefix + name
        seen: set[str] = set()
        for part in nested:
            for key in _keys(part, f"{prefix}{name}."):
                if key not in seen:
                    seen.add(key)
                    yield key


def _parts(annotation: Any) -> Iterator[type]:
    """The classes in an annotation, through unions and ``Annotated``."""
    if isinstance(annotation, type) and get_origin(annotation) is None:
        yield annotation
    for argument in get_args(annotation):
        yield from _parts(argument)


def new_job(source: Path, settings: Sequence[str], target: Path) -> TrainingJob:
    """Copy a job folder and change settings in its ``training.yaml``.

    Args:
        source: An existing job folder.
        settings: ``KEY=VALUE``, the key with dots for nested ones, the value as in YAML; a list may be written
            ``a,b``. One of ``local_work.*`` replaces the others; another ``preprocessing.intensity.rule`` removes the
            keys of the old one; another ``backbone`` brings its published digest.
        target: A folder that does not exist yet.

    Returns:
        The new job's configuration, checked.

    Raises:
        FedfmsError: FMS-J004 when ``source`` is not a job folder or ``target`` exists, FMS-J002 with every wrong
            setting, FMS-D011 when it cannot be written. Then no folder is left behind.
    """
    # Needs torch, which takes seconds to import; `fedfms --help` reads the keys of this module.
    from fedfms.sam.backbones import BACKBONES, published_sha256

    yaml = YAML()
    yaml.width = 120
    training = source / TRAINING_FILE
    if not is_file(training) or not is_file(source / META_FILE):
        raise fail(JOB_FOLDER, source, f"not a job folder: it needs {META_FILE} and {TRAINING_FILE}")
    if exists(target):
        raise fail(JOB_FOLDER, target, "exists already", "Name a folder that does not exist yet.")
    load_job(training)
    meta = read_json(source / META_FILE, JOB_FOLDER)
    content = yaml.load(training.read_text(encoding="utf-8"))
    problems = [problem for setting in settings if (problem := _apply(content, setting)) is not None]
    given = {setting.partition("=")[0] for setting in settings}
    _drop_keys_of_other_rules(content, given)
    if "backbone" in given and "backbone_sha256" not in given and content["backbone"] in BACKBONES:
        content["backbone_sha256"] = published_sha256(content["backbone"])
    staging = target.with_name(f".{target.name}.new")
    try:
        shutil.rmtree(staging, ignore_errors=True)
        shutil.copytree(source, staging)
        with atomic_path(staging / TRAINING_FILE) as temporary, temporary.open("w", encoding="utf-8") as file:
            yaml.dump(content, file)
        try:
            job = _load_as(staging / TRAINING_FILE, target / TRAINING_FILE)
        except FedfmsError as error:
            problems += error.problems
        if problems:
            raise FedfmsError(problems)
        # The name first: of a file that begins with a nested key, `nvflare job submit` sends that key's value alone.
        renamed = {"name": target.name, **{key: value for key, value in meta.items() if key != "name"}}
        (staging / META_FILE).write_text(json.dumps(renamed, indent=2) + "\n", encoding="utf-8")
        staging.rename(target)
    except OSError as error:
        raise unwritable(target, error) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return job


def _load_as(path: Path, name: Path) -> TrainingJob:
    """Check a ``training.yaml``; errors say ``name``, because ``path`` does not stay."""
    try:
        return load_job(path)
    except FedfmsError as error:
        raise FedfmsError(
            replace(problem, where=problem.where.replace(str(path), str(name))) for problem in error.problems
        ) from None


def _apply(content: CommentedMap, setting: str) -> Problem | None:
    key, separator, text = setting.partition("=")
    if not separator:
        return Problem(JOB_INVALID, setting, "not KEY=VALUE", "Write for example rounds=5.")
    known = job_keys()
    parents = {name.rsplit(".", 1)[0] for name in known if "." in name}
    if key not in known and key not in parents:
        return Problem(JOB_INVALID, key, "unknown key", f"Known keys: {', '.join(known)}.")
    try:
        value = YAML(typ="safe").load(text)
    except YAMLError as error:
        return Problem(JOB_INVALID, key, f"not a YAML value: {error}")
    if key == "structures" and isinstance(value, str):
        value = [name.strip() for name in value.split(",")]
    *path, leaf = key.split(".")
    where = content
    for name in path:
        where = where.setdefault(name, CommentedMap())
        if not isinstance(where, dict):
            return Problem(JOB_INVALID, key, f"{name} was set to '{where}' before", f"Set either {name} or {key}.")
    if path == ["local_work"]:
        for other in LocalWork.model_fields:
            where.pop(other, None)
    where[leaf] = value
    return None


def _drop_keys_of_other_rules(content: CommentedMap, given: set[str]) -> None:
    """Remove what the intensity rule of the source needed and the new one does not know.

    What was set by hand stays, and so does a mapping that was set as a whole: such a key is a mistake to be reported.
    """
    where = "preprocessing.intensity"
    preprocessing = content.get("preprocessing")
    intensity = preprocessing.get("intensity") if isinstance(preprocessing, dict) else None
    if not isinstance(intensity, dict) or given & {"preprocessing", where}:
        return
    rule = INTENSITY_RULES.get(str(intensity.get("rule")))
    if rule is None:
        return
    for key in list(intensity):
        if key not in rule.model_fields and f"{where}.{key}" not in given:
            del intensity[key]
