"""The reports in a site's replies: closed lists of bounded numbers, digests and the job's own names."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, Field, StringConstraints

from fedfms.configuration import Sha256, Strict, StructureName

TaskKind = Literal["ready", "train", "validate", "final"]
KINDS: tuple[TaskKind, ...] = get_args(TaskKind)
#: The server's record of a run, one JSON object per line.
LEDGER_FILE = "ledger.jsonl"

SiteName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,127}$")]
Count = Annotated[int, Field(ge=0, le=10_000_000)]
Bytes = Annotated[int, Field(ge=0, le=2**50)]
Round = Annotated[int, Field(ge=0, le=10_000)]


def _six_digits(value: float) -> float:
    """Round to six significant digits. A figure needs no more, and the other bits of a double could hide data."""
    return float(f"{value:.6g}")


Fraction = Annotated[float, Field(ge=0, le=1), AfterValidator(_six_digits)]
Seconds = Annotated[float, Field(ge=0, le=1e9), AfterValidator(_six_digits)]
Figure = Annotated[float, Field(ge=-1e9, le=1e9), AfterValidator(_six_digits)]


class Score(Strict):
    """Dice and IoU of one structure, averaged over ``n`` validation slices with a non-empty reference.

    Without such a slice ``n`` is 0 and the others are None. When the site's policy withholds the scores all three are
    None; it may also withhold one of the scores.
    """

    dice: Fraction | None
    iou: Fraction | None
    n: Count | None


Scores = dict[StructureName, Score]


class Slices(Strict):
    """Number of slices a site trains and validates on."""

    train: Count
    validation: Count


class ReadyReport(Strict):
    """What a site reports before the first round.

    Attributes:
        cases: Annotated training cases of each structure.
        cases_left_out: Cases with bad files (``strict: false``).
        slices: Counts by split.
        fingerprint_sha256: Digest of the data's fingerprint (``fedfms.data.slices.fingerprint``), which stays at the
            site: the same digest in two jobs means the same data and split.

    All but ``cases`` are None when the site's policy withholds them.
    """

    cases: dict[StructureName, Count]
    cases_left_out: Count | None
    slices: Slices | None
    fingerprint_sha256: Sha256 | None


class TrainReport(Strict):
    """Figures of one round at one site; the update is sent beside it. None: withheld by the site's policy.

    Attributes:
        steps: Optimizer steps of the local work.
        training_seconds: Duration of the local work alone.
        seconds: Duration of the whole task, with both validations.
        loss: Mean training loss.
        learning_rate: Learning rate of the last step.
        peak_memory_bytes: Largest resident memory of the training process so far, earlier tasks included.
        received: Scores of the received model, by structure.
        local: Scores of the locally trained model, by structure.
    """

    steps: Count | None
    training_seconds: Seconds | None
    seconds: Seconds | None
    loss: Figure | None
    learning_rate: Figure | None
    peak_memory_bytes: Bytes | None
    received: Scores
    local: Scores


class ValidateReport(Strict):
    """Figures of the received model alone. None: withheld by the site's policy.

    Attributes:
        received: Scores of the received model, by structure.
        seconds: Duration of the task.
        peak_memory_bytes: Largest resident memory of the training process so far, earlier tasks included.
    """

    received: Scores
    seconds: Seconds | None
    peak_memory_bytes: Bytes | None


class FinalReport(Strict):
    """Acknowledgement that the site keeps the final model.

    Attributes:
        model_sha256: SHA-256 of the file that it keeps.
    """

    model_sha256: Sha256


#: Figures that a site may withhold: they become None. The number of validation slices (``n``) goes with the
#: scores it is the support of; numbers of cases are always needed for weighing.
FIGURES = (
    "dice",
    "iou",
    "loss",
    "learning_rate",
    "steps",
    "seconds",
    "training_seconds",
    "peak_memory_bytes",
    "slices",
    "cases_left_out",
    "fingerprint_sha256",
)

Report = ReadyReport | TrainReport | ValidateReport | FinalReport
REPORTS: dict[TaskKind, type[Report]] = {
    "ready": ReadyReport,
    "train": TrainReport,
    "validate": ValidateReport,
    "final": FinalReport,
}
