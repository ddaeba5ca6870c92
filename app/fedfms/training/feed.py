"""Slices as batches: from the prefix cache where it has them, else through the frozen part of the encoder."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from fedfms.data.slices.dataset import SiteDataset, SliceReference
from fedfms.data.slices.preparation import prepare
from fedfms.preprocessing import Preprocessing
from fedfms.sam.backbones import BACKBONES
from fedfms.sam.segmenter import Segmenter
from fedfms.training.cache import CachedSlice, PrefixCache
from fedfms.training.hardware import Hardware

Item = tuple[SliceReference, int]
"""A slice and the number of its augmentation variant; 0 is the unchanged slice."""

T = TypeVar("T")


def chunked(items: Sequence[T], size: int) -> list[Sequence[T]]:
    """Cut ``items`` into chunks of ``size``; the last one may be smaller."""
    return [items[start : start + size] for start in range(0, len(items), size)]


@dataclass(frozen=True)
class Batch:
    """Stacked slices on the device.

    Attributes:
        activation: ``(batch, ...)`` output of the frozen part of the encoder.
        masks: ``(batch, structures, rows, columns)`` fp32 in 0/1.
        annotated: ``(batch, structures)`` bool.
        scaled: Rows and columns of each image inside the padded square.
    """

    activation: Tensor
    masks: Tensor
    annotated: Tensor
    scaled: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class _Read:
    """A slice as it was read; with ``is_image`` its activation is still the normalised image."""

    item: CachedSlice
    path: Path | None
    is_image: bool


def _compute_in_one_thread() -> None:
    """Let the calling thread compute without OpenMP threads of its own.

    They would make those of the training sleep at every barrier, because GNU's OpenMP stops waiting actively once there
    are more threads than cores: a step of ``vit_b`` at 1024 px took a quarter longer (two cores).
    """
    torch.get_num_threads()  # takes over the common number, which would otherwise happen at the first large operation
    torch.set_num_threads(1)


class SliceFeed:
    """Prepares slices of a data set for a model.

    Args:
        dataset: The site's slices.
        model: On its device.
        hardware: Device and precision.
        preprocessing: The job's.
        seed: The job's; decides the augmentation variants.
        cache: None when the encoder has no frozen part worth caching, or caching is switched off.
        digests: Known digests of slices, as ``digests`` of an earlier feed over the same files.

    Attributes:
        digests: Digest of image and masks of each slice that was needed so far, by an opaque key.
    """

    def __init__(
        self,
        dataset: SiteDataset,
        model: Segmenter,
        hardware: Hardware,
        preprocessing: Preprocessing,
        seed: int,
        cache: PrefixCache | None,
        digests: Mapping[str, str] | None = None,
    ) -> None:
        self._dataset = dataset
        self._model = model
        self._hardware = hardware
        self._preprocessing = preprocessing
        self._seed = seed
        self._cache = cache
        self.digests = dict(digests or {})
        self._normalisation = BACKBONES[model.config.backbone].normalisation

    def batches(self, chunks: Iterable[Sequence[Item]]) -> Generator[Batch, None, None]:
        """Yield each chunk of (slice, variant) as one batch, in order; the next chunk is read meanwhile."""
        with closing(self._read_ahead(chunks)) as stream:
            for reads in stream:
                yield self._stacked(reads)

    def steps(self, plan: Iterable[Sequence[Item]], micro_batch: int) -> Generator[list[Batch], None, None]:
        """Yield each optimizer step as the micro-batches it accumulates; the next step is read meanwhile.

        Args:
            plan: The (slice, variant) items of each step, in order; may be endless.
            micro_batch: Most slices in one micro-batch; the last one of a step may be smaller.
        """
        with closing(self._read_ahead(plan)) as stream:
            for reads in stream:
                yield [self._stacked(part) for part in chunked(reads, micro_batch)]

    def _read_ahead(self, chunks: Iterable[Sequence[Item]]) -> Generator[list[_Read], None, None]:
        """Yield what was read of each chunk, one chunk ahead of the caller."""
        threads = torch.get_num_threads()
        with ThreadPoolExecutor(1) as reader:
            reader.submit(_compute_in_one_thread).result()
            # PyTorch gives the number that was set last to every thread that starts later.
            torch.set_num_threads(threads)
            pending: Future[list[_Read]] | None = None
            for chunk in chunks:
                following = reader.submit(self._read, chunk)
                if pending is not None:
                    yield pending.result()
                pending = following
            if pending is not None:
                yield pending.result()

    def fill_cache(self, items: Iterable[Item], on_item: Callable[[int, int], None]) -> None:
        """Put the items of a coming round into the cache, case by case.

        In the random order of training, a volume would be read again for nearly every slice once the site's volumes
        do not fit into memory together. Does nothing without a cache, and stops once it is full.

        Args:
            items: In any order.
            on_item: Called with (items done, items to do).
        """
        if self._cache is None:
            return
        ordered = sorted(set(items), key=lambda item: (item[0].case.identity, item[0].index, item[1]))
        for number, (reference, variant) in enumerate(ordered):
            if self._cache.full:
                return
            if not self._cache.path(self._digest(reference), variant).exists():
                self._activation(self._read_one(reference, variant))
            on_item(number + 1, len(ordered))

    def _read(self, chunk: Sequence[Item]) -> list[_Read]:
        return [self._read_one(reference, variant) for reference, variant in chunk]

    def _read_one(self, reference: SliceReference, variant: int) -> _Read:
        path = None
        if self._cache is not None:
            path = self._cache.path(self._digest(reference), variant)
            cached = self._cache.get(path)
            if cached is not None:
                return _Read(cached, path, is_image=False)
        sample = self._dataset.load(reference)
        image, masks, geometry = prepare(sample, self._preprocessing, self._normalisation, variant, self._seed)
        annotated = torch.from_numpy(sample.annotated)
        return _Read(CachedSlice(image, masks.to(torch.uint8), annotated, geometry.scaled), path, is_image=True)

    def _digest(self, reference: SliceReference) -> str:
        """Digest of a slice's image and masks, kept: otherwise a cached slice would be read to find its name."""
        # The key holds no name: the digests are kept in a file.
        key = hashlib.sha256(f"{reference.case.identity}\0{reference.index}".encode()).hexdigest()
        known = self.digests.get(key)
        if known is None:
            sample = self._dataset.load(reference)
            digest = hashlib.sha256(self._dataset.digest(reference).encode())
            digest.update(sample.masks.tobytes())
            digest.update(sample.annotated.tobytes())
            known = self.digests.setdefault(key, digest.hexdigest())
        return known

    def _activation(self, read: _Read) -> Tensor:
        item = read.item
        activation = item.activation.to(self._hardware.device, non_blocking=True)
        if not read.is_image:
            return activation
        # One by one: the stored bits must not depend on the other images of a batch.
        with self._hardware.autocast():
            activation = self._model.prefix(activation.unsqueeze(0))[0]
        if self._cache is not None and read.path is not None:
            self._cache.put(read.path, replace(item, activation=activation.cpu()))
        return activation

    def _stacked(self, reads: Sequence[_Read]) -> Batch:
        device = self._hardware.device
        return Batch(
            activation=torch.stack([self._activation(read) for read in reads]),
            masks=torch.stack([read.item.masks for read in reads]).to(device).float(),
            annotated=torch.stack([read.item.annotated for read in reads]).to(device),
            scaled=tuple(read.item.scaled for read in reads),
        )
