"""Writes the cases of a recipe: one folder and one ``site.yaml`` per institution, and a README; all or nothing."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from fedfms.data.authoring.site_yaml import MaskText, SiteText, Split
from fedfms.datasets.recipes.plan import IMAGES, Case, Institution, Part, Recipe
from fedfms.errors import FILE_UNWRITABLE, FedfmsError, Problem, fail
from fedfms.files import atomic_folder

README = "README.md"
_WRITTEN_BY = "Written by 'fedfms data prepare'; its option --overwrite replaces the whole folder."
#: First line of the README; a folder without it is never replaced.
MARK = f"<!-- {_WRITTEN_BY} -->"


def check_target(source: Path, out: Path, *, overwrite: bool) -> None:
    """Check, before any work, that the output folder may be written.

    Args:
        source: Folder of the archives.
        out: Folder to write.
        overwrite: Whether a folder that an earlier call wrote may be replaced.

    Raises:
        FedfmsError: FMS-D011 when one folder is inside the other, or ``out`` has files that may not be replaced.
    """
    inner, outer = out.resolve(), source.resolve()
    if inner == outer or outer in inner.parents or inner in outer.parents:
        raise fail(FILE_UNWRITABLE, out, f"it overlaps with the source {source}", "Name a folder beside it.")
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    mark = out / README
    if not mark.is_file() or not mark.read_text(encoding="utf-8", errors="replace").startswith(MARK):
        raise fail(FILE_UNWRITABLE, out, "exists and was not written by this command", "Name another folder.")
    if not overwrite:
        raise fail(FILE_UNWRITABLE, out, "exists", "Name another folder, or add --overwrite to replace it.")


def write_folder(
    recipe: Recipe,
    parts: Sequence[Part],
    cases: Sequence[Case],
    source: Path,
    out: Path,
    on_case: Callable[[int, int], None],
) -> list[str]:
    """Write everything into a temporary folder beside ``out`` and rename it.

    Args:
        recipe: The benchmark set.
        parts: The parts of it that were prepared.
        cases: Their cases.
        source: Folder of the archives, for the README.
        out: Folder to write.
        on_case: Called after each case with the number of cases done and the number of all cases.

    Returns:
        Warnings.

    Raises:
        FedfmsError: everything that is wrong with the files of the cases (FMS-D003, FMS-D004, FMS-D006), or FMS-D011;
            ``out`` is then as before.
    """
    warnings: list[str] = []
    problems: list[Problem] = []
    absent: Counter[tuple[str, str]] = Counter()
    by_institution: dict[Institution, list[Case]] = {}
    for case in cases:
        by_institution.setdefault(case.institution, []).append(case)
    with atomic_folder(out) as folder:
        suffixes: dict[tuple[str, str], str] = {}
        for done, case in enumerate(cases, start=1):
            try:
                written = _write_case(folder / case.institution.name, case)
            except FedfmsError as error:
                problems += error.problems
            else:
                suffixes.update({(case.institution.name, kind): suffix for kind, suffix in written.items()})
                absent.update(
                    (case.institution.name, mask.folder) for mask in recipe.masks if mask.folder not in written
                )
            on_case(done, len(cases))
        if problems:
            raise FedfmsError(problems)
        for institution, own in by_institution.items():
            name = institution.name
            masks = tuple(
                MaskText(mask.folder, suffixes[name, mask.folder], mask.labels, mask.ignored, absent[name, mask.folder])
                for mask in recipe.masks
                if (name, mask.folder) in suffixes
            )
            site = _site(recipe, institution, suffixes[name, IMAGES], masks)
            (folder / f"{name}.yaml").write_text(site.render(), encoding="utf-8")
            warnings += _warnings(institution, own, masks)
        warnings += _shared_patients(by_institution)
        (folder / README).write_text(_readme(recipe, parts, by_institution, source), encoding="utf-8")
    return warnings


def _write_case(folder: Path, case: Case) -> dict[str, str]:
    """Write the files of a case; returns folder -> suffix of its file."""
    written = {}
    for kind, path in case.linked.items():
        written[kind] = ".nii.gz" if path.name.endswith(".nii.gz") else path.suffix
        _target(folder, kind, case.name, written[kind]).symlink_to(path.resolve())
    for kind, pixels in (case.made() if case.made else {}).items():
        written[kind] = ".png"
        Image.fromarray(pixels).save(_target(folder, kind, case.name, ".png"))
    return written


def _target(folder: Path, kind: str, name: str, suffix: str) -> Path:
    (folder / kind).mkdir(parents=True, exist_ok=True)
    return folder / kind / f"{name}{suffix}"


def _site(recipe: Recipe, institution: Institution, suffix: str, masks: tuple[MaskText, ...]) -> SiteText:
    return SiteText(
        header=f"# {_WRITTEN_BY}",
        name=institution.name,
        task=recipe.name,
        format=recipe.format,
        root=Path(institution.name),
        prefix="",
        images=suffix,
        manifest=None,
        masks=masks,
        patient=institution.patient,
        split=Split("by_patient", "Drawn by patient; the archive's own division is not used."),
    )


def _warnings(institution: Institution, cases: Sequence[Case], masks: Sequence[MaskText]) -> list[str]:
    found = [
        f"{institution.name}: {mask.absent} of {len(cases)} images have no {', '.join(mask.labels)}: not annotated"
        for mask in masks
        if mask.absent
    ]
    if len(cases) == 1:
        found.append(f"{institution.name}: one image cannot both train and validate")
    return found


def _shared_patients(by_institution: dict[Institution, list[Case]]) -> list[str]:
    """A warning for patients, known by name, whose images are at two institutions."""
    where: dict[str, set[str]] = {}
    for institution, cases in by_institution.items():
        if institution.patient.rule == "name":
            for case in cases:
                if match := re.search(institution.patient.value or "", case.name):
                    where.setdefault(match.group(1), set()).add(institution.name)
    shared = [names for names in where.values() if len(names) > 1]
    if not shared:
        return []
    names = " and ".join(sorted(set().union(*shared)))
    return [f"{len(shared)} patient(s) are both in {names}: they may train here and validate there"]


def _readme(recipe: Recipe, parts: Sequence[Part], by_institution: dict[Institution, list[Case]], source: Path) -> str:
    lines = [MARK, f"# {recipe.name}, prepared for fedfms", ""]
    lines += [
        "One folder and one YAML file per institution; `FEDFMS_SITES` may name this folder. Files that can be read as",
        f"they are are links into `{source.resolve()}`: keep it where it is. The others were converted to PNG.",
        "",
        "| institution | images |",
        "| --- | --- |",
        *(f"| {institution.name} | {len(cases)} |" for institution, cases in by_institution.items()),
        "",
        "## Labels",
        "",
        *(f"- {note}" for note in recipe.notes),
        "",
        "## Sources and licences",
        "",
        "The licence of each source holds for these files as well; read it before you pass anything on.",
        "",
        *(f"- {part.name}: {part.source}. Licence: {part.licence}." for part in parts),
    ]
    return "\n".join(lines) + "\n"
