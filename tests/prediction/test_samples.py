"""The real DICOM samples from beginning to end, as a hospital goes: read, previewed, predicted on, SEG checked."""

from __future__ import annotations

from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
import torch
import yaml
from PIL import Image

from fedfms.data.description.site import load_site
from fedfms.data.dicom.image import read_dicom_volume
from fedfms.data.volume.geometry import LPS_TO_RAS
from fedfms.job.folder import TRAINING_FILE
from fedfms.job.training import parse_job
from fedfms.prediction.cases import PredictOptions, predict
from fedfms.prediction.inputs import find_inputs
from fedfms.prediction.predictor import load_predictor
from fedfms.sam.backbones import published_sha256
from fedfms.sam.checkpoint import save_inference
from fedfms.training.headers import job_header
from fedfms.training.optimizer import make_optimizer
from fedfms.training.session import open_session
from fedfms.training.trainer import train_round
from tests.command import Command
from tests.prediction.conformance import conforms, dcmqi_places, highdicom_places
from tests.prediction.model import same_places

pytestmark = pytest.mark.shared_data

#: Sample -> number of slices; and in how many of them each structure of its SEG or RTSTRUCT is.
SAMPLES: dict[str, tuple[int, dict[str, int]]] = {
    "ct_liver_seg_dcmqi": (
        3,
        {"liver": 3, "green": 1, "orange": 1, "purple": 3, "light_blue": 1, "dark_blue": 1},
    ),
    "ct_rtstruct_rt-utils": (2, {"roi_1": 1}),
    "ct_seg_highdicom": (1, {"first_segment": 1}),
    "mr_prostate3t": (19, {}),
}
each_sample = pytest.mark.parametrize("name", SAMPLES)


@pytest.fixture(scope="module")
def demo_model(demo_site: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's job with the smallest backbone, after one round at one hospital."""
    file = Path(__file__).resolve().parents[2] / "jobs" / "fedmsa" / TRAINING_FILE
    content = yaml.safe_load(file.read_text())
    content.update(backbone="vit_test", backbone_sha256=published_sha256("vit_test"), precision="fp32")
    content.update(local_work={"steps": 150}, learning_rate=0.003, augmentation={"variants": 1})
    content["preprocessing"]["input_size"] = 64
    job = parse_job(content, file)
    torch.manual_seed(job.seed)
    folder = tmp_path_factory.mktemp("demo_model")
    session = open_session(job, load_site(demo_site), folder / "cache")
    train_round(
        session.model,
        make_optimizer(session.model, job.learning_rate, job.weight_decay),
        session.feed,
        session.training,
        job,
        session.hardware,
        site="site-3",
        round_index=0,
        on_step=lambda *_: None,
    )
    save_inference(folder / "model.safetensors", job_header(job, 1), session.model.exchanged())
    return folder / "model.safetensors"


@pytest.fixture(scope="module")
def predicted(demo_model: Path, shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is written for all samples at once."""
    out = tmp_path_factory.mktemp("predicted")
    options = PredictOptions(out, probabilities=True, capture=True)
    report = predict(
        load_predictor(demo_model, batch=4, window="off"), find_inputs(shared_data / "dicom_samples", out), options
    )
    assert not report.problems
    assert len(report.written) == 3 * len(SAMPLES)
    return out


@pytest.fixture
def site(shared_data: Path, fedfms: Command, tmp_path: Path, name: str) -> Path:
    """The sample's ``site.yaml``, without a line written by hand."""
    path = tmp_path / "site.yaml"
    assert fedfms("data", "init", shared_data / "dicom_samples" / name, "--out", path).code == 0
    return path


def test_no_sample_is_forgotten(shared_data: Path) -> None:
    assert {path.name for path in (shared_data / "dicom_samples").iterdir() if path.is_dir()} == set(SAMPLES)


@each_sample
def test_read(fedfms: Command, site: Path, name: str) -> None:
    slices, filled = SAMPLES[name]
    checked = fedfms("data", "check", site, "--json")
    report = checked.json()
    failures = [item["id"] for item in report["findings"] if item["severity"] == "FAIL"]
    (row,) = report["datasets"]
    # One patient cannot train and validate; without masks there is nothing to train on.
    expected = ["FMS-D008"] if row["structures"] else []
    assert failures == expected and checked.code == len(expected)
    assert row["slices_per_split"] == {"train": slices, "validation": 0, "test": 0}
    assert {item["name"]: item["filled_slices"] for item in row["structures"]} == filled
    assert all(item["annotated_cases"] == 1 for item in row["structures"])


@each_sample
def test_previewed(fedfms: Command, site: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / "sheet.png"
    result = fedfms("data", "preview", site, "--out", out)
    assert result.code == 0 and not result.err
    pixels = np.asarray(Image.open(out).convert("RGB")).astype(int)
    image = pixels[:270]  # the legend is below
    assert len(np.unique(image[..., 0])) > 100, "an image"
    outlined = np.argwhere((np.abs(image - [0, 229, 255]) < 40).all(axis=2))
    assert (len(outlined) > 50) == bool(SAMPLES[name][1])
    assert (np.ptp(pixels, axis=2).max() > 100) == bool(SAMPLES[name][1]), "nothing drawn where there is nothing"


@pytest.mark.slow
@pytest.mark.timeout(1800)
@each_sample
def test_predicted(predicted: Path, shared_data: Path, tmp_path: Path, name: str) -> None:
    seg_file, probability_file = (predicted / f"{name}_{kind}.dcm" for kind in ("seg", "probability"))
    image = read_dicom_volume(shared_data / "dicom_samples" / name)
    sources = {source.sop_instance_uid for source in image.sources}
    assert len(sources) == SAMPLES[name][0]
    seg = pydicom.dcmread(seg_file)
    assert [item.SegmentLabel for item in seg.SegmentSequence] == ["organ", "lesion"]
    assert seg.FrameOfReferenceUID == image.frame_of_reference
    for group in seg.PerFrameFunctionalGroupsSequence:
        assert group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID in sources
    found = np.zeros(SAMPLES[name][0], dtype=bool)
    to_index = np.linalg.inv(LPS_TO_RAS @ image.grid.affine)
    probabilities = highdicom.seg.segread(probability_file)
    for number in (1, 2):
        places = highdicom_places(seg_file, number)
        if not len(places):
            continue
        assert same_places(dcmqi_places(seg_file, tmp_path / "itk", number), places)
        # On the image's own voxels, no other than those of a probability above one half.
        indices = (to_index @ np.c_[places, np.ones(len(places))].T).T[:, :3]
        assert np.abs(indices - indices.round()).max() < 0.02
        assert (indices.round() >= 0).all() and (indices.round() < image.grid.shape).all()
        found[np.unique(indices[:, 2].round().astype(int))] = True
        volume = probabilities.get_volume(segment_numbers=[number], allow_missing_positions=True)
        assert (volume.array > 0.51).sum() <= len(places) <= (volume.array > 0.49).sum()
    assert name != "mr_prostate3t" or found.sum() > 10, "an answer that is worth checking"
    captures = sorted(path.name for path in (predicted / f"{name}_capture").iterdir())
    shown = np.flatnonzero(found) if found.any() else [len(found) // 2]
    assert captures == [f"{index + 1:04d}.dcm" for index in shown]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@each_sample
def test_conforms(predicted: Path, name: str) -> None:
    written = sorted(predicted.glob(f"{name}_*.dcm")) + sorted((predicted / f"{name}_capture").iterdir())
    assert len(written) >= 3
    for path in written:
        conforms(path)
