"""What a person sees of a running federation: lines on standard output, never through FLARE's loggers."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from nvflare.fuel.utils.log_utils import ConciseLogFilter
from nvflare.private.fed.simulator.simulator_const import SimulatorConstants

from fedfms.errors import CATALOGUE
from fedfms.training.task import Progress

INTERVAL_SECONDS = 5.0


def quiet_console() -> None:
    """Keep FLARE's running commentary to its log files, unless more was asked for.

    The simulator's default is its mode ``concise``, and ``local/log_config.json`` is not read then; with
    ``nvflare simulator -l full`` the console stays as it is.
    """
    for handler in logging.getLogger().handlers:
        concise = any(isinstance(item, ConciseLogFilter) for item in handler.filters)
        if concise and isinstance(handler, logging.StreamHandler):
            handler.setLevel(logging.WARNING)


def say(line: str) -> None:
    """Print one line as a whole: several processes share the simulator's console."""
    print(line + "\n", end="", flush=True)


def reasons(ids: Iterable[str]) -> str:
    """Error ids with their titles, separated by semicolons. Nothing of it comes from a user's file."""
    return "; ".join(f"{name} {CATALOGUE[name].title}" for name in ids)


def duration(seconds: float) -> str:
    """``48 s``, ``3 min 05 s`` or ``2 h 10 min``."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def size(count: float) -> str:
    """Bytes in the largest fitting binary unit."""
    for unit in ("B", "KiB", "MiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def dice_text(dice: Mapping[str, float | None], mean: float | None) -> str:
    """Dice per structure and their mean, or in words why there is none."""
    if mean is None:
        return "no Dice: no validation slice shows a structure, or the sites' policies withhold it"
    parts = [f"{name} {'no value' if value is None else f'{value:.3f}'}" for name, value in dice.items()]
    meaning = " (no value: no validation slice shows it, or no site reports it)" if None in dice.values() else ""
    return f"Dice {', '.join(parts)}, mean {mean:.3f}{meaning}"


def where_kept(job_id: str, study: str, folder: Path) -> str:
    """Where a person gets the final model: FLARE's server deletes its run folder when it has stored the job's result.

    Args:
        job_id: The job's id.
        study: The job's study: FLARE finds the job in no other.
        folder: The model's folder on the server; in the simulator it stays.
    """
    if job_id == SimulatorConstants.JOB_NAME:
        return f"on this machine in {folder}"
    download = f"nvflare job download {job_id} -o result --study {study} --startup-kit KIT"
    return f"the lead fetches it: {download}; then: fedfms results result/{job_id}"


class ProgressPrinter:
    """Prints a task's progress every five seconds at most, and at the end of each stage.

    Args:
        title: What every line starts with: site, task and round.
        clock: Monotonic time in seconds; replaced in tests.
    """

    def __init__(self, title: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._title = title
        self._clock = clock
        self._last = clock()
        self._done: tuple[str, int] | None = None

    def __call__(self, progress: Progress) -> None:
        """Print the line if it is due."""
        finished = progress.step >= progress.steps and self._done != (progress.stage, progress.step)
        if not finished and self._clock() - self._last < INTERVAL_SECONDS:
            return
        if self._done == (progress.stage, progress.step):
            return
        self._last = self._clock()
        if finished:
            self._done = (progress.stage, progress.step)
        count = f" {progress.step}/{progress.steps}" if progress.steps > 1 else ""
        parts = [f"{self._title}  {progress.stage}{count}"]
        if progress.loss is not None:
            parts.append(f"loss {progress.loss:.4f}")
        if progress.seconds_left is not None and not finished:
            parts.append(f"about {duration(progress.seconds_left)} left")
        say("  ".join(parts))
