"""The files of a finished run: ledger, models, and the hospitals' site.yaml files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedfms.access import is_file, paths_that_fit, require_readable
from fedfms.errors import RUN_FOLDER, RUN_INCOMPLETE, FedfmsError, fail, reason_of
from fedfms.results.run_result import RunResult, find_ledger, read_ledger
from fedfms.results.run_tables import rounds_text
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


def incomplete(folder: Path, result: RunResult, found: str = "") -> FedfmsError:
    """The error FMS-R002 of a run that stopped too early, with what its ledger says about the reason.

    Args:
        folder: The run's folder.
        result: What there is of it.
        found: What is missing besides; may be empty.
    """
    reasons = "; ".join(map(str, result.refusals))
    detail = f"it stopped after {rounds_text(result.rounds)}{f', {found}' if found else ''}; "
    if reasons:
        detail += f"the ledger says: {reasons}"
        return fail(
            RUN_INCOMPLETE, folder, detail, "Look the ids up in docs/errors.md; each site's own log names the file."
        )
    detail += "the ledger names no error"
    remedy = "Either it is still running, or somebody or the machine ended it: see log.txt in the server's run folder."
    return fail(RUN_INCOMPLETE, folder, detail, remedy)


def open_run(folder: Path) -> RunFolder:
    """Find the parts of a run below a simulator workspace or a downloaded job.

    Raises:
        FedfmsError: FMS-R001 when the ledger is missing or is not one, FMS-R002 when the run has left no model,
            FMS-D019 when a part of the run may not be read.
    """
    ledger = find_ledger(folder)
    model_file = ledger.parent / BEST_MODEL
    result = read_ledger(ledger)
    if not is_file(model_file):
        raise incomplete(folder, result, "no model was kept")
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
