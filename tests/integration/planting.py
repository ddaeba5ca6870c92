"""Plants words into a hospital's data that exist nowhere else, and looks for them in whatever somebody holds."""

from __future__ import annotations

import gzip
import io
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pydicom
import yaml


def plant(data: Path, site_file: Path, word: str) -> None:
    """Put ``word`` into names of folders and files, DICOM tags, pixels and ``site.yaml`` of a demo hospital."""
    for number, series in enumerate(sorted((data / "images").iterdir())):
        for index, file in enumerate(sorted(series.iterdir())):
            header = pydicom.dcmread(file)
            header.PatientName = f"{word}^Name"
            header.PatientID = f"{word}-{number}"
            header.AccessionNumber = word[:16]
            header.InstitutionName = header.StudyDescription = f"{word} tag"
            if not header.file_meta.TransferSyntaxUID.is_compressed:
                pixels = bytearray(header.PixelData)
                pixels[: len(word)] = word.encode()
                header.PixelData = bytes(pixels)
            header.save_as(series / f"{word}_{index}.dcm", enforce_file_format=True)
            file.unlink()
        mask = data / "labels" / f"{series.name}.nii.gz"
        mask.rename(mask.with_name(f"{word}{number}.nii.gz"))
        series.rename(series.with_name(f"{word}{number}"))
    content = yaml.safe_load(site_file.read_text())
    content["datasets"][0]["name"] = word
    site_file.write_text(yaml.safe_dump(content))


def holders(folder: Path, words: list[str]) -> dict[str, list[str]]:
    """For each word the files below a folder whose name or content has it, also when packed or in two-byte letters."""
    found: dict[str, list[str]] = {word: [] for word in words}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        for place, content in _unpacked(name, path.read_bytes() if path.is_file() else b""):
            for word in words:
                forms = (word.encode(), word.encode("utf-16-le"), word.encode().hex().encode())
                if word in place or any(form in content for form in forms):
                    found[word].append(place)
    return found


def _unpacked(name: str, content: bytes) -> Iterator[tuple[str, bytes]]:
    """The content as it is, and what is packed in it, to any depth."""
    yield name, content
    if content[:2] == b"\x1f\x8b":
        yield from _unpacked(f"{name}!gz", gzip.decompress(content))
    elif content[:4] == b"PK\x03\x04":
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for entry in archive.namelist():
                yield from _unpacked(f"{name}!{entry}", archive.read(entry))
    elif content[:1] == b"\x78":
        try:
            yield f"{name}!zlib", zlib.decompress(content)
        except zlib.error:
            return


def pixel_words(data: Path, word: str) -> int:
    """How many images show the word's bytes in their pixels."""
    files = data.rglob("*.dcm")
    return sum(
        np.ascontiguousarray(pydicom.dcmread(file).PixelData).tobytes().startswith(word.encode()) for file in files
    )
