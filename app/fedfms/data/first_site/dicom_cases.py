"""DICOM: which folders are cases, which of their series is meant, and where their SEG and RTSTRUCT objects lie."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedfms.data.dicom_files import Found
from fedfms.data.first_site.patterns import Images, image_pattern, mask_patterns
from fedfms.data.pattern import PathPattern

_NUMBERS = re.compile(r"\d+(?:[._-]\d+)*")


@dataclass(frozen=True)
class DicomCases:
    """Attributes beside ``images``:

    root: The folder given, or the one above it when it is a case itself.
    series: Content of ``images.series``; empty where each folder has one series.
    files: Content of ``images.files``; empty for the files that lie in the folder itself.
    patients_known: Every series has a PatientID.
    passed: Folders with images that are not described.
    """

    root: Path
    images: Images
    series: dict[str, str]
    patients_known: bool
    files: str = ""
    passed: frozenset[Path] = frozenset()


def dicom_cases(root: Path, found: Sequence[Found]) -> DicomCases:
    """Describe image series; at least one."""
    by_folder: dict[Path, list[Found]] = {}
    for item in found:
        by_folder.setdefault(item.series.files[0].parent, []).append(item)
    known = all(texts["PatientID"] for item in found for texts in item.texts[:1])
    if root in by_folder:
        if len(by_folder) == 1 and all(len(item.series.files) == 1 for item in found) and len(found) > 1:
            files = [item.series.files[0].relative_to(root) for item in found]
            if all(path.suffix == ".dcm" for path in files):
                return DicomCases(root, image_pattern(files, folders=False), {}, known)
        position, beside = _letter(root)
        name = root.name
        pattern = f"{name[:position]}{{case}}{name[position + 1 :]}"
        comments = ["the folder itself is the one case; {case} stands for a letter of its name"]
        if beside:
            comments.append(f"{beside} other folders beside it fit as well; move it into a folder of its own")
        if len(by_folder) > 1:
            comments.append(f"{len(by_folder) - 1} folders below it hold images as well and are not described")
        images = Images(pattern, {Path(name): {"case": name[position]}}, tuple(comments))
        series, comment = _series({root: by_folder[root]})
        return DicomCases(root.parent, _with(images, comment), series, known)
    images = image_pattern([folder.relative_to(root) for folder in by_folder], folders=True)
    below = ""
    if _others(root, images) and not any(folder.parent == root for folder in by_folder):
        # Folders named by UIDs, one per series: no name tells those of images, so the study is the case.
        by_study: dict[Path, list[Found]] = {}
        for folder, items in by_folder.items():
            by_study.setdefault(folder.parent, []).extend(items)
        by_folder, below = by_study, "*/*"
        images = image_pattern([folder.relative_to(root) for folder in by_folder], folders=True)
        images = _with(images, "a case is a folder with one folder per series")
    if others := _others(root, images):
        images = _with(images, f"{others} folders that fit hold no images: take them out, or make the pattern narrower")
    series, comment = _series({folder: by_folder[folder] for folder in (root / path for path in images.cases)})
    passed = frozenset(folder.relative_to(root) for folder in by_folder) - images.cases.keys()
    return DicomCases(root, _with(images, comment), series, known, below, passed)


def _others(root: Path, images: Images) -> int:
    """Number of folders that fit the pattern and hold no images."""
    found = (path for path, _ in PathPattern(images.pattern).find(root) if path.is_dir())
    return sum(path.relative_to(root) not in images.cases for path in found)


def region_patterns(cases: DicomCases, found: Sequence[Found]) -> tuple[dict[str, list[Path]], int]:
    """Patterns for SEG and RTSTRUCT files; and the number of files for which none was found."""
    patterns: dict[str, list[Path]] = {}
    lost = 0
    for item in found:
        for file in item.series.files:
            path = file.relative_to(cases.root)
            folder = next((parent for parent in path.parents if parent in cases.images.cases), None)
            texts = _nearest(path, cases.images)
            if folder is not None:
                pattern = f"{cases.images.pattern}/{path.relative_to(folder).as_posix()}"
            elif texts is not None and path.parent not in cases.passed:
                names = {text: "{" + name + "}" for name, text in texts.items()}
                pattern = "/".join([names.get(part, part) for part in path.parts[:-1]] + [_file_name(path, texts)])
            elif path.parent not in cases.passed:
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


def _letter(folder: Path) -> tuple[int, int]:
    """Which letter of a folder's name ``{case}`` should stand for, and how many folders beside it fit then: fewest.

    A pattern needs ``{case}``, and names folders below root.
    """
    name = folder.name
    others = [path.name for path in folder.parent.glob("*") if path.is_dir() and path.name != name]

    def fitting(position: int) -> int:
        expression = PathPattern(f"{name[:position]}{{case}}{name[position + 1 :]}").expression
        return sum(expression.fullmatch(other) is not None for other in others)

    position = min(reversed(range(len(name))), key=fitting)
    return position, fitting(position)


def _with(images: Images, comment: str) -> Images:
    return Images(images.pattern, images.cases, (*images.comments, *([comment] if comment else ())))


def _series(by_folder: dict[Path, list[Found]]) -> tuple[dict[str, str], str]:
    if all(len(items) == 1 for items in by_folder.values()):
        return {}, ""
    keys: Counter[tuple[str, str]] = Counter()
    sizes: Counter[tuple[str, str]] = Counter()
    for items in by_folder.values():
        for item in items:
            keys[item.series.description, item.series.modality] += 1
            sizes[item.series.description, item.series.modality] += len(item.series.files)
    description, modality = max(keys, key=lambda key: (keys[key], sizes[key], key))
    comment = (
        f"several series in one folder; the one in {keys[description, modality]} of {len(by_folder)} folders with the"
        " most files is taken; there are: " + "; ".join(f"{kind} '{text}'" for text, kind in sorted(keys))
    )
    # With one description for all series this does not choose, and the check lists the candidates.
    return ({"description": f"^{re.escape(description)}$"} if description else {}) | {"modality": modality}, comment


def _nearest(path: Path, images: Images) -> dict[str, str] | None:
    """The texts of the case whose folder shares most with the file's path and is named in it."""
    for part in (*reversed(path.parts[:-1]), re.split(r"[.]", path.name)[0]):
        if named := [texts for texts in images.cases.values() if texts["case"] == part]:
            # Patients may have cases of the same name.
            return max(named, key=lambda texts: texts.get("patient") in path.parts)
    return None


def _file_name(path: Path, texts: dict[str, str]) -> str:
    return path.name.replace(texts["case"], "{case}") if path.name.startswith(texts["case"]) else path.name


def _joined(root: Path, patterns: dict[str, list[Path]]) -> dict[str, list[Path]]:
    """Patterns that differ in numbers (UIDs, dates) only become one with stars, if it fits one object of each case."""
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
