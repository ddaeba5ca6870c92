"""docs/commands.md is what the program says of itself, and no page names a command or option that does not exist."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer

from fedfms.cli import app
from fedfms.cli.reference import reference

PROJECT = Path(__file__).parents[1]
PAGE = PROJECT / "docs" / "commands.md"
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "jobs/*.md", "poc_workspace/*.md", "provision/*.md")
    for path in PROJECT.glob(pattern)
)


def commands_of(group: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every command and group by the words after ``fedfms``, hidden ones too."""
    for name, command in group.commands.items():
        yield prefix + name, command
        if hasattr(command, "commands"):
            yield from commands_of(command, f"{prefix}{name} ")


COMMANDS = dict(commands_of(typer.main.get_command(app)))


def options_of(command: Any, *, shown: bool = False) -> set[str]:
    """Options of a command; with ``shown`` without the hidden ones."""
    parameters = [item for item in command.params if not (shown and item.hidden)]
    return {option for item in parameters for option in item.opts if option.startswith("--")}


def code_of(text: str) -> Iterator[str]:
    """Code blocks, with continued lines joined, and code within lines of a page in Markdown."""
    for number, part in enumerate(re.split(r"^ *```.*$", text, flags=re.MULTILINE)):
        if number % 2:
            yield re.sub(r"\\\n\s*", "", part)
        else:
            yield from re.findall(r"`([^`]+)`", part)


def unknown_in(text: str) -> list[str]:
    """Commands of ours in a page's code that do not exist, and options that their command does not take."""
    found = []
    for code in code_of(text):
        without_comments = re.sub(r"\s#.*", "", code)
        for line in re.findall(r"(?:^|[\s(\"'])fedfms ([a-z][^\n&;|>]*)", without_comments):
            words = line.split()
            name = " ".join(words[:2]) if " ".join(words[:2]) in COMMANDS else words[0]
            command = COMMANDS.get(name)
            names_a_part = len(words) > 1 and re.fullmatch("[a-z-]+", words[1])
            if command is None or (hasattr(command, "commands") and names_a_part):
                found.append(f"fedfms {line}")
                continue
            named = {word.split("=")[0] for word in words if word.startswith("--")}
            unknown = named - options_of(command) - {"--help"}
            found.extend(f"fedfms {name} {option}" for option in sorted(unknown))
    return found


def test_the_page_is_what_the_program_says_at_any_width_and_in_any_colour() -> None:
    command = [sys.executable, "-m", "fedfms.cli.reference"]
    environment = {**os.environ, "COLUMNS": "30", "FORCE_COLOR": "1", "TERMINAL_WIDTH": "30"}
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, env=environment)
    assert PAGE.read_text(encoding="utf-8") == result.stdout, f"write it again: {' '.join(command[1:])} > {PAGE.name}"


def test_the_page_has_a_section_and_a_row_for_every_command_and_its_options() -> None:
    text = PAGE.read_text(encoding="utf-8")
    shown = {name: item for name, item in COMMANDS.items() if not hasattr(item, "commands") and not item.hidden}
    assert len(shown) > 30
    for name, command in shown.items():
        assert f"](#fedfms-{name.replace(' ', '-')}) | " in text, name
        section = re.split(rf"^##+ fedfms {name}$", text, flags=re.MULTILINE)[1].split("\n##")[0]
        assert f"```\nfedfms {name}" in section
        assert set(re.findall(r"^\| `(--[a-z0-9-]+)", section, re.MULTILINE)) == options_of(command, shown=True)


def test_what_a_section_says_of_a_command() -> None:
    application, group = typer.Typer(), typer.Typer(help="A group.")
    application.add_typer(group, name="group")

    @group.command("run")
    def run(
        names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Whom.")],
        out: Annotated[str, typer.Option(help="A | B.")],
        kit: Annotated[str, typer.Argument(help="Where.")] = "",
        count: Annotated[int, typer.Option(min=0, max=9, help="How many.")] = 0,
        quick: Annotated[bool, typer.Option("--quick", help="Fast.")] = False,
        secret: Annotated[str, typer.Option(hidden=True)] = "x",
    ) -> None:
        """Do it. More of it.

        Another paragraph.
        """

    group.command("runs", hidden=True)(run)
    lines = reference(application).splitlines()
    assert "| [`fedfms group run`](#fedfms-group-run) | Do it |" in lines
    assert lines[lines.index("## fedfms group") + 2] == "A group."
    assert lines[lines.index("### fedfms group run") :] == [
        "### fedfms group run",
        "",
        "```",
        "fedfms group run NAME... [KIT] --out OUT [OPTIONS]",
        "```",
        "",
        "Do it. More of it.",
        "",
        "Another paragraph.",
        "",
        "| argument or option | meaning |",
        "| --- | --- |",
        "| `NAME...` | Whom. (required) |",
        "| `--out OUT` | A \\| B. (required) |",
        "| `KIT` | Where. |",
        "| `--count COUNT` | How many. (default: `0`; 0 to 9) |",
        "| `--quick` | Fast. |",
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(PROJECT)))
def test_pages_name_no_command_or_option_that_does_not_exist(page: Path) -> None:
    assert unknown_in(page.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("`fedfms data check SITE.YAML --show-ids`, `fedfms kit`, `fedfms review ...`", []),
        ("Run fedfms nothing in prose, `pip show fedfms`.", []),
        ("```\nfedfms poc jobs/fedmsa \\\n    --port 1  # fedfms comments --are free\n```", []),
        ("`fedfms data chekc FILE`", ["fedfms data chekc FILE"]),
        ("`fedfms kit renewal`", ["fedfms kit renewal"]),
        ("`fedfms reslts RUN`", ["fedfms reslts RUN"]),
        ("```\n$ A=b fedfms results x --ouch y && ls\n```", ["fedfms results --ouch"]),
        ("```\nfedfms poc jobs/fedmsa \\\n    --prot 1\n```", ["fedfms poc --prot"]),
    ],
)
def test_unknown_commands_and_options_are_found(text: str, wrong: list[str]) -> None:
    assert unknown_in(text) == wrong
