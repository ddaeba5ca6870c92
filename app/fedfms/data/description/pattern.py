"""Paths with placeholders, such as ``images/{case}.png``: how images and masks find each other."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_TOKEN = re.compile(r"\{(\w+)\}|\*\*/|\*|\?|[^*?{]+|\{")
PLACEHOLDERS = ("case", "patient")


@dataclass(frozen=True)
class PathPattern:
    """A path below a folder. ``{case}`` and ``{patient}`` stand for a text without ``/``, ``*`` for any such
    text, ``?`` for one character, ``**/`` for any number of folders. A placeholder used twice stands for the
    same text both times.
    """

    text: str

    @staticmethod
    def faults(text: str, needs: tuple[str, ...]) -> list[str]:
        """Sentences about what is wrong with a pattern; ``needs``: at least one of these must occur."""
        wrong = []
        names = re.findall(r"\{(\w*)\}", text)
        wrong += [f"unknown placeholder {{{name}}} in the pattern" for name in names if name not in PLACEHOLDERS]
        if not any(name in names for name in needs):
            wrong.append(f"the pattern needs {' or '.join('{' + name + '}' for name in needs)}")
        if text.startswith("/") or ".." in text.split("/"):
            wrong.append("a pattern is relative to root and stays below it")
        return wrong

    def find(self, root: Path) -> Iterator[tuple[Path, dict[str, str]]]:
        """Paths below ``root`` that fit, sorted, each with the texts of its placeholders.

        Files and folders whose name begins with a dot (made by operating systems) do not fit.
        """
        expression = self.expression
        for path in sorted(root.glob(self._glob)):
            relative = path.relative_to(root).as_posix()
            found = expression.fullmatch(relative)
            if found and not any(part.startswith(".") for part in relative.split("/")):
                yield path, found.groupdict()

    @property
    def expression(self) -> re.Pattern[str]:
        """The pattern as a regular expression over the relative path with forward slashes."""
        parts, seen = [], set()
        for token in _TOKEN.finditer(self.text):
            name = token.group(1)
            if name is not None:
                parts.append(f"(?P={name})" if name in seen else f"(?P<{name}>[^/]+)")
                seen.add(name)
            else:
                wildcard = {"**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}
                parts.append(wildcard.get(token.group(), re.escape(token.group())))
        return re.compile("".join(parts))

    @property
    def _glob(self) -> str:
        return re.sub(r"\{\w+\}", "*", self.text.replace("[", "[[]"))
