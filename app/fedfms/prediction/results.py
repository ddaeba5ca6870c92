"""A prediction, and how it is written for a picture or volume in the input's own format."""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, PngImagePlugin

from fedfms.data.volume.geometry import Array
from fedfms.files import atomic_path
from fedfms.prediction.inputs import InputCase

#: A probability of 1 is stored as this number.
FULL_PROBABILITY = 255

Masks = Mapping[str, npt.NDArray[np.uint8]]


@dataclass(frozen=True)
class Prediction:
    """The predicted masks of one case, as arrays in the order of ``CaseImage.shape``.

    Attributes:
        masks: Structure -> 0/1.
        probabilities: Structure -> 0..``FULL_PROBABILITY``; None when they were not requested.
    """

    masks: Masks
    probabilities: Masks | None


def file_of(case: InputCase, what: str) -> Path:
    """Path below the output folder of one of a case's results, such as ``organ`` or ``organ_probability``."""
    endings = {"raster": ".png", "dicom": ".dcm", "nifti": ".nii.gz", "itk": ".nrrd"}
    lower = case.path.name.lower()
    ending = endings[case.kind]
    if case.kind == "nifti" and not lower.endswith(".gz"):
        ending = ".nii"
    if case.kind == "itk" and lower.endswith((".mha", ".mhd")):
        ending = ".mha"
    return case.name.with_name(f"{case.name.name}_{what}{ending}")


def write_results(case: InputCase, prediction: Prediction, out: Path, notice: str) -> list[Path]:
    """Write one file per structure, and one per probability map, for any format but DICOM.

    Masks hold 0 and 1 on the grid of the input, or 0 and 255 in PNG. Probability maps hold 0..1 (PNG: 0..255), in
    steps of 1/255.

    Args:
        case: The input.
        prediction: Its results.
        out: The output folder.
        notice: Written into every file.

    Raises:
        FedfmsError: FMS-D011.
    """
    write = {"raster": _write_png, "nifti": _write_nifti, "itk": _write_itk}[case.kind]
    written = []
    for structure, mask in prediction.masks.items():
        written.append(out / file_of(case, structure))
        write(case, mask if case.kind != "raster" else mask * np.uint8(255), written[-1], notice)
    for structure, map_ in (prediction.probabilities or {}).items():
        written.append(out / file_of(case, f"{structure}_probability"))
        values = map_ if case.kind == "raster" else map_.astype(np.float32) / np.float32(FULL_PROBABILITY)
        write(case, values, written[-1], notice)
    return written


def _write_png(_: InputCase, values: Array, path: Path, notice: str) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", notice)
    with atomic_path(path) as temporary:
        Image.fromarray(values).save(temporary, format="png", pnginfo=text)


def _write_nifti(case: InputCase, values: Array, path: Path, notice: str) -> None:
    """Affine, units and qform/sform of the source, to the bit; the whole notice is the header's extension."""
    import nibabel

    source = nibabel.load(case.path)
    header = source.header.copy()
    header.extensions.clear()
    header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", notice.encode()))
    header.set_data_dtype(values.dtype)
    header.set_slope_inter(1, 0)
    header["cal_min"] = header["cal_max"] = 0
    header["descrip"] = notice[:79].encode()
    content = type(source)(values, source.affine, header).to_bytes()
    with atomic_path(path) as temporary:
        temporary.write_bytes(gzip.compress(content, 6, mtime=0) if path.suffix == ".gz" else content)


def _write_itk(case: InputCase, values: Array, path: Path, notice: str) -> None:
    import SimpleITK

    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(case.path))
    reader.ReadImageInformation()
    # ITK's arrays are (k, j, i).
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(values.transpose(2, 1, 0)))
    image.SetSpacing(reader.GetSpacing()[:3])
    image.SetOrigin(reader.GetOrigin()[:3])
    image.SetDirection(reader.GetDirection()[:9])
    image.SetMetaData("Notice", notice)
    with atomic_path(path) as temporary:
        # ITK chooses the format by the ending.
        named = temporary.with_name(temporary.name + path.suffix)
        try:
            SimpleITK.WriteImage(image, str(named), useCompression=True)
            named.replace(temporary)
        except RuntimeError as error:
            # ITK's only kind of error; the last line says why.
            raise OSError(str(error).strip().splitlines()[-1]) from error
        finally:
            named.unlink(missing_ok=True)
