"""From the description of a dataset to the list of its cases: files, patients, given splits. No pixels are read."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fedfms.access import exists, is_dir, is_file, unreadable
from fedfms.data.description.pattern import PathPattern
from fedfms.data.description.site import (
    DatasetDescription,
    EachImage,
    MaskSource,
    PatientFromColumn,
    PatientFromDicom,
    PatientFromName,
    SplitByColumn,
    SplitName,
)
from fedfms.data.dicom.image import read_patient_id
from fedfms.data.dicom.series import holds_objects_only, is_image
from fedfms.data.readers.nifti import read_grid
from fedfms.data.volume.names import as_stored, composed, require_utf8
from fedfms.data.volume.remedies import GeneralRemedy
from fedfms.errors import CASE_AMBIGUOUS, IMAGE_MISSING, NO_CASES, SITE_INVALID, FedfmsError, Problem, fail


@dataclass(frozen=True)
class CaseFiles:
    """The files of one case.

    Attributes:
        dataset: The description of its dataset.
        name: Path of the image relative to the dataset's root; unique within the dataset.
        image: Image file, or folder with a DICOM series.
        masks: One per mask source of the dataset; None where the case has no such mask.
        patient: Identifier of the patient; never printed.
        given_split: Split from the manifest, when the split rule uses one.
    """

    dataset: DatasetDescription
    name: str = field(repr=False)
    image: Path = field(repr=False)
    masks: tuple[Path | None, ...] = field(repr=False)
    patient: str = field(repr=False)
    given_split: SplitName | None

    @property
    def identity(self) -> str:
        """Dataset and path: unique at the site. It must not be sent."""
        return f"{self.dataset.name}/{self.name}"


#: Files that fit the pattern of a mask source, by the names and texts of its placeholders.
_Index = dict[tuple[tuple[str, str], ...], list[Path]]

#: Paths that fit a pattern, with the texts of its placeholders, by pattern.
_Paths = dict[str, list[tuple[Path, dict[str, str]]]]

#: Everything that is wrong with one case that cannot be used.
BadCase = tuple[Problem, ...]


@dataclass(frozen=True)
class CaseList:
    """The cases of a dataset.

    Attributes:
        cases: Sorted by name.
        bad: One entry for each case that lacks a file or contradicts the description.
        problems: What is wrong with the description or the list as a whole.
        skipped: Folders that fit the pattern of the images but are not cases, such as those of results: they contain
            DICOM objects, but no image and no mask of a case of that name.
    """

    cases: list[CaseFiles]
    bad: list[BadCase]
    problems: list[Problem]
    skipped: list[Path] = field(default_factory=list, repr=False)


@dataclass(frozen=True)
class _Found:
    image: Path
    name: str
    texts: dict[str, str]
    row: dict[str, str]
    where: str


def find_cases(dataset: DatasetDescription) -> CaseList:
    """List the cases of a dataset, with everything that is wrong with the list.

    Problems in the result: FMS-D002 (manifest and description do not fit), FMS-D003 (missing file), FMS-D008 (no
    image at all), FMS-D014 (several masks fit one image), FMS-D019 (a file or folder may not be read).
    """
    result = CaseList([], [], [])
    try:
        paths = _paths(dataset)
    except FedfmsError as error:
        # What is in such a folder is not known: no case may be called missing, or be left out, because of it.
        return CaseList([], [(problem,) for problem in error.problems], [])
    if not is_dir(dataset.root):
        where, detail = f"dataset {dataset.name}: root", f"no such folder: {dataset.root}"
        return CaseList([], [], [Problem(IMAGE_MISSING, where, detail)])
    indexes = [_mask_index(source, paths) for source in dataset.masks]
    if dataset.images.manifest:
        found = _from_manifest(dataset, result)
    else:
        found = _from_pattern(dataset, paths, indexes, result)
    if not found and not result.bad and not result.problems:
        result.problems.append(_no_images(dataset))
    named = Counter(item.name for item in found)
    for item in found:
        try:
            _check_name(item, named)
            if dataset.format == "nifti":
                read_grid(item.image, dataset.images.affine)  # a header that can be read in two ways
            masks = tuple(
                _mask(dataset, source, index, item) for source, index in zip(dataset.masks, indexes, strict=True)
            )
            result.cases.append(
                CaseFiles(
                    dataset=dataset,
                    name=item.name,
                    image=item.image,
                    masks=masks,
                    patient=_patient(dataset, item),
                    given_split=_given_split(dataset, item),
                )
            )
        except FedfmsError as error:
            result.bad.append(error.problems)
    return result


def _paths(dataset: DatasetDescription) -> _Paths:
    """What fits each pattern of a dataset.

    Raises:
        FedfmsError: FMS-D019 for every folder of any of them that may not be listed.
    """
    refused: dict[Problem, None] = {}
    paths: _Paths = {}
    for pattern in (dataset.images.pattern, *(source.pattern for source in dataset.masks)):
        try:
            if pattern is not None:
                paths[pattern] = PathPattern(pattern).find(dataset.root)
        except FedfmsError as error:
            refused |= dict.fromkeys(error.problems)
    if refused:
        raise FedfmsError(refused)
    return paths


def _check_name(item: _Found, named: Mapping[str, int]) -> None:
    """Refuse a name that is not text, or that only its way of writing accents tells apart from another one."""
    require_utf8(item.image)
    if named[item.name] > 1:
        detail = f"{named[item.name]} files have this name; they differ only in how accents are encoded (NFC, NFD)"
        raise fail(CASE_AMBIGUOUS, item.where, detail, GeneralRemedy("Give each image another name, or remove copies."))


def _from_pattern(
    dataset: DatasetDescription, paths: _Paths, indexes: Sequence[_Index], result: CaseList
) -> list[_Found]:
    masks = [PathPattern(source.pattern).expression for source in dataset.masks if source.pattern]
    folders = dataset.format == "dicom" and not dataset.images.names_dicom_files
    found = []
    for path, texts in paths[dataset.images.pattern or ""]:
        name = composed(path.relative_to(dataset.root).as_posix())
        # "{case}.nii.gz" also fits "a_mask.nii.gz": a file that fits the pattern of a mask is not an image.
        try:
            if is_dir(path) != folders or any(mask.fullmatch(name) for mask in masks):
                continue
        except FedfmsError as error:
            result.bad.append(error.problems)
            continue
        item = _Found(path, name, {key: composed(text) for key, text in texts.items()}, {}, str(path))
        if folders and not _has_mask(dataset, indexes, item) and holds_objects_only(path, dataset.images.files or "*"):
            result.skipped.append(path)
        else:
            found.append(item)
    return found


def _has_mask(dataset: DatasetDescription, indexes: Sequence[_Index], item: _Found) -> bool:
    """Whether a mask has the name of this folder: then it is a case, and its images are missing if there are none."""
    return any(
        source.pattern is not None and "{case}" in source.pattern and _fitting(source.pattern, index, item)
        for source, index in zip(dataset.masks, indexes, strict=True)
    )


def _fitting(pattern: str, index: _Index, item: _Found) -> list[Path]:
    names = set(re.findall(r"\{(\w+)\}", pattern))
    return index.get(tuple(sorted((name, item.texts[name]) for name in names)), [])


def read_manifest(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Read a CSV file with a header line.

    Returns:
        Names of the columns; and for each row its line number and its cells by column, empty where a cell is missing.

    Raises:
        FedfmsError: FMS-D003 when it is missing, FMS-D019 when it may not be read, FMS-D002 when it is not a CSV file
            in UTF-8.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restkey="", restval="", strict=True)
            rows = []
            for row in reader:
                if "" in row:
                    raise csv.Error(f"line {reader.line_num} has more cells than the header")
                rows.append((reader.line_num, {key: value.strip() for key, value in row.items()}))
            return list(reader.fieldnames or ()), rows
    except FileNotFoundError:
        raise FedfmsError([Problem(IMAGE_MISSING, str(path), "no such manifest")]) from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise unreadable(SITE_INVALID, path, error) from error


def _from_manifest(dataset: DatasetDescription, result: CaseList) -> list[_Found]:
    path = dataset.root / (dataset.images.manifest or "")
    try:
        columns, rows = read_manifest(path)
    except FedfmsError as error:
        result.problems.extend(error.problems)
        return []
    used = [dataset.images.column, *(source.column for source in dataset.masks)]
    used += [dataset.patient.column] if isinstance(dataset.patient, PatientFromColumn) else []
    used += [dataset.split.column] if isinstance(dataset.split, SplitByColumn) else []
    absent = [column for column in used if column is not None and column not in columns]
    if absent:
        result.problems.extend(
            Problem(SITE_INVALID, f"{path}: {column}", f"no such column; there are {', '.join(columns)}")
            for column in absent
        )
        return []
    found: list[_Found] = []
    seen: dict[str, str] = {}
    for number, row in rows:
        where = f"{path} line {number}"
        name = row[dataset.images.column or ""]
        if not name:
            result.problems.append(Problem(SITE_INVALID, where, f"the cell {dataset.images.column} is empty"))
            continue
        name = composed(Path(name).as_posix())
        if dataset.images.folder is not None and not Path(name).is_relative_to(dataset.images.folder):
            continue
        if name in seen:
            result.problems.append(Problem(SITE_INVALID, where, f"the image is also in {seen[name]}"))
            continue
        seen[name] = where
        try:
            image = as_stored(dataset.root / name)
            if not exists(image):
                raise fail(IMAGE_MISSING, where, f"no such image: {image}")
        except FedfmsError as error:
            result.bad.append(error.problems)
            continue
        found.append(_Found(image, name, {"case": case_text(image.name)}, row, where))
    return sorted(found, key=lambda item: item.name)


def case_text(file_name: str) -> str:
    """The text of ``{case}`` for a file name in a manifest: the name without its suffix."""
    if file_name.endswith(".nii.gz"):
        return file_name[: -len(".nii.gz")]
    return Path(file_name).stem if "." in file_name else file_name


def _no_images(dataset: DatasetDescription) -> Problem:
    images = dataset.images
    where = images.pattern or f"{images.manifest}, folder {images.folder or '.'}"
    detail = f"no image fits '{where}' below {dataset.root}"
    if dataset.format == "dicom" and images.pattern and any(PathPattern(images.pattern).find(dataset.root)):
        fits = "folders, but no file" if images.names_dicom_files else "files, but no folder"
        detail = f"'{where}' fits {fits} below {dataset.root}; a pattern that ends in .dcm names files"
    return Problem(NO_CASES, f"dataset {dataset.name}: images", detail)


def _mask_index(source: MaskSource, paths: _Paths) -> _Index:
    index: _Index = {}
    for path, texts in paths.get(source.pattern or "", ()):
        key = sorted((name, composed(text)) for name, text in texts.items())
        index.setdefault(tuple(key), []).append(path)
    return index


def _mask(
    dataset: DatasetDescription,
    source: MaskSource,
    index: _Index,
    item: _Found,
) -> Path | None:
    if source.pattern is not None:
        paths = _fitting(source.pattern, index, item)
        fitting = len(paths)
        if dataset.format == "dicom":
            # Exports often give the files of all series the same names.
            paths = [path for path in paths if not is_image(path)]
        if len(paths) > 1:
            listed = ", ".join(str(path) for path in paths)
            raise FedfmsError([Problem(CASE_AMBIGUOUS, item.where, f"several masks fit '{source.pattern}': {listed}")])
        if paths:
            return paths[0]
        images = f", only {fitting} DICOM image(s)" if fitting else ""
        missing = f"no mask fits '{source.pattern}' below {dataset.root}{images}"
    else:
        cell = item.row[source.column or ""]
        path = as_stored(dataset.root / cell)
        if cell and is_file(path):
            return path
        missing = f"no such mask: {path}" if cell else f"the cell {source.column} is empty"
        if cell:  # a mask that is named but missing is an error even where masks are optional
            raise FedfmsError([Problem(IMAGE_MISSING, item.where, missing)])
    if source.required:
        raise FedfmsError(
            [
                Problem(
                    IMAGE_MISSING,
                    item.where,
                    missing,
                    GeneralRemedy("Restore the mask, take the image out, or write 'required: false' under this mask."),
                )
            ]
        )
    return None


def _patient(dataset: DatasetDescription, item: _Found) -> str:
    rule = dataset.patient
    if isinstance(rule, EachImage):
        # With the dataset's name, because two datasets may have files of the same name.
        return f"{dataset.name}/{item.name}"
    if isinstance(rule, PatientFromDicom):
        return read_patient_id(item.image, dataset.images.files or "*", dataset.images.series)
    if isinstance(rule, PatientFromColumn):
        if not item.row[rule.column]:
            raise FedfmsError([Problem(SITE_INVALID, item.where, f"the cell {rule.column} (patient) is empty")])
        return item.row[rule.column]
    if isinstance(rule, PatientFromName):
        match = re.search(rule.expression, item.texts["case"])
        if match is None or not match.group(1):
            raise FedfmsError([Problem(SITE_INVALID, item.where, "patient.expression does not fit this file's name")])
        return match.group(1)
    return item.texts["patient"]


def _given_split(dataset: DatasetDescription, item: _Found) -> SplitName | None:
    rule = dataset.split
    if not isinstance(rule, SplitByColumn):
        return None
    word = item.row[rule.column]
    if word in rule.words.train:
        return "train"
    if word in rule.words.validation:
        return "validation"
    if word in rule.words.test:
        return "test"
    known = ", ".join((*rule.words.train, *rule.words.validation, *rule.words.test))
    raise FedfmsError(
        [
            Problem(
                SITE_INVALID,
                item.where,
                f"the cell {rule.column} holds '{word}', expected one of: {known}",
                GeneralRemedy("Correct the cell, or list the word under split.words in site.yaml."),
            )
        ]
    )
