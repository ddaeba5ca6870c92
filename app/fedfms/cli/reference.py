"""Writes the reference of all commands in Markdown: ``python -m fedfms.cli.reference > docs/commands.md``.

Built from the commands' own declarations, not from ``--help``, whose lines depend on the terminal's width and colours.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer

from fedfms.cli import app

_INTRODUCTION = """\
# Commands

This page is generated from the program: `python -m fedfms.cli.reference > docs/commands.md`. A test compares the two.
`fedfms COMMAND --help` prints the part about one command.

A command ends with 0 when it did what it says, with 1 after an error, whose id is explained in [errors.md](errors.md),
and with 2 when an argument or option itself is wrong. `...` marks what may be given more than once, `[OPTIONS]` the
options below that are not required."""


def reference(application: typer.Typer) -> str:
    """The page ``docs/commands.md``: a table of all commands, then each with its synopsis, help and options.

    Hidden commands and options, such as old names that still work, are left out.
    """
    root = typer.main.get_command(application)
    rows = [f"| [`{name}`](#{name.replace(' ', '-')}) | {_summary(command)} |" for name, command in _commands(root)]
    table = "\n".join(("| command | does |", "| --- | --- |", *rows))
    return "\n\n".join((_INTRODUCTION, table, *_sections(root))) + "\n"


def _visible(group: Any) -> list[tuple[str, Any]]:
    """Commands and groups directly below a group, by name; the single commands first."""
    found = [(name, command) for name, command in group.commands.items() if not command.hidden]
    return sorted(found, key=lambda entry: (hasattr(entry[1], "commands"), entry[0]))


def _commands(group: Any, prefix: str = "fedfms") -> Iterator[tuple[str, Any]]:
    """Every command with its full name, such as ``fedfms data init``."""
    for name, command in _visible(group):
        if hasattr(command, "commands"):
            yield from _commands(command, f"{prefix} {name}")
        else:
            yield f"{prefix} {name}", command


def _sections(root: Any) -> Iterator[str]:
    for name, command in _visible(root):
        if hasattr(command, "commands"):
            yield f"## fedfms {name}\n\n{command.help}"
            for full_name, below in _commands(command, f"fedfms {name}"):
                yield _section("###", full_name, below)
        else:
            yield _section("##", f"fedfms {name}", command)


def _section(level: str, name: str, command: Any) -> str:
    parameters = [parameter for parameter in command.params if not getattr(parameter, "hidden", False)]
    options = [parameter for parameter in parameters if not parameter.required and _is_option(parameter)]
    arguments = [_synopsis(parameter) for parameter in parameters if not _is_option(parameter)]
    required = [_synopsis(parameter) for parameter in parameters if parameter.required and _is_option(parameter)]
    usage = " ".join((name, *arguments, *required, *(["[OPTIONS]"] if options else ())))
    parts = [f"{level} {name}", f"```\n{usage}\n```", command.help]
    if parameters:
        rows = [f"| `{_as_typed(parameter)}` | {_meaning(parameter)} |" for parameter in parameters]
        parts.append("\n".join(("| argument or option | meaning |", "| --- | --- |", *rows)))
    return "\n\n".join(parts)


def _is_option(parameter: Any) -> bool:
    return bool(parameter.param_type_name == "option")


def _as_typed(parameter: Any) -> str:
    """``--out OUT``, ``--json``, ``SITE.YAML``."""
    if not _is_option(parameter):
        return str(parameter.metavar or parameter.name.upper())
    names = ", ".join(parameter.opts)
    if parameter.is_flag:
        return names
    return f"{names} {parameter.metavar or parameter.opts[0].lstrip('-').upper().replace('-', '_')}"


def _synopsis(parameter: Any) -> str:
    typed = _as_typed(parameter) + ("..." if getattr(parameter, "multiple", False) else "")
    return typed if parameter.required else f"[{typed}]"


def _meaning(parameter: Any) -> str:
    """The option's help, then whether it is required, its default and its limits."""
    bounds = getattr(parameter, "type", parameter)  # click keeps the limits in the type, typer 0.29 in the parameter
    smallest, largest = getattr(bounds, "min", None), getattr(bounds, "max", None)
    notes = []
    if parameter.required:
        notes.append("required")
    elif parameter.default is not False and parameter.default not in (None, ""):
        notes.append(f"default: `{parameter.default}`")
    if smallest is not None:
        notes.append(f"{smallest} or more" if largest is None else f"{smallest} to {largest}")
    text = str(parameter.help).replace("|", "\\|")
    return f"{text} ({'; '.join(notes)})" if notes else text


def _summary(command: Any) -> str:
    """The first sentence of a command's help."""
    first_paragraph = " ".join(command.help.split("\n\n")[0].split())
    return first_paragraph.split(". ")[0].rstrip(".").replace("|", "\\|")


if __name__ == "__main__":
    print(reference(app), end="")
