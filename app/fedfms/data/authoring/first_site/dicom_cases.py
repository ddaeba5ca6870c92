"""DICOM: which folders are cases, which of their series is meant, and where their SEG and RTSTRUCT objects are."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedfms.access import is_dir
from fedfms.data.authoring.first_site.patterns import Images, image_pattern, mask_patterns
from fedfms.data.authoring.first_site.series_choice import choose_series, is_localiser, references
from fedfms.data.description.pattern import PathPattern
from fedfms.data.dicom.series import Found, holds_objects_only

_NUMBERS = re.compile(r"\d+(?:[._-]\d+)*")


@dataclass(frozen=True)
class DicomCases:
    """The cases below a folder.

    Attributes:
        root: The folder given, or one above it when the folder itself is a case.
        images: Pattern and paths of the cases.
        series: Content of ``images.series``; empty when each folder has one series.
        patients_known: Whether every series has a PatientID.
        files: Content of ``images.files``; empty when the files are in the case folder itself.
        undescribed: Folders with images that are not described.
    """

    root: Path
    images: Images
    series: dict[str, str]
    patients_known: bool
    files: str = ""
    undescribed: frozenset[Path] = frozenset()


def dicom_cases(root: Path, found: Sequence[Found], regions: Sequence[Found]) -> DicomCases:
    """Describe image series.

    Args:
        root: The folder given.
        found: Image series below it; at least one.
        regions: SEG and RTSTRUCT objects below it.
    """
    by_folder: dict[Path, list[Found]] = {}
    for item in found:
        by_folder.setdefault(item.series.files[0].parent, []).append(item)
    known = all(texts["PatientID"] for item in found for texts in item.texts[:1])
    referenced = references(regions)
    if root in by_folder:
        if len(by_folder) == 1 and all(len(item.series.files) == 1 for item in found) and len(found) > 1:
            files = [item.series.files[0].relative_to(root) for item in found]
            if all(path.suffix == ".dcm" for path in files):
                return DicomCases(root, image_pattern(files, folders=False), {}, known)
        above, images = _itself(root)
        images = _with(images, *_below(by_folder))
        choice = choose_series({root: by_folder[root]}, referenced)
        return DicomCases(above, _with(images, *choice.comments), choice.series, known)
    images = image_pattern([folder.relative_to(root) for folder in by_folder], folders=True)
    below = ""
    if _beside_others(root, images, by_folder) and not any(folder.parent == root for folder in by_folder):
        # Folders named by UIDs, one per series: their names do not show which are images, so the study is the case.
        by_study: dict[Path, list[Found]] = {}
        for folder, items in by_folder.items():
            by_study.setdefault(folder.parent, []).extend(items)
        by_folder, below = by_study, "*/*"
        images = image_pattern([folder.relative_to(root) for folder in by_folder], folders=True)
        images = _with(images, "a case is a folder with one folder per series")
    others = _others(root, images)
    results = sum(holds_objects_only(folder, below or "*") for folder in others)
    if results:
        images = _with(images, f"folders that fit but have results or masks and no image ({results}) are not cases")
    if rest := len(others) - results:
        images = _with(images, f"{rest} folders that fit have no images: move them, or make the pattern narrower")
    choice = choose_series({folder: by_folder[folder] for folder in (root / path for path in images.cases)}, referenced)
    undescribed = frozenset(folder.relative_to(root) for folder in by_folder) - images.cases.keys()
    return DicomCases(root, _with(images, *choice.comments), choice.series, known, below, undescribed)


def _itself(folder: Path) -> tuple[Path, Images]:
    """The folder itself as the only case, and the root that its pattern starts from. A pattern needs ``{case}``."""
    if folder.parent.name:
        root, pattern, case = folder.parent.parent, f"{{case}}/{folder.name}", folder.parent.name
        comment = "the folder itself is the one case; {case} is the name of the folder above it"
    else:
        root, pattern, case = folder.parent, f"{folder.name[:-1]}{{case}}", folder.name[-1]
        comment = "the folder itself is the one case; {case} is the last letter of its name"
    fitting = [path for path, _ in PathPattern(pattern).find(root) if is_dir(path)]
    comments = [comment]
    if beside := len(fitting) - 1:
        comments.append(f"{beside} other folders of such a name fit as well; rename it, or describe the folder above")
    return root, Images(pattern, {folder.relative_to(root): {"case": case}}, tuple(comments))


def _below(by_folder: dict[Path, list[Found]]) -> list[str]:
    others = len(by_folder) - 1
    return [f"{others} folders below it hold images as well and are not described"] if others else []


def _others(root: Path, images: Images) -> list[Path]:
    """Folders that fit the pattern and have no images."""
    found = (path for path, _ in PathPattern(images.pattern).find(root) if is_dir(path))
    return [path for path in found if path.relative_to(root) not in images.cases]


def _beside_others(root: Path, images: Images, by_folder: dict[Path, list[Found]]) -> bool:
    """Whether folders that fit the pattern but are not cases are beside the images: without images, or a localiser."""
    parents = {folder.parent for folder in by_folder}
    localisers = any(
        all(map(is_localiser, items)) and any(other != folder and other.parent == folder.parent for other in by_folder)
        for folder, items in by_folder.items()
    )
    return localisers or any(folder.parent in parents for folder in _others(root, images))


def region_patterns(cases: DicomCases, found: Sequence[Found]) -> tuple[dict[str, list[Path]], int]:
    """Guess patterns of SEG and RTSTRUCT files.

    Returns:
        Pattern -> files, the most frequent pattern first; and the number of files without a pattern.
    """
    patterns: dict[str, list[Path]] = {}
    lost = 0
    for item in found:
        for file in item.series.files:
            path = file.relative_to(cases.root)
            folder = next((parent for parent in path.parents if parent in cases.images.cases), None)
            texts = _nearest(path, cases.images)
            if folder is not None:
                pattern = f"{cases.images.pattern}/{path.relative_to(folder).as_posix()}"
            elif texts is not None and path.parent not in cases.undescribed:
                names = {text: "{" + name + "}" for name, text in texts.items()}
                pattern = "/".join([names.get(part, part) for part in path.parts[:-1]] + [_file_name(path, texts)])
            elif path.parent not in cases.undescribed:
                # Named after the case, as 'fedfms predict' does.
                named, strangers = mask_patterns([path], cases.images)
                lost += strangers
                for pattern in named:
                    patterns.setdefault(pattern, []).append(path)
                continue
            else:
                lost += 1
                continue
            patterns.setdefault(pattern, []).append(path)
    patterns = _joined(cases.root, patterns)
    return dict(sorted(patterns.items(), key=lambda entry: (-len(entry[1]), entry[0]))), lost


def _with(images: Images, *comments: str) -> Images:
    return Images(images.pattern, images.cases, (*images.comments, *comments))


def _nearest(path: Path, images: Images) -> dict[str, str] | None:
    """The texts of the case whose name is in the file's path, nearest to the file."""
    for part in (*reversed(path.parts[:-1]), re.split(r"[.]", path.name)[0]):
        if named := [texts for texts in images.cases.values() if texts["case"] == part]:
            # Patients may have cases of the same name.
            return max(named, key=lambda texts: texts.get("patient") in path.parts)
    return None


def _file_name(path: Path, texts: dict[str, str]) -> str:
    return path.name.replace(texts["case"], "{case}") if path.name.startswith(texts["case"]) else path.name


def _joined(root: Path, patterns: dict[str, list[Path]]) -> dict[str, list[Path]]:
    """Join patterns that differ only in numbers (UIDs, dates) into one with stars, if it fits one object per case."""
    alike: dict[str, list[str]] = {}
    for pattern in patterns:
        alike.setdefault(_NUMBERS.sub("*", pattern), []).append(pattern)
    result: dict[str, list[Path]] = {}
    for members in alike.values():
        parts = zip(*(member.split("/") for member in members), strict=True)
        joined = "/".join(own[0] if len(set(own)) == 1 else _NUMBERS.sub("*", own[0]) for own in parts)
        files = [path for member in members for path in patterns[member]]
        objects = {root / path for path in files}
        cases = [tuple(texts.items()) for path, texts in PathPattern(joined).find(root) if path in objects]
        if len(cases) == len(set(cases)) == len(files):
            result[joined] = files
        else:
            result.update({member: patterns[member] for member in members})
    return result
