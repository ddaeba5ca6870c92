"""Which slices a site trains on, and in one round in which order and variant; decided by seed, site and round alone."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import count, islice

import numpy as np

from fedfms.data.slices.dataset import SiteDataset, SliceReference
from fedfms.errors import NO_CASES, fail
from fedfms.job.training import LocalWork
from fedfms.training.feed import Item, chunked


def training_slices(dataset: SiteDataset, empty_slices: float, seed: int) -> list[SliceReference]:
    """The slices to train on: all that show a structure, and a random share of the empty ones.

    Whether an empty slice is kept depends on seed, case and index alone: other cases do not change it, and a larger
    share keeps all that a smaller one keeps. The number kept is therefore about, not exactly, the share.

    Args:
        dataset: The site's slices, read and checked.
        empty_slices: Share of the slices whose annotated masks are all empty that is kept. Slices without annotation
            are not known to be empty and stay.
        seed: The job's.

    Raises:
        FedfmsError: FMS-D008 when no slice is left.
    """

    def kept(reference: SliceReference) -> bool:
        digest = hashlib.sha256(f"{seed}/empty/{reference.case.identity}/{reference.index}".encode()).digest()
        return int.from_bytes(digest[:8], "big") < empty_slices * 2**64 or not dataset.is_empty(reference)

    slices = dataset.slices("train")
    result = [reference for reference in slices if kept(reference)]
    if not result:
        detail = f"all {len(slices)} training slices are empty, and 'empty_slices: {empty_slices:g}' keeps none of them"
        raise fail(NO_CASES, "training slices", detail, "Check the masks, or ask the study lead for more empty slices.")
    return result


def planned_steps(slices: int, work: LocalWork, batch_size: int) -> int | None:
    """Optimizer steps of one round; None when the round is bounded by time."""
    if work.minutes is not None:
        return None
    if work.steps is not None:
        return work.steps
    return max(1, round(math.ceil(slices / batch_size) * (work.epochs or 0)))


def round_batches(
    slices: Sequence[SliceReference],
    steps: int | None,
    *,
    batch_size: int,
    variants: int,
    seed: int,
    site: str,
    round_index: int,
) -> Iterator[Sequence[Item]]:
    """Yield the round's batches, endlessly without ``steps``.

    Every pass over the slices is a new permutation with a new draw of variants; its last batch may be smaller.

    Args:
        slices: The site's training slices, at least one.
        steps: Number of batches, or None.
        batch_size: Slices per batch.
        variants: Augmentation variants per slice.
        seed: The job's seed.
        site: The site's name, so that sites differ.
        round_index: 0-based.
    """
    generators = (round_generator(seed, site, round_index, str(number)) for number in count())
    return islice(_endless(slices, batch_size, variants, generators), steps)


def round_generator(seed: int, site: str, round_index: int, purpose: str) -> np.random.Generator:
    """Random numbers for one purpose in one site's round, independent of all others."""
    digest = hashlib.sha256(f"{seed}/{site}/{round_index}/{purpose}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))


def _endless(
    slices: Sequence[SliceReference], batch_size: int, variants: int, generators: Iterable[np.random.Generator]
) -> Iterator[Sequence[Item]]:
    for generator in generators:
        order = generator.permutation(len(slices))
        drawn = generator.integers(variants, size=len(slices))
        yield from chunked([(slices[index], int(drawn[index])) for index in order], batch_size)
