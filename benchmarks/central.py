"""Train on all hospitals' data in one place, the comparison for a federation.

    python benchmarks/central.py JOB_FOLDER SITE.YAML [SITE.YAML ...] --cache FOLDER [--out FILE]

With ``local_work.epochs`` that is one pass over all data for each pass of a site over its own; with
``local_work.steps`` as many steps as one site takes. Batch size, learning rate and schedule are the job's. Prints Dice
per hospital on its validation patients after each round's worth of work.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from fedfms.data.description.site import load_site
from fedfms.data.slices.dataset import Sample, SiteDataset, SliceReference
from fedfms.job.folder import TRAINING_FILE
from fedfms.job.training import load_job
from fedfms.sam.checkpoint import save_inference
from fedfms.training.feed import SliceFeed
from fedfms.training.headers import job_header
from fedfms.training.optimizer import make_optimizer
from fedfms.training.session import open_session
from fedfms.training.trainer import train_round
from fedfms.training.validation import validate


class PooledData(SiteDataset):
    """Several hospitals' slices as one data set."""

    def __init__(self, parts: list[SiteDataset]) -> None:
        self._parts = parts
        self._owner = {reference: part for part in parts for reference in part.slices("all")}
        if len(self._owner) != sum(len(part.slices("all")) for part in parts):
            raise SystemExit(
                "two hospitals have cases of the same name: give the datasets different names in site.yaml"
            )

    def slices(self, split: str) -> list[SliceReference]:
        return [reference for part in self._parts for reference in part.slices(split)]

    def load(self, reference: SliceReference) -> Sample:
        return self._owner[reference].load(reference)

    def digest(self, reference: SliceReference) -> str:
        return self._owner[reference].digest(reference)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", type=Path)
    parser.add_argument("sites", type=Path, nargs="+")
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    job = load_job(options.job / TRAINING_FILE)
    torch.manual_seed(job.seed)
    names = [path.stem for path in options.sites]
    sessions = [open_session(job, load_site(path), options.cache) for path in options.sites]
    model, hardware = sessions[0].model, sessions[0].hardware
    pooled = PooledData([session.dataset for session in sessions])
    feed = SliceFeed(pooled, model, hardware, job.preprocessing, job.seed, sessions[0].cache)
    optimizer = make_optimizer(model, job.learning_rate, job.weight_decay)

    def scores() -> str:
        values = []
        for session in sessions:
            own = SliceFeed(session.dataset, model, hardware, job.preprocessing, job.seed, session.cache)
            report = validate(model, own, session.dataset.slices("validation"), hardware, 4, lambda *_: None)
            values += [(item["dice"] or 0.0, item["n"]) for item in report.values()]
        mean = sum(dice * n for dice, n in values) / sum(n for _, n in values)
        return f"{mean:.3f} (" + ", ".join(f"{v[0]:.3f}" for v in values) + ")"

    training = [reference for session in sessions for reference in session.training]
    print(f"central training on {', '.join(names)}: {len(training)} training slices", flush=True)
    begin, steps = time.monotonic(), 0
    for index in range(job.rounds):
        result = train_round(
            model,
            optimizer,
            feed,
            training,
            job,
            hardware,
            site="central",
            round_index=index,
            on_step=lambda *_: None,
        )
        steps += result.steps
        print(f"pass {index + 1}: {steps} steps, {time.monotonic() - begin:.0f} s, Dice {scores()}", flush=True)
    if options.out is not None:
        save_inference(options.out, job_header(job, job.rounds), model.exchanged())


if __name__ == "__main__":
    main()
