"""Reading of configuration files: strict, frozen, with all problems in one message."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Hashable, Mapping
from pathlib import Path
from reprlib import Repr
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from pydantic_core import ErrorDetails

from fedfms.access import unreadable as not_read
from fedfms.errors import ErrorKind, FedfmsError, Problem, fail

# Attributes of PyTorch's containers of modules, in which each structure is stored under its name; a test checks that
# the list is complete. PyTorch itself is not imported here, because that takes seconds.
_TAKEN_NAMES = frozenset(
    """
    add_module apply bfloat16 buffers call_super_init children clear compile cpu cuda double dump_patches eval
    extra_repr float forward get_buffer get_extra_state get_parameter get_submodule half ipu items keys
    load_state_dict modules mtia named_buffers named_children named_modules named_parameters parameters pop
    register_backward_hook register_buffer register_forward_hook register_forward_pre_hook
    register_full_backward_hook register_full_backward_pre_hook register_load_state_dict_post_hook
    register_load_state_dict_pre_hook register_module register_parameter register_state_dict_post_hook
    register_state_dict_pre_hook requires_grad_ set_extra_state set_submodule share_memory state_dict to to_empty
    train training type update values xpu zero_grad
    """.split()  # noqa: SIM905 - sixty lines otherwise
)


def _free_name(name: str) -> str:
    if name in _TAKEN_NAMES:
        raise ValueError(f"'{name}' is a name that PyTorch uses itself; choose another")
    return name


def in_words(form: str) -> WrapValidator:
    """Say what to write in place of the regular expression or type that a value does not fit; put it last."""

    def check(value: object, inner: ValidatorFunctionWrapHandler) -> object:
        try:
            return inner(value)
        except ValidationError:
            raise ValueError(f"write {form}") from None

    return WrapValidator(check)


StructureName = Annotated[
    str,
    StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,39}$"),
    in_words("a name of at most 40 lower-case letters, digits and '_' that begins with a letter"),
    AfterValidator(_free_name),
]
TaskName = Annotated[
    str,
    StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$"),
    in_words("a name of at most 64 lower-case letters, digits, '_' and '-'"),
]
Sha256 = Annotated[
    str, StringConstraints(pattern=r"^[0-9a-f]{64}$"), in_words("a SHA-256, 64 digits of 0-9 and a-f in lower case")
]


def _no_truth_value(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("write a number; YAML reads yes, on and true as a truth value")
    return value


#: For numbers: refuses true and false. Not pydantic's strict float: PyYAML reads 1e-3, without a point, as text.
NOT_A_TRUTH_VALUE = BeforeValidator(_no_truth_value)
Number = Annotated[float, NOT_A_TRUTH_VALUE]
#: Only true and false: pydantic alone also accepts 1, "no" and similar values.
TruthValue = Annotated[bool, Field(strict=True)]

_Item = TypeVar("_Item")


def distinct(values: tuple[_Item, ...]) -> tuple[_Item, ...]:
    """Validator of a list in which nothing may be named twice."""
    twice = sorted(str(value) for value, count in Counter(values).items() if count > 1)
    if twice:
        raise ValueError(f"named twice: {', '.join(twice)}")
    return values


def distinct_and_some(values: tuple[_Item, ...]) -> tuple[_Item, ...]:
    """Validator of a list that must name at least one thing, and nothing twice."""
    if not values:
        raise ValueError("name at least one")
    return distinct(values)


_MAX_STRUCTURES = 64


def _distinct_names(names: tuple[str, ...]) -> tuple[str, ...]:
    if not 1 <= len(names) <= _MAX_STRUCTURES:
        raise ValueError(f"name 1 to {_MAX_STRUCTURES} structures")
    if len(set(names)) != len(names):
        raise ValueError("structures must not repeat a name")
    return names


StructureNames = Annotated[tuple[StructureName, ...], AfterValidator(_distinct_names)]


class Strict(BaseModel):
    """Base class of all configuration: frozen; unknown keys, NaN and infinity are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class _OneValuePerKey(yaml.SafeLoader):
    """PyYAML silently uses the last of two equal keys, which the YAML specification forbids (3.2.1.3)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if key is not None and key in seen:
                problem = f"the key '{key}' appears twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path, unreadable: ErrorKind) -> dict[str, Any]:
    """Read a YAML file whose top level is a mapping; two equal keys in one mapping are an error.

    Args:
        path: The file.
        unreadable: Kind of the error.

    Raises:
        FedfmsError: of kind ``unreadable``; FMS-D019 when this account may not read it.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_OneValuePerKey)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise not_read(unreadable, path, error) from error
    if not isinstance(content, dict):
        raise fail(unreadable, path, f"expected 'key: value' lines, found {type(content).__name__}")
    return content


def read_json(path: Path, unreadable: ErrorKind) -> dict[str, Any]:
    """Read a JSON file whose top level is an object; two equal keys in one object are an error.

    Args:
        path: The file.
        unreadable: Kind of the error.

    Raises:
        FedfmsError: of kind ``unreadable``; FMS-D019 when this account may not read it.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_once)
    except (OSError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise not_read(unreadable, path, error) from error
    if not isinstance(content, dict):
        raise fail(unreadable, path, f"expected a JSON object, found {type(content).__name__}")
    return content


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for key, value in pairs:
        if key in content:
            raise ValueError(f"the key '{key}' appears twice")
        content[key] = value
    return content


_Model = TypeVar("_Model", bound=BaseModel)


def validated(model: type[_Model], content: Mapping[str, Any], kind: ErrorKind, where: Path) -> _Model:
    """Validate the content of a file.

    Args:
        model: The model that it must match.
        content: The content.
        kind: Kind of the problems.
        where: The file.

    Raises:
        FedfmsError: with every wrong, missing or unknown key.
    """
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise validation_problems(error, kind, where, content) from None


def validation_problems(
    error: ValidationError, kind: ErrorKind, where: Path, content: Mapping[str, Any]
) -> FedfmsError:
    """Turn pydantic's findings into one error with a problem per key, each with its path in the file.

    Args:
        error: What pydantic found.
        kind: Kind of the problems.
        where: The file.
        content: What was validated; distinguishes keys of the file from pydantic's names of alternatives.
    """
    sentences: dict[str, list[str]] = {}
    for item in error.errors(include_url=False):
        key = _key(item["loc"], content, item["type"]) or "(whole file)"
        sentences.setdefault(key, []).append(_sentence(item))
    return FedfmsError(Problem(kind, f"{where}: {key}", " or ".join(found)) for key, found in sentences.items())


def _key(location: tuple[int | str, ...], content: object, kind: str) -> str:
    """Path of a finding in the file, without the alternatives of a union that pydantic puts between the keys."""
    keys = []
    for position, part in enumerate(location):
        in_mapping = isinstance(content, Mapping) and part in content
        in_list = isinstance(content, (list, tuple)) and isinstance(part, int)
        if in_mapping or in_list:
            content = content[part]  # type: ignore[index]
        if in_mapping or in_list or (kind == "missing" and position == len(location) - 1):
            keys.append(str(part))
    return ".".join(keys)


def printable(text: str, most: int = 300) -> str:
    """Text from elsewhere as one line without control characters, which could overwrite a terminal or a log."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:most])


def _shown(value: object) -> str:
    """A short form: a few lines of YAML with aliases can expand to more than fits into memory."""
    shortener = Repr()
    shortener.maxstring = shortener.maxother = 200
    shortener.maxlevel = 2
    return shortener.repr(value)


def _sentence(item: Any) -> str:
    if item["type"] == "extra_forbidden":
        return "unknown key"
    if item["type"] == "missing":
        return "this key is missing"
    return f"{plain(item)} (found {_shown(item['input'])})"


def plain(item: ErrorDetails) -> str:
    """One of pydantic's findings as a sentence, without its marks."""
    return item["msg"].removeprefix("Value error, ")
