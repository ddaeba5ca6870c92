"""A site's data set, model and feed for one task, opened from job and site description."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedfms.configuration import Sha256, Strict
from fedfms.data.description.site import SiteDescription
from fedfms.data.slices.dataset import SiteDataset, SliceReference
from fedfms.data.slices.opening import DataRequest, open_dataset
from fedfms.data.slices.verification import Findings, OnCase
from fedfms.files import write_json
from fedfms.job.training import TrainingJob
from fedfms.sam.model import build_model
from fedfms.sam.segmenter import Segmenter
from fedfms.training.cache import PrefixCache
from fedfms.training.feed import SliceFeed
from fedfms.training.hardware import Hardware, choose_hardware
from fedfms.training.sampling import training_slices

_GB = 10**9


class DataRecord(Strict):
    """What an earlier task of the same job found in the site's files.

    Attributes:
        findings: ``SiteDataset.findings`` at that time.
        digests: ``SliceFeed.digests``.
    """

    findings: Findings
    digests: dict[Sha256, Sha256]


@dataclass(frozen=True)
class Session:
    """What training and validation work with; ``training`` are the slices of one pass."""

    dataset: SiteDataset
    training: list[SliceReference]
    model: Segmenter
    hardware: Hardware
    feed: SliceFeed
    cache: PrefixCache | None

    def write_record(self, path: Path) -> None:
        """Keep what is known of the files for the job's next task.

        Raises:
            FedfmsError: FMS-D011 when the disk is full.
        """
        assert self.dataset.findings is not None
        record = DataRecord(findings=self.dataset.findings, digests=self.feed.digests)
        write_json(path, record.model_dump())


def open_session(
    job: TrainingJob,
    site: SiteDescription,
    cache_folder: Path,
    record_file: Path | None = None,
    on_case: OnCase | None = None,
) -> Session:
    """Open the data set, build the model on its device, open the cache.

    Args:
        job: The job.
        site: The site's description.
        cache_folder: The cache's folder unless ``compute.cache_dir`` in ``site.yaml`` names another.
        record_file: From ``Session.write_record`` of an earlier task of the same job. Files that have not changed since
            are not read and checked again.
        on_case: Called after each case that was read and checked, with (done, all).

    Raises:
        FedfmsError: everything that is wrong with data (FMS-D...), backbone (FMS-M...), device or cache.
    """
    record = _read_record(record_file)
    dataset = open_dataset(
        site,
        DataRequest(
            task=job.task,
            structures=job.structures,
            missing_structure=job.missing_structure,
            preprocessing=job.preprocessing,
        ),
        known=record.findings if record else None,
        on_case=on_case,
    )
    training = training_slices(dataset, job.empty_slices, job.seed)
    hardware = choose_hardware(site.compute, job.precision)
    model = build_model(job.model, job.seed).to(hardware.device)
    cache = open_cache(job, site, model, hardware, cache_folder)
    digests = record.digests if record is not None and record.findings is dataset.findings else None
    feed = SliceFeed(dataset, model, hardware, job.preprocessing, job.seed, cache, digests)
    return Session(dataset, training, model, hardware, feed, cache)


def _read_record(path: Path | None) -> DataRecord | None:
    """None when it is missing or damaged: the files are then read again."""
    try:
        return DataRecord.model_validate_json(path.read_text(encoding="utf-8")) if path else None
    except (OSError, ValueError):
        return None


def open_cache(
    job: TrainingJob, site: SiteDescription, model: Segmenter, hardware: Hardware, folder: Path
) -> PrefixCache | None:
    """The prefix cache; None when the first unit is trained already, or the site allows no cache.

    Raises:
        FedfmsError: FMS-D009 when the folder cannot be written.
    """
    if model.first_trainable == 0 or site.compute.cache_gb == 0:
        return None
    return PrefixCache(
        site.compute.cache_dir or folder,
        int(site.compute.cache_gb * _GB),
        common={
            "backbone_sha256": job.backbone_sha256,
            "first_trainable": model.encoder.unit_name(model.first_trainable),
            "preprocessing": job.preprocessing.model_dump(mode="json"),
            "structures": list(job.structures),
            "seed": job.seed,
            "dtype": hardware.dtype_name,
        },
    )
