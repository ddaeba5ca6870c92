"""One slice per hospital: image, reference, prediction before and after the federation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from fedfms.data.description.site import load_site
from fedfms.data.slices.dataset import SiteDataset, SliceReference
from fedfms.data.slices.opening import DataRequest, open_dataset
from fedfms.files import atomic_path
from fedfms.results.drawing import legend, pyplot, show
from fedfms.sam.checkpoint import load_segmenter
from fedfms.sam.model import build_model
from fedfms.sam.segmenter import Segmenter
from fedfms.training.evaluation import RESEARCH_NOTICE, segment_slice
from fedfms.training.hardware import choose_hardware

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Row:
    """One hospital's row: masks ``(structures, rows, columns)``, image ``(rows, columns, 3)`` in 0..1."""

    site: str
    image: npt.NDArray[np.float32]
    reference: Mask
    before: Mask
    after: Mask


@torch.no_grad()
def make_row(site: str, site_file: Path, model_file: Path) -> Row:
    """Predict the validation slice with the largest reference, with the untrained and the trained model.

    Args:
        site: The hospital's name, the row's title.
        site_file: Its ``site.yaml``.
        model_file: A checkpoint of the run.

    Raises:
        FedfmsError: everything that is wrong with the data or the checkpoint.
    """
    trained, header = load_segmenter(model_file)
    description = load_site(site_file)
    dataset = open_dataset(
        description,
        DataRequest(
            task=header.task,
            structures=header.model.structures,
            missing_structure="mask",
            preprocessing=header.preprocessing,
        ),
        verify=not description.strict,  # which cases are left out is only known from reading them
    )
    reference = _largest(dataset)
    hardware = choose_hardware(description.compute, "auto")
    sample = dataset.load(reference)
    masks = []
    models: Sequence[Segmenter] = (build_model(header.model, header.seed), trained)
    for model in models:
        model.to(hardware.device)
        masks.append((segment_slice(model, sample, header.preprocessing, hardware) > 0).numpy())
    # With neighbours in the channels, the slice itself is the middle one.
    shown = [1, 1, 1] if header.preprocessing.channels == "neighbours" else [0, 1, 2]
    image = sample.image[shown].transpose(1, 2, 0)
    image = (image - image.min()) / max(float(image.max() - image.min()), 1e-6)
    return Row(site, image, sample.masks.astype(bool), masks[0], masks[1])


def _largest(dataset: SiteDataset) -> SliceReference:
    """The validation slice whose smallest structure is largest, so that every structure shows."""
    return max(
        dataset.slices("validation"),
        key=lambda reference: min(int(mask.sum()) for mask in _annotated_masks(dataset, reference)),
    )


def _annotated_masks(dataset: SiteDataset, reference: SliceReference) -> list[npt.NDArray[np.uint8]]:
    sample = dataset.load(reference)
    masks = [mask for mask, known in zip(sample.masks, sample.annotated, strict=True) if known]
    return masks or [sample.masks[0]]


def draw(rows: Sequence[Row], structures: Sequence[str], title: str, path: Path) -> None:
    """Write the rows as a PNG.

    Raises:
        FedfmsError: FMS-D011 when it cannot be written.
    """
    plotter = pyplot()
    columns = ("image", "reference", "before", "after")
    figure, axes = plotter.subplots(
        len(rows), len(columns), figsize=(2.6 * len(columns), 2.6 * len(rows) + 0.8), squeeze=False
    )
    for row, line in zip(rows, axes, strict=True):
        overlays = (None, row.reference, row.before, row.after)
        for name, masks, cell in zip(columns, overlays, line, strict=True):
            show(cell, row.image, () if masks is None else masks)
            if row is rows[0]:
                cell.set_title(name, fontsize=10)
        line[0].set_ylabel(row.site, fontsize=9)
    figure.suptitle(title, fontsize=10)
    legend(figure, structures)
    figure.text(0.99, 0.01, RESEARCH_NOTICE, ha="right", fontsize=7, color="grey")
    figure.tight_layout(rect=(0, 0.04, 1, 0.98))
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    plotter.close(figure)
