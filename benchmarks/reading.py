"""Time the way of a large CT from its files to the model, side by side in one run; prints seconds and ratios.

    python benchmarks/reading.py [--slices 300] [--size 512] [--cases 2] [--threads 2] [--folder DIR]

Makes a CT series of noise with an organ in it, as DICOM, NIfTI and compressed NIfTI with a label map, in DIR or a
temporary folder. SimpleITK, if it is installed, reads the same files for comparison. Memory is the peak of a fresh
process that reads every slice of one case, and of all cases.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import torch
import yaml
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from rich.console import Console
from rich.table import Table

from fedfms.data.description.site import SiteDescription, load_site
from fedfms.data.dicom.image import read_dicom_grid, read_dicom_volume
from fedfms.data.readers import nifti
from fedfms.data.slices.dataset import SiteDataset, SliceReference
from fedfms.data.slices.opening import DataRequest, open_dataset
from fedfms.data.volume.geometry import LPS_TO_RAS, slice_plan
from fedfms.job.training import TrainingJob, parse_job
from fedfms.preprocessing import Preprocessing
from fedfms.sam.backbones import published_sha256
from fedfms.training.evaluation import segment_slice
from fedfms.training.feed import Item, chunked
from fedfms.training.session import open_session

TASK = "ct"
CACHED = 20  # slices that go through the model


def write_site(folder: Path, slices: int, size: int, cases: int) -> Path:
    """One CT as several cases: the files of the others are links to those of the first."""
    generator = np.random.default_rng(0)
    row, column = np.mgrid[:size, :size] / size - 0.5
    labels = (np.hypot(row, column) < 0.2).astype(np.uint8)
    voxels = np.empty((slices, size, size), dtype=np.int16)
    for plane in voxels:
        plane[:] = generator.normal(0, 20, (size, size)) + 60 * labels - 1000 * (np.hypot(row, column) > 0.45)
    affine = np.diag([0.75, 0.75, 1.0, 1.0])
    affine[:3, 3] = (-0.375 * size, -0.375 * size, 0)
    for part in (folder / "dicom" / "0", folder / "nifti", folder / "labels"):
        part.mkdir(parents=True, exist_ok=True)
    write_series(folder / "dicom" / "0", voxels)
    stored = voxels.transpose(2, 1, 0)
    for name in ("ct.nii", "ct.nii.gz"):
        nibabel.save(nibabel.Nifti1Image(stored, LPS_TO_RAS @ affine), folder / "nifti" / name)
    masks = np.broadcast_to(labels, voxels.shape).transpose(2, 1, 0)
    nibabel.save(nibabel.Nifti1Image(masks, LPS_TO_RAS @ affine), folder / "labels" / "0.nii.gz")
    for number in range(1, cases):
        (folder / "dicom" / str(number)).mkdir(exist_ok=True)
        for path in (folder / "dicom" / "0").iterdir():
            link(path, folder / "dicom" / str(number) / path.name)
        link(folder / "labels" / "0.nii.gz", folder / "labels" / f"{number}.nii.gz")
    dataset = {
        "name": "ct",
        "task": TASK,
        "format": "dicom",
        "root": ".",
        "images": {"pattern": "dicom/{case}"},
        "masks": [{"pattern": "labels/{case}.nii.gz", "labels": {"organ": 1}}],
        "patient": {"rule": "each_image"},
    }
    (folder / "site.yaml").write_text(yaml.safe_dump({"datasets": [dataset]}), encoding="utf-8")
    return folder / "site.yaml"


def link(source: Path, target: Path) -> None:
    if not target.exists():
        os.link(source, target)


def write_series(folder: Path, voxels: np.ndarray[Any, np.dtype[np.int16]]) -> None:
    series, frame = generate_uid(), generate_uid()
    for index, plane in enumerate(voxels):
        header = pydicom.Dataset()
        header.file_meta = pydicom.dataset.FileMetaDataset()
        header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        header.SOPClassUID, header.SOPInstanceUID = CTImageStorage, generate_uid()
        header.StudyInstanceUID = header.FrameOfReferenceUID = frame
        header.SeriesInstanceUID, header.Modality, header.PatientID = series, "CT", "benchmark"
        header.InstanceNumber = index + 1
        header.ImagePositionPatient = [-0.375 * len(plane), -0.375 * len(plane), float(index)]
        header.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        header.PixelSpacing, header.SliceThickness = [0.75, 0.75], 1.0
        header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
        header.Rows, header.Columns = plane.shape
        header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 16, 16, 15, 1
        header.RescaleSlope, header.RescaleIntercept = 1, 0
        header.PixelData = plane.tobytes()
        header.save_as(folder / f"{index:04d}.dcm", enforce_file_format=True)


def make_job(**preprocessing: Any) -> TrainingJob:
    """A job as ``jobs/fedmsa``, for a CT."""
    rules = {"input_size": 256, "intensity": {"rule": "percentile", "low": 0.5, "high": 99.5}, "slice_axis": "axial"}
    content = {
        "task": TASK,
        "structures": ["organ"],
        "missing_structure": "error",
        "backbone": "vit_t",
        "backbone_sha256": published_sha256("vit_t"),
        "scope": "adapters+decoder",
        "preprocessing": {**rules, **preprocessing},
        "rounds": 1,
        "min_clients": 1,
        "straggler_minutes": 0,
        "local_work": {"steps": 1},
        "batch_size": 2,
        "learning_rate": 1e-3,
        "weight_decay": 0,
        "warmup": 0,
        "gradient_clip": 1,
        "server_momentum": 0,
        "augmentation": {"variants": 1},
        "update_norm_limit": 100,
        "precision": "auto",
        "seed": 0,
    }
    return parse_job(content, Path("training.yaml"))


def opened(site: SiteDescription, rules: Preprocessing, **options: Any) -> SiteDataset:
    return open_dataset(
        site,
        DataRequest(task=TASK, structures=("organ",), missing_structure="error", preprocessing=rules, needed_splits=()),
        **options,
    )


def peak_bytes(site_file: Path, cases: int) -> int:
    """Peak memory of this process once every slice of the first cases was read."""
    data = opened(load_site(site_file), make_job().preprocessing, verify=False)
    names = {case.identity for case in data.cases("all")[:cases]}
    for reference in data.slices("all"):
        if reference.case.identity in names:
            data.load(reference)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def in_fresh_process(site_file: Path, cases: int) -> int:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(peak_bytes, site_file, cases).result()


def seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def readers(folder: Path) -> Iterator[tuple[str, float]]:
    """Whole files to a volume in memory."""
    yield "DICOM series, fedfms", seconds(lambda: read_dicom_volume(folder / "dicom" / "0"))
    yield "DICOM series, headers only", seconds(lambda: read_dicom_grid(folder / "dicom" / "0"))
    # Uncompressed whole numbers are mapped, not read, until they are used.
    yield "NIfTI, fedfms", seconds(lambda: nifti.read_volume(folder / "nifti" / "ct.nii").voxels.max())
    yield "NIfTI compressed, fedfms", seconds(lambda: nifti.read_volume(folder / "nifti" / "ct.nii.gz"))
    try:
        import SimpleITK
    except ImportError:
        return
    names = [str(path) for path in sorted((folder / "dicom" / "0").iterdir())]
    yield "DICOM series, SimpleITK", seconds(lambda: SimpleITK.ReadImage(names))
    yield "NIfTI compressed, SimpleITK", seconds(lambda: SimpleITK.ReadImage(str(folder / "nifti" / "ct.nii.gz")))


def slicing(site: SiteDescription, folder: Path) -> Iterator[tuple[str, float]]:
    """Seconds of one slice, once the volume is in memory; and of getting it there."""
    volume = read_dicom_volume(folder / "dicom" / "0")
    yield "cut the volume (a view)", seconds(lambda: slice_plan(volume.grid, "axial").cut(volume.voxels))
    for title, rules in (
        ("axial", {}),
        ("sagittal", {"slice_axis": "sagittal"}),
        ("axial with neighbours", {"channels": "neighbours"}),
    ):
        data = opened(site, make_job(**rules).preprocessing, verify=False)
        first, *others = data.slices("all")[:11]
        yield f"first slice of a case, {title}", seconds(partial(data.load, first))
        yield f"each further slice, {title}", seconds(partial(list, map(data.load, others))) / len(others)


def opening(site: SiteDescription) -> Iterator[tuple[str, float]]:
    """Seconds per case to open the data set of a task."""
    rules = make_job().preprocessing
    begin = time.perf_counter()
    data = opened(site, rules)
    cases = len(data.cases("all"))
    yield "the first task: read and check every file", (time.perf_counter() - begin) / cases
    yield "a later task: nothing has changed", seconds(lambda: opened(site, rules, known=data.findings)) / cases


def modelling(site: SiteDescription, folder: Path) -> Iterator[tuple[str, float]]:
    """Seconds per slice through the model, the volume being in memory."""
    job = make_job()
    session = open_session(job, site, folder / "cache")
    references = session.dataset.slices("all")[:CACHED]
    session.dataset.load(references[0])

    def through() -> None:
        items: list[Item] = [(reference, 0) for reference in references]
        for _ in session.feed.batches(chunked(items, 2)):
            pass

    def predict(reference: SliceReference) -> object:
        sample = session.dataset.load(reference)
        return segment_slice(session.model, sample, job.preprocessing, session.hardware)

    with torch.no_grad():
        yield "build the cache (frozen part of vit_t)", seconds(through) / CACHED
        yield "read from the cache", seconds(through) / CACHED
        session.model.eval()
        yield "predict, native resolution", seconds(lambda: [predict(reference) for reference in references]) / CACHED


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--cases", type=int, default=2)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        folder = Path(temporary)
        site_file = write_site(folder, options.slices, options.size, max(options.cases, 2))
        site = load_site(site_file)
        # Before this process has grown: a new one inherits its parent's peak.
        peaks = {cases: in_fresh_process(site_file, cases) for cases in sorted({1, options.cases})}
        console = Console(width=110)
        volume = f"{options.slices} slices of {options.size} x {options.size}"
        for title, unit, rows in (
            (f"reading a CT of {volume}", "s", readers(folder)),
            (f"slicing it, {volume}", "s", slicing(site, folder)),
            ("opening the data set, per case", "s", opening(site)),
            (f"vit_t at 256 px, per slice, {options.threads} threads", "s", modelling(site, folder)),
        ):
            table = Table(title=title)
            for heading in ("what", unit, "times the first"):
                table.add_column(heading, justify="left" if heading == "what" else "right")
            first = None
            for name, value in rows:
                first = value if first is None else first
                table.add_row(name, f"{value:.4f}", f"{value / first:.3g}")
            console.print(table)
        for cases, peak in peaks.items():
            console.print(f"peak memory, every slice of {cases} case(s): {peak / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
