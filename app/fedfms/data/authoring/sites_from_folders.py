"""``fedfms data sites``: one ``site.yaml`` per hospital folder, for research on one machine.

Expected below ROOT: one folder per hospital, each with ``images/`` and folders of masks whose files have the names of
the images; and optionally a ``manifest.csv`` in each hospital's folder, or one in ROOT for all hospitals.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from fedfms.access import children, is_dir, is_file
from fedfms.configuration import StructureName, TaskName
from fedfms.data.authoring.first_site.files import has_soft_edges
from fedfms.data.authoring.site_yaml import Manifest, MaskText, Patient, SiteText, Split
from fedfms.data.description.site import SplitWords
from fedfms.data.readers import nifti, raster
from fedfms.data.readers.masks import present_values, read_label_map
from fedfms.data.slices.discovery import case_text, read_manifest
from fedfms.errors import FILE_UNWRITABLE, LABEL_UNKNOWN, SITES_FOLDER, FedfmsError, Problem, first_of
from fedfms.files import atomic_path

DEFAULT_TASK = "segmentation"
MANIFEST = "manifest.csv"
#: First line of written files; without it a file is never replaced. Its text stays as it is: it marks earlier files.
HEADER = "# Written by 'fedfms data sites'; the command replaces this file as long as this line stands here.\n"
# FLARE's rule for client names (nvflare.apis.utils.format_check), and ours for a site's name in a message: the file's
# name must be the client's.
_CLIENT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_WORDS = SplitWords()


@dataclass(frozen=True)
class MaskFolder:
    """Folder with the masks of a structure, and what of them is inside.

    Attributes:
        folder: The folder.
        values: The values; None: the only value other than 0 in the files.
        above: In place of values: those above it, for masks with soft edges.
    """

    folder: str
    values: tuple[int, ...] | Literal["nonzero"] | None = None
    above: int | None = None


@dataclass(frozen=True)
class SitesReport:
    """What was written: the files, one per hospital, and warnings about them."""

    files: tuple[Path, ...]
    warnings: tuple[str, ...]


def parse_structures(texts: Iterable[str]) -> dict[str, MaskFolder]:
    """Read ``NAME=FOLDER``, ``NAME=FOLDER:1,2``, ``NAME=FOLDER:nonzero`` or ``NAME=FOLDER:>127``.

    Raises:
        ValueError: with a sentence on what is wrong and what to write instead.
    """
    result: dict[str, MaskFolder] = {}
    for text in texts:
        match = re.fullmatch(r"([^=]+)=([^:]+?)/?(?::(nonzero|>\d+|-?\d+(?:,-?\d+)*))?", text)
        if match is None or match.group(2).startswith("/") or ".." in match.group(2).split("/"):
            raise ValueError(f"'{text}': write NAME=FOLDER, such as tumour=masks, or NAME=FOLDER:1,2")
        name, folder, values = match.groups()
        try:
            TypeAdapter(StructureName).validate_python(name)
        except ValidationError:
            raise ValueError(f"'{name}': a structure's name has only a-z, 0-9 and _ and begins with a letter") from None
        if name in result:
            raise ValueError(f"structure {name} is named twice")
        if values is None or values == "nonzero":
            result[name] = MaskFolder(folder, "nonzero" if values else None)
        elif values.startswith(">"):
            result[name] = MaskFolder(folder, above=int(values[1:]))
        else:
            result[name] = MaskFolder(folder, tuple(int(value) for value in values.split(",")))
    folders = Counter(item.folder for item in result.values())
    if shared := [item.folder for item in result.values() if item.above is not None and folders[item.folder] > 1]:
        raise ValueError(f"'{shared[0]}': masks with soft edges (:>) hold one structure")
    if not result:
        raise ValueError("name at least one structure, such as --structure tumour=masks")
    return result


def write_sites(
    root: Path,
    structures: Mapping[str, MaskFolder],
    *,
    out: Path,
    patient_column: str | None = None,
    patient_expression: str | None = None,
    task: str = DEFAULT_TASK,
) -> SitesReport:
    """Write ``<hospital>.yaml`` for each hospital folder below ``root``.

    Args:
        root: Folder of the hospital folders.
        structures: Structure -> folder of its masks. A hospital without the folder lacks the structure.
        out: Folder for the files, to be used as ``FEDFMS_SITES``. Files written by an earlier call are replaced.
        patient_column: Column of ``manifest.csv`` with the patient.
        patient_expression: Instead of a column: regular expression on the images' names without suffix, whose one
            group is the patient. Neither of the two: each image counts as a patient.
        task: Name by which jobs ask for this data.

    Raises:
        FedfmsError: everything in one error: FMS-D013 (layout, manifest, patient column), FMS-D003 and FMS-D004 (bad
            masks), FMS-D006 (masks with several values and none named), FMS-D011 (a file of that name was
            written by somebody else, or the folder cannot be written).
    """
    TypeAdapter(TaskName).validate_python(task)
    if not is_dir(root):
        raise FedfmsError([Problem(SITES_FOLDER, str(root), "no such folder")])
    root = root.resolve()
    problems: list[Problem] = []
    warnings: list[str] = []
    folders = [path for path in children(root) if not path.name.startswith(".") and is_dir(path)]
    hospitals = [path for path in folders if is_dir(path / "images")]
    if len(hospitals) < len(folders):
        names = ", ".join(path.name for path in folders if path not in hospitals)
        warnings.append(f"not a hospital, because there is no images/ in it: {names}")
    if not hospitals:
        raise FedfmsError([Problem(SITES_FOLDER, str(root), "no folder in it has an images/ folder")])
    for name, item in structures.items():
        if not any(is_dir(hospital / item.folder) for hospital in hospitals):
            problems.append(Problem(SITES_FOLDER, str(root), f"no hospital has {item.folder}/ for structure {name}"))
    common = _read_manifest(root, patient_column, problems)
    texts: dict[Path, str] = {}
    for hospital in hospitals:
        manifest = _read_manifest(hospital, patient_column, problems) or common
        if manifest is None and patient_column is not None and not problems:
            detail = "a patient column was named, but there is no manifest.csv here or in the folder above"
            problems.append(Problem(SITES_FOLDER, str(hospital), detail, "Write one, or name no patient column."))
        try:
            site = _Hospital(hospital, structures, manifest, patient_column, patient_expression, task, warnings)
            texts[out / f"{hospital.name}.yaml"] = site.text().render()
        except FedfmsError as error:
            problems += error.problems
    for path in texts:
        if path.exists() and not path.read_bytes().startswith(HEADER.encode()):
            problems.append(Problem(FILE_UNWRITABLE, str(path), "exists and was not written by this command"))
    if problems:
        raise FedfmsError(problems)
    for path, text in texts.items():
        with atomic_path(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return SitesReport(tuple(texts), tuple(warnings))


@dataclass(frozen=True)
class _ManifestFile:
    folder: Path
    columns: list[str]
    rows: list[dict[str, str]]


def _read_manifest(folder: Path, patient_column: str | None, problems: list[Problem]) -> _ManifestFile | None:
    path = folder / MANIFEST
    if not is_file(path):
        return None
    try:
        columns, rows = read_manifest(path)
    except FedfmsError as error:
        problems += error.problems
        return None
    if patient_column is not None and patient_column not in columns:
        detail = f"no column {patient_column}; there are {', '.join(columns)}"
        problems.append(Problem(SITES_FOLDER, str(path), detail, "Name one of these columns."))
    return _ManifestFile(folder, columns, [row for _, row in rows])


class _Hospital:
    """One hospital folder, while its file is being written."""

    def __init__(
        self,
        folder: Path,
        structures: Mapping[str, MaskFolder],
        manifest: _ManifestFile | None,
        patient_column: str | None,
        patient_expression: str | None,
        task: str,
        warnings: list[str],
    ) -> None:
        self.folder = folder
        self.structures = structures
        self.patient_column = patient_column
        self.patient_expression = patient_expression
        self.task = task
        self._warnings = warnings
        if not _CLIENT_NAME.fullmatch(folder.name):
            raise FedfmsError(
                [
                    Problem(
                        SITES_FOLDER,
                        str(folder),
                        "it becomes a FLARE client's name: only letters, digits, - and _, no - or _ at its beginning",
                        "Rename the folder.",
                    )
                ]
            )
        # Paths in a manifest are relative to its own folder; that folder becomes root.
        self.base = manifest.folder if manifest is not None else folder
        self.prefix = "" if self.base == folder else f"{folder.name}/"
        self.images = _visible(folder / "images")
        self.format = _format(folder / "images", self.images)
        self.rows = self._rows(manifest)

    def warn(self, sentence: str) -> None:
        self._warnings.append(f"{self.folder.name}: {sentence}")

    def text(self) -> SiteText:
        """The content of the hospital's file."""
        split = self._split()
        return SiteText(
            header=HEADER,
            name=self.folder.name,
            task=self.task,
            format=self.format,
            root=self.base,
            prefix=self.prefix,
            images=_common_suffix(self.images, self.format),
            manifest=Manifest(MANIFEST, self.image_column) if self.rows else None,
            masks=self._masks(),
            patient=self._patient(),
            split=split,
        )

    def _patient(self) -> Patient:
        if self.rows and self.patient_column is not None:
            return Patient("column", self.patient_column)
        if self.patient_expression is not None:
            names = self._case_names()
            if unfit := [name for name in names if not re.search(self.patient_expression, name)]:
                detail = f"the patient expression does not fit {len(unfit)} of {len(names)} images, such as {unfit[0]}"
                raise FedfmsError([Problem(SITES_FOLDER, str(self.folder), detail, "Correct the expression.")])
            return Patient("name", self.patient_expression)
        self.warn("each image counts as a patient; name --patient-column or --patient-expression if that is not so")
        return Patient(
            "each_image",
            comment=(
                "A guess: nothing was named that tells the patient. If patients have several images, this lets one",
                "patient into training and validation at once.",
            ),
        )

    def _rows(self, manifest: _ManifestFile | None) -> list[dict[str, str]]:
        self.image_column = ""
        if manifest is None:
            return []
        inside = f"{self.prefix}images"
        wanted = {f"{inside}/{path.name}" for path in self.images}
        counts = {
            column: sum(Path(row[column]).as_posix() in wanted for row in manifest.rows) for column in manifest.columns
        }
        self.image_column, count = max(counts.items(), key=lambda item: item[1], default=("", 0))
        if count == 0:
            detail = f"no column of {MANIFEST} holds paths such as {inside}/{self.images[0].name}"
            if self.patient_column is not None:
                raise FedfmsError([Problem(SITES_FOLDER, str(self.folder), detail)])
            self.warn(f"{detail}; the manifest is not used")
            return []
        rows = [row for row in manifest.rows if Path(row[self.image_column]).is_relative_to(inside)]
        unlisted = len(wanted - {Path(row[self.image_column]).as_posix() for row in rows})
        if unlisted:
            self.warn(f"{unlisted} of {len(wanted)} images have no row in {MANIFEST} and are not used")
        return rows

    def _split(self) -> Split:
        if not self.rows or "split" not in self.rows[0]:
            return Split("by_patient", "No split column: drawn by patient.")
        words = {row["split"] for row in self.rows}
        unknown = words - {*_WORDS.train, *_WORDS.validation, *_WORDS.test}
        if unknown:
            self.warn(f"the split column holds unknown words ({', '.join(sorted(unknown))}); split drawn by patient")
            return Split("by_patient", "The manifest's split column holds unknown words: drawn by patient.")
        has_train, has_test = bool(words & set(_WORDS.train)), bool(words & set(_WORDS.test))
        if words & set(_WORDS.validation):
            if not has_train:
                self.warn("the split column leaves nothing for training")
            return Split("column", "As the manifest's split column says.")
        if has_train and has_test:
            self.warn("the split column has no validation rows; validation patients are drawn from the training rows")
            return Split("column_and_draw", "The column has no validation rows: drawn from the training patients.")
        self.warn(f"the split column says '{' '.join(sorted(words))}' in every row; split drawn by patient")
        return Split("by_patient", "The manifest's split column leaves no validation split: drawn by patient.")

    def _masks(self) -> tuple[MaskText, ...]:
        by_folder: dict[str, list[str]] = {}
        for name, item in self.structures.items():
            if is_dir(self.folder / item.folder):
                by_folder.setdefault(item.folder, []).append(name)
            else:
                self.warn(f"no {item.folder}/, so the site lacks structure {name}")
        return tuple(self._mask(folder, names) for folder, names in by_folder.items())

    def _mask(self, folder: str, names: list[str]) -> MaskText:
        cases = set(self._case_names())
        masks = [path for path in _visible(self.folder / folder) if case_text(path.name) in cases]
        if not masks:
            raise FedfmsError([Problem(SITES_FOLDER, str(self.folder / folder), "no file has an image's name")])
        absent = len(cases - {case_text(path.name) for path in masks})
        if absent:
            self.warn(f"{absent} of {len(cases)} images have no mask in {folder}/ and count as not annotated")
        found, soft = _values(masks)
        above = self.structures[names[0]].above
        labels: dict[str, tuple[int, ...] | Literal["nonzero"]] = {}
        for name in names:
            named = "nonzero" if above is not None else self.structures[name].values
            if soft and above is None and (named is None or named == "nonzero"):
                raise self._several_values(
                    folder,
                    f"{soft} masks have soft edges: values between 0 and {max(found)} around each shape",
                    f"Write --structure '{name}={folder}:>{max(found) // 2}', or save the masks without smoothing.",
                )
            if named is None and len(found) > 1:
                raise self._several_values(
                    folder,
                    f"the masks hold several values besides 0: {first_of(sorted(found), 10)}",
                    f"Name those of the structure, such as --structure {name}={folder}:1,2, or write"
                    f" --structure {name}={folder}:nonzero.",
                )
            if named is None and not found:
                self.warn(f"every mask in {folder}/ is empty")
            labels[name] = named if named is not None else (tuple(found) or "nonzero")
        used = {value for values in labels.values() if values != "nonzero" for value in values}
        ignored = () if "nonzero" in labels.values() else tuple(sorted(found - used))
        nifti_mask = nifti.is_nifti(masks[0])
        suffix = _common_suffix(masks, "nifti" if nifti_mask else "raster")
        return MaskText(folder, suffix, labels, ignored, absent, above)

    def _several_values(self, folder: str, detail: str, remedy: str) -> FedfmsError:
        return FedfmsError([Problem(LABEL_UNKNOWN, str(self.folder / folder), detail, remedy)])

    def _case_names(self) -> list[str]:
        used = [Path(row[self.image_column]) for row in self.rows] or self.images
        return [path.name if self.format == "dicom" else case_text(path.name) for path in used]


def _visible(folder: Path) -> list[Path]:
    return [path for path in children(folder) if not path.name.startswith(".")]


def _format(folder: Path, images: list[Path]) -> Literal["raster", "nifti", "dicom"]:
    if not images:
        raise FedfmsError([Problem(SITES_FOLDER, str(folder), "the folder is empty")])
    if all(is_dir(path) for path in images):
        return "dicom"
    if all(nifti.is_nifti(path) for path in images):
        return "nifti"
    odd = [path.name for path in images if path.suffix.lower() not in raster.SUFFIXES]
    if odd:
        known = ", ".join((*raster.SUFFIXES, *nifti.SUFFIXES))
        detail = f"neither all images ({known}) nor all folders of DICOM series: {first_of(odd, 5)}"
        raise FedfmsError([Problem(SITES_FOLDER, str(folder), detail)])
    return "raster"


def _common_suffix(paths: list[Path], kind: str) -> str:
    """What follows ``{case}`` in a pattern that fits all the files."""
    if kind == "dicom":
        return ""
    if kind == "nifti":
        suffixes = {".nii.gz" if path.name.endswith(".gz") else ".nii" for path in paths}
        return suffixes.pop() if len(suffixes) == 1 else ".nii*"
    suffixes = {path.suffix for path in paths}
    return suffixes.pop() if len(suffixes) == 1 else ".*"


def _values(masks: list[Path]) -> tuple[set[int], int]:
    """The values but 0, and the number of raster masks with soft edges."""
    found: set[int] = set()
    soft = 0
    problems: list[Problem] = []
    for path in masks:
        try:
            labels = read_label_map(path).voxels if nifti.is_nifti(path) else raster.read_mask(path)
            found.update(present_values(labels))
            soft += labels.ndim == 2 and has_soft_edges(labels)
        except FedfmsError as error:
            problems += error.problems
    if problems:
        raise FedfmsError(problems)
    return found - {0}, soft
