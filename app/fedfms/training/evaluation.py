"""Score a checkpoint on a site's data, at native resolution."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedfms import __version__
from fedfms.data.description.site import SiteDescription
from fedfms.data.slices.dataset import Case, Sample, SiteDataset, SliceReference
from fedfms.data.slices.opening import DataRequest, open_dataset
from fedfms.data.slices.preparation import prepare
from fedfms.errors import CHECKPOINT_MISMATCH, fail
from fedfms.files import sha256_file
from fedfms.preprocessing import Preprocessing
from fedfms.sam.backbones import BACKBONES
from fedfms.sam.checkpoint import CheckpointHeader, load_segmenter
from fedfms.sam.segmenter import Segmenter
from fedfms.training.hardware import Hardware, choose_hardware
from fedfms.training.scores import Mask, Scores, score
from fedfms.training.summary import LEVEL, RESAMPLES, SEED, summarise

RESEARCH_NOTICE = "for research use, not for diagnosis"

#: Called with the stage (``checking`` cases, ``scoring`` slices), the number done and the total.
OnProgress = Callable[[str, int, int], None]


@torch.no_grad()
def segment_slice(model: Segmenter, sample: Sample, preprocessing: Preprocessing, hardware: Hardware) -> Tensor:
    """Predict one slice: logits ``(structures, rows, columns)`` at the image's own resolution."""
    normalisation = BACKBONES[model.config.backbone].normalisation
    image, _, geometry = prepare(sample, preprocessing, normalisation, variant=0, seed=0)
    with hardware.autocast():
        logits = model(image.unsqueeze(0).to(hardware.device))[0].float().cpu()
    return geometry.restore(logits)


@dataclass(frozen=True)
class _CaseScores:
    """Scores of a case by annotated structure: as a whole, and slice by slice."""

    case: Case
    slices: int
    whole: dict[str, Scores]
    per_slice: dict[str, list[Scores]]


def evaluate(
    model_file: Path,
    site: SiteDescription,
    split: str,
    task: str | None,
    on_progress: OnProgress,
    *,
    show_ids: bool = False,
) -> dict[str, Any]:
    """Compare a checkpoint's predictions with a site's reference masks.

    A case is scored as a whole: a volume in three dimensions, an image in two. Only one case is in memory at a time.
    docs/evaluation.md defines each value.

    Args:
        model_file: A checkpoint of either kind.
        site: The site's description.
        split: ``train``, ``validation``, ``test`` or ``all``.
        task: Which of the site's tasks; None takes the one the model was trained for.
        on_progress: Called after each case that was checked and each slice that was scored.
        show_ids: Name the cases by dataset and path; without it they are numbered only.

    Returns:
        ``structures.<name>`` as from ``summarise``, over cases (0 ``annotated`` where the site has no masks of a
        structure); ``per_slice.<name>`` likewise, over slices;
        ``per_case``: one entry per case; how the intervals were made; split, counts, and the model's digests.

    Raises:
        FedfmsError: FMS-M003, FMS-M004 for the checkpoint, or when the site has none of its structures; FMS-J003,
            FMS-D010 when no case of the site has its task or any structure; FMS-D... for files.
    """
    model, header = load_segmenter(model_file)
    dataset = _open(model_file, header, site, split, task or header.task, on_progress)
    cases = list(_scored(model, header, dataset, split, choose_hardware(site.compute, "auto"), on_progress))
    return {
        "notice": RESEARCH_NOTICE,
        "package_version": __version__,
        "split": split,
        "patients": len({item.case.patient for item in cases}),
        "cases": len(cases),
        "cases_left_out": len(dataset.left_out),
        "slices": sum(item.slices for item in cases),
        "model_sha256": sha256_file(model_file),
        "schema_sha256": header.schema_sha256,
        "backbone_sha256": header.model.backbone_sha256,
        "rounds": header.rounds,
        "interval": {"method": "percentile bootstrap by patient", "level": LEVEL, "resamples": RESAMPLES, "seed": SEED},
        "structures": {name: summarise(_over_cases(cases, name)) for name in header.model.structures},
        "per_slice": {name: summarise(_over_slices(cases, name)) for name in header.model.structures},
        "per_case": _per_case(cases, show_ids),
    }


def _open(
    model_file: Path, header: CheckpointHeader, site: SiteDescription, split: str, task: str, on_progress: OnProgress
) -> SiteDataset:
    """Open the site's data of a task as the model's inputs."""
    structures = header.model.structures
    _require_structures(model_file, structures, site, task)
    return open_dataset(
        site,
        DataRequest(
            task=task,
            structures=structures,
            missing_structure="mask",  # a hospital need not have annotated all that the federation trained
            preprocessing=header.preprocessing,
            needed_splits=() if split == "all" else (split,),  # type: ignore[arg-type]
        ),
        on_case=lambda done, total: on_progress("checking", done, total),
    )


def _scored(
    model: Segmenter,
    header: CheckpointHeader,
    dataset: SiteDataset,
    split: str,
    hardware: Hardware,
    on_progress: OnProgress,
) -> Iterator[_CaseScores]:
    """Predict and score the slices of a split, case by case."""
    model.to(hardware.device)
    slices = dataset.slices(split)

    def segmented(numbered: Iterable[tuple[int, SliceReference]]) -> Iterator[tuple[Sample, Mask]]:
        for number, reference in numbered:
            sample = dataset.load(reference)
            yield sample, (segment_slice(model, sample, header.preprocessing, hardware) > 0).numpy()
            on_progress("scoring", number, len(slices))

    for case, numbered in groupby(enumerate(slices, 1), key=lambda item: item[1].case):
        yield _score_case(case, header.model.structures, segmented(numbered))


def _over_cases(cases: Sequence[_CaseScores], structure: str) -> list[tuple[str, Scores]]:
    """Patient and scores of each case that is annotated for a structure."""
    return [(item.case.patient, item.whole[structure]) for item in cases if structure in item.whole]


def _over_slices(cases: Sequence[_CaseScores], structure: str) -> list[tuple[str, Scores]]:
    """Patient and scores of each slice of these cases."""
    return [(item.case.patient, single) for item in cases for single in item.per_slice.get(structure, ())]


def _require_structures(model_file: Path, structures: tuple[str, ...], site: SiteDescription, task: str) -> None:
    """Refuse, before any file is read, data with none of the model's structures.

    ``open_dataset`` reports a task that no dataset has."""
    datasets = [dataset for dataset in site.datasets if dataset.task == task]
    has = sorted({name for dataset in datasets for name in dataset.structures})
    if datasets and not set(structures) & set(has):
        raise fail(
            CHECKPOINT_MISMATCH,
            model_file,
            f"it segments {', '.join(structures)}; site.yaml has, for task {task}, {', '.join(has) or 'none'}",
            "Name a model and data that have a structure in common; --task chooses another task of site.yaml.",
        )


def _score_case(case: Case, structures: tuple[str, ...], slices: Iterable[tuple[Sample, Mask]]) -> _CaseScores:
    """Score a case from its slices and the masks predicted in them ``(structures, rows, columns)``.

    The slices are consumed one by one, so that only their masks stay in memory."""
    predicted: list[Mask] = []
    reference: list[Mask] = []
    for sample, mask in slices:
        predicted.append(mask)
        reference.append(sample.masks)
    # The same for all slices of a case.
    annotated, spacing, distance = sample.annotated, sample.spacing, sample.slice_distance
    spacing_3d = None if spacing is None or distance is None else (distance, *spacing)
    whole: dict[str, Scores] = {}
    per_slice: dict[str, list[Scores]] = {}
    for channel, name in enumerate(structures):
        if annotated[channel]:
            found, true = (np.stack([mask[channel] for mask in masks]) for masks in (predicted, reference))
            per_slice[name] = [score(*pair, spacing) for pair in zip(found, true, strict=True)]
            # In three dimensions every voxel of a single slice would be surface.
            whole[name] = per_slice[name][0] if len(true) == 1 else score(found, true, spacing_3d)
    return _CaseScores(case, len(reference), whole, per_slice)


def _per_case(cases: Iterable[_CaseScores], show_ids: bool) -> list[dict[str, Any]]:
    """One entry per case; patients are numbered in the order in which they appear."""
    patients: dict[str, int] = {}
    return [
        {
            "case": number,
            **({"identity": item.case.identity} if show_ids else {}),
            "patient": patients.setdefault(item.case.patient, len(patients) + 1),
            "split": item.case.split,
            "slices": item.slices,
            "structures": {name: asdict(scores) for name, scores in item.whole.items()},
        }
        for number, item in enumerate(cases, 1)
    ]
