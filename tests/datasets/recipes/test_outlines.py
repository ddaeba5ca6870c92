from __future__ import annotations

from pathlib import Path

import numpy as np

from fedfms.datasets.recipes.outlines import filled_outlines
from tests.datasets.recipes.archives import outline_xml, square


def test_a_pixel_counts_when_its_centre_is_inside(tmp_path: Path) -> None:
    path = tmp_path / "a.xml"
    outline_xml(path, {"Epithelial": [square(2.4, 5.6, 3)]})
    expected = np.zeros((12, 10), np.uint8)
    expected[6:9, 2:5] = 255  # centres at 2.5, 3.5, 4.5 and 6.5, 7.5, 8.5
    assert np.array_equal(filled_outlines(path, (12, 10)), expected)


def test_area_of_a_circle(tmp_path: Path) -> None:
    angles = np.linspace(0, 2 * np.pi, 400, endpoint=False)
    corners = [(60 + 40 * np.cos(angle), 50 + 40 * np.sin(angle)) for angle in angles]
    outline_xml(tmp_path / "a.xml", {"": [corners]})
    mask = filled_outlines(tmp_path / "a.xml", (100, 120)) > 0
    assert abs(mask.sum() / (np.pi * 40**2) - 1) < 0.01
    rows, columns = np.nonzero(mask)
    assert np.allclose((rows.mean() + 0.5, columns.mean() + 0.5), (50, 60), atol=0.05)


def test_all_annotations_but_the_ambiguous_are_drawn_and_cut_at_the_edge(tmp_path: Path) -> None:
    path = tmp_path / "a.xml"
    outline_xml(
        path, {"Neutrophil": [square(0, 0, 2)], "Ambiguous": [square(4, 4, 4)], "Macrophage": [square(8, 8, 9)]}
    )
    mask = filled_outlines(path, (10, 10)) > 0
    assert mask[:2, :2].all() and mask[8:, 8:].all()
    assert mask.sum() == 8


def test_no_outline_is_an_empty_mask(tmp_path: Path) -> None:
    outline_xml(tmp_path / "a.xml", {"Epithelial": []})
    assert not filled_outlines(tmp_path / "a.xml", (10, 10)).any()
