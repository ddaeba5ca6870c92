"""A site's data set, model and feed for one task, put together from job and site description."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedfms.data.dataset import SiteDataset, open_dataset
from fedfms.data.site import SiteDescription
from fedfms.data.verification import OnCase
from fedfms.job import TrainingJob
from fedfms.sam.model import build_model
from fedfms.sam.segmenter import Segmenter
from fedfms.training.cache import PrefixCache
from fedfms.training.feed import SliceFeed
from fedfms.training.hardware import Hardware, choose_hardware

_GB = 10**9


@dataclass(frozen=True)
class Session:
    """What training and validation work with."""

    dataset: SiteDataset
    model: Segmenter
    hardware: Hardware
    feed: SliceFeed
    cache: PrefixCache | None


def open_session(job: TrainingJob, site: SiteDescription, cache_folder: Path, on_case: OnCase | None = None) -> Session:
    """Open the data set, build the model on its device, open the cache.

    Args:
        job: The job.
        site: The site's description.
        cache_folder: Where the cache lives unless ``compute.cache_dir`` says otherwise.
        on_case: Told after each case that was read and checked.

    Raises:
        FedfmsError: whatever is wrong with data (FMS-D...), backbone (FMS-M...), device or cache.
    """
    dataset = open_dataset(
        site,
        task=job.task,
        structures=job.structures,
        missing_structure=job.missing_structure,
        preprocessing=job.preprocessing,
        on_case=on_case,
    )
    hardware = choose_hardware(site.compute, job.precision)
    model = build_model(job.model, job.seed).to(hardware.device)
    cache = open_cache(job, site, model, hardware, cache_folder)
    feed = SliceFeed(dataset, model, hardware, job.preprocessing, job.seed, cache)
    return Session(dataset, model, hardware, feed, cache)


def open_cache(
    job: TrainingJob, site: SiteDescription, model: Segmenter, hardware: Hardware, folder: Path
) -> PrefixCache | None:
    """The prefix cache; None when nothing before the first trainable parameter is worth storing.

    Raises:
        FedfmsError: FMS-D009 when the folder cannot be written.
    """
    if model.cut == 0 or site.compute.cache_gb == 0:
        return None
    return PrefixCache(
        site.compute.cache_dir or folder,
        int(site.compute.cache_gb * _GB),
        common={
            "backbone_sha256": job.backbone_sha256,
            "cut": model.encoder.units()[model.cut][0] if model.cut < len(model.encoder.units()) else "end",
            "preprocessing": job.preprocessing.model_dump(mode="json"),
            "structures": list(job.structures),
            "seed": job.seed,
            "dtype": hardware.dtype_name,
        },
    )
