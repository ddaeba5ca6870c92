"""The recipes by name, and what ``fedfms data prepare`` does."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from fedfms.datasets.recipes.archive import Archive
from fedfms.datasets.recipes.brain import BRAIN
from fedfms.datasets.recipes.fundus import FUNDUS
from fedfms.datasets.recipes.nuclei import NUCLEI
from fedfms.datasets.recipes.output import check_target, write_folder
from fedfms.datasets.recipes.plan import Case, Recipe
from fedfms.datasets.recipes.prostate import PROSTATE
from fedfms.errors import ARCHIVE_LAYOUT, FedfmsError, Problem, fail

RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in (PROSTATE, BRAIN, NUCLEI, FUNDUS)}


@dataclass(frozen=True)
class PreparedReport:
    """What was written: number of images per institution, and warnings about them."""

    images: dict[str, int]
    warnings: tuple[str, ...]


def prepare(
    recipe: Recipe,
    source: Path,
    out: Path,
    *,
    only: Collection[str] = (),
    overwrite: bool = False,
    on_case: Callable[[int, int], None] = lambda done, total: None,
) -> PreparedReport:
    """Turn the archives below ``source`` into one folder and one ``<institution>.yaml`` per institution in ``out``.

    Args:
        recipe: Which benchmark set.
        source: Folder of the unpacked archives; nothing in it is changed.
        out: Folder to write; it appears as a whole at the end.
        only: Names of the recipe's parts that ``source`` has; empty: all.
        overwrite: Replace ``out`` if an earlier call wrote it.
        on_case: Called after each image with the number of images written and of all images.

    Raises:
        FedfmsError: FMS-D017 (another tree than expected), FMS-D011 (``out`` cannot be written or may not be
            replaced), FMS-D002 to FMS-D006 (bad files of the archive). ``out`` is then as before.
    """
    if not source.is_dir():
        raise fail(ARCHIVE_LAYOUT, source, "no such folder")
    check_target(source, out, overwrite=overwrite)
    parts = [part for part in recipe.parts if not only or part.name in only]
    archive = Archive(source)
    cases: list[Case] = []
    warnings: list[str] = []
    problems: list[Problem] = []
    for part in parts:
        try:
            found = part.plan(archive)
        except FedfmsError as error:
            problems += error.problems
            continue
        if len(found) != part.documented:
            warnings.append(f"{part.name}: {len(found)} images; its authors state {part.documented}. Is it complete?")
        cases += found
    try:
        archive.check()
    except FedfmsError as error:
        problems += error.problems
    if problems:
        raise FedfmsError(problems)
    warnings += write_folder(recipe, parts, cases, source, out, on_case)
    images: dict[str, int] = {}
    for case in cases:
        images[case.institution.name] = images.get(case.institution.name, 0) + 1
    return PreparedReport(images, tuple(warnings))
