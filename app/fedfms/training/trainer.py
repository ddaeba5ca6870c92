"""One site's training in one round."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch

from fedfms.data.slices.dataset import SliceReference
from fedfms.errors import LOSS_NOT_FINITE, fail
from fedfms.job.training import TrainingJob
from fedfms.sam.segmenter import Segmenter
from fedfms.training.boxes import draw_boxes
from fedfms.training.feed import Batch, Item, SliceFeed
from fedfms.training.hardware import Hardware
from fedfms.training.loss import SegmentationLoss
from fedfms.training.optimizer import trained_parameters
from fedfms.training.sampling import planned_steps, round_batches, round_generator
from fedfms.training.schedule import learning_rate_factor

OnStep = Callable[[int, int, float | None], None]


@dataclass(frozen=True)
class RoundResult:
    """The result of a round of training.

    Attributes:
        steps: Optimizer steps.
        seconds: Wall-clock time of the steps.
        loss: Mean loss over the round.
        learning_rate: Of the last step.
    """

    steps: int
    seconds: float
    loss: float
    learning_rate: float


def train_round(
    model: Segmenter,
    optimizer: torch.optim.AdamW,
    feed: SliceFeed,
    slices: list[SliceReference],
    job: TrainingJob,
    hardware: Hardware,
    *,
    site: str,
    round_index: int,
    on_step: OnStep,
    on_fill: Callable[[int, int], None] = lambda done, items: None,
) -> RoundResult:
    """Train the model in place for one round of local work.

    Args:
        model: With the received state loaded.
        optimizer: Over the model's trained parameters.
        feed: Reads the slices.
        slices: The training slices.
        job: Local work, batch size, schedule.
        hardware: Device, precision, largest micro-batch.
        site: Name of the site; decides its order of slices.
        round_index: 0-based.
        on_step: Called after each step with (steps done, steps planned, loss).
        on_fill: Called with (done, all) while the slices of volumes are put into the cache before the first step.

    Raises:
        FedfmsError: FMS-T001 when the loss is not finite.
    """
    steps = planned_steps(len(slices), job.local_work, job.batch_size)
    plan: Iterable[Sequence[Item]] = round_batches(
        slices,
        steps,
        batch_size=job.batch_size,
        variants=job.augmentation.variants,
        seed=job.seed,
        site=site,
        round_index=round_index,
    )
    # How many batches fit into some minutes is unknown beforehand; pictures are one file each in any order.
    if steps is not None and any(reference.index > 0 for reference in slices):
        plan = list(plan)
        feed.fill_cache((item for items in plan for item in items), on_fill)

    loss_function = SegmentationLoss()
    prompts = round_generator(job.seed, site, round_index, "boxes")
    model.encoder.gradient_checkpointing = hardware.gradient_checkpointing
    model.train()
    losses: list[float] = []
    rate = 0.0
    clock = _Clock(steps, job.local_work.minutes)
    with closing(feed.steps(plan, hardware.max_batch or job.batch_size)) as stream:
        for parts in stream:
            share = clock.share_done(len(losses))
            rate = job.learning_rate * learning_rate_factor((round_index + share) / job.rounds, job.warmup)
            for group in optimizer.param_groups:
                group["lr"] = rate
            loss = training_step(model, optimizer, parts, hardware, loss_function, job.gradient_clip, prompts)
            if not math.isfinite(loss):
                raise fail(LOSS_NOT_FINITE, f"round {round_index + 1}, step {len(losses) + 1}", f"loss is {loss}")
            losses.append(loss)
            on_step(len(losses), steps or max(len(losses), round(len(losses) / max(share, 1e-3))), loss)
            if clock.share_done(len(losses)) >= 1:
                break
    model.eval()
    return RoundResult(len(losses), clock.seconds, math.fsum(losses) / len(losses), rate)


class _Clock:
    """How much of a round's work is done: by steps, or by minutes where the job gives those."""

    def __init__(self, steps: int | None, minutes: float | None) -> None:
        self._steps, self._minutes, self._begin = steps, minutes, time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._begin

    def share_done(self, steps: int) -> float:
        """From 0 to 1, after that many steps."""
        if self._steps is not None:
            return steps / self._steps
        assert self._minutes is not None
        return min(1.0, self.seconds / (60 * self._minutes))


def training_step(
    model: Segmenter,
    optimizer: torch.optim.AdamW,
    parts: list[Batch],
    hardware: Hardware,
    loss_function: SegmentationLoss,
    gradient_clip: float,
    prompts: np.random.Generator,
) -> float:
    """One optimizer step over the micro-batches ``parts``; returns the mean loss."""
    total = 0.0
    drawn = [draw_boxes(part.masks, part.annotated, prompts) for part in parts]
    pairs = max(1, sum(int(asked.sum()) for _, asked in drawn))
    optimizer.zero_grad(set_to_none=True)
    for part, (boxes, asked) in zip(parts, drawn, strict=True):
        with hardware.autocast():
            logits = model.from_prefix(part.activation, boxes=boxes)
        # A sum over pairs divided by their number in the whole batch: micro-batches do not change the result.
        loss = loss_function(logits, part.masks, asked) / pairs
        loss.backward()  # type: ignore[no-untyped-call]
        total += float(loss.detach())
    if math.isfinite(total):
        torch.nn.utils.clip_grad_norm_(trained_parameters(model).values(), gradient_clip)
        optimizer.step()
    return total
