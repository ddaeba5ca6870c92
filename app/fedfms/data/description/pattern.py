"""Path patterns with placeholders, such as ``images/{case}.png``, which relate masks to images."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from fedfms.access import paths_that_fit

_TOKEN = re.compile(r"\{(\w+)\}|\*\*/|\*|\?|[^*?{]+|\{")
PLACEHOLDERS = ("case", "patient")


@dataclass(frozen=True)
class PathPattern:
    """A pattern of paths below a folder.

    ``{case}`` and ``{patient}`` match one or more characters other than ``/``, ``*`` any number of such characters,
    ``?`` one, ``**/`` any number of folders. A placeholder that is used twice matches the same text both times.
    """

    text: str

    @staticmethod
    def faults(text: str, needs: tuple[str, ...]) -> list[str]:
        """What is wrong with a pattern, in sentences.

        Args:
            text: The pattern.
            needs: Placeholders of which at least one must occur.
        """
        wrong = []
        names = re.findall(r"\{(\w*)\}", text)
        wrong += [f"unknown placeholder {{{name}}} in the pattern" for name in names if name not in PLACEHOLDERS]
        if not any(name in names for name in needs):
            wrong.append(f"the pattern needs {' or '.join('{' + name + '}' for name in needs)}")
        if text.startswith("/") or ".." in text.split("/"):
            wrong.append("a pattern is relative to root and stays below it")
        return wrong

    def find(self, root: Path) -> list[tuple[Path, dict[str, str]]]:
        """Paths below ``root`` that fit, sorted, each with the texts of its placeholders.

        Files and folders whose names begin with a dot (operating systems make such) never fit.

        Raises:
            FedfmsError: FMS-D019 for each folder that may not be listed: what is in it is not known then.
        """
        expression = self.expression
        names = ((path, path.relative_to(root).as_posix()) for path in paths_that_fit(root, self._glob))
        found = ((path, expression.fullmatch(name)) for path, name in names if not re.search(r"(^|/)\.", name))
        return [(path, match.groupdict()) for path, match in found if match is not None]

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
