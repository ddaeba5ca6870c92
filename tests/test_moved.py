"""Old import paths and names go on working, and say the new ones. What is expected is the changelog's two tables."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fedfms.moved import MODULES, NAMES

CHANGELOG = Path(__file__).parents[1] / "CHANGELOG.md"

# In a process of its own: there no module has been imported under any name. Says of each pair of names what is told on
# import and use, and how many functions and classes of the new module are the same objects under the old name.
MODULES_PROGRAM = """
import importlib, json, sys, warnings
result = {}
for old, new in json.load(sys.stdin):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        former = importlib.import_module(old)
        found = importlib.import_module(new)
        own = [name for name, value in vars(found).items() if getattr(value, "__module__", None) == new]
        same = [name for name in own if getattr(former, name) is getattr(found, name)]
    result[old] = [sorted({str(w.message) for w in told if w.category is DeprecationWarning}), len(own), len(same)]
json.dump(result, sys.stdout)
"""
NAMES_PROGRAM = """
import importlib, json, sys, warnings
result = {}
for old, new in json.load(sys.stdin):
    module, _, name = old.rpartition(".")
    former = importlib.import_module(module)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        value = getattr(former, name)
    owner, _, name = new.rpartition(".")
    same = value is getattr(importlib.import_module(owner), name)
    result[old] = [[str(w.message) for w in told if w.category is DeprecationWarning], same]
json.dump(result, sys.stdout)
"""


def renamed(after: str) -> list[tuple[str, str]]:
    """(old, new) dotted names in the table that follows a line; ``.name`` shares the beginning of the first one."""
    text = CHANGELOG.read_text(encoding="utf-8").split(after)[1].split("| --- | --- |\n")[1].split("\n\n")[0]
    pairs = []
    for row in text.splitlines():
        columns = []
        for cell in row.strip("| ").split(" | "):
            names: list[str] = []
            for name in re.findall(r"`([\w.]+)`", cell):
                names.append(names[0].rpartition(".")[0] + name if name.startswith(".") else name)
            columns.append(names)
        pairs += zip(*columns, strict=True)
    return pairs


MOVED = renamed("### Moved modules")
RENAMED = renamed("Names that have changed")


def run(program: str, given: object = None) -> str:
    return subprocess.run(
        [sys.executable, "-c", program],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    ).stdout


def test_the_tables_are_those_of_the_changelog() -> None:
    assert len(MOVED) > 50
    assert len(RENAMED) > 20
    assert dict(RENAMED) == NAMES
    listed = dict(MOVED)
    # The modules of a package that moved as a whole need no line of their own in the code.
    whole = {old: new for old, new in listed.items() if old not in MODULES}
    assert {old.replace("fedfms.report.", "fedfms.results.") for old in whole} == set(whole.values())
    assert {old: new for old, new in listed.items() if old in MODULES} | {"fedfms.report": "fedfms.results"} == MODULES


def test_old_modules_hold_the_new_ones_names_and_say_where_they_are() -> None:
    found = json.loads(run(MODULES_PROGRAM, MOVED))
    for old, new in MOVED:
        messages, own, same = found[old]
        assert own == same, old
        # A package of today that was a module tells it of each name that is asked of it.
        expected = rf"{re.escape(old)}(\.\w+)? is now {re.escape(new)}(\.\w+)?"
        assert any(re.fullmatch(expected, message) for message in messages), (old, messages)
    assert sum(own for _, own, _ in found.values()) > 300


def test_names_that_changed_are_found_under_the_old_ones() -> None:
    found = json.loads(run(NAMES_PROGRAM, RENAMED))
    assert found == {old: [[f"{old} is now {new}"], True] for old, new in RENAMED}


def test_modules_of_old_packages_are_found() -> None:
    program = """
import warnings
warnings.simplefilter("ignore")
import fedfms.data.first_site.patterns as old
import fedfms.data.authoring.first_site.patterns as new
from fedfms.data.recipes import prostate
import fedfms.datasets.recipes.prostate
print(all(getattr(old, name) is value for name, value in vars(new).items() if not name.startswith("__")))
print(prostate.PROSTATE is fedfms.datasets.recipes.prostate.PROSTATE)
"""
    assert run(program).split() == ["True", "True"]


def test_new_names_bring_no_warning_and_import_nothing_else() -> None:
    program = """
import sys, warnings
warnings.simplefilter("error")
from fedfms.data.dicom import series, stack
import fedfms.exchange, fedfms.job
assert not hasattr(fedfms.exchange, "__wrapped__")
print("fedfms.data.dicom.image" in sys.modules, "fedfms.exchange.messages" in sys.modules)
"""
    assert run(program).split() == ["False", "False"]


def test_the_warning_points_to_the_line_that_uses_the_old_name(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import fedfms\n\nfrom fedfms.data import nifti\nfrom fedfms.exchange import Terms\n")
    told = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, check=True).stderr
    assert re.findall(r"script.py:(\d+): DeprecationWarning: (\S+)", told) == [
        ("3", "fedfms.data.nifti"),
        ("4", "fedfms.exchange.Terms"),
    ]


@pytest.mark.parametrize(
    "line",
    [
        "import fedfms.data.nothing",
        "import fedfms.report.nothing",
        "from fedfms.data.dicom import nothing",
        "from fedfms.site.review import nothing",
        "from fedfms.data.nifti import nothing",
    ],
)
def test_what_never_was_is_not_found(line: str) -> None:
    quiet = "import warnings\nwarnings.simplefilter('ignore')\n"
    program = f"{quiet}try:\n    {line}\nexcept ImportError:\n    print('none')"
    assert run(program).strip() == "none"
