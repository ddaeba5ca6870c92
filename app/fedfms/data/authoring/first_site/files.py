"""Sorting the files of a folder into images, masks and others: by name and, for DICOM, by header."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from fedfms.access import is_file, require_readable, walk
from fedfms.data.dicom.series import Found, collect
from fedfms.data.readers import raster
from fedfms.data.readers.formats import Format, format_of, has_dicom_mark, stem
from fedfms.data.readers.masks import present_values, read_label_map
from fedfms.data.volume.geometry import Array
from fedfms.data.volume.names import require_utf8
from fedfms.errors import FedfmsError, Problem

#: Words in a name that mean a mask; a number may follow them.
_MASK_WORDS = re.compile(
    r"(mask|label|labelmap|seg|segmentation|annotation|contour|roi|instance)s?|gt|groundtruth|manual"
)
#: A file with more distinct values than this is not a mask.
_MASK_VALUES = 20
#: Masks from 0 to less than this have labels, not shades.
_LEAST_PEAK = 100


@dataclass(frozen=True)
class Contents:
    """The files of a folder.

    Attributes:
        images: Format -> raster images and volumes, as paths relative to root.
        masks: Raster and volume files that seem to be masks.
        series: DICOM image series.
        regions: DICOM SEG and RTSTRUCT objects.
        tables: CSV files.
        unreadable: Number of damaged DICOM files.
        masks_by_content: Whether masks were recognised by their few values, not by their names.
    """

    images: dict[Format, list[Path]]
    masks: list[Path]
    series: list[Found]
    regions: list[Found]
    tables: list[Path]
    unreadable: int
    masks_by_content: bool


def words(text: str) -> list[str]:
    """The words of a name, in lower case."""
    return [word for word in re.split(r"[^a-z0-9]+", re.sub(r"([a-z])([A-Z])", r"\1_\2", text).lower()) if word]


def is_mask_word(word: str) -> bool:
    """Whether the word means a mask."""
    return _MASK_WORDS.fullmatch(re.sub(r"\d+$", "", word)) is not None


def look(root: Path) -> Contents:
    """Sort the files of a folder at any depth; names that begin with a dot are skipped.

    Raises:
        FedfmsError: FMS-D004 for a name that is not UTF-8, FMS-D019 for each file and folder that may not be read: a
            description without them would leave them out.
    """
    files = _readable(root)
    for path in files:
        require_utf8(path)
    images: dict[Format, list[Path]] = {"nifti": [], "itk": [], "raster": []}
    masks: list[Path] = []
    dicom: dict[Path, list[Path]] = {}
    for path in files:
        kind = format_of(path)
        if kind is None and _is_dicom(root / path):
            dicom.setdefault(path.parent, []).append(root / path)
        elif kind is None:
            continue
        elif any(is_mask_word(word) for part in path.parts for word in words(stem(part))):
            masks.append(path)
        else:
            images[kind].append(path)
    # Folder by folder: copies of a series in two folders are two cases.
    collected = [collect(paths) for paths in dicom.values()]
    found = [item for items, _ in collected for item in items]
    series = [item for item in found if item.series.kind == "image"]
    by_content = not masks and _move_masks(root, images, masks, all_of_them=bool(series))
    return Contents(
        images=images,
        masks=masks,
        series=series,
        regions=[item for item in found if item.series.kind in ("seg", "rtstruct")],
        tables=[path for path in files if path.suffix.lower() == ".csv"],
        unreadable=sum(len(problems) for _, problems in collected),
        masks_by_content=by_content,
    )


def _readable(root: Path) -> list[Path]:
    """Files below a folder, relative to it, without names that begin with a dot."""
    refused: list[Problem] = []
    files: list[Path] = []
    for path in walk(root, refused, hidden=False):
        try:
            if is_file(path):
                require_readable(path)
                files.append(path.relative_to(root))
        except FedfmsError as error:
            refused += error.problems
    if refused:
        raise FedfmsError(refused)
    return files


def values_in(labels: Array) -> set[int]:
    """The values of a label map other than 0."""
    return set(present_values(labels)) - {0}


def has_soft_edges(labels: Array) -> bool:
    """Whether a mask is one shape from 0 to its largest value whose edges were smoothed, or compressed with loss.

    Its values between the two are edges: they change from pixel to pixel, which numbers of objects do not.
    """
    peak = int(labels.max())
    near = peak // 10
    between = (labels > near) & (labels < peak - near)
    if peak < _LEAST_PEAK or labels.min() < 0 or (not between.any() and len(present_values(labels)) <= 2):
        return False
    flat = (labels[:, 1:] == labels[:, :-1]) & between[:, 1:]
    alike = flat.sum() < between.sum() / 2 or not between.any()
    return bool(alike and (labels >= peak - near).sum() > 0 and (labels <= near).any())


def read_labels(path: Path) -> Array:
    """The values of a raster mask (rows, columns) or of a label map (i, j, k).

    Raises:
        FedfmsError: what the reader of the file raises.
    """
    return raster.read_mask(path) if format_of(path) == "raster" else read_label_map(path).voxels


def _is_dicom(path: Path) -> bool:
    try:
        return has_dicom_mark(path)
    except OSError:
        return False


def _move_masks(root: Path, images: dict[Format, list[Path]], masks: list[Path], *, all_of_them: bool) -> bool:
    """Without names of masks: move folders whose first three files have few values, if other folders do not.

    Beside DICOM series (``all_of_them``) they are moved also when no other folder is left: the series are the images.
    """
    for files in images.values():
        folders: dict[Path, list[Path]] = {}
        for path in files:
            folders.setdefault(path.parent, []).append(path)
        few = {folder for folder, own in folders.items() if all(_few_values(root / path) for path in own[:3])}
        if few and (all_of_them or len(few) < len(folders)):
            moved = [path for path in files if path.parent in few]
            masks += moved
            files[:] = [path for path in files if path.parent not in few]
    return bool(masks)


def _few_values(path: Path) -> bool:
    try:
        return len(values_in(read_labels(path))) <= _MASK_VALUES
    except FedfmsError:
        return False
