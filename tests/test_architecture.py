"""What holds between the modules: imports run one way, only ``flare`` knows FLARE, modules stay short."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]
PACKAGE = PROJECT / "app" / "fedfms"
MAX_LINES = 400

# A part of the package may import from the lines above its own, and from itself.
LAYERS = (
    {"errors", "moved"},
    {"access"},
    {"colours", "configuration", "files"},
    {"preprocessing", "tensor_files"},
    {"data", "sam"},
    {"datasets"},
    {"job"},
    {"exchange"},
    {"aggregation", "training"},
    {"site"},
    {"flare", "prediction", "results", "provision"},
    {"doctor"},
    {"cli"},
)
# The same inside of the largest part.
DATA_LAYERS = (
    {"description", "volume"},
    {"dicom"},
    {"readers"},
    {"slices"},
    {"quality"},
    {"authoring"},
)
LEVEL = {part: number for number, parts in enumerate(LAYERS) for part in parts}
DATA_LEVEL = {part: number for number, parts in enumerate(DATA_LAYERS) for part in parts}


def modules() -> dict[str, Path]:
    """Every module of the package, by dotted name."""
    result = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = ("fedfms", *path.relative_to(PACKAGE).with_suffix("").parts)
        result[".".join(parts).removesuffix(".__init__")] = path
    return result


MODULES = modules()


def imports(path: Path, *, while_loading: bool = False) -> Iterator[str]:
    """Dotted names that a module imports; with ``while_loading`` only those needed to import the module itself."""
    pending: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while pending:
        node = pending.pop()
        if while_loading and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if while_loading and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        pending.extend(ast.iter_child_nodes(node))


def own_module(name: str) -> str | None:
    """The module of ours that an imported name comes from; None if it is not ours."""
    while name not in MODULES:
        if "." not in name:
            return None
        name = name.rpartition(".")[0]
    return name


def part(module: str) -> str:
    """``sam`` of ``fedfms.sam.model``; ``errors`` of ``fedfms.errors``."""
    return module.split(".")[1]


def data_part(module: str) -> str:
    """``dicom`` of ``fedfms.data.dicom.seg``."""
    return module.split(".")[2]


DATA_MODULES = [name for name in MODULES if name.startswith("fedfms.data.")]


def test_every_module_has_its_place() -> None:
    parts = {part(name) for name in MODULES if name != "fedfms"}
    assert parts - LEVEL.keys() == set(), "give the new part its line in LAYERS"
    assert len(MODULES) > 50, "the package was not found"
    assert {data_part(name) for name in DATA_MODULES} == DATA_LEVEL.keys(), "give the new part its line in DATA_LAYERS"


@pytest.mark.parametrize("module", [name for name in MODULES if name != "fedfms"])
def test_imports_run_one_way(module: str) -> None:
    own = part(module)
    wrong = []
    for name in imports(MODULES[module]):
        imported = own_module(name)
        # The package's own file holds the version.
        if imported is None or imported == "fedfms" or part(imported) == own:
            continue
        if LEVEL[part(imported)] >= LEVEL[own]:
            wrong.append(imported)
    assert not wrong


@pytest.mark.parametrize("module", DATA_MODULES)
def test_imports_within_data_run_one_way(module: str) -> None:
    own = data_part(module)
    found = {own_module(name) for name in imports(MODULES[module])} & set(DATA_MODULES)
    others = {name for name in found if data_part(name) != own}
    assert {name for name in others if DATA_LEVEL[data_part(name)] >= DATA_LEVEL[own]} == set()


def test_the_package_file_imports_only_the_finder_of_old_names() -> None:
    assert [name for name in imports(PACKAGE / "__init__.py") if name.startswith("fedfms")] == ["fedfms.moved.install"]


def test_no_cycles() -> None:
    graph = {
        module: {
            found for name in imports(path, while_loading=True) if (found := own_module(name)) not in (None, module)
        }
        for module, path in MODULES.items()
    }
    assert sum(len(found) for found in graph.values()) > 100, "the imports were not found"
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"modules import each other: {' -> '.join(error.args[1])}")


def test_only_flare_imports_flare() -> None:
    users = {
        module for module, path in MODULES.items() if any(name.split(".")[0] == "nvflare" for name in imports(path))
    }
    assert users, "the imports were not found"
    assert {part(module) for module in users} == {"flare"}


def test_commands_do_not_reach_into_flare() -> None:
    """What reads a finished run needs FLARE's files, not FLARE; the doctor alone tries the gates, by one module."""
    for module in MODULES:
        if module != "fedfms" and part(module) != "flare":
            found = {name for name in imports(MODULES[module]) if name.startswith("fedfms.flare")}
            allowed = {"fedfms.flare.rehearsal.rehearse"} if part(module) == "doctor" else set()
            assert found <= allowed, module


def test_modules_stay_short() -> None:
    lengths = {module: len(path.read_text(encoding="utf-8").splitlines()) for module, path in MODULES.items()}
    assert {module: lines for module, lines in lengths.items() if lines >= MAX_LINES} == {}


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("fedfms.cli", {"torch", "numpy", "monai", "matplotlib", "nvflare"}),
        ("fedfms.job.folder", {"torch", "monai", "nvflare"}),
        ("fedfms.results.run_tables", {"torch", "nvflare"}),
        ("fedfms.site.approvals", {"torch", "monai", "nvflare"}),
    ],
)
def test_import_stays_light(module: str, heavy: set[str]) -> None:
    code = f"import sys, {module}; print(*sorted({{name.split('.')[0] for name in sys.modules}} & {heavy!r}))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.split() == []


# --- the page that shows it -----------------------------------------------------------------------------


def architecture() -> str:
    return (PROJECT / "docs" / "architecture.md").read_text(encoding="utf-8")


def drawn_layers(text: str) -> list[tuple[set[str], ...]]:
    """The page's diagrams of layers, the lowest layer first: code blocks of nothing but names."""
    blocks = [block.split("\n") for block in re.findall(r"^```\n(.*?)\n```$", text, re.MULTILINE | re.DOTALL)]
    diagrams = [lines for lines in blocks if all(re.fullmatch("[a-z_ ]+", line) for line in lines)]
    return [tuple(set(line.split()) for line in reversed(lines)) for lines in diagrams]


def described_parts(text: str, heading: str) -> list[str]:
    """First column of the table whose first heading this is."""
    rows = text.split(f"| {heading} | contains |\n| --- | --- |\n")[1].split("\n\n")[0]
    return re.findall(r"^\| `([a-z_]+)` \| \S", rows, re.MULTILINE)


def test_the_page_draws_the_layers_that_hold() -> None:
    assert drawn_layers(architecture()) == [LAYERS, DATA_LAYERS]
    swapped = architecture().replace("exchange\njob", "job\nexchange", 1)
    assert drawn_layers(swapped) != [LAYERS, DATA_LAYERS]


def test_the_page_describes_every_part_once_and_in_order() -> None:
    parts = described_parts(architecture(), "part of `app/fedfms`")
    assert sorted(parts) == sorted(LEVEL)
    assert parts == sorted(parts, key=LEVEL.__getitem__, reverse=True)
    data_parts = described_parts(architecture(), "part of `app/fedfms/data`")
    assert sorted(data_parts) == sorted(DATA_LEVEL)
    assert data_parts == sorted(data_parts, key=DATA_LEVEL.__getitem__, reverse=True)


def unknown_modules(text: str) -> list[str]:
    """Files of ours, such as ``site/review.py``, and modules, such as ``fedfms.flare.gates``, that do not exist."""
    files = re.findall(r"(?<![\w./])(?:[a-z_]+/)+[a-z_]+\.py\b", text)
    found = [name for name in files if not any((root / name).is_file() for root in (PROJECT, PACKAGE))]
    dotted = re.findall(r"(?<![\w./])fedfms(?:\.[a-z_]+)+(?!\w)", text)
    return found + [name for name in dotted if name not in MODULES]


@pytest.mark.parametrize(
    "page",
    sorted(path for pattern in ("README.md", "docs/**/*.md", "*/README.md") for path in PROJECT.glob(pattern)),
    ids=lambda path: str(path.relative_to(PROJECT)),
)
def test_pages_name_no_module_that_does_not_exist(page: Path) -> None:
    assert unknown_modules(page.read_text(encoding="utf-8")) == []


def test_modules_that_do_not_exist_are_found() -> None:
    good = "`site/review.py`, `tests/test_cli.py`, `python -m fedfms.training.worker`, `fedfms.flare.gates.ExitGate`"
    assert unknown_modules(good) == []
    assert unknown_modules("`site/place.py`, `fedfms.report.run`") == ["site/place.py", "fedfms.report.run"]
