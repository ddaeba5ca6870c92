"""Times a training step on synthetic images of the job's size, and estimates the duration of a round from it."""

from __future__ import annotations

import time

import numpy as np
import torch

from fedfms.doctor import machine
from fedfms.doctor.examination import Examination, reported_by
from fedfms.doctor.result import Result, passed, skipped, warned
from fedfms.errors import BACKBONE_FILE, GPU, MEMORY, TRAINING_STEP
from fedfms.job.training import TrainingJob
from fedfms.sam.model import build_model
from fedfms.sam.segmenter import Segmenter
from fedfms.training.feed import Batch
from fedfms.training.hardware import Hardware, choose_hardware
from fedfms.training.loss import SegmentationLoss
from fedfms.training.optimizer import make_optimizer
from fedfms.training.sampling import planned_steps
from fedfms.training.trainer import training_step

_STEPS = 2  # the first one also sets things up


def step(examination: Examination) -> Result:
    """A training step of the job's model runs; how long a round will take."""
    if examination.quick:
        return warned(TRAINING_STEP, "not timed (--quick)", "Let 'fedfms doctor' run again without --quick.")
    job = examination.job
    compute = examination.site.compute
    with reported_by(GPU):
        hardware = choose_hardware(compute, job.precision)
    if machine.memory(examination).severity == "FAIL":
        # The system may end the doctor, and other programs, before any line is shown.
        return skipped(TRAINING_STEP, MEMORY)
    with reported_by(BACKBONE_FILE):
        model = build_model(job.model, job.seed)
    forward, whole = measured(model, job, hardware)
    slices = {"train": 0, "validation": 0}
    # Without a job, the site's own datasets are counted instead of the job's.
    for row in examination.data.rows:
        if row.task == job.task or examination.job_folder is None:
            for split in slices:
                slices[split] += (row.slices_per_split or {}).get(split, 0)
    text = f"{job.backbone} on {hardware.device.type} in {hardware.dtype_name}: {whole:.2g} s per step"
    text += f" of {job.batch_size} slices"
    if not slices["train"]:
        return warned(TRAINING_STEP, f"{text}; no round can be estimated: no training slices are known")
    minutes = round_minutes(job, slices["train"], slices["validation"], whole, forward)
    return passed(TRAINING_STEP, f"{text}; a round takes about {minutes:.2g} minutes, reading of images not counted")


def round_minutes(job: TrainingJob, training: int, validation: int, step_seconds: float, slice_seconds: float) -> float:
    """Estimate the minutes of a round: the local work, and validation of the received and of the trained model.

    Args:
        job: The job, which says how much work a round has.
        training: Training slices of the site.
        validation: Validation slices.
        step_seconds: Time of an optimizer step.
        slice_seconds: Time of one slice without training.
    """
    steps = planned_steps(training, job.local_work, job.batch_size)
    work = (job.local_work.minutes or 0.0) if steps is None else steps * step_seconds / 60
    return work + 2 * validation * slice_seconds / 60


def measured(model: Segmenter, job: TrainingJob, hardware: Hardware) -> tuple[float, float]:
    """Measure the seconds of one slice without training, and of one training step.

    Args:
        model: The job's model; it is trained, and moved to the hardware's device.
        job: Says how large images and batches are.
        hardware: What the step runs on.
    """
    model = model.to(hardware.device)
    model.encoder.gradient_checkpointing = hardware.gradient_checkpointing
    optimizer = make_optimizer(model, job.learning_rate, job.weight_decay)
    size, structures = job.preprocessing.input_size, len(job.structures)
    micro = min(hardware.max_batch or job.batch_size, job.batch_size)
    counts = [min(micro, job.batch_size - start) for start in range(0, job.batch_size, micro)]
    generator = torch.Generator().manual_seed(0)
    images = [torch.rand((count, 3, size, size), generator=generator).to(hardware.device) for count in counts]
    masks = torch.zeros((micro, structures, size, size), device=hardware.device)
    masks[..., size // 4 : size // 2, size // 4 : size // 2] = 1
    annotated = torch.ones((micro, structures), dtype=torch.bool, device=hardware.device)
    prompts, loss = np.random.default_rng(0), SegmentationLoss()
    seconds = 0.0
    for _ in range(_STEPS):
        model.train()
        begin = _now(hardware)
        parts = []
        for batch in images:
            with hardware.autocast():
                activation = model.prefix(batch)
            count = len(batch)
            parts.append(Batch(activation, masks[:count], annotated[:count], ((size, size),) * count))
        training_step(model, optimizer, parts, hardware, loss, job.gradient_clip, prompts)
        seconds = _now(hardware) - begin
    model.eval()
    begin = _now(hardware)
    with torch.no_grad(), hardware.autocast():
        model(images[0])
    return (_now(hardware) - begin) / len(images[0]), seconds


def _now(hardware: Hardware) -> float:
    """The time, after the device has finished: GPUs work on after a call has returned."""
    if hardware.device.type == "cuda":
        torch.cuda.synchronize(hardware.device)
    return time.monotonic()
