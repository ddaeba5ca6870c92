"""Names of files that are not text, and accents that two systems encode in two ways."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from fedfms.data.description.site import load_site
from fedfms.data.dicom.image import read_dicom_volume
from fedfms.data.slices.discovery import find_cases
from fedfms.data.slices.split import assign_splits
from fedfms.errors import FedfmsError
from tests.command import Command
from tests.generators import write_raster_site, write_series, write_yaml

NAME = "Müller_größe"


def rename(folder: Path, form: Any) -> None:
    """Give the first image or mask an accent."""
    path = min(folder.iterdir())
    path.rename(folder / f"{unicodedata.normalize(form, NAME)}.png")


@pytest.mark.parametrize("image_form", ["NFC", "NFD"])
@pytest.mark.parametrize("mask_form", ["NFC", "NFD"])
def test_image_and_mask_are_matched_however_their_accents_are_encoded(
    tmp_path: Path, image_form: str, mask_form: str
) -> None:
    site_file = write_raster_site(tmp_path, patient={"rule": "each_image"})
    rename(tmp_path / "images", image_form)
    rename(tmp_path / "masks", mask_form)
    found = find_cases(load_site(site_file).datasets[0])
    assert not found.bad and not found.problems
    (case,) = [case for case in found.cases if "ller" in case.name]
    assert case.name == f"images/{unicodedata.normalize('NFC', NAME)}.png"
    assert case.image.exists() and case.masks[0] is not None and case.masks[0].exists()


def test_the_split_does_not_depend_on_the_encoding(tmp_path: Path) -> None:
    splits = []
    for form in ("NFC", "NFD"):
        site_file = write_raster_site(tmp_path / form, patient={"rule": "each_image"})
        rename(tmp_path / form / "images", form)
        rename(tmp_path / form / "masks", form)
        cases = find_cases(load_site(site_file).datasets[0]).cases
        splits.append([(case.identity, split) for case, split in zip(cases, assign_splits(cases)[0], strict=True)])
    assert splits[0] == splits[1]


def test_two_images_that_only_the_encoding_tells_apart_are_d014(tmp_path: Path) -> None:
    site_file = write_raster_site(tmp_path, patient={"rule": "each_image"})
    content = min((tmp_path / "images").iterdir()).read_bytes()
    for form in ("NFC", "NFD"):
        (tmp_path / "images" / f"{unicodedata.normalize(form, NAME)}.png").write_bytes(content)
    bad = find_cases(load_site(site_file).datasets[0]).bad
    assert [[problem.kind.id for problem in case] for case in bad] == [["FMS-D014"]] * 2


def test_a_name_that_is_not_utf_8_is_named_with_its_bytes_by_every_command(tmp_path: Path, fedfms: Command) -> None:
    site_file = write_raster_site(tmp_path, patient={"rule": "each_image"})
    for folder in ("images", "masks"):
        path = min((tmp_path / folder).iterdir())
        path.rename(os.fsdecode(os.fsencode(path.parent) + b"/M\xfcller.png"))
    for arguments in (["check"], ["check", "--show-ids"], ["check", "--json", "--show-ids"]):
        result = fedfms("data", arguments[0], site_file, *arguments[1:])
        assert result.code == 1 and "FMS-D004" in result.out
        assert ("ller" in result.out) == ("--show-ids" in arguments)
    result = fedfms("data", "preview", site_file, "--out", tmp_path / "sheet.png")
    assert result.code == 1 and "FMS-D004" in result.err
    result = fedfms("data", "init", tmp_path, "--out", tmp_path / "first.yaml")
    assert result.code == 1 and "not UTF-8" in result.err and "M\\xfcller.png" in result.err


def test_errors_of_files_whose_names_are_not_utf_8_can_be_printed(tmp_path: Path) -> None:
    names = [os.fsdecode(b"M\xfcller_%d.dcm" % number) for number in range(6)]
    write_series(tmp_path, np.zeros((8, 9, 6), np.int16), np.eye(4), names=names)
    assert read_dicom_volume(tmp_path).voxels.shape == (8, 9, 6)
    (tmp_path / names[2]).unlink()
    with pytest.raises(FedfmsError) as caught:
        read_dicom_volume(tmp_path)
    assert b"ller_3.dcm" in str(caught.value).encode() and caught.value.ids == ("FMS-D015",)


def test_a_manifest_finds_files_of_another_encoding(tmp_path: Path) -> None:
    site_file = write_raster_site(tmp_path, patient={"rule": "each_image"})
    rename(tmp_path / "images", "NFD")
    rename(tmp_path / "masks", "NFD")
    (tmp_path / "list.csv").write_text(f"image,mask\nimages/{NAME}.png,masks/{NAME}.png\n", encoding="utf-8")
    content = yaml.safe_load(site_file.read_text())["datasets"][0]
    content["images"] = {"manifest": "list.csv", "column": "image"}
    content["masks"] = [{"column": "mask", "labels": content["masks"][0]["labels"]}]
    found = find_cases(load_site(write_yaml(site_file, {"datasets": [content]})).datasets[0])
    assert not found.bad and not found.problems and len(found.cases) == 1
