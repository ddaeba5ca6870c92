"""Values under ``labels`` in ``site.yaml``: numbers, names and codes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import PlainValidator, StringConstraints, WithJsonSchema

from fedfms.configuration import Strict

NonEmpty = Annotated[str, StringConstraints(min_length=1)]


class Code(Strict):
    """A coded concept (PS3.3 section 8.8): the coding scheme, such as SCT, and the code in it."""

    scheme: NonEmpty
    code: NonEmpty

    def __str__(self) -> str:
        return f"{self.scheme} {self.code}"


LabelValue = int | str | Code


def _label_value(value: Any) -> LabelValue:
    if isinstance(value, dict) and value.keys() == {"scheme", "code"}:
        scheme, code = value["scheme"], value["code"]
        if isinstance(scheme, str) and scheme and isinstance(code, str | int) and code:
            return Code(scheme=scheme, code=str(code))
    elif isinstance(value, Code) or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    elif isinstance(value, str) and value.strip() and value != "nonzero":
        return value.strip()
    raise ValueError("write a whole number, a name, {scheme: ..., code: ...}, a list of these, or nonzero")


def _label_values(value: Any) -> tuple[LabelValue, ...] | Literal["nonzero"]:
    if value == "nonzero":
        return "nonzero"
    values = tuple(_label_value(item) for item in (value if isinstance(value, list | tuple) else [value]))
    if not values:
        raise ValueError("the list is empty; write at least one value, or nonzero")
    return values


_LABEL_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"type": "integer"},
        {"type": "string", "pattern": r"\S"},
        {
            "type": "object",
            "properties": {"scheme": {"type": "string", "minLength": 1}, "code": {"type": ["string", "integer"]}},
            "required": ["scheme", "code"],
            "additionalProperties": False,
        },
    ]
}
LabelValues = Annotated[
    tuple[LabelValue, ...] | Literal["nonzero"],
    PlainValidator(_label_values),
    # pydantic cannot see what the validator takes.
    WithJsonSchema({"anyOf": [*_LABEL_SCHEMA["anyOf"], {"type": "array", "items": _LABEL_SCHEMA, "minItems": 1}]}),
]
