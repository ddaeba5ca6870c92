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


@dataclass(frozen=True)
class DicomCases:
    """Attributes beside ``images``:

    root: The folder given, or the one above it when it is a case itself.
    series: Content of ``images.series``; empty where each folder has one series.
    patients_known: Every series has a PatientID.
    """

    root: Path
    images: Images
    series: dict[str, str]
    patients_known: bool


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
    series, comment = _series({folder: by_folder[folder] for folder in (root / path for path in images.cases)})
    return DicomCases(root, _with(images, comment), series, known)


def region_patterns(cases: DicomCases, found: Sequence[Found]) -> tuple[dict[str, list[Path]], int]:
    """Patterns for SEG and RTSTRUCT files; and the number of files for which none was found."""
    patterns: dict[str, list[Path]] = {}
    beside: list[Path] = []
    lost = 0
    folders = set(cases.images.cases)
    for item in found:
        for file in item.series.files:
            path = file.relative_to(cases.root)
            if path.parent in folders:
                beside.append(path)
                continue
            texts = _nearest(path, cases.images)
            if texts is None:
                # Named after the case, as 'fedfms predict' does.
                named, strangers = mask_patterns([path], cases.images)
                lost += strangers
                for pattern in named:
                    patterns.setdefault(pattern, []).append(path)
                continue
            names = {text: "{" + name + "}" for name, text in texts.items()}
            pattern = "/".join([names.get(part, part) for part in path.parts[:-1]] + [_file_name(path, texts)])
            patterns.setdefault(pattern, []).append(path)
    for name, files in _names_beside(cases, beside).items():
        patterns[f"{cases.images.pattern}/{name}"] = files
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
        for texts in images.cases.values():
            if texts["case"] == part:
                return texts
    return None


def _file_name(path: Path, texts: dict[str, str]) -> str:
    return path.name.replace(texts["case"], "{case}") if path.name.startswith(texts["case"]) else path.name


def _names_beside(cases: DicomCases, paths: Sequence[Path]) -> dict[str, list[Path]]:
    """File names of objects that lie among the images, with a star where the names of cases differ."""
    by_name: dict[str, list[Path]] = {}
    for path in paths:
        by_name.setdefault(path.name, []).append(path)
    folders = {path.parent for path in paths}
    if len(by_name) < max(len(folders), 2) or len(folders) == 1:
        return by_name
    names = sorted(by_name)
    begin = re.split(r"\d", names[0])[0]
    pattern = f"{begin}*{paths[0].suffix}"
    expression = PathPattern(pattern).expression
    for folder in folders:
        fitting = [item for item in (cases.root / folder).iterdir() if expression.fullmatch(item.name)]
        if len(fitting) != 1:
            return by_name
    return {pattern: list(paths)}
