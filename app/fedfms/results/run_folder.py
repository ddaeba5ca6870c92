"""The files of a finished run: ledger, models, and the hospitals' site.yaml files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedfms.access import is_file, paths_that_fit, require_readable
from fedfms.errors import RUN_FOLDER, fail, reason_of
from fedfms.results.run_result import RunResult, find_ledger, read_ledger
from fedfms.training.task import TASK_FILE, WorkerTask

BEST_MODEL = Path("models/best/model.safetensors")


@dataclass(frozen=True)
class RunFolder:
    """A run on this machine.

    Attributes:
        result: Read from the ledger.
        model_file: The chosen model, self-contained.
        site_files: ``site.yaml`` of each hospital that trained on this machine; empty for a downloaded job.
    """

    result: RunResult
    model_file: Path
    site_files: dict[str, Path]


def open_run(folder: Path) -> RunFolder:
    """Find the parts of a run below a simulator workspace or a downloaded job.

    Raises:
        FedfmsError: FMS-R001 when ledger or model are missing, FMS-D019 when a part of the run may not be read.
    """
    ledger = find_ledger(folder)
    model_file = ledger.parent / BEST_MODEL
    result = read_ledger(ledger)
    if not is_file(model_file):
        reasons = "; ".join(map(str, result.refusals))
        detail = f"no model was kept after {result.rounds} rounds; what the ledger says: {reasons or 'no error'}"
        raise fail(RUN_FOLDER, folder, detail, "Look the ids up in docs/errors.md; each site's own log names the file.")
    site_files = {}
    for path in paths_that_fit(folder, f"**/{TASK_FILE}"):
        require_readable(path)
        try:
            task = WorkerTask.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise fail(RUN_FOLDER, path, f"not a task: {reason_of(error)}") from error
        if is_file(task.site_file):
            site_files[task.site] = task.site_file
    return RunFolder(result, model_file, site_files)
