"""The tree of an unpacked archive: what is expected, what was found, and one error that shows both."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from fedfms.data.description.pattern import PathPattern
from fedfms.errors import ARCHIVE_LAYOUT, fail, first_of

_SHOWN = 5


@dataclass(frozen=True)
class Files:
    """Files that an archive must contain.

    Attributes:
        pattern: Path below the source folder as in ``site.yaml``; ``**/`` matches any number of folders, because tools
            unpack archives into more or fewer of them. ``{case}`` relates files to each other.
        meaning: What the files are, for the error.
    """

    pattern: str
    meaning: str


class Archive:
    """Finds files below a folder, and records what was found for ``check``.

    Args:
        root: The folder of unpacked archives.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._lines: list[str] = []
        self._wrong = False

    def find(self, files: Files, but: Collection[Path] = ()) -> dict[str, Path]:
        """Find files.

        Args:
            files: Which files.
            but: Files that are not meant although they fit.

        Returns:
            Text of ``{case}`` (empty for a pattern without it) -> file, sorted.
        """
        found: dict[str, Path] = {}
        twice: dict[str, list[Path]] = {}
        for path, texts in PathPattern(files.pattern).find(self.root):
            if not path.is_file() or path in but:
                continue
            first = found.setdefault(texts.get("case", ""), path)
            if first != path:
                twice.setdefault(texts.get("case", ""), [first]).append(path)
        self._lines.append(f"{files.pattern} ({files.meaning}): {len(found) or 'nothing'} found")
        self._wrong |= not found
        for paths in list(twice.values())[:_SHOWN]:
            self.fault(f"of one name: {', '.join(str(path.relative_to(self.root)) for path in paths)}")
        return dict(sorted(found.items()))

    def find_all(self, several: Collection[Files]) -> dict[str, Path]:
        """``find`` for files that are spread over several folders, each text of ``{case}`` in one of them."""
        return {case: path for files in several for case, path in self.find(files).items()}

    def fault(self, text: str) -> None:
        """Record something else that is wrong, below the line of the last ``find``."""
        self._wrong = True
        self._lines.append(f"  {text}")

    def match(
        self, meaning: str, first: Mapping[str, Path], second: Mapping[str, Path]
    ) -> list[tuple[str, Path, Path]]:
        """Pair the files of two mappings by case.

        Args:
            meaning: What the files are, for the error.
            first: Case -> file.
            second: Case -> file.

        Returns:
            Case, file and file for the cases that are in both; all other cases are recorded as a fault.
        """
        if first and second and (alone := sorted(first.keys() ^ second.keys())):
            self.fault(f"{len(alone)} without partner among {meaning}: {first_of(alone, _SHOWN)}")
        return [(case, path, second[case]) for case, path in first.items() if case in second]

    def check(self) -> None:
        """Raise an error if anything was wrong.

        Raises:
            FedfmsError: FMS-D017 with every pattern, what was found for it, and what the folder contains instead.
        """
        if not self._wrong:
            return
        there = sorted(path.name + "/" * path.is_dir() for path in self.root.iterdir())
        shown = first_of(there, 12)
        lines = "\n".join(f"  {line}" for line in self._lines)
        detail = f"the folder has {shown or 'no files'}; expected below it, and found:\n{lines}\n "
        raise fail(ARCHIVE_LAYOUT, self.root, detail)
