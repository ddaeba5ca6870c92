"""The contact sheet: what is drawn where, and that a bad case is shown."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from matplotlib.figure import Figure
from PIL import Image

from fedfms.results import preview
from fedfms.results.preview import draw_preview
from tests.command import Command
from tests.data.quality.sites import CASES, picture, raster_site, volume_site
from tests.generators import write_nifti, write_yaml


@pytest.fixture
def cells(monkeypatch: pytest.MonkeyPatch) -> list[preview._Cell]:
    """Takes the cells instead of drawing them."""
    taken: list[preview._Cell] = []
    monkeypatch.setattr(preview, "_draw", lambda cells, structures, out: taken.extend(cells))
    return taken


def cyan(path: Path) -> np.ndarray:
    """Pixels in the colour of the first structure."""
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    return np.argwhere((np.abs(pixels - [0, 229, 255]) < 40).all(axis=2))


def test_the_sheet_shows_outlines(fedfms: Command, tmp_path: Path) -> None:
    site, out = raster_site(tmp_path / "site"), tmp_path / "out" / "sheet.png"
    result = fedfms("data", "preview", site, "--out", out, "--cases", 3)
    assert (result.code, result.out) == (0, f"written: {out}\n")
    with_masks = len(cyan(out))
    for path in (tmp_path / "site" / "masks").iterdir():
        Image.fromarray(np.zeros((48, 64), np.uint8)).save(path)
    fedfms("data", "preview", site, "--out", out, "--cases", 3)
    assert with_masks > 3 * len(cyan(out)) > 0  # what remains is the legend


def test_cases_are_spread_over_the_list_and_numbered(cells: list[preview._Cell], tmp_path: Path) -> None:
    site = raster_site(tmp_path)
    assert draw_preview(site, tmp_path / "x.png", cases=3) == []
    assert [cell.title for cell in cells] == ["photographs 1", "photographs 6", "photographs 11"]
    _, mask = picture(5)
    assert np.array_equal(cells[1].masks[0], mask)
    assert cells[1].image is not None and cells[1].image.shape == (48, 64, 3)
    assert cells[1].image[mask == 1].min() > cells[1].image[mask == 0].max()
    cells.clear()
    draw_preview(site, tmp_path / "x.png", cases=100, show_ids=True)
    assert [cell.title for cell in cells] == [f"images/c{number:02d}_0.png" for number in range(CASES)]


def test_of_a_volume_the_slice_with_the_largest_mask(cells: list[preview._Cell], tmp_path: Path) -> None:
    site = volume_site(tmp_path)
    labels = np.zeros((64, 48, 3), np.uint8)
    labels[10:20, 10:20, 0], labels[10:30, 10:30, 2] = 1, 1
    write_nifti(tmp_path / "c00_0_mask.nii.gz", labels, np.diag([-1.0, -1.0, 2.0, 1.0]))
    draw_preview(site, tmp_path / "x.png", cases=1)
    assert cells[0].title == "photographs 1, slice 3 of 3"
    assert cells[0].masks[0].sum() == 400


def test_structures_that_no_slice_shows_together(cells: list[preview._Cell], tmp_path: Path) -> None:
    site = volume_site(tmp_path)
    content = yaml.safe_load(site.read_text())
    content["datasets"][0]["masks"][0]["labels"] = {"organ": 1, "lesion": 2, "cyst": 3}
    write_yaml(site, content)
    labels = np.zeros((64, 48, 3), np.uint8)
    labels[10:20, 10:20, 1], labels[10:30, 10:30, 2], labels[30:34, 10:20, 2] = 1, 2, 3
    write_nifti(tmp_path / "c00_0_mask.nii.gz", labels, np.diag([-1.0, -1.0, 2.0, 1.0]))
    draw_preview(site, tmp_path / "x.png", cases=1)
    assert cells[0].title == "photographs 1, slice 3 of 3"


def test_many_structures_are_all_named_under_one_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The legend takes as many lines as it needs, and is below the image."""
    figures: list[Any] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    monkeypatch.setattr(preview, "atomic_path", lambda out: nullcontext(out))
    cell = preview._Cell("one", np.zeros((20, 40, 3), np.float32), (), 1.0)
    for names in ([f"structure_{number}" for number in range(7)], ["a" * 80], []):
        preview._draw([cell], tuple(names), tmp_path / "x.png")
        figure = figures[-1]
        axis = figure.axes[0].get_tightbbox()
        assert axis.y1 <= figure.bbox.y1
        for drawn in figure.legends:
            box = drawn.get_window_extent()
            assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 + 1 and box.y1 <= axis.y0
            assert [text.get_text() for text in drawn.get_texts()] == names
        assert len(figure.legends) == bool(names)


def test_grey_values_are_those_around_the_structures(cells: list[preview._Cell], tmp_path: Path) -> None:
    """Of a CT, air would take most of the grey values."""
    site = raster_site(tmp_path)
    values, mask = picture(0)
    values[:, :16] = 0
    values[:8] = 255
    Image.fromarray(values).save(tmp_path / "images" / "c00_0.png")
    draw_preview(site, tmp_path / "x.png", cases=1)
    assert cells[0].image is not None
    background, organ = cells[0].image[20, 30, 0], cells[0].image[mask > 0][:, 0]
    assert background < 0.2 and organ.min() > 0.7
    Image.fromarray(np.zeros_like(mask)).save(tmp_path / "masks" / "c00_0.png")
    draw_preview(site, tmp_path / "x.png", cases=1)
    assert cells[-1].image is not None and cells[-1].image[20, 30, 0] == pytest.approx(values[20, 30] / 255, abs=0.02)


def test_pixels_that_are_not_square(cells: list[preview._Cell], tmp_path: Path) -> None:
    site = volume_site(tmp_path)
    for name in ("", "_mask"):
        write_nifti(tmp_path / f"c00_0{name}.nii.gz", np.ones((4, 5, 2), np.uint8), np.diag([-1.0, -3.0, 2.0, 1.0]))
    draw_preview(site, tmp_path / "x.png", cases=1)
    assert cells[0].aspect == pytest.approx(3.0)


def test_a_bad_case_is_shown_and_named_only_when_asked(fedfms: Command, tmp_path: Path) -> None:
    site, out = raster_site(tmp_path / "site"), tmp_path / "sheet.png"
    (tmp_path / "site" / "images" / "c00_0.png").write_bytes(b"x")
    result = fedfms("data", "preview", site, "--out", out)
    assert result.code == 1 and out.is_file()
    assert "FMS-D004" in result.err and "c00_0" not in result.err and "add --show-ids" in result.err
    assert "c00_0.png" in fedfms("data", "preview", site, "--out", out, "--show-ids").err


def test_nothing_to_draw(fedfms: Command, tmp_path: Path) -> None:
    site = raster_site(tmp_path)
    for path in (tmp_path / "images").iterdir():
        path.unlink()
    fedfms("data", "preview", site, "--out", tmp_path / "x.png").failed_with("FMS-D008")
    assert not (tmp_path / "x.png").exists()


def test_no_usable_case_is_named_only_when_asked(fedfms: Command, tmp_path: Path) -> None:
    site = raster_site(tmp_path)
    for path in (tmp_path / "masks").iterdir():
        path.unlink()
    result = fedfms("data", "preview", site, "--out", tmp_path / "x.png")
    assert result.code == 1 and "FMS-D003" in result.err and "c00_0" not in result.err
    assert f"Mend what 'fedfms data check {site} --show-ids' names first." in result.err
    assert "c00_0.png" in fedfms("data", "preview", site, "--out", tmp_path / "x.png", "--show-ids").err


@pytest.mark.shared_data
def test_every_dicom_sample_is_drawn(shared_data: Path, fedfms: Command, tmp_path: Path) -> None:
    """From the folder to the sheet with no line written by hand."""
    site = tmp_path / "site.yaml"
    assert fedfms("data", "init", shared_data / "dicom_samples", "--out", site).code == 0
    assert fedfms("data", "preview", site, "--out", tmp_path / "sheet.png").code == 0
    assert len(cyan(tmp_path / "sheet.png")) > 500  # the liver
