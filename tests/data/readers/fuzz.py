"""Damage a DICOM file in many ways and read its folder; run by ``test_fuzz`` in a process of its own.

``python -m tests.data.readers.fuzz FOLDER FILE FIRST LAST [mask]`` prints one JSON line per variant, before and after
reading. A variant is made from its number alone, so that a failing one can be made again. With ``mask`` the file is a
DICOM SEG or RTSTRUCT, which is then read as the mask of the image beside it.
"""

from __future__ import annotations

import json
import resource
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom

from fedfms.data.description.site import MaskSource
from fedfms.data.dicom.image import read_dicom_image, read_dicom_volume
from fedfms.data.readers.masks import annotated, region_names, volume_masks
from fedfms.data.volume.geometry import Array, Picture, Volume
from fedfms.errors import FedfmsError

MEMORY_BYTES = 2 * 2**30
#: Of processor time, so that a busy machine does not matter.
SECONDS = 20

ODD_VALUES: dict[str, list[Any]] = {
    "US": [0, 1, 3, 7, 65535],
    "UL": [0, 2**32 - 1],
    "IS": ["", "-1", "0", "2147483647", "x"],
    "DS": ["", "0", "-1", "nan", "inf", "1e38", "1e-38", "x", ["1", "2"], ["0", "0", "0", "0", "0", "0"]],
    "UI": ["", "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.70", "x.y"],
    "CS": ["", "MONOCHROME1", "RGB", "YBR_FULL_422", "PALETTE COLOR", "\\\\"],
    "SQ": [[], [pydicom.Dataset()], [pydicom.Dataset(), pydicom.Dataset()]],
}


def flip(data: bytearray, rng: np.random.Generator) -> None:
    """Change a few bytes; half of the time in the first part, where the header is."""
    end = len(data) if rng.random() < 0.5 else min(len(data), 1500)
    for position in rng.integers(128, end, rng.integers(1, 9)):
        data[position] ^= int(rng.integers(1, 256))


def truncate(data: bytearray, rng: np.random.Generator) -> None:
    """Cut off the end, at least more than an end marker."""
    del data[int(rng.integers(0, len(data) - 16)) :]


def shuffle(data: bytearray, rng: np.random.Generator) -> None:
    """Exchange two blocks of bytes."""
    size = int(rng.integers(2, 64))
    first, second = (int(x) for x in rng.integers(128, len(data) - size, 2))
    one, other = data[first : first + size], data[second : second + size]
    data[first : first + size] = other
    data[second : second + size] = one


def insert(data: bytearray, rng: np.random.Generator) -> None:
    """Put in or take out some bytes."""
    position = int(rng.integers(128, len(data)))
    if rng.random() < 0.5:
        data[position:position] = rng.bytes(int(rng.integers(1, 40)))
    else:
        del data[position : position + int(rng.integers(1, 40))]


def tags(data: bytearray, rng: np.random.Generator) -> None:
    """Delete elements or give them odd values, at any depth."""
    with pydicom.config.disable_value_validation():
        header = pydicom.dcmread(BytesIO(bytes(data)))
        for _ in range(int(rng.integers(1, 4))):
            places = [(header, element) for element in header] + [(header.file_meta, item) for item in header.file_meta]
            for element in header:
                if element.VR == "SQ":
                    places += [(item, child) for item in element.value for child in item]
            where, element = places[int(rng.integers(len(places)))]
            values = ODD_VALUES.get(element.VR, [""])
            if rng.random() < 0.3 or element.tag == 0x00020010:
                where.pop(element.tag, None)
            elif element.VR not in ("OB", "OW", "UN"):
                where[element.tag] = pydicom.DataElement(
                    element.tag, element.VR, values[int(rng.integers(len(values)))], already_converted=True
                )
        buffer = BytesIO()
        header.save_as(buffer)
    data[:] = buffer.getvalue()


def sizes(data: bytearray, rng: np.random.Generator) -> None:
    """Claim another size than the pixels have."""
    header = pydicom.dcmread(BytesIO(bytes(data)))
    names = ["Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "BitsAllocated", "BitsStored", "HighBit"]
    for name in rng.choice(names, int(rng.integers(1, 4)), replace=False):
        choices = [0, 1, 2, 3, 8, 12, 16, 32, 1000, 30000, 65535]
        value = int(rng.choice([*choices, 2**31 - 1] if name == "NumberOfFrames" else choices))
        setattr(header, str(name), value)
    buffer = BytesIO()
    header.save_as(buffer)
    data[:] = buffer.getvalue()


WAYS: tuple[Callable[[bytearray, np.random.Generator], None], ...] = (flip, truncate, shuffle, insert, tags, sizes)


def damaged(original: bytes, number: int) -> tuple[str, bytes]:
    """Variant of a file, with the name of what was done; never the original itself."""
    rng = np.random.default_rng(number)
    way = WAYS[number % len(WAYS)]
    data = bytearray(original)
    while bytes(data) == original:
        with suppress(Exception):  # pydicom refuses to write some nonsense: draw again
            way(data, rng)
    return way.__name__, bytes(data)


def outcome(folder: Path) -> str:
    """``read`` for a sound image, the ids of a typed error, or what is wrong with the image."""
    try:
        image = read_dicom_image(folder)
    except FedfmsError as error:
        return " ".join(error.ids)
    if isinstance(image, Picture):
        sound = image.values.ndim == 2 or image.values.shape[2:] == (3,)
        return "read" if sound and image.values.size else f"picture of shape {image.values.shape}"
    sound = (
        image.voxels.shape == image.grid.shape
        and image.voxels.dtype == np.float32
        and bool(np.isfinite(image.voxels).all())
        and bool(np.isfinite(image.grid.affine).all())
        and abs(float(np.linalg.det(image.grid.affine[:3, :3]))) > 0
        and len(image.sources) == image.grid.shape[2]
    )
    return "read" if sound else f"a volume that is not sound: {image.grid}"


def mask_outcome(path: Path, image: Volume, sound: Array | None = None) -> tuple[str, Array | None]:
    """``read``, ``read otherwise`` (other voxels than ``sound``), ``not annotated`` or the ids, and the voxels."""
    source = MaskSource.model_validate({"pattern": "{case}.dcm", "labels": {"all": "nonzero"}, "required": False})
    try:
        region_names(path)
        names = annotated(source, path)
        masks = volume_masks(path, source, ["all"], image, "the image")
    except FedfmsError as error:
        return " ".join(error.ids), None
    if masks.keys() != names:
        return f"header and file differ: {names} and {masks.keys()}", None
    if not masks:
        return "not annotated", None
    mask = masks["all"]
    if mask.shape != image.grid.shape or mask.dtype != np.uint8 or mask.max() > 1:
        return f"a mask that is not sound: {mask.shape} {mask.dtype}", None
    return "read" if sound is None or np.array_equal(mask, sound) else "read otherwise", mask


def main(folder: Path, name: str, first: int, last: int, *, as_mask: bool = False) -> None:
    """Read variants ``first`` to ``last`` - 1 within the limits; beyond them the process dies."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    original = (folder / name).read_bytes()
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch)
        for path in folder.iterdir():
            shutil.copyfile(path, copy / path.name)
        assert outcome(copy) == "read", "the undamaged folder"
        image = read_dicom_volume(folder) if as_mask else None
        sound = mask_outcome(folder / name, image)[1] if image else None
        assert sound is None or sound.any(), "the undamaged mask"
        for number in range(first, last):
            way, data = damaged(original, number)
            (copy / name).write_bytes(data)
            print(json.dumps({"variant": number, "way": way}), flush=True)
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            found = outcome(copy) if image is None else mask_outcome(copy / name, image, sound)[0]
            print(json.dumps({"outcome": found}), flush=True)
            signal.setitimer(signal.ITIMER_PROF, 0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), as_mask=sys.argv[5:] == ["mask"])
