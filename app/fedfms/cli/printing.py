"""Printing that several commands share."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


def print_json(content: Any) -> None:
    """JSON for a pipe."""
    print(json.dumps(content, indent=1))


def print_pairs(content: dict[str, Any]) -> None:
    """One line per entry."""
    for key, value in content.items():
        print(f"{key:22} {f'{value:,}' if isinstance(value, int) else value}")
