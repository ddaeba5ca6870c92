"""The training process as FLARE's process runs it: results, faults, and what becomes of it when it must stop."""

from __future__ import annotations

import json
import math
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor

from fedfms.data.description.site import load_site
from fedfms.errors import CATALOGUE, FedfmsError
from fedfms.exchange.replies import TaskKind
from fedfms.files import sha256_file, sha256_json, write_json
from fedfms.job.training import TrainingJob, load_job
from fedfms.sam.backbones import published_sha256
from fedfms.sam.checkpoint import load_segmenter
from fedfms.sam.model import initial_state, schema_of
from fedfms.tensor_files import write_tensors
from fedfms.training import process as process_module
from fedfms.training import worker as worker_module
from fedfms.training.optimizer import load_optimizer, make_optimizer, save_optimizer
from fedfms.training.process import TaskAborted, TaskRunner, WorkerResult
from fedfms.training.session import open_session
from fedfms.training.task import Progress, WorkerTask, read_error, write_error
from fedfms.training.trainer import train_round
from fedfms.training.worker import Reporter
from tests.generators import write_raster_site, write_yaml
from tests.training.conftest import make_job

# Every process imports torch and MONAI anew.
pytestmark = pytest.mark.slow
SITE = "hospital-a"


def write_job(path: Path, **changes: Any) -> Path:
    job = make_job(task="organ-lesion", **changes)
    return write_yaml(path, job.model_dump(mode="json", exclude_none=True))


@dataclass
class Runner:
    """Runs tasks of one job at one site in real worker processes and remembers the processes."""

    folder: Path
    job_file: Path
    site_file: Path
    signs: list[Progress] = field(default_factory=list)
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    limit_bytes: int | None = None
    first_signal: signal.Signals | None = None
    tasks: int = 0
    task_runner: TaskRunner = field(default_factory=TaskRunner)

    @property
    def job(self) -> TrainingJob:
        return load_job(self.job_file)

    @property
    def state_folder(self) -> Path:
        return self.folder / "state"

    @property
    def task_folder(self) -> Path:
        return self.folder / f"task-{self.tasks}"

    def task(self, kind: TaskKind, round_number: int = 0) -> WorkerTask:
        return WorkerTask(
            kind=kind,
            site=SITE,
            round=round_number,
            job_file=self.job_file,
            site_file=self.site_file,
            state_folder=self.state_folder,
        )

    def run(
        self,
        kind: TaskKind,
        received: dict[str, Tensor] | None = None,
        round_number: int = 0,
        aborted: Callable[[], bool] = lambda: False,
        stall_seconds: float = 120,
    ) -> WorkerResult:
        self.tasks += 1
        self.signs.clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(process_module.subprocess, "Popen", self._popen(subprocess.Popen))
            return self.task_runner.run(
                self.task(kind, round_number), received, self.task_folder, aborted, self.signs.append, stall_seconds
            )

    def _popen(self, real: Any) -> Callable[..., subprocess.Popen[bytes]]:
        def limit() -> None:
            if self.limit_bytes is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (self.limit_bytes, self.limit_bytes))

        def start(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
            started: subprocess.Popen[bytes] = real(*arguments, preexec_fn=limit, **options)
            self.processes.append(started)
            if self.first_signal is not None:
                os.kill(started.pid, self.first_signal)
            return started

        return start

    def assert_gone(self) -> None:
        """The last process has ended and is collected."""
        assert self.processes[-1].returncode is not None
        with pytest.raises(ProcessLookupError):
            os.kill(self.processes[-1].pid, 0)


class InThisProcess:
    """The training process's own entry point without a process: no modules are imported anew.

    For tests of what it does with data; what becomes of the process is tested with real ones.
    """

    def __init__(self, command: list[str], **_: Any) -> None:
        self.stdin = self
        self.returncode: int | None = None
        self._folders: list[Path] = []

    def write(self, line: bytes) -> None:
        self._folders.append(Path(json.loads(line)))

    def flush(self) -> None:
        """Every line is done at the next ``poll``."""

    def close(self) -> None:
        self.returncode = self.returncode or 0

    def poll(self) -> int | None:
        while self._folders:
            if not worker_module.do_task(self._folders.pop(), os.getppid()):
                self.returncode = 1
        return self.returncode


@dataclass
class RunnerHere(Runner):
    """Runs tasks in the tests' own process.

    Attributes:
        stages: All stages of the last task.
    """

    stages: set[str] = field(default_factory=set)

    def run(self, *arguments: Any, **options: Any) -> WorkerResult:
        self.stages.clear()
        real = Reporter.__call__

        def report(reporter: Reporter, stage: str, *numbers: Any, **more: Any) -> None:
            self.stages.add(stage)
            real(reporter, stage, *numbers, **more)

        try:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Reporter, "__call__", report)
                return super().run(*arguments, **options)
        finally:
            torch.use_deterministic_algorithms(False)

    def _popen(self, real: Any) -> Callable[..., Any]:
        return InThisProcess


@pytest.fixture(scope="module")
def site_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write_raster_site(tmp_path_factory.mktemp("site"))
    content = yaml.safe_load(path.read_text())
    return write_yaml(path, {**content, "compute": {"device": "cpu", "threads": 1}})


@pytest.fixture
def runner(tmp_path: Path, site_file: Path) -> Runner:
    return Runner(tmp_path, write_job(tmp_path / "training.yaml", local_work={"minutes": 10}), site_file)


@dataclass
class Federation:
    """Every kind of task of one site, in order, in one process."""

    runner: Runner
    ready: WorkerResult
    states: list[dict[str, Tensor]]
    trained: list[WorkerResult]
    optimizers: list[Path]
    validated: WorkerResult
    final: WorkerResult
    signs: list[Progress]
    repeated: WorkerResult
    moments: list[str]


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory, site_file: Path) -> Federation:
    folder = tmp_path_factory.mktemp("federation")
    runner = Runner(folder, write_job(folder / "training.yaml"), site_file)
    ready = runner.run("ready")
    states = [initial_state(runner.job.model, runner.job.seed)]
    trained, optimizers = [], []
    for number in (0, 1):
        trained.append(runner.run("train", states[-1], number))
        optimizers.append(folder / f"optimizer-{number}.safetensors")
        optimizers[-1].write_bytes((runner.state_folder / f"optimizer-{number + 1:04d}.safetensors").read_bytes())
        update = trained[-1].update
        assert update is not None
        states.append({name: tensor + update[name] for name, tensor in states[-1].items()})
    signs = list(runner.signs)
    repeated = runner.run("train", states[1], 1)
    moments = sorted(path.name for path in runner.state_folder.glob("optimizer*"))
    validated = runner.run("validate", states[-1], 2)
    assert (runner.state_folder / "cache").is_dir()
    final = runner.run("final", states[-1], 2)
    assert runner.processes[0].poll() is None, "it waits for the next task"
    left = sorted(path.name for path in runner.state_folder.iterdir())
    assert left == ["data.json", "fingerprint.json", "model.safetensors"]
    return Federation(runner, ready, states, trained, optimizers, validated, final, signs, repeated, moments)


def trained_here(federation: Federation, number: int, optimizer_file: Path | None, cache: Path) -> dict[str, Tensor]:
    """Local minus received state of a round, computed in this process from the parts."""
    job, received = federation.runner.job, federation.states[number]
    torch.manual_seed(job.seed)
    session = open_session(job, load_site(federation.runner.site_file), cache)
    session.model.load_exchanged(received)
    optimizer = make_optimizer(session.model, job.learning_rate, job.weight_decay)
    if optimizer_file is not None:
        assert load_optimizer(optimizer_file, optimizer, session.model)
    train_round(
        session.model, optimizer, session.feed, session.dataset.slices("train"), job, session.hardware,
        site=SITE, round_index=number, on_step=lambda *_: None,
    )  # fmt: skip
    return {name: tensor - received[name] for name, tensor in session.model.exchanged().items()}


def test_ready_reports_data_and_digests(federation: Federation) -> None:
    job, report = federation.runner.job, federation.ready.report
    assert report["cases"] == {"organ": 6, "lesion": 6}
    assert report["slices"] == {"train": 6, "validation": 2}
    assert report["cases_left_out"] == 0
    assert report["schema_sha256"] == schema_of(job.model).sha256
    assert report["backbone_sha256"] == published_sha256("vit_test")
    assert report["job_sha256"] == job.sha256
    fingerprint = json.loads((federation.runner.state_folder / "fingerprint.json").read_text())
    assert fingerprint["datasets"][0]["cases"] == {"train": 6, "validation": 2, "test": 0}
    assert report["fingerprint_sha256"] == fingerprint.pop("sha256") == sha256_json(fingerprint)
    assert federation.ready.update is None


def test_update_is_local_minus_received_in_schema_order(federation: Federation, tmp_path: Path) -> None:
    update = federation.trained[0].update
    assert update is not None
    schema = schema_of(federation.runner.job.model)
    schema.check(update)
    assert sorted(update) == sorted(schema.names)
    expected = trained_here(federation, 0, None, tmp_path)
    assert tuple(expected) == schema.names
    for name, tensor in expected.items():
        torch.testing.assert_close(update[name], tensor, rtol=0, atol=1e-6)
    assert any(float(tensor.abs().max()) > 1e-3 for tensor in update.values()), "nothing was trained"


def test_second_round_goes_on_with_the_moments_of_the_first(federation: Federation, tmp_path: Path) -> None:
    update = federation.trained[1].update
    assert update is not None
    resumed = trained_here(federation, 1, federation.optimizers[0], tmp_path)
    afresh = trained_here(federation, 1, None, tmp_path)
    for name, tensor in resumed.items():
        torch.testing.assert_close(update[name], tensor, rtol=0, atol=1e-6)
    assert max(float((afresh[name] - tensor).abs().max()) for name, tensor in update.items()) > 1e-3


def test_a_repeated_round_begins_with_the_moments_that_it_began_with_before(federation: Federation) -> None:
    """After a crash of the server; without them the second training of a round would be another one."""
    first, second = federation.trained[1].update, federation.repeated.update
    assert first is not None and second is not None
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert federation.moments == ["optimizer-0001.safetensors", "optimizer-0002.safetensors"]


def test_train_report(federation: Federation) -> None:
    report = federation.trained[0].report
    assert set(report) == {
        "cases", "steps", "training_seconds", "seconds", "loss", "learning_rate", "peak_memory_bytes", "received",
        "local",
    }  # fmt: skip
    assert report["cases"] == {"organ": 6, "lesion": 6}
    assert report["steps"] == 4
    assert 0 < report["training_seconds"] < report["seconds"] < 600
    assert math.isfinite(report["loss"]) and report["loss"] > 0
    assert 0 < report["learning_rate"] <= 0.01
    assert 10**7 < report["peak_memory_bytes"] < 10**11
    for scores in (report["received"], report["local"]):
        assert set(scores) == {"organ", "lesion"}
        for values in scores.values():
            assert values["n"] == 2
            assert 0 <= values["iou"] <= values["dice"] <= 1
    # The received model of the next round is this site's own: one site, so the same scores.
    assert federation.trained[1].report["received"] == report["local"]


def test_validate_scores_the_received_state(federation: Federation) -> None:
    report = federation.validated.report
    assert set(report) == {"received", "seconds", "peak_memory_bytes"}
    assert report["received"] == federation.trained[1].report["local"]
    assert federation.validated.update is None


def test_final_model_is_kept_and_equals_what_was_received(federation: Federation) -> None:
    path = federation.runner.state_folder / "model.safetensors"
    assert federation.final.report == {"model_sha256": sha256_file(path)}
    model, header = load_segmenter(path)
    assert (header.kind, header.rounds, header.job_sha256) == ("inference", 2, federation.runner.job.sha256)
    found = model.exchanged()
    assert all(torch.equal(found[name], tensor) for name, tensor in federation.states[-1].items())


def test_progress_reaches_the_caller(federation: Federation) -> None:
    known = {
        "opening data and vit_test", "reading all cases", "validating the received model", "training",
        "validating the locally trained model",
    }  # fmt: skip
    assert federation.signs and {sign.stage for sign in federation.signs} <= known
    assert all(0 <= sign.step <= sign.steps for sign in federation.signs)


def test_reporter_writes_each_stage_its_end_and_no_more_than_two_a_second(tmp_path: Path) -> None:
    path = tmp_path / "progress.json"
    report = Reporter(path, os.getppid())
    written: list[tuple[str, int]] = []
    for stage, step in [("a", 1), ("a", 2), ("a", 9), ("b", 1), ("b", 2), ("b", 10)]:
        path.unlink(missing_ok=True)
        report(stage, step, 10, loss=0.5)
        if path.exists():
            sign = Progress.model_validate_json(path.read_text())
            written.append((sign.stage, sign.step))
            assert sign.loss == 0.5 and sign.seconds_left is not None and sign.seconds_left >= 0
    assert written == [("a", 1), ("b", 1), ("b", 10)]


def test_reporter_ends_the_process_when_another_one_is_its_parent(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        Reporter(tmp_path / "progress.json", os.getppid() + 1)("training", 1, 2)
    assert not list(tmp_path.iterdir())


def test_abort_before_the_first_sign_of_life(runner: Runner) -> None:
    begin = time.monotonic()
    with pytest.raises(TaskAborted):
        runner.run("ready", aborted=lambda: bool(runner.processes))
    runner.assert_gone()
    assert time.monotonic() - begin < 30


def test_abort_stops_the_process_in_the_middle_of_training(runner: Runner) -> None:
    asked: list[float] = []

    def aborted() -> bool:
        if runner.signs and runner.signs[-1].stage == "training":
            asked.append(time.monotonic())
        return bool(asked)

    with pytest.raises(TaskAborted):
        runner.run("train", initial_state(runner.job.model, 0), aborted=aborted)
    assert time.monotonic() - asked[0] < 60, "the round itself would take ten minutes"
    runner.assert_gone()


def test_killed_process_is_fms_t002(runner: Runner) -> None:
    runner.first_signal = signal.SIGKILL
    with pytest.raises(FedfmsError) as caught:
        runner.run("ready")
    assert caught.value.ids == ("FMS-T002",)
    assert f"exit code -{int(signal.SIGKILL)}" in str(caught.value)
    assert str(runner.task_folder) in str(caught.value)


def test_lack_of_memory_is_fms_t005(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than any machine has, asked from PyTorch's real allocator."""
    runner.task_folder.mkdir()
    write_json(runner.task_folder / "task.json", runner.task("ready").model_dump(mode="json"))
    monkeypatch.setattr(worker_module, "open_session", lambda *_: torch.empty(2**50))
    assert not worker_module.do_task(runner.task_folder, os.getppid())
    assert read_error(runner.task_folder / "error.json").ids == ("FMS-T005",)


def test_files_are_read_again_only_when_they_have_changed(tmp_path: Path) -> None:
    site_file = write_raster_site(tmp_path / "site")
    job_file = write_job(tmp_path / "training.yaml", augmentation={"variants": 1})
    earlier, runner = RunnerHere(tmp_path, job_file, site_file), Runner(tmp_path, job_file, site_file)
    state = initial_state(runner.job.model, 0)
    earlier.run("ready")
    first = earlier.run("train", state)
    for image in (tmp_path / "site" / "images").iterdir():
        status = image.stat()
        image.write_bytes(b"\0" * status.st_size)
        os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns))
    again = runner.run("train", state)
    assert again.report["received"] == first.report["received"]
    os.utime(image)
    with pytest.raises(FedfmsError) as caught:
        runner.run("train", state)
    assert set(caught.value.ids) == {"FMS-D004"}


def test_bad_cases_and_empty_slices_are_left_out_in_every_task(tmp_path: Path) -> None:
    """What is empty and what is bad is known from the first task; the others do not read the files again."""
    site_file = write_raster_site(tmp_path / "site")
    write_yaml(site_file, {**yaml.safe_load(site_file.read_text()), "strict": False})
    settings = {"empty_slices": 0.0, "local_work": {"epochs": 2}, "batch_size": 1}
    runner = RunnerHere(tmp_path, write_job(tmp_path / "training.yaml", **settings), site_file)
    before = open_session(runner.job, load_site(site_file), tmp_path / "cache").training
    bad, *empty = (Path(reference.case.identity).name for reference in before[:3])
    (tmp_path / "site" / "images" / bad).write_bytes(b"")
    for name in empty:
        Image.new("L", (32, 40)).save(tmp_path / "site" / "masks" / name)
    report = runner.run("ready").report
    assert "reading all cases" in runner.stages
    assert report["cases_left_out"] == 1
    assert report["cases"] == {"organ": 5, "lesion": 5}
    assert report["slices"] == {"train": len(before) - 3, "validation": 2}
    text = (runner.state_folder / "left_out.txt").read_text()
    assert text.count("\n") == 1 and "FMS-D004" in text and bad in text
    assert bad not in (runner.state_folder / "data.json").read_text()
    trained = runner.run("train", initial_state(runner.job.model, 0)).report
    assert trained["steps"] == 2 * (len(before) - 3) and trained["cases"] == report["cases"]
    assert "training" in runner.stages and "reading all cases" not in runner.stages


def test_silent_process_is_fms_t003_and_stopped(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that hangs does not react to SIGTERM either: it must be killed."""
    monkeypatch.setattr(process_module, "_STOP_SECONDS", 0.2)
    runner.first_signal = signal.SIGSTOP
    with pytest.raises(FedfmsError) as caught:
        runner.run("ready", stall_seconds=0.5)
    assert caught.value.ids == ("FMS-T003",)
    runner.assert_gone()
    assert runner.processes[-1].returncode == -signal.SIGKILL


def test_fault_in_the_data_arrives_with_id_and_local_text(tmp_path: Path) -> None:
    site = write_raster_site(tmp_path / "site")
    for name in ("p0_1.png", "p2_0.png"):
        path = tmp_path / "site" / "images" / name
        path.write_bytes(path.read_bytes()[:200])
    runner = RunnerHere(tmp_path, write_job(tmp_path / "training.yaml"), site)
    with pytest.raises(FedfmsError) as caught:
        runner.run("ready")
    assert caught.value.ids == ("FMS-D004",)
    assert "p0_1.png" in str(caught.value) and "p2_0.png" in str(caught.value)
    assert caught.value.public == f"FMS-D004 {CATALOGUE['FMS-D004'].title} (2x)"


def is_alive(pid: int) -> bool:
    """Whether it runs; one that nobody collected does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.parametrize("moment", ["importing", "training", "waiting"])
def test_process_ends_when_its_parent_dies(runner: Runner, moment: str) -> None:
    task_folder = runner.folder / "task"
    task_folder.mkdir()
    write_tensors(task_folder / "received.safetensors", initial_state(runner.job.model, 0))
    task = runner.task("ready" if moment == "waiting" else "train")
    (task_folder / "task.json").write_text(task.model_dump_json())
    # A shell as parent, which gives background jobs no input of its own accord; the other end stays open here.
    read, write = os.pipe()
    command = f'exec 3<&0; "{sys.executable}" -m fedfms.training.worker "{runner.state_folder}" $$ <&3 & echo $!; wait'
    parent = subprocess.Popen(["/bin/sh", "-c", command], stdin=read, stdout=subprocess.PIPE, text=True)
    os.close(read)
    os.write(write, f"{json.dumps(str(task_folder))}\n".encode())
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    progress, report = task_folder / "progress.json", task_folder / "report.json"

    def reached() -> bool:
        if moment == "training":
            return progress.exists() and '"training"' in progress.read_text()
        return moment == "importing" or report.exists()

    try:
        until = time.monotonic() + 300  # a busy machine imports slowly
        while not reached():
            assert time.monotonic() < until and parent.poll() is None
            time.sleep(0.05)
        assert parent.poll() is None
        parent.kill()
        while is_alive(worker):
            assert time.monotonic() < until
            time.sleep(0.05)
    finally:
        os.close(write)
        parent.kill()
        parent.communicate()
        if is_alive(worker):
            os.kill(worker, signal.SIGKILL)
    assert report.exists() == (moment == "waiting")


def test_full_disk_leaves_the_previous_optimizer_whole(federation: Federation, tmp_path: Path) -> None:
    """A limit on the size of files simulates a full disk: the operating system itself refuses to write."""
    runner = Runner(tmp_path, federation.runner.job_file, federation.runner.site_file)
    runner.state_folder.mkdir()
    optimizer_file = runner.state_folder / "optimizer-0001.safetensors"
    before = federation.optimizers[0].read_bytes()
    optimizer_file.write_bytes(before)
    runner.limit_bytes = len(before) // 2
    with pytest.raises(FedfmsError) as caught:
        runner.run("train", federation.states[1], 1)
    assert caught.value.ids == ("FMS-D011",)
    assert "optimizer-0002.safetensors" in str(caught.value)
    assert optimizer_file.read_bytes() == before
    assert not list(runner.state_folder.glob(".*")), "no half file is left"
    assert not (runner.task_folder / "update.safetensors").exists()


@pytest.mark.parametrize("what", ["optimizer", "update"])
def test_full_disk_while_saving(what: str, federation: Federation, tmp_path: Path) -> None:
    job = federation.runner.job
    session = open_session(job, load_site(federation.runner.site_file), tmp_path / "cache")
    optimizer = make_optimizer(session.model, 0.01, 0.0)
    load_optimizer(federation.optimizers[0], optimizer, session.model)
    path = tmp_path / "file.safetensors"

    def save() -> None:
        if what == "optimizer":
            save_optimizer(path, optimizer, session.model)
        else:
            write_tensors(path, session.model.exchanged())

    save()
    before = path.read_bytes()
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, old[1]))
    try:
        with pytest.raises(FedfmsError) as caught:
            save()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert caught.value.ids == ("FMS-D011",)
    assert path.read_bytes() == before
    assert sorted(item.name for item in tmp_path.iterdir()) == ["cache", "file.safetensors"]


def test_cache_folder_that_cannot_be_written(tmp_path: Path) -> None:
    site = write_raster_site(tmp_path / "site")
    content = yaml.safe_load(site.read_text())
    (tmp_path / "site" / "cache").write_text("a file is in the way")
    write_yaml(site, {**content, "compute": {"device": "cpu", "cache_dir": "cache/fedfms"}})
    runner = RunnerHere(tmp_path, write_job(tmp_path / "training.yaml"), site)
    with pytest.raises(FedfmsError) as caught:
        runner.run("ready")
    assert caught.value.ids == ("FMS-D009",)
    assert str(tmp_path / "site" / "cache" / "fedfms") in str(caught.value)


def test_errors_survive_the_way_between_the_processes(tmp_path: Path) -> None:
    kinds = list(CATALOGUE.values())
    error = FedfmsError(
        process_module.fail(kind, f"place {index}", "detail", "remedy" if index % 2 else None).problems[0]
        for index, kind in enumerate(kinds)
    )
    write_error(tmp_path / "error.json", error)
    assert read_error(tmp_path / "error.json").problems == error.problems


def test_one_process_does_all_tasks_of_a_run_each_with_its_own_log(federation: Federation) -> None:
    assert len(federation.runner.processes) == 1
    logs = sorted(federation.runner.folder.glob("task-*/worker.log"))
    assert len(logs) == federation.runner.tasks == 6
    federation.runner.task_runner.close()
    federation.runner.assert_gone()


def test_process_that_died_with_nothing_to_do_is_replaced(runner: Runner) -> None:
    """The time of waiting is when the operating system takes memory back."""
    runner.run("ready")
    runner.processes[0].kill()
    runner.processes[0].wait()
    assert runner.run("ready").report["job_sha256"] == runner.job.sha256
    assert len(runner.processes) == 2


def test_process_that_ends_before_it_begins_a_task_is_replaced(runner: Runner) -> None:
    """The line was in its input already."""
    runner.run("ready")
    process = runner.processes[0]
    process.send_signal(signal.SIGSTOP)
    asked: list[float] = []

    def aborted() -> bool:
        asked.append(time.monotonic())
        if len(asked) == 2:
            process.kill()
        return False

    assert runner.run("ready", aborted=aborted).report["job_sha256"] == runner.job.sha256
    assert len(runner.processes) == 2


def test_close_while_a_task_runs_is_an_abort_and_starts_nothing(runner: Runner) -> None:
    def close() -> bool:
        if runner.signs and runner.signs[-1].stage == "training":
            runner.task_runner.close()
        return False

    with pytest.raises(TaskAborted):
        runner.run("train", initial_state(runner.job.model, 0), aborted=close)
    runner.assert_gone()
    with pytest.raises(TaskAborted):
        runner.run("ready")
    assert len(runner.processes) == 1


def test_task_after_a_failed_one_gets_a_new_process(runner: Runner) -> None:
    with pytest.raises(FedfmsError) as caught:
        runner.run("validate", received=None)  # no state was sent along
    assert caught.value.ids == ("FMS-T999",)
    assert "received.safetensors" not in caught.value.public
    runner.assert_gone()
    log = (runner.task_folder / "worker.log").read_text()
    assert "Traceback (most recent call last)" in log and "load_file" in log
    assert runner.run("ready").report["job_sha256"] == runner.job.sha256
    assert len(runner.processes) == 2


def test_process_with_nothing_to_do_ends_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hospital's machine has other work, and other sites may take hours. It closes its input: see ``TaskRunner``."""
    read, write = os.pipe()
    begin = time.monotonic()
    with os.fdopen(read, encoding="utf-8") as stdin, os.fdopen(write, "wb") as writer:
        monkeypatch.setattr(sys, "stdin", stdin)
        monkeypatch.setattr(worker_module, "_IDLE_SECONDS", 0.1)
        monkeypatch.setattr(worker_module, "_WAIT_SECONDS", 0.02)
        assert worker_module._next_task(os.getppid()) is None
        assert 0.1 <= time.monotonic() - begin < 60
        writer.write(b'"/a\\nfolder"\n')
        writer.flush()
        assert worker_module._next_task(os.getppid()) == Path("/a\nfolder")
        assert worker_module._next_task(os.getppid() + 1) is None, "whoever started it is gone"


def test_memory_goes_back_between_tasks() -> None:
    code = """
import torch
from fedfms.training.hardware import release_memory

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

begin = resident()
parts = [torch.ones(2**18) for _ in range(400)]
kept = parts[-1]
full = resident()
del parts
held = resident()
release_memory()
print(full - begin, held - begin, resident() - begin)
"""
    environment = {**os.environ, **process_module.MEMORY_REUSE}
    output = subprocess.run([sys.executable, "-c", code], env=environment, check=True, stdout=subprocess.PIPE).stdout
    full, held, released = map(int, output.split())
    assert full > 4e8 and held > 3e8, "glibc would have given it back itself"
    assert released < 5e7
