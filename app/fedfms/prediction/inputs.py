"""Find the images below a path and name their results."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from fedfms.access import exists, is_file, walk
from fedfms.data.description.series import Series, SeriesChoice
from fedfms.data.description.site import NiftiAffine
from fedfms.data.dicom.frames import frames_of
from fedfms.data.dicom.series import Found, collect
from fedfms.data.readers.formats import Format, format_of, has_dicom_mark, stem
from fedfms.data.volume.names import require_utf8
from fedfms.errors import IMAGE_MISSING, NOTHING_TO_PREDICT, FedfmsError, Problem, fail


@dataclass(frozen=True)
class InputCase:
    """One picture or one volume.

    Attributes:
        kind: The reader.
        path: The file; for a DICOM series the folder above all of its files.
        name: Path of its results below the output folder, without an ending.
        files: The files to read; several for a DICOM series.
        choice: Which images of a DICOM series are meant, when it holds several volumes.
        affine: Which affine of a NIfTI file counts, when it has two that disagree.
    """

    kind: Format
    path: Path
    name: Path
    files: tuple[Path, ...] = field(repr=False)
    choice: SeriesChoice | None = None
    affine: NiftiAffine | None = None


@dataclass(frozen=True)
class Inputs:
    """The images below a path.

    Attributes:
        cases: In the order of their names.
        problems: Of files that should be images and cannot be read.
        ignored: Number of files that are not images, such as reports, structure sets and segmentations, plus those
            whose series was not chosen.
    """

    cases: tuple[InputCase, ...]
    problems: tuple[Problem, ...]
    ignored: int


def find_inputs(path: Path, out: Path, choice: SeriesChoice | None = None, affine: NiftiAffine | None = None) -> Inputs:
    """Find the images in a file or, at any depth, in a folder.

    Files are recognised by their endings (``.png``, ``.nii.gz``, ``.nrrd`` ...) or by DICOM's mark at byte 128. Files
    whose names begin with a dot, and files in an output folder inside the input folder, are never used.

    Args:
        path: File or folder.
        out: The output folder.
        choice: Which DICOM series to use, and which images of each; None uses all.
        affine: Which affine counts in NIfTI files whose sform and qform disagree; None: that is an error.

    Raises:
        FedfmsError: FMS-D003 when the path does not exist, FMS-D019 when it may not be reached, FMS-P002 when there is
            no image, or no chosen series.
    """
    if not exists(path):
        raise fail(IMAGE_MISSING, path, "no such file or folder")
    alone = is_file(path)
    root = path.parent if alone else path
    by_kind: defaultdict[Format | None, list[Path]] = defaultdict(list)
    unusable: list[Problem] = []
    for file in [path] if alone else _files(path, out, unusable):
        try:
            require_utf8(file)
            by_kind[_kind(file)].append(file)
        except FedfmsError as error:
            unusable += error.problems
    series, pictures, others, problems = _scan(by_kind["dicom"], alone, choice)
    problems += unusable
    cases = [InputCase("dicom", file, _without_ending(file.relative_to(root)), (file,)) for file in pictures]
    cases += _series_cases(series, root)
    cases = [replace(case, choice=choice) for case in cases]
    for kind in ("nifti", "itk", "raster"):
        cases += [InputCase(kind, file, _without_ending(file.relative_to(root)), (file,)) for file in by_kind[kind]]
    cases = [replace(case, affine=affine) if case.kind == "nifti" else case for case in cases]
    ignored = len(by_kind[None]) + others
    if not cases and not problems:
        fitting = " of a series that fits" if choice is not None else ""
        raise fail(NOTHING_TO_PREDICT, path, f"{ignored} files, none of them an image{fitting}")
    return Inputs(tuple(sorted(cases, key=lambda case: case.name)), tuple(problems), ignored)


def _files(folder: Path, out: Path, refused: list[Problem]) -> Iterable[Path]:
    """Files at any depth; ``refused`` gets FMS-D019 for each folder that may not be listed."""
    own = out.resolve() if folder.resolve() in out.resolve().parents else None
    for file in walk(folder, refused, hidden=False):
        if own in file.resolve().parents:
            continue
        try:
            # A link to nothing is a missing image: the reader reports it.
            if is_file(file) or not exists(file):
                yield file
        except FedfmsError as error:
            refused += error.problems


def _kind(file: Path) -> Format | None:
    return format_of(file) or ("dicom" if file.name.lower().endswith(".dcm") or _has_dicom_mark(file) else None)


def _has_dicom_mark(file: Path) -> bool:
    try:
        return has_dicom_mark(file)
    except OSError:
        # The reader reports what is wrong with it.
        return True


def _without_ending(path: Path) -> Path:
    return path.with_name(stem(path.name) if format_of(path) else path.stem)


def _scan(
    paths: Iterable[Path], alone: bool, choice: SeriesChoice | None
) -> tuple[list[Series], list[Path], int, list[Problem]]:
    """Read headers, one file at a time: those of a large export would fill the memory.

    Args:
        paths: Of DICOM files.
        alone: The input is this one file, which then is a case of its own.
        choice: Which series to use.

    Returns:
        Series of images; images that are cases of their own; number of files that are neither; unreadable files.
    """
    series: dict[str, Series] = {}
    files: defaultdict[str, list[Path]] = defaultdict(list)
    kinds: defaultdict[str, set[bool | None]] = defaultdict(set)
    others = 0
    problems: list[Problem] = []
    for path in paths:
        found, unreadable = collect([path])
        problems += unreadable
        for item in found:
            if item.series.kind != "image" or (choice is not None and not choice.fits(item.series)):
                others += 1
                continue
            series.setdefault(item.series.uid, item.series)
            files[item.series.uid].append(path)
            kinds[item.series.uid].add(_is_picture(item))
    # A series of pictures is not a volume: each is a case of its own, and a bad one among them fails alone.
    apart = {uid for uid in series if alone or (True in kinds[uid] and False not in kinds[uid])}
    volumes = [replace(one, files=tuple(files[uid])) for uid, one in series.items() if uid not in apart]
    pictures = [path for uid in series if uid in apart for path in files[uid]]
    return volumes, pictures, others, problems


def _is_picture(found: Found) -> bool | None:
    """Whether a file has no position in space; None when it is damaged, which reading it will report."""
    (header,), (texts,) = found.headers, found.texts
    try:
        return not frames_of(header, texts["SOPInstanceUID"])
    except FedfmsError:
        return None


def _series_cases(series: Iterable[Series], root: Path) -> list[InputCase]:
    """Name series by their folder, and by their number too where several share a folder."""
    placed = [(_common_folder(one.files), one) for one in series]
    sharing = Counter(folder for folder, _ in placed)
    numbered = Counter((folder, one.number) for folder, one in placed)
    seen: Counter[tuple[Path, str]] = Counter()
    cases = []
    for folder, one in placed:
        name = folder.relative_to(root) if folder != root else Path(root.resolve().name)
        if sharing[folder] > 1:
            seen[folder, one.number] += 1
            repeated = f"-{seen[folder, one.number]}" if numbered[folder, one.number] > 1 else ""
            name = name.with_name(f"{name.name}_series{one.number}{repeated}")
        cases.append(InputCase("dicom", folder, name, one.files))
    return cases


def _common_folder(files: tuple[Path, ...]) -> Path:
    folder = files[0].parent
    while any(folder not in file.parents for file in files):
        folder = folder.parent
    return folder
