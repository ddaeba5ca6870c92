"""Which DICOM series a folder contains, and which of them is the image.

Only headers are read. A file counts as an image by its SOP class (PS3.4 B.5), so that segmentations, structure
sets, reports and dose may be in the same folder as the series that they belong to.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from io import BufferedReader, FileIO
from pathlib import Path
from typing import Any

from fedfms.access import is_dir, is_file, paths_that_fit
from fedfms.data.description.series import ObjectKind, Series, SeriesChoice
from fedfms.data.dicom.elements import Elements, as_unreadable, quiet, refuse_unknown_syntax
from fedfms.data.dicom.variants import KEYWORDS, PRIVATE_TAGS
from fedfms.data.volume.remedies import GeneralRemedy
from fedfms.errors import CASE_AMBIGUOUS, FILE_REFUSED, IMAGE_MISSING, IMAGE_UNREADABLE, FedfmsError, Problem, fail

_HEADER_TAGS: list[str | int] = [
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SeriesDescription",
    "SeriesNumber",
    "Modality",
    "PatientID",
    "FrameOfReferenceUID",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "SliceThickness",
    "SpacingBetweenSlices",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "BitsAllocated",
    "BurnedInAnnotation",
    "InstanceNumber",
    "ImagesInAcquisition",
    "RescaleSlope",
    "RescaleIntercept",
    "RescaleType",
    "ModalityLUTSequence",
    *KEYWORDS,
    *PRIVATE_TAGS,
    "ReferencedSeriesSequence",
    "ReferencedFrameOfReferenceSequence",
    "DimensionIndexSequence",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
]
_KINDS: dict[str, ObjectKind] = {
    "1.2.840.10008.5.1.4.1.1.66.4": "seg",
    "1.2.840.10008.5.1.4.1.1.66.7": "seg",  # Label Map Segmentation
    "1.2.840.10008.5.1.4.1.1.481.3": "rtstruct",
    # Grids of numbers that have rows and columns but are not images of the patient:
    "1.2.840.10008.5.1.4.1.1.30": "other",  # Parametric Map
    "1.2.840.10008.5.1.4.1.1.481.2": "other",  # RT Dose
}
_TEXTS = (
    "SOPInstanceUID",
    "SeriesInstanceUID",
    "StudyInstanceUID",
    "Modality",
    "SeriesDescription",
    "SeriesNumber",
    "PatientID",
    "FrameOfReferenceUID",
    "BurnedInAnnotation",
)
_PLAIN_READ = 1 << 16


@dataclass(frozen=True)
class Found:
    """A series, with the headers of its files in the order of ``series.files``.

    Attributes:
        series: Its UIDs, modality, description, kind and files.
        headers: Elements of each file, without pixels.
        texts: For each file, values of identifying elements by keyword; a text is empty when the element is absent.
    """

    series: Series
    headers: tuple[Elements, ...] = field(repr=False)
    texts: tuple[dict[str, str], ...] = field(repr=False)


def scan(folder: Path, files: str = "*", recursive: bool = False) -> tuple[list[Series], list[Problem]]:
    """List the series in a folder from the headers, in the order of their first files.

    Args:
        folder: Where to look.
        files: Pattern of file names; names that begin with a dot are never read.
        recursive: Look into sub-folders too.

    Returns:
        The series, and one FMS-D004 for each file that is not readable or not DICOM.

    Raises:
        FedfmsError: FMS-D003 when the folder is missing or no file fits.
    """
    found, problems = collect(paths_in(folder, files, recursive))
    return [item.series for item in found], problems


def paths_in(folder: Path, files: str = "*", recursive: bool = False) -> list[Path]:
    """List the files of a folder, sorted; for the arguments see ``scan``.

    Raises:
        FedfmsError: FMS-D003 when the folder is missing or no file fits, FMS-D019 when a folder may not be listed.
    """
    if not is_dir(folder):
        raise fail(IMAGE_MISSING, folder, "no such folder")
    found = paths_that_fit(folder, f"**/{files}" if recursive else files)
    paths = [path for path in found if is_file(path) and not path.name.startswith(".")]
    if not paths:
        raise fail(IMAGE_MISSING, folder, f"the folder holds no file that fits '{files}'")
    return paths


def collect(paths: Iterable[Path]) -> tuple[list[Found], list[Problem]]:
    """Read the headers of files and group them by SeriesInstanceUID and kind of object.

    Returns:
        The groups in the order of their first files, and FMS-D003 or FMS-D004 for each file that is missing, not
        readable or not DICOM.
    """
    groups: dict[tuple[str, ObjectKind], list[tuple[Path, Elements, dict[str, str]]]] = {}
    problems: list[Problem] = []
    for path in paths:
        try:
            with quiet():
                header = read_header(path)
                texts = {keyword: header.text(keyword) for keyword in _TEXTS}
                kind = _kind(header)
            groups.setdefault((texts["SeriesInstanceUID"], kind), []).append((path, header, texts))
        except FedfmsError as error:
            problems += error.problems
    return [_found(kind, members) for (_, kind), members in groups.items()], problems


def is_image(path: Path) -> bool:
    """Whether the file is a DICOM image by its header; False for segmentations and for files that are not DICOM.

    Raises:
        FedfmsError: FMS-D019 when it may not be read.
    """
    found, problems = collect([path])
    if refused := [problem for problem in problems if problem.kind is FILE_REFUSED]:
        raise FedfmsError(refused)
    return any(item.series.kind == "image" for item in found)


def holds_objects_only(folder: Path, files: str = "*") -> bool:
    """Whether a folder holds DICOM segmentations, structure sets, reports or similar objects, and nothing else.

    False when no file fits the pattern, and when a file is an image, damaged or not DICOM.
    """
    try:
        paths = paths_in(folder, files)
    except FedfmsError:
        return False
    for path in paths:
        # One at a time: nearly always the first is an image.
        found, _ = collect([path])
        if not found or found[0].series.kind == "image":
            return False
    return True


def choose(where: object, found: Sequence[Found], choice: SeriesChoice | None) -> Found:
    """The one image series that fits the choice.

    Args:
        where: Folder or file, for the error.
        found: All series there.
        choice: Which series is meant; None: any.

    Raises:
        FedfmsError: FMS-D003 when there is no image series at all; FMS-D014, with the candidates, when none or
            several fit.
    """
    fitting = [item for item in found if item.series.kind == "image" and (choice is None or choice.fits(item.series))]
    if len(fitting) != 1:
        raise no_fit(where, fitting or found)
    return fitting[0]


def no_fit(where: object, candidates: Sequence[Found]) -> FedfmsError:
    """The error when none or several image series fit: FMS-D003 without any image, else FMS-D014.

    Args:
        where: Folder or file, for the error.
        candidates: The series to list.
    """
    images = [f"{item.series} from {item.series.files[0].name}" for item in candidates if item.series.kind == "image"]
    if not images:
        others = "; ".join(sorted(str(item.series) for item in candidates))
        return fail(IMAGE_MISSING, where, f"no image, only: {others}")
    return fail(
        CASE_AMBIGUOUS,
        where,
        f"not one series fits; there {'is' if len(images) == 1 else 'are'}: {'; '.join(images)}",
        GeneralRemedy(
            "Choose one by description, modality or uid under images.series in site.yaml, or keep one series per"
            " folder."
        ),
    )


def read_header(path: Path) -> Elements:
    """Read the elements that say what a file is and give the positions of its frames; no pixels.

    Raises:
        FedfmsError: FMS-D003 when it is missing, FMS-D004 when it is not readable or not DICOM.
    """
    return _read(path, stop_before_pixels=True, specific_tags=_HEADER_TAGS)


def read_whole(path: Path, *, pixels: bool = True) -> Elements:
    """Read all elements of a file, or all but its pixels.

    Raises:
        FedfmsError: as ``read_header``.
    """
    return _read(path, stop_before_pixels=not pixels)


class WithinFile(BufferedReader):
    """A file that limits each read to the bytes that are left in it.

    Python allocates memory for a read before it reads, and a damaged element may claim 4 GB.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(FileIO(path))
        self._size = path.stat().st_size

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _PLAIN_READ:
            size = max(0, min(size, self._size - self.tell()))
        return super().read(size)


def _read(path: Path, **options: Any) -> Elements:
    import pydicom

    if not is_file(path):
        raise fail(IMAGE_MISSING, path, "no such file")
    with as_unreadable(path), WithinFile(path) as file:
        try:
            elements = Elements(path, pydicom.dcmread(file, **options))
        except pydicom.errors.InvalidDicomError as error:
            raise fail(
                IMAGE_UNREADABLE,
                path,
                "not a DICOM file (no DICM prefix)",
                GeneralRemedy("Take it out of the folder, or name the right files under images.files in site.yaml."),
            ) from error
        except Exception:
            # pydicom reads what it does not know as if it were Explicit VR Little Endian.
            refuse_unknown_syntax(path, pydicom.filereader.read_file_meta_info(path))
            raise
        refuse_unknown_syntax(path, elements.dataset.file_meta)
        return elements


def _kind(header: Elements) -> ObjectKind:
    if header.is_directory:
        return "other"
    uid, name = header.uid("SOPClassUID")
    sized = "Rows" in header and "Columns" in header
    kind = _KINDS.get(uid, "image" if "Image Storage" in name or sized else "other")
    lost = [keyword for keyword in ("SOPClassUID", "SeriesInstanceUID") if not header.text(keyword)]
    if lost or (kind == "image" and not sized):
        # It may be a slice: to skip it would shorten the volume.
        detail = f"no {' and no '.join(lost or ['Rows or no Columns'])}; the file is cut or damaged"
        raise fail(IMAGE_UNREADABLE, header.path, detail)
    return kind


def _found(kind: ObjectKind, members: list[tuple[Path, Elements, dict[str, str]]]) -> Found:
    texts = members[0][2]
    series = Series(
        uid=texts["SeriesInstanceUID"],
        study_uid=texts["StudyInstanceUID"],
        modality=texts["Modality"] or "?",
        description=texts["SeriesDescription"],
        number=texts["SeriesNumber"],
        kind=kind,
        files=tuple(path for path, _, _ in members),
    )
    return Found(series, tuple(header for _, header, _ in members), tuple(texts for _, _, texts in members))
