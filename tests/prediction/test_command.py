"""``fedfms predict`` as a user types it: what it writes, prints, refuses, and how it ends."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

import highdicom
import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK
import torch
from PIL import Image

from fedfms.data.volume.geometry import LPS_TO_RAS
from fedfms.files import sha256_file
from fedfms.preprocessing import RangeIntensity
from fedfms.sam.checkpoint import load_segmenter, save_inference
from fedfms.sam.model import initial_state
from tests.command import Command
from tests.generators import write_nifti, write_series
from tests.prediction.model import LESION, ORGAN, Bright, header, object_in, same_places, world
from tests.sam.models import config

AFFINE = np.diag([1.0, 1, 3, 1])
VOXELS = object_in((64, 48, 6), np.uint16)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    generator = torch.Generator().manual_seed(5)
    state = initial_state(config(), 0)
    noisy = {name: tensor + 0.1 * torch.randn(tensor.shape, generator=generator) for name, tensor in state.items()}
    save_inference(path, header(), noisy)
    return path


@pytest.fixture
def bright(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The checkpoint's weights are set aside for a model whose answer is known."""
    monkeypatch.setattr("fedfms.prediction.predictor.load_segmenter", lambda path: (Bright(), load_segmenter(path)[1]))
    return


def picture(path: Path, values: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(VOXELS[:, :, 3].T.astype(np.uint8) if values is None else values).save(path)
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_mixed_folder_with_a_real_checkpoint(fedfms: Command, checkpoint: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    write_series(source / "study" / "mr", VOXELS, AFFINE)
    write_nifti(source / "t1.nii.gz", VOXELS, LPS_TO_RAS @ AFFINE)
    picture(source / "photo.png")
    (source / "notes.txt").write_text("no image")
    result = fedfms("predict", "--model", checkpoint, "--input", source, "--out", out, "--capture", "--probabilities")
    assert result.code == 0, result.err
    names = {
        f"{stem}_{structure}{kind}{ending}"
        for stem, ending in (("photo", ".png"), ("t1", ".nii.gz"))
        for structure in ("organ", "lesion")
        for kind in ("", "_probability")
    }
    names |= {"study/mr_seg.dcm", "study/mr_probability.dcm", "study/mr_capture"}
    assert set(result.out.split()) == {str(out / name) for name in names}
    assert {name for name in contents(out) if "capture" not in name} == names - {"study/mr_capture"}
    assert "1 file(s) are not images" in result.err and "not for diagnosis" in result.err
    seg = pydicom.dcmread(out / "study" / "mr_seg.dcm")
    assert seg.DeviceSerialNumber == sha256_file(checkpoint)
    # The same volume as NIfTI: the model's answer is in the same voxels.
    mask = nibabel.load(out / "t1_organ.nii.gz")
    found = np.asarray(mask.dataobj)
    assert 0.02 < found.mean() < 0.98, "a constant answer would show nothing"
    volume = highdicom.seg.segread(out / "study" / "mr_seg.dcm").get_volume(
        segment_numbers=[1], allow_missing_positions=True
    )
    assert same_places(world(volume.array[..., 0], LPS_TO_RAS @ volume.affine), world(found, mask.affine))


@pytest.mark.usefixtures("bright")
def test_an_unreadable_image_does_not_stop_the_others(fedfms: Command, checkpoint: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    picture(source / "a.png")
    (source / "b.png").write_bytes(b"\x89PNG")
    (source / "c.dcm").write_bytes(b"no DICOM")
    picture(source / "d.png")
    result = fedfms("predict", "--model", checkpoint, "--input", source, "--out", out)
    assert result.code == 1 and "Traceback" not in result.err
    assert set(contents(out)) == {"a_organ.png", "a_lesion.png", "d_organ.png", "d_lesion.png"}
    assert len(result.out.split()) == 4
    for word in ("2 input(s) could not", "2 problem(s)", "FMS-D004", "b.png", "c.dcm", " -> "):
        assert word in result.err
    mask = np.asarray(Image.open(out / "d_organ.png"))
    assert (mask == np.where(VOXELS[:, :, 3].T >= ORGAN, 255, 0)).all()


@pytest.mark.usefixtures("bright")
def test_a_localiser_is_named_and_can_be_left_out(fedfms: Command, checkpoint: Path, tmp_path: Path) -> None:
    study, out = tmp_path / "study", tmp_path / "out"
    write_series(study, VOXELS, AFFINE, SeriesNumber=5, SeriesDescription="t2 tra")
    names = [f"loc{index}.dcm" for index in range(3)]
    localiser = {"SeriesNumber": 1, "SeriesDescription": "Localizer", "ImagePositionPatient": [0, 0, 0]}
    write_series(study, VOXELS[:, :, :3], AFFINE, names=names, **localiser)
    arguments = ("predict", "--model", checkpoint, "--input", study, "--out", out)
    result = fedfms(*arguments)
    assert result.code == 1
    for text in ("FMS-D015", f"{study}, MR 'Localizer' (series number 1, 3 files)", "leave it out with --series"):
        assert text in result.err
    assert fedfms(*arguments, "--series", "t2", "--overwrite").code == 0
    # Alone, there is nothing else to take.
    alone = fedfms(*arguments[:-1], tmp_path / "other", "--series", "Localizer")
    assert alone.code == 1 and "leave it out" not in alone.err


def series_of_two(folder: Path) -> None:
    """Two echoes, of which the second shows the object; both at each position."""
    write_series(folder, np.repeat(VOXELS, 2, axis=2), AFFINE)
    for number, path in enumerate(sorted(folder.iterdir())):
        dataset = pydicom.dcmread(path)
        dataset.EchoTime, dataset.ImagePositionPatient = (4.6, 9.2)[number % 2], [0, 0, 3.0 * (number // 2)]
        dataset.PixelData = dataset.PixelData if number % 2 else bytes(len(dataset.PixelData))
        dataset.save_as(path)


@pytest.mark.usefixtures("bright")
def test_one_of_several_volumes_in_a_series_can_be_chosen(fedfms: Command, checkpoint: Path, tmp_path: Path) -> None:
    series_of_two(tmp_path / "mr")
    arguments = ("predict", "--model", checkpoint, "--input", tmp_path / "mr", "--out", tmp_path / "out")
    result = fedfms(*arguments)
    assert result.code == 1
    for text in ("FMS-D014", "EchoTime: 4.6 (6 frames), 9.2 (6 frames)", "--dimension"):
        assert text in " ".join(result.err.split())
    assert fedfms(*arguments, "--dimension", "EchoTime=9.20").code == 0
    seg = highdicom.seg.segread(tmp_path / "out" / "mr_seg.dcm")
    volume = seg.get_volume(segment_numbers=[1], allow_missing_positions=True)
    assert same_places(world(volume.array[..., 0], volume.affine), world(VOXELS >= ORGAN, AFFINE))
    unknown = fedfms(*arguments, "--dimension", "EchoTime=7", "--overwrite")
    assert unknown.code == 1 and "EchoTime: 4.6 (6 frames)" in " ".join(unknown.err.split())


@pytest.mark.usefixtures("bright")
def test_slices_that_are_left_out_on_purpose(fedfms: Command, checkpoint: Path, tmp_path: Path) -> None:
    write_series(tmp_path / "mr", VOXELS, AFFINE)
    for path in sorted((tmp_path / "mr").iterdir())[::2]:
        path.unlink()
    arguments = ("predict", "--model", checkpoint, "--input", tmp_path / "mr", "--out", tmp_path / "out")
    result = fedfms(*arguments)
    assert result.code == 1 and "FMS-D015" in result.err and "--skips-slices" in result.err
    assert fedfms(*arguments, "--skips-slices").code == 0


@pytest.mark.usefixtures("bright")
def test_one_of_two_affines_can_be_chosen(fedfms: Command, checkpoint: Path, tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(VOXELS.astype(np.int16), np.diag([1.0, 1, 3, 1]))
    image.set_sform(np.diag([1.0, 1, 3, 1]), 1)
    image.set_qform(np.diag([-1.0, 1, 3, 1]), 1)
    nibabel.save(image, tmp_path / "t1.nii.gz")
    arguments = ("predict", "--model", checkpoint, "--input", tmp_path / "t1.nii.gz", "--out", tmp_path / "out")
    result = fedfms(*arguments)
    assert result.code == 1 and "FMS-D014" in result.err and "--affine" in result.err
    assert "--dimension" not in result.err
    assert fedfms(*arguments, "--affine", "qform").code == 0
    assert (tmp_path / "out" / "t1_organ.nii.gz").is_file()


@pytest.mark.usefixtures("bright")
def test_results_are_replaced_only_when_told(fedfms: Command, checkpoint: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    write_series(source / "mr", VOXELS, AFFINE)
    picture(source / "a.png")
    arguments = ("predict", "--model", checkpoint, "--input", source, "--out", out, "--capture")
    assert fedfms(*arguments).code == 0
    before = contents(out)
    (out / "a_lesion.png").unlink()
    error = fedfms(*arguments).failed_with("FMS-P001", "mr_seg.dcm", "mr_capture", "a_organ.png", "--overwrite")
    assert "a_lesion.png" not in error and "3 problem(s)" in error
    assert not (out / "a_lesion.png").exists()
    (out / "mr_capture" / "9999.dcm").write_bytes(b"of an earlier run")
    assert fedfms(*arguments, "--overwrite").code == 0
    assert set(contents(out)) == set(before)
    assert contents(out)["a_organ.png"] == before["a_organ.png"]


@pytest.mark.parametrize("overwrite", [(), ("--overwrite",)])
def test_inputs_that_would_share_a_result(
    fedfms: Command, checkpoint: Path, tmp_path: Path, overwrite: tuple[str, ...]
) -> None:
    for name in ("a.png", "a.jpg", "b.png"):
        picture(tmp_path / "in" / name)
    arguments = ("--input", tmp_path / "in", "--out", tmp_path / "out", *overwrite)
    error = fedfms("predict", "--model", checkpoint, *arguments).failed_with("FMS-P001", "a.png", "a.jpg")
    assert "2 problem(s)" in error and "b.png" not in error


def test_lack_of_memory_fails_the_image_alone(
    fedfms: Command, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Greedy(Bright):
        def __call__(self, images: torch.Tensor, **prompts: object) -> torch.Tensor:
            if not self.batches:
                self.batches.append(1)
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes")
            return super().__call__(images, **prompts)

    monkeypatch.setattr("fedfms.prediction.predictor.load_segmenter", lambda path: (Greedy(), load_segmenter(path)[1]))
    for name in ("a.png", "b.png"):
        picture(tmp_path / "in" / name)
    out = tmp_path / "out"
    result = fedfms("predict", "--model", checkpoint, "--input", tmp_path / "in", "--out", out)
    assert result.code == 1 and "FMS-T005" in result.err and "Lower --batch" in result.err
    assert set(contents(out)) == {"b_organ.png", "b_lesion.png"}


@pytest.mark.usefixtures("bright")
@pytest.mark.parametrize("broken", ["_seg.dcm", "_capture"])
def test_nothing_half_written_is_left(
    fedfms: Command, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    whole = pydicom.Dataset.save_as

    def save_as(self: pydicom.Dataset, file: Path, **options: object) -> None:
        if broken not in str(file):
            return whole(self, file, **options)
        Path(file).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    write_series(tmp_path / "mr", VOXELS, AFFINE)
    out = tmp_path / "out"
    arguments = ("--input", tmp_path / "mr", "--out", out, "--capture", "--overwrite")
    for earlier in (False, True):
        if earlier:
            assert fedfms("predict", "--model", checkpoint, *arguments).code == 0
        before = contents(out)
        with monkeypatch.context() as patch:
            patch.setattr(pydicom.Dataset, "save_as", save_as)
            result = fedfms("predict", "--model", checkpoint, *arguments)
        assert result.code == 1 and "FMS-D011" in result.err and "No space left" in result.err
        unfinished = {name: data for name, data in contents(out).items() if broken in name}
        assert unfinished == {name: data for name, data in before.items() if broken in name}
        assert bool(unfinished) == earlier
        assert not [name for name in contents(out) if "_seg.dcm" not in name and "_capture" not in name]


@pytest.mark.usefixtures("bright")
def test_a_full_disk_fails_each_format_as_such(fedfms: Command, checkpoint: Path, tmp_path: Path) -> None:
    """A limit on the size of files simulates a full disk: SimpleITK's kind of error is not Python's."""
    values = np.random.default_rng(0).integers(0, 255, (64, 48, 6), dtype=np.uint8)
    source, out = tmp_path / "in", tmp_path / "out"
    write_nifti(source / "a.nii", values, AFFINE)
    for name in ("b.mha", "c.nrrd"):
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(values.T.copy()), str(source / name))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, limits[1]))
    try:
        result = fedfms("predict", "--model", checkpoint, "--input", source, "--out", out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert result.code == 1 and "3 input(s) could not" in result.err
    assert result.err.count("FMS-D011") == 3 and "Traceback" not in result.err
    assert contents(out) == {}


@pytest.mark.usefixtures("bright")
def test_prompts(fedfms: Command, checkpoint: Path, tmp_path: Path) -> None:
    path, out = picture(tmp_path / "in" / "a.png"), tmp_path / "out"
    arguments = ("predict", "--model", checkpoint, "--input", path, "--out", out)
    assert fedfms(*arguments, "--box", "0,0,16,48", "--points", "10,20,1", "--points", "60.5,3,0").code == 0
    expected = np.where(VOXELS[:, :, 3].T >= ORGAN, 255, 0)
    expected[:, 16:] = 0
    assert (np.asarray(Image.open(out / "a_organ.png")) == expected).all() and expected.any()
    again = (*arguments, "--overwrite")
    fedfms(*again, "--box", "0,0,65,48").failed_with("FMS-P003", "(65, 48)", "64 columns")
    picture(tmp_path / "in" / "b.png")
    several = ("predict", "--model", checkpoint, "--input", tmp_path / "in", "--out", tmp_path / "other")
    fedfms(*several, "--box", "0,0,9,9").failed_with("FMS-P003", "the input holds 2")


@pytest.mark.usefixtures("bright")
def test_a_prompt_on_a_volume(fedfms: Command, checkpoint: Path, tmp_path: Path) -> None:
    path, out = write_nifti(tmp_path / "a.nii.gz", VOXELS, AFFINE), tmp_path / "out"
    arguments = ("predict", "--model", checkpoint, "--input", path, "--out", out, "--box", "0,0,64,48")
    fedfms(*arguments).failed_with("FMS-P003", "--slice", "0 to 5")
    assert fedfms(*arguments, "--slice", "2").code == 0
    mask = nibabel.load(out / "a_lesion.nii.gz").get_fdata()
    assert (mask[:, :, 2] == (VOXELS[:, :, 2] >= LESION)).all() and mask[:, :, 2].any()
    assert not mask[:, :, [0, 1, 3, 4, 5]].any()


@pytest.mark.usefixtures("bright")
def test_a_rule_that_does_not_fit_the_values(fedfms: Command, checkpoint: Path, tmp_path: Path) -> None:
    """The advice is about the model; who predicts has no job and no study lead."""
    other = tmp_path / "range.safetensors"
    rules = header().preprocessing.model_copy(update={"intensity": RangeIntensity(rule="range")})
    save_inference(other, header().model_copy(update={"preprocessing": rules}), initial_state(config(), 0))
    path = write_nifti(tmp_path / "a.nii.gz", VOXELS.astype(np.float32), AFFINE)
    result = fedfms("predict", "--model", other, "--input", path, "--out", tmp_path / "out")
    assert result.code == 1 and "FMS-J003" in result.err and "float32" in result.err
    assert "trained on such images" in result.err and "study lead" not in result.err


@pytest.mark.usefixtures("bright")
def test_windows_and_the_hint_at_them(fedfms: Command, checkpoint: Path, tmp_path: Path) -> None:
    values = VOXELS[:, :, 3].T.astype(np.uint8).repeat(5, axis=0).repeat(5, axis=1)
    values[::2, ::2] = 20  # detail that is lost when the image is scaled down
    path = picture(tmp_path / "a.png", values)
    arguments = ("predict", "--model", checkpoint, "--input", path, "--out")
    result = fedfms(*arguments, tmp_path / "off")
    assert result.code == 0 and "1 picture(s) are several times larger" in result.err
    for window in ("auto", "64", "80"):
        result = fedfms(*arguments, tmp_path / window, "--window", window, "--batch", "3")
        assert result.code == 0 and "several times larger" not in result.err
    expected = np.where(values >= ORGAN, 255, 0)
    found = {name: np.asarray(Image.open(tmp_path / name / "a_organ.png")) for name in ("off", "auto", "64", "80")}
    assert (found["auto"] == expected).all() and (found["64"] == expected).all()
    # Scaled down, detail is lost: a little with windows of 80 pixels, more with the whole image.
    assert 0.01 < (found["80"] != expected).mean() < (found["off"] != expected).mean()


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (("--box", "1,2,3"), "x0,y0,x1,y1"),
        (("--box", "a,b,c,d"), "x0,y0,x1,y1"),
        (("--points", "1,2"), "x,y,1"),
        (("--points", "1,2,2"), "x,y,1"),
        (("--slice", "1"), "--box"),
        (("--series", "t2("), "regular expression"),
        (("--window", "large"), "off, auto"),
        (("--window", "0"), "off, auto"),
        (("--window", "auto", "--box", "1,2,3,4"), "whole image"),
        (("--batch", "0"), "batch"),
        (("--capture",), "no DICOM"),
        (("--dimension", "EchoTime"), "NAME=VALUE"),
        (("--dimension", "=2"), "NAME=VALUE"),
        (("--dimension", "EchoTime=2", "--dimension", "EchoTime=3"), "two values for EchoTime"),
        (("--affine", "both"), "sform or qform"),
    ],
)
def test_usage_errors(fedfms: Command, checkpoint: Path, tmp_path: Path, options: tuple[str, ...], word: str) -> None:
    path = picture(tmp_path / "in" / "a.png")
    result = fedfms("predict", "--model", checkpoint, "--input", path, "--out", tmp_path / "out", *options)
    assert result.code == 2 and word in result.err
    assert not (tmp_path / "out").exists()


def test_results_beside_and_inside_of_the_input(
    fedfms: Command, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inside, they are not images of the next run; among the images they would be."""
    source = tmp_path / "in"
    picture(source / "a.png")
    arguments = ("predict", "--model", checkpoint, "--input", source, "--overwrite", "--out")
    for out in (tmp_path, source / "masks", source / "masks"):
        assert fedfms(*arguments, out).code == 0
        assert {path.name for path in out.glob("*.png")} == {"a_organ.png", "a_lesion.png"}
    monkeypatch.chdir(source)
    result = fedfms(*arguments, ".")
    assert result.code == 2 and "own folder" in result.err
    assert {path.name for path in source.glob("*.png")} == {"a.png"}


def test_wrong_files(fedfms: Command, checkpoint: Path, tmp_path: Path) -> None:
    path, out = picture(tmp_path / "in" / "a.png"), tmp_path / "out"
    fedfms("predict", "--model", path, "--input", path, "--out", out).failed_with("FMS-M003", "a.png")
    fedfms("predict", "--model", checkpoint, "--input", tmp_path / "no", "--out", out).failed_with("FMS-D003")
    fedfms("predict", "--model", checkpoint, "--input", checkpoint, "--out", out).failed_with("FMS-P002")
    (tmp_path / "file").write_text("in the way")
    result = fedfms("predict", "--model", checkpoint, "--input", path, "--out", tmp_path / "file")
    assert result.code == 1 and "FMS-D011" in result.err
