"""Run FLARE's simulator on a tiny job, as a user does, and read what it leaves behind.

The simulator's exit code proves nothing: it is 0 even when all clients fail to load. Tests check the files written.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from fedfms.sam.backbones import published_sha256

PROJECT = Path(__file__).parents[2]
RUN = "simulate_job"
# Several times what the longest takes on two quiet cores: other tests run side by side.
SECONDS = 900.0


def tiny_job(**changes: Any) -> dict[str, Any]:
    """``training.yaml`` of the project's own job, made small."""
    content = yaml.safe_load((PROJECT / "jobs" / "fedmsa" / "app" / "config" / "training.yaml").read_text())
    content["backbone"] = "vit_test"
    content["backbone_sha256"] = published_sha256("vit_test")
    content["preprocessing"] = {"input_size": 64, "intensity": {"rule": "range"}, "slice_axis": "axial"}
    content.update({"rounds": 2, "local_work": {"steps": 2}, "batch_size": 2, "precision": "fp32"})
    content.update({"task": "organ-lesion", "structures": ["organ", "lesion"], "augmentation": {"variants": 1}})
    return {**content, **changes}


def write_site(folder: Path, name: str, seed: int, patients: int = 5, lesions: bool = True) -> Path:
    """A site with PNG images: an organ and a lesion in it, which it has annotated or not."""
    generator = np.random.default_rng(seed)
    root = folder / name
    for kind in ("images", "organ", "lesion"):
        (root / kind).mkdir(parents=True)
    rows, columns = np.mgrid[:40, :48]
    for number in range(patients):
        organ = (rows - 20) ** 2 + (columns - 20 - number) ** 2 < 144
        lesion = (rows - 18) ** 2 + (columns - 20 - number) ** 2 < 16
        image = 60 + 80 * organ + 60 * lesion + generator.normal(0, 8, organ.shape)
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(root / "images" / f"p{number}.png")
        Image.fromarray((255 * organ).astype(np.uint8)).save(root / "organ" / f"p{number}.png")
        Image.fromarray((255 * lesion).astype(np.uint8)).save(root / "lesion" / f"p{number}.png")
    description = {
        "compute": {"device": "cpu", "threads": 1, "cache_gb": 0},
        "datasets": [
            {
                "name": "tiny",
                "task": "organ-lesion",
                "format": "raster",
                "root": name,
                "images": {"pattern": "images/{case}.png"},
                "masks": [
                    {"pattern": f"{structure}/{{case}}.png", "labels": {structure: "nonzero"}}
                    for structure in (("organ", "lesion") if lesions else ("organ",))
                ],
                "patient": {"rule": "each_image"},
            }
        ],
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(description))
    return path


def break_image(folder: Path, name: str) -> None:
    """Cut one image of a site that ``write_site`` made."""
    image = folder / name / "images" / "p1.png"
    image.write_bytes(image.read_bytes()[:60])


@dataclass
class Simulation:
    """What a run left behind."""

    workspace: Path
    exit_code: int
    stdout: str
    stderr: str

    @property
    def server_app(self) -> Path:
        return self.workspace / "server" / RUN / "app_server"

    def site(self, name: str) -> Path:
        """The site's own files of the run."""
        return self.workspace / name / RUN / "fedfms"

    def lines(self, event: str) -> list[dict[str, Any]]:
        text = (self.server_app / "ledger.jsonl").read_text()
        return [line for line in map(json.loads, text.splitlines()) if line["event"] == event]

    def audit(self, name: str) -> str:
        """The site's audit log of the run."""
        return "".join(path.read_text() for path in (self.workspace / name).rglob("audit.log"))

    def flare_logs(self) -> str:
        """All that FLARE's loggers wrote, at all sites and the server."""
        names = ("log.txt", "log.json", "log_fl.txt", "error_log.txt")
        return "".join(path.read_text(errors="replace") for name in names for path in self.workspace.rglob(name))


@dataclass
class Simulator:
    """A project of its own: the real jobs and the real ``simulator_workspace/local``, in a temporary folder."""

    folder: Path

    def __post_init__(self) -> None:
        shutil.copytree(PROJECT / "jobs" / "fedmsa", self.folder / "jobs" / "fedmsa")
        shutil.copytree(PROJECT / "simulator_workspace" / "local", self.folder / "simulator_workspace" / "local")
        self.sites.mkdir()

    @property
    def sites(self) -> Path:
        return self.folder / "sites"

    def edit(self, path: str, change: Any) -> None:
        """Change a JSON file of the project: ``change`` gets its content."""
        file = self.folder / path
        content = json.loads(file.read_text())
        change(content)
        file.write_text(json.dumps(content))

    def policy(self, **changes: Any) -> None:
        """Change ``policy.yaml`` of the simulator's sites."""
        file = self.folder / "simulator_workspace" / "local" / "policy.yaml"
        file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), **changes}))

    def run(
        self,
        job: dict[str, Any],
        *arguments: str,
        seconds: float = SECONDS,
        meanwhile: Callable[[], bool] = lambda: True,
    ) -> Simulation:
        """``nvflare simulator jobs/fedmsa ARGUMENTS`` from the project's root, with a time limit.

        ``meanwhile`` is called again and again while it runs, until it says that it is done.
        """
        (self.folder / "jobs" / "fedmsa" / "app" / "config" / "training.yaml").write_text(yaml.safe_dump(job))
        command = [str(Path(sys.executable).with_name("nvflare")), "simulator", "jobs/fedmsa", *arguments]
        environment = {**os.environ, "FEDFMS_SITES": str(self.sites), "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            command,
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        watcher = threading.Thread(target=_watch, args=(meanwhile, process), daemon=True)
        watcher.start()
        try:
            stdout, stderr = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            stdout, stderr = process.communicate()
            raise AssertionError(f"no end after {seconds} s\n{stdout}\n{stderr}") from None
        watcher.join()
        return Simulation(self.folder / "simulator_workspace", process.returncode, stdout, stderr)


def _watch(meanwhile: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    while process.poll() is None and not meanwhile():
        time.sleep(0.01)


def kill_processes(command: str) -> int:
    """Send SIGKILL to all processes with ``command`` in their command line; returns how many there were."""
    found = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # it ended while it was looked at
        if command in words:
            os.kill(int(folder.name), signal.SIGKILL)
            found += 1
    return found
