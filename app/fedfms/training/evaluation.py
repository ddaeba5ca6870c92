"""Score a checkpoint on a site's data, at native resolution."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedfms.data.dataset import SiteDataset, SliceReference, open_dataset
from fedfms.data.preparation import prepare
from fedfms.data.preprocessing import Preprocessing
from fedfms.data.site import SiteDescription
from fedfms.sam.backbones import BACKBONES
from fedfms.sam.checkpoint import load_segmenter
from fedfms.sam.segmenter import Segmenter
from fedfms.training.hardware import Hardware, choose_hardware
from fedfms.training.metrics import StructureMetrics

RESEARCH_NOTICE = "for research use, not for diagnosis"


@torch.no_grad()
def segment_slice(
    model: Segmenter, dataset: SiteDataset, reference: SliceReference, preprocessing: Preprocessing, hardware: Hardware
) -> tuple[Tensor, Tensor, Tensor]:
    """Predict one slice.

    Returns:
        Logits ``(C, H, W)`` at native resolution, reference masks ``(C, H, W)`` in 0/1, annotated ``(C,)`` bool.
    """
    sample = dataset.load(reference)
    normalisation = BACKBONES[model.config.backbone].normalisation
    image, _, geometry = prepare(sample, preprocessing, normalisation, variant=0, seed=0)
    with hardware.autocast():
        logits = model(image.unsqueeze(0).to(hardware.device))[0].float().cpu()
    return geometry.restore(logits), torch.from_numpy(sample.masks), torch.from_numpy(sample.annotated)


def evaluate(
    model_file: Path, site: SiteDescription, split: str, task: str | None, on_slice: Callable[[int, int], None]
) -> dict[str, Any]:
    """Score a checkpoint.

    Args:
        model_file: A checkpoint of either kind.
        site: The site's description.
        split: ``train``, ``validation``, ``test`` or ``all``.
        task: Which of the site's tasks; None takes the one the model was trained for.
        on_slice: Called after each slice with (done, all).

    Returns:
        ``structures.<name>.{dice,iou}.{mean,n}``: mean over slices with a non-empty reference, None when there is none;
        with the split, the model's digests and the number of cases and slices.

    Raises:
        FedfmsError: FMS-M003, FMS-M004 for the checkpoint; FMS-J003, FMS-D010 when the data lacks its structures;
            FMS-D... for files.
    """
    model, header = load_segmenter(model_file)
    dataset = open_dataset(
        site,
        task=task or header.task,
        structures=header.model.structures,
        missing_structure="error",
        preprocessing=header.preprocessing,
        needed_splits=() if split == "all" else (split,),  # type: ignore[arg-type]
    )
    hardware = choose_hardware(site.compute, "auto")
    model.to(hardware.device)
    metrics = StructureMetrics(header.model.structures)
    slices = dataset.slices(split)
    for index, reference in enumerate(slices):
        logits, masks, annotated = segment_slice(model, dataset, reference, header.preprocessing, hardware)
        metrics.add(logits[None], masks[None], annotated[None])
        on_slice(index + 1, len(slices))
    return {
        "notice": RESEARCH_NOTICE,
        "split": split,
        "cases": len(dataset.cases(split)),
        "slices": len(slices),
        "schema_sha256": header.schema_sha256,
        "backbone_sha256": header.model.backbone_sha256,
        "rounds": header.rounds,
        "structures": {
            name: {metric: {"mean": values[metric], "n": values["n"]} for metric in ("dice", "iou")}
            for name, values in metrics.report().items()
        },
    }
