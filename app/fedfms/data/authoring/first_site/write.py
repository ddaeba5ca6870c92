"""Writes what was found and guessed into a commented ``site.yaml``."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from fedfms.access import is_dir
from fedfms.data.authoring.first_site.dicom_cases import DicomCases, dicom_cases, region_patterns
from fedfms.data.authoring.first_site.files import Contents, look
from fedfms.data.authoring.first_site.labels import Mask, label_map, regions
from fedfms.data.authoring.first_site.patterns import Images, image_pattern, mask_patterns
from fedfms.data.authoring.site_yaml import quoted
from fedfms.data.authoring.sites_from_folders import DEFAULT_TASK
from fedfms.data.readers.formats import Format, format_of
from fedfms.data.readers.masks import region_names
from fedfms.errors import NO_CASES, OUTPUT_EXISTS, FedfmsError, fail, first_of
from fedfms.files import atomic_path

#: A pattern of masks that fits a smaller fraction of the images is not described.
_FEWEST_PART = 0.05
#: More folders than this are taken for patients, not for hospitals.
_HOSPITALS = 12
_BY_CONTENT = "guess: masks were recognised by their few values, because no name says mask"


@dataclass(frozen=True)
class FirstSite:
    """What was written: the format, the number of cases, the patterns of masks, and the guesses."""

    format: Format
    cases: int
    masks: tuple[str, ...]
    guesses: tuple[str, ...]


def write_first_site(root: Path, out: Path, *, overwrite: bool = False) -> FirstSite:
    """Examine a folder and write a ``site.yaml`` for it, with a comment at every guess.

    Args:
        root: Folder with images and masks, in any of the usual arrangements.
        out: The file to write.
        overwrite: Replace the file if it is there.

    Raises:
        FedfmsError: FMS-P001 when the file exists, FMS-D008 when there is no image, FMS-D004 when no mask can be
            read, FMS-D011.
    """
    if out.exists() and not overwrite:
        raise fail(OUTPUT_EXISTS, out, "exists")
    if not is_dir(root):
        raise fail(NO_CASES, root, "no such folder", "Name a folder with images.")
    root = root.resolve()
    contents = look(root)
    if not contents.series and not any(contents.images.values()):
        known = "DICOM, NIfTI, NRRD, MetaImage, PNG, TIFF and JPEG"
        raise fail(NO_CASES, root, f"no image below this folder; known are {known}", "Name a folder with images.")
    dataset = _dicom(root, contents) if contents.series else _files(root, contents)
    text = dataset.render(out.stem)
    with atomic_path(out) as temporary:
        # It says where the data are, and is put into a kit, whose files nobody else may read.
        temporary.touch(mode=0o600)
        temporary.write_text(text, encoding="utf-8")
    guesses = tuple(line.split("# guess: ")[1] for line in text.splitlines() if "# guess: " in line)
    masks = tuple(mask.pattern for mask in dataset.masks)
    return FirstSite(dataset.format, len(dataset.images.cases), masks, guesses)


@dataclass(frozen=True)
class _Dataset:
    root: Path
    format: Format
    images: Images
    series: dict[str, str]
    masks: list[Mask]
    patient: tuple[str, ...]
    notes: tuple[str, ...]
    files_pattern: str = ""

    def render(self, name: str) -> str:
        """The YAML text."""
        lines = [
            "# Written by 'fedfms data init' from a look at the files. Read every line that says guess.",
            "# Every key is explained in docs/site-data.md. Check it with: fedfms data check FILE",
            *(f"# {note}" for note in self.notes),
            "datasets:",
            f"  - name: {quoted(re.sub(r'[^A-Za-z0-9_-]+', '-', name).strip('-_')[:60] or 'data')}",
            f"    task: {DEFAULT_TASK}  # guess: agree with the study lead on the name",
            f"    format: {self.format}",
            f"    root: {quoted(str(self.root))}",
            "    images:",
            *(f"      # guess: {comment}" for comment in self.images.comments),
            f"      pattern: {quoted(self.images.pattern)}  # fits {len(self.images.cases)} images",
        ]
        if self.files_pattern:
            lines.append(f"      files: {quoted(self.files_pattern)}")
        if self.series:
            lines += ["      series:", *(f"        {key}: {quoted(value)}" for key, value in self.series.items())]
        lines += ["    masks:" if self.masks else "    masks: []  # guess: none was recognised"]
        for mask in self.masks:
            lines.append(f"      - pattern: {quoted(mask.pattern)}")
            lines += [f"        # guess: {comment}" for comment in mask.comments]
            lines.append("        labels:")
            lines += [f"          {quoted(key)}: {_value(value)}" for key, value in mask.labels.items()]
            if not mask.required:
                lines.append("        required: false")
            if mask.above is not None:
                lines.append(f"        above: {mask.above:g}")
        lines += ["    patient:", *(f"      {line}" for line in self.patient)]
        lines += ["    split:", "      # guess: drawn by patient; a list with a split column can say it instead"]
        lines += ["      rule: by_patient", "      validation: 0.2", "      seed: 0"]
        return "\n".join(lines) + "\n"


def _value(value: int | str | tuple[str, ...]) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(quoted, value))}]"
    return str(value) if isinstance(value, int) or value == "nonzero" else quoted(value)


def _files(root: Path, contents: Contents) -> _Dataset:
    kind, paths = max(contents.images.items(), key=lambda item: len(item[1]))
    images = image_pattern(paths, folders=False)
    masks, notes = _masks(root, images, contents)
    others = {other: len(files) for other, files in contents.images.items() if files and other != kind}
    notes += [f"{count} {other} images are not described" for other, count in others.items()]
    if contents.masks_by_content:
        notes.append(_BY_CONTENT)
    return _Dataset(root, kind, images, {}, masks, _patient(images), _notes(contents, notes))


def _dicom(root: Path, contents: Contents) -> _Dataset:
    cases = dicom_cases(root, contents.series, contents.regions)
    masks, notes = _masks(cases.root, cases.images, contents, shift=root.relative_to(cases.root))
    taken = {name for mask in masks for name in mask.labels}
    patterns, lost = region_patterns(cases, contents.regions)
    for pattern, files in patterns.items():
        missing = len(cases.images.cases) - len(files)
        masks.append(regions(cases.root, pattern, files, taken, missing=max(missing, 0)))
    notes += [f"{lost} SEG or RTSTRUCT files could not be tied to images that are described"] if lost else []
    notes += [_BY_CONTENT] if contents.masks_by_content else []
    return _Dataset(
        root=cases.root,
        format="dicom",
        images=cases.images,
        series=cases.series,
        masks=masks,
        patient=_dicom_patient(cases),
        notes=_notes(contents, notes),
        files_pattern=cases.files,
    )


def _masks(root: Path, images: Images, contents: Contents, shift: Path = Path()) -> tuple[list[Mask], list[str]]:
    files = [shift / path for path in contents.masks]
    patterns, strangers = mask_patterns(files, images)
    masks, taken = [], set[str]()
    few = 0
    for pattern, own in patterns.items():
        if len(own) < _FEWEST_PART * len(images.cases):
            few += len(own)
            continue
        missing = max(len(images.cases) - len(own), 0)
        describe = regions if all(_names_segments(root / path) for path in own) else label_map
        masks.append(describe(root, pattern, own, taken, missing=missing))
    notes = [f"{strangers + few} files that seem to be masks belong to no image"] if strangers + few else []
    return masks, notes


def _names_segments(path: Path) -> bool:
    try:
        return format_of(path) == "itk" and bool(region_names(path))
    except FedfmsError:
        return False


def _notes(contents: Contents, notes: Sequence[str]) -> tuple[str, ...]:
    tables = first_of(contents.tables, 3)
    return (
        *notes,
        *([f"{contents.unreadable} damaged DICOM files were skipped"] if contents.unreadable else ()),
        *([f"A list may give patients and splits (images.manifest): {tables}"] if tables else ()),
    )


def _dicom_patient(cases: DicomCases) -> tuple[str, ...]:
    return ("rule: dicom_patient_id",) if cases.patients_known else _patient(cases.images)


def _patient(images: Images) -> tuple[str, ...]:
    names = [texts["case"] for texts in images.cases.values()]
    groups = {_without_last_word(name) for name in names}
    if "{patient}" in images.pattern:
        folders: dict[str, list[str]] = {}
        for texts in images.cases.values():
            folders.setdefault(texts["patient"], []).append(texts["case"])
        if _hold_patients(list(folders.values())):
            comment = f"the {len(folders)} folders in place of {{patient}} hold several each, as those of hospitals do"
            return (f"# guess: names without their last word are {len(groups)} patients; {comment}", *_by_name(names))
        return (
            f"# guess: each of the {len(folders)} folders in place of {{patient}} is a patient, with up to"
            f" {max(map(len, folders.values()))} images; for folders of hospitals see fedfms data sites",
            "rule: pattern",
        )
    if len(groups) >= 3 and 1.5 * len(groups) <= len(names):
        return (
            f"# guess: names without their last word are patients; {len(groups)} of {len(names)} images",
            *_by_name(names),
        )
    return ("# guess: each image is another patient; correct this if patients have several", "rule: each_image")


def _hold_patients(folders: Sequence[Sequence[str]]) -> bool:
    """Whether a few folders, given by the names in each, have images of several patients: beginnings repeat in them.

    Beginnings that are also in other folders are kinds of images, each of one patient.
    """
    seen: Counter[str] = Counter()
    repeating = 0
    for names in folders:
        groups = {_without_last_word(name) for name in names}
        if len(groups) > 1:
            # The first words of all names may be the folder's own.
            words = zip(*(re.split(r"(?<=[_.-])", group)[:-1] for group in groups), strict=False)
            same = sum(len(word[0]) for word in takewhile(lambda word: len(set(word)) == 1, words))
            seen.update(group[same:] for group in groups)
            repeating += 1.5 * len(groups) <= len(names)
    several = sum(seen.values()) >= 2 * len(folders) and 2 * repeating >= len(folders)
    return len(folders) <= _HOSPITALS and several and max(seen.values()) == 1


def _by_name(names: Sequence[str]) -> tuple[str, str]:
    plain = all(_without_last_word(name) not in (name, "") for name in names)
    return "rule: name", 'expression: "^(.+)[_.-][^_.-]+$"' if plain else 'expression: "^(.+?)(?:[_.-][^_.-]+)?$"'


def _without_last_word(name: str) -> str:
    return re.sub(r"[_.-][^_.-]+$", "", name)
