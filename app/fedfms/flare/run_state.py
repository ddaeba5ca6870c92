"""What the server needs to go on with a run after any of its rounds, committed as one.

A folder has for each commit the tensors, a copy of the ledger and last ``commit-0003.json``, which names the two with
their digests. Renaming that file is the commit: a server that is killed before has changed nothing, and the next commit
removes what it left. The last two commits are kept, so that a damaged file costs one round and not the run.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import safetensors.torch
from pydantic import NonNegativeInt, ValidationError
from safetensors import SafetensorError
from torch import Tensor

from fedfms import __version__
from fedfms.access import children, is_file, unreadable
from fedfms.configuration import Sha256, Strict
from fedfms.errors import RUN_STATE_DAMAGED, RUN_STATE_DIFFERS, FedfmsError, Problem, fail
from fedfms.exchange.messages import JobContract
from fedfms.exchange.replies import Scores
from fedfms.exchange.state import check_tensors
from fedfms.files import atomic_folder, atomic_path, sha256_file, write_json
from fedfms.tensor_files import write_tensors

_COMMIT = "commit-{:04d}.json"
_COMMITS = "commit-*.json"
_STATE = "state-{:04d}.safetensors"
_LEDGER = "ledger-{}.jsonl"
#: How many commits are kept.
_KEPT = 2
_WEIGHTS, _STEP = "state.", "step."


class Best(Strict):
    """The best aggregate so far: after how many rounds it was, and its scores by site."""

    rounds: NonNegativeInt
    scores: dict[str, Scores]


class RunProgress(Strict):
    """What the controller knows beside the model.

    Attributes:
        best: The best aggregate so far; None before the first that was scored.
        sites: Sites that get the next round's task.
        connected: All sites of the run; they get the final model.
        undecided: Sites of ``sites`` where nobody has approved the job yet.
        counted: Sites whose update counted in the last round.
    """

    best: Best | None = None
    sites: tuple[str, ...] = ()
    connected: tuple[str, ...] = ()
    undecided: tuple[str, ...] = ()
    counted: tuple[str, ...] = ()


class _Commit(Strict):
    """``commit-0003.json``."""

    rounds: NonNegativeInt
    progress: RunProgress
    ledger: str
    files: dict[str, Sha256]
    schema_sha256: Sha256
    backbone_sha256: Sha256
    job_sha256: Sha256
    package_version: str


@dataclass(frozen=True)
class RunState:
    """The state after a round.

    Attributes:
        rounds: How many rounds it has seen.
        weights: The exchanged tensors, as in the schema.
        step: The server optimizer's last step, likewise; empty before the first.
        progress: What else the controller has to know.
        best: The tensors of ``progress.best``.
        ledger: The ledger as it was then.
        damaged: Files of a later commit that could not be used.
    """

    rounds: int
    weights: dict[str, Tensor]
    step: dict[str, Tensor]
    progress: RunProgress
    best: dict[str, Tensor] | None
    ledger: Path
    damaged: tuple[Problem, ...] = ()


class RunStore:
    """The commits of one run.

    Args:
        folder: Where they are; created by the first commit.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def commit(
        self,
        contract: JobContract,
        rounds: int,
        weights: Mapping[str, Tensor],
        step: Mapping[str, Tensor],
        progress: RunProgress,
        ledger: Path,
    ) -> None:
        """Make this the state to go on with. A second commit of the same round replaces the first.

        Args:
            contract: The job, for its digests.
            rounds: How many rounds the state has seen.
            weights: The exchanged tensors.
            step: The server optimizer's last step.
            progress: What else the controller has to know; its best aggregate must be one of an earlier commit or this.
            ledger: The ledger, which is copied.

        Raises:
            FedfmsError: FMS-D011 when the disk is full; then the commit before it holds.
        """
        commits = self._commits()
        digests = dict(commits[0].files) if commits else {}
        state = _STATE.format(rounds)
        if state not in digests:
            tensors = {f"{_WEIGHTS}{name}": tensor for name, tensor in weights.items()}
            tensors |= {f"{_STEP}{name}": tensor for name, tensor in step.items()}
            write_tensors(self.folder / state, tensors)
            digests[state] = sha256_file(self.folder / state)
        # Named after its content: the copy of an earlier commit is never written over.
        copied = sha256_file(ledger)
        copy = _LEDGER.format(copied[:16])
        with atomic_path(self.folder / copy) as temporary:
            shutil.copyfile(ledger, temporary)
        best = set() if progress.best is None else {_STATE.format(progress.best.rounds)}
        content = _Commit(
            rounds=rounds,
            progress=progress,
            ledger=copy,
            files={copy: copied, **{name: digests[name] for name in sorted({state, *best})}},
            **contract.digests,
            package_version=__version__,
        )
        write_json(self.folder / _COMMIT.format(rounds), content.model_dump(mode="json"))
        self._prune()

    def load(self, contract: JobContract) -> RunState | None:
        """The newest state that is whole; None when nothing was committed.

        Commits that are damaged are removed, so that the next one of their round takes their place.

        Raises:
            FedfmsError: FMS-J006 with both digests when the state is of another job; FMS-J007 when none of the commits
                is whole.
        """
        damaged: list[Problem] = []
        for path in self._paths():
            try:
                commit = self._read(path)
                _require_same_job(path, commit, contract)
                state = self._state(commit, contract)
            except FedfmsError as error:
                if RUN_STATE_DIFFERS.id in error.ids:
                    raise
                damaged += error.problems
                continue
            for later in self._paths():
                if later.name > path.name:
                    later.unlink()
            return replace(state, damaged=tuple(damaged))
        if damaged:
            raise FedfmsError(damaged)
        return None

    def take_over(self, former: RunStore) -> None:
        """Start from the commits of another run of the same job.

        Raises:
            FedfmsError: FMS-D011 when the disk is full.
        """
        with atomic_folder(self.folder) as temporary:
            shutil.copytree(former.folder, temporary, dirs_exist_ok=True)

    @property
    def is_empty(self) -> bool:
        """Whether nothing was committed."""
        return not self._paths()

    def clear(self) -> None:
        """Remove everything: the run has reached its end."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _paths(self) -> list[Path]:
        """Files of commits, the newest first."""
        return sorted((path for path in children(self.folder) if path.match(_COMMITS)), reverse=True)

    def _commits(self) -> list[_Commit]:
        """The commits that can be read, the newest first."""
        found = []
        for path in self._paths():
            with suppress(FedfmsError):
                found.append(self._read(path))
        return found

    @staticmethod
    def _read(path: Path) -> _Commit:
        try:
            return _Commit.model_validate_json(path.read_bytes())
        except OSError as error:
            raise unreadable(RUN_STATE_DAMAGED, path, error) from error
        except ValidationError as error:
            raise fail(RUN_STATE_DAMAGED, path, f"{error.error_count()} values are missing or wrong") from error

    def _state(self, commit: _Commit, contract: JobContract) -> RunState:
        for name, sha256 in commit.files.items():
            path = self.folder / name
            if not is_file(path):
                raise fail(RUN_STATE_DAMAGED, path, "is missing")
            if sha256_file(path) != sha256:
                raise fail(RUN_STATE_DAMAGED, path, "is not as it was written")
        tensors = self._tensors(commit.rounds)
        best = commit.progress.best
        best_tensors = None
        if best is not None:
            best_tensors = check_tensors(_with(self._tensors(best.rounds), _WEIGHTS), contract.schema)
        return RunState(
            rounds=commit.rounds,
            weights=check_tensors(_with(tensors, _WEIGHTS), contract.schema),
            step=_with(tensors, _STEP),
            progress=commit.progress,
            best=best_tensors,
            ledger=self.folder / commit.ledger,
        )

    def _tensors(self, rounds: int) -> dict[str, Tensor]:
        path = self.folder / _STATE.format(rounds)
        try:
            return safetensors.torch.load_file(str(path))
        except (OSError, SafetensorError) as error:
            raise unreadable(RUN_STATE_DAMAGED, path, error) from error

    def _prune(self) -> None:
        """Remove what the last commits do not name, files of a commit that was never made included."""
        kept = self._paths()[:_KEPT]
        names = {path.name for path in kept}
        for path in kept:
            with suppress(FedfmsError):
                names |= self._read(path).files.keys()
        for path in children(self.folder):
            if path.name not in names:
                path.unlink()


def _with(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _require_same_job(path: Path, commit: _Commit, contract: JobContract) -> None:
    problems = [
        Problem(RUN_STATE_DIFFERS, f"{path}: {name}", f"the state is of {getattr(commit, name)}, the job has {own}")
        for name, own in contract.digests.items()
        if getattr(commit, name) != own
    ]
    if commit.package_version != __version__:
        detail = f"the state was written by version {commit.package_version} of fedfms, this is {__version__}"
        problems.append(Problem(RUN_STATE_DIFFERS, f"{path}: package_version", detail))
    if problems:
        raise FedfmsError(problems)
