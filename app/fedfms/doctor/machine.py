"""Checks of the machine: disk, memory, GPU, packages, backbones."""

from __future__ import annotations

import platform
import shutil
from pathlib import Path

import psutil
import torch

from fedfms.doctor.examination import Examination, known_backbones
from fedfms.doctor.result import Result, failed, listed, passed, remedies, warned
from fedfms.errors import (
    BACKBONE_DIGEST,
    BACKBONE_FILE,
    BACKBONE_MISSING,
    DISK_SPACE,
    GPU,
    MEMORY,
    SHARED_MEMORY,
    VERSIONS,
    FedfmsError,
)
from fedfms.provision.overlay import package_versions
from fedfms.sam.backbones import BACKBONES, file_layout, load_weights, weight_files
from fedfms.sam.model import schema_of

GB = 10**9
SHARED = Path("/dev/shm")
DEVICES = Path("/dev")
_SHARED_BYTES = 64 * 10**6
# Python, PyTorch, FLARE's two processes and a batch, measured with the smallest backbone.
_BASE_MEMORY = 1.5 * GB
# Received state, update, optimizer with two moments, final model, and as much again while they are replaced.
_STATES_ON_DISK = 8
_BASE_DISK = GB


def free_disk(path: Path) -> int:
    """Free bytes where a path is or will be."""
    while True:
        try:
            return shutil.disk_usage(path).free
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            if path == path.parent:
                raise
            path = path.parent


def free_memory() -> int:
    """Bytes of memory that programs can still allocate."""
    return int(psutil.virtual_memory().available)


def backbone_bytes(name: str) -> int:
    """Size of a backbone's weights in fp32."""
    return 4 * sum(torch.Size(shape).numel() for shape in file_layout(BACKBONES[name]).values())


def backbones(examination: Examination) -> list[Result]:
    """The weight file of the job's backbone is there; without a job, those that the policy lists."""
    if examination.job_folder is not None:
        job = examination.job
        try:
            load_weights(job.backbone, job.backbone_sha256)
        except FedfmsError as error:
            return [failed(BACKBONE_FILE, listed(error.problems, examination), remedies(error.problems))]
        return [passed(BACKBONE_FILE, f"{job.backbone} with the job's digest {job.backbone_sha256[:12]}...")]
    allowed = examination.policy.backbones
    # With 'any' the one for tests, which is always there, says nothing: no study trains it.
    names = {
        digest: name
        for digest, name in known_backbones().items()
        if (BACKBONES[name].sha256 if allowed == "any" else digest in allowed)
    }
    others = [] if allowed == "any" else [digest for digest in dict.fromkeys(allowed) if digest not in names]
    try:
        files = weight_files() if others else {}
    except FedfmsError as error:
        return [failed(BACKBONE_FILE, listed(error.problems, examination), remedies(error.problems))]
    results, absent, there = [], [], []
    for digest in others:
        if digest in files and (fault := _unusable(digest)) is not None:
            results.append(warned(BACKBONE_FILE, listed(fault.problems, examination), remedies(fault.problems)))
        elif digest in files:
            there.append(f"{Path(files[digest]).name} with {digest[:12]}...")
    for digest, name in names.items():
        try:
            load_weights(name, digest)
            there.append(name)
        except FedfmsError as error:
            absent.append(name)
            if BACKBONE_MISSING.id not in error.ids:
                results.append(warned(BACKBONE_FILE, listed(error.problems, examination), remedies(error.problems)))
    lost = [digest for digest in others if digest not in files]
    text = f"there: {', '.join(there) or 'none'}; allowed but not there: {', '.join([*absent, *lost]) or 'none'}"
    published = "; ".join(f"{name} {item.sha256}" for name, item in BACKBONES.items() if item.sha256)
    compare = f"Compare the digits in local/policy.yaml with those of the published files: {published}." if lost else ""
    if not there:
        advice = " ".join([compare, *(BACKBONES[name].advice for name in absent)]).strip()
        return [failed(BACKBONE_FILE, text, advice), *results]
    if lost:
        results.append(warned(BACKBONE_FILE, f"no published file and no file here has {', '.join(lost)}", compare))
    return [passed(BACKBONE_FILE, text), *results]


def _unusable(sha256: str) -> FedfmsError | None:
    """Why a weight file that is here belongs to none of the backbones; None if it belongs to one."""
    found = None
    for name in BACKBONES:
        try:
            load_weights(name, sha256)
        except FedfmsError as error:
            # Where it is not a candidate, nothing is said about the file.
            found = found if {BACKBONE_MISSING.id, BACKBONE_DIGEST.id} & set(error.ids) else error
        else:
            return None
    return found


def disk(examination: Examination) -> list[Result]:
    """There is free disk space for a job's files and for the cache of prepared images."""
    kit = examination.kit
    free = free_disk(kit.folder)
    need = float(_BASE_DISK)
    if kit.kind == "site":
        need += _STATES_ON_DISK * schema_of(examination.job.model).bytes + backbone_bytes(examination.job.backbone)
    text = f"{free / GB:.1f} GB free for the kit, a job needs about {need / GB:.1f} GB"
    results = [passed(DISK_SPACE, text) if free >= need else failed(DISK_SPACE, text)]
    if kit.kind == "site":
        results += _cache(examination)
    return results


def _cache(examination: Examination) -> list[Result]:
    try:
        compute = examination.site.compute
    except FedfmsError:
        return []  # another check reports it
    free = free_disk(compute.cache_dir or examination.kit.folder)
    if free >= compute.cache_gb * GB:
        return []
    text = f"{free / GB:.1f} GB free for the cache, compute.cache_gb allows it {compute.cache_gb:g} GB"
    return [warned(DISK_SPACE, text, "Free space, or lower compute.cache_gb: the rest is then computed each time.")]


def shared_memory(examination: Examination) -> Result:
    """Shared memory is large enough; containers have only 64 MB by default."""
    if platform.system() != "Linux":
        return passed(SHARED_MEMORY, f"{platform.system()} has no {SHARED}")
    if not SHARED.is_dir():
        return warned(SHARED_MEMORY, f"{SHARED} is missing")
    free = free_disk(SHARED)
    text = f"{free / GB:.2f} GB of shared memory free in {SHARED}"
    return passed(SHARED_MEMORY, text) if free >= _SHARED_BYTES else warned(SHARED_MEMORY, text)


def memory(examination: Examination) -> Result:
    """There is memory for the weights, gradients and moments of the job's model, beside what every process needs."""
    free, need = free_memory(), _BASE_MEMORY
    if examination.kit.kind == "site":
        # The file's bytes and the tensors made of them are in memory together while a backbone is read.
        need += 2 * backbone_bytes(examination.job.backbone) + 3 * schema_of(examination.job.model).bytes
    text = f"{free / GB:.1f} GB free, at least {need / GB:.1f} GB are needed"
    return passed(MEMORY, text) if free >= need else failed(MEMORY, text)


def has_nvidia_gpu() -> bool:
    """Whether the machine has the GPU driver's devices or its program."""
    return any(DEVICES.glob("nvidia*")) or shutil.which("nvidia-smi") is not None


def gpu(examination: Examination) -> list[Result]:
    """PyTorch sees the GPU that the site asks for."""
    try:
        device = examination.site.compute.device
    except FedfmsError:
        device = "auto"  # another check reports it
    if not torch.cuda.is_available():
        if device == "cuda":
            return [failed(GPU, "site.yaml says compute.device: cuda, but there is none")]
        if device == "auto" and has_nvidia_gpu():
            return [warned(GPU, "this machine seems to have a GPU that PyTorch does not see: CPU training")]
        return [passed(GPU, "none: CPU training")]
    results = []
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        unused = ", not used: compute.device is cpu" if device == "cpu" else ""
        results.append(passed(GPU, f"{facts.name}, {facts.total_memory / GB:.1f} GB{unused}"))
    return results


def versions(examination: Examination) -> list[Result]:
    """The installed packages are those with which the coordinator made the kit or approved its certificate."""
    installed, made = package_versions(), examination.record.packages
    shown = ", ".join(f"{name} {version}" for name, version in installed.items())
    if not made:
        remedy = "Ask the coordinator for the versions and compare them."
        return [warned(VERSIONS, f"{shown}; NOT compared with the server: the kit names no versions", remedy)]
    results = []
    for name, version in made.items():
        here = installed.get(name)
        if here == version:
            continue
        text = f"{name} {here or 'is not installed'}, the kit was made with {version}"
        decisive = name in ("fedfms", "nvflare") and (here is None or _release(here) != _release(version))
        results.append(failed(VERSIONS, text) if decisive else warned(VERSIONS, text))
    return results or [passed(VERSIONS, shown)]


def _release(version: str) -> list[str]:
    """Major and minor version: releases that differ only after them work together, such as FLARE's 2.9.0 and 2.9.1."""
    return version.split(".")[:2]
