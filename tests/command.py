"""``fedfms ARGUMENTS`` in the tests' own process."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import Any

import pytest

from fedfms import cli


@dataclass
class Result:
    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)

    def failed_with(self, *ids: str) -> str:
        """Exit code 1; ids, cause and remedy on stderr, nothing on stdout, no traceback. Returns stderr."""
        assert self.code == 1, self
        assert all(identifier in self.err for identifier in ids), self.err
        assert " -> " in self.err, "a remedy"
        assert "Traceback" not in self.err and not self.out
        return self.err


class Command:
    """``fedfms ARGUMENTS`` in this process: the command's own entry point."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._capsys = capsys
        self._monkeypatch = monkeypatch

    def __call__(self, *arguments: object) -> Result:
        self._monkeypatch.setattr(sys, "argv", ["fedfms", *map(str, arguments)])
        self._monkeypatch.setenv("COLUMNS", "200")
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            cli.main()
            raise SystemExit(0)
        code = caught.value.code
        captured = self._capsys.readouterr()
        return Result(0 if code is None else int(code), captured.out, captured.err)
