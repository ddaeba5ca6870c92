"""How every configuration file is read: strict, frozen, all problems in one message."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from fedfms.errors import ErrorKind, FedfmsError, Problem, fail

StructureName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,39}$")]
TaskName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class Strict(BaseModel):
    """Base of all configuration: frozen, unknown keys are errors, no NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def read_yaml(path: Path, unreadable: ErrorKind) -> dict[str, Any]:
    """Read a YAML file whose top level is a mapping.

    Raises:
        FedfmsError: of kind ``unreadable``.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise fail(unreadable, path, f"{type(error).__name__}: {error}") from error
    if not isinstance(content, dict):
        raise fail(unreadable, path, f"expected 'key: value' lines, found {type(content).__name__}")
    return content


def validation_problems(error: ValidationError, kind: ErrorKind, place: Path) -> FedfmsError:
    """Turn pydantic's findings into one error with a problem per key, each with its path in the file."""
    problems = []
    for item in error.errors(include_url=False):
        key = ".".join(str(part) for part in item["loc"]) or "(whole file)"
        problems.append(Problem(kind, f"{place}: {key}", _sentence(item)))
    return FedfmsError(problems)


def _sentence(item: Any) -> str:
    if item["type"] == "extra_forbidden":
        return "unknown key"
    if item["type"] == "missing":
        return "this key is missing"
    return f"{item['msg']} (found {item['input']!r})"
