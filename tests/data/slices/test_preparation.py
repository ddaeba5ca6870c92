from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from fedfms.data.slices.dataset import Sample
from fedfms.data.slices.preparation import SAM_PIXEL_MEAN, SAM_PIXEL_STD, Geometry, geometry_of, prepare
from tests.generators import preprocessing

ROOT = Path(__file__).parents[3]


def sample(height: int = 100, width: int = 60, seed: int = 0) -> Sample:
    """A smooth image with a bright disc; the mask is the disc."""
    rng = np.random.default_rng(seed)
    image = ndimage.gaussian_filter(rng.uniform(0, 400, (3, height, width)), (0, 3, 3))
    rows, columns = np.mgrid[:height, :width]
    disc = (rows - height * 0.4) ** 2 + (columns - width * 0.55) ** 2 < (min(height, width) * 0.25) ** 2
    image = np.where(disc, 250, image * 0.5).clip(0, 255).astype(np.float32)
    masks = np.stack([disc, np.zeros_like(disc)]).astype(np.uint8)
    return Sample(image, masks, np.array([True, False]), None)


def test_aspect_ratio_is_kept_and_padding_is_zero_at_bottom_and_right() -> None:
    image, masks, geometry = prepare(sample(), preprocessing(size=64), "sam", 0, 0)
    assert image.shape == (3, 64, 64)
    assert masks.shape == (2, 64, 64)
    assert image.dtype == masks.dtype == torch.float32
    assert geometry == Geometry((100, 60), (64, 38), 64)
    assert not image[:, :, 38:].any()
    assert image[:, :, :38].all()
    assert not masks[:, :, 38:].any()
    wide = prepare(sample(30, 90), preprocessing(size=64), "sam", 0, 0)[2]
    assert wide.scaled == (21, 64)
    assert geometry_of((1, 5000), 64).scaled == (1, 64)


def test_sam_normalisation_is_sams_own() -> None:
    given = sample(64, 64)
    image, _, _ = prepare(given, preprocessing(size=64), "sam", 0, 0)
    for channel in range(3):
        expected = (given.image[channel] - SAM_PIXEL_MEAN[channel]) / SAM_PIXEL_STD[channel]
        assert np.allclose(image[channel], expected, atol=1e-5)


def test_sam_constants_agree_with_the_reference_package() -> None:
    build = pytest.importorskip("segment_anything.build_sam")
    import inspect

    text = inspect.getsource(build)
    assert f"pixel_mean=[{', '.join(map(str, SAM_PIXEL_MEAN))}]" in text
    assert f"pixel_std=[{', '.join(map(str, SAM_PIXEL_STD))}]" in text


def test_unit_normalisation_uses_the_image_without_its_padding() -> None:
    given = sample(64, 40)
    bright = Sample(given.image * 0.5 + 100, given.masks, given.annotated, None)
    image, _, _ = prepare(bright, preprocessing(size=64), "unit", 0, 0)
    part = image[:, :, :40]
    assert float(part.min()) == 0
    assert float(part.max()) == pytest.approx(1)
    assert np.allclose(part, (bright.image - bright.image.min()) / np.ptp(bright.image), atol=1e-5)


def test_a_constant_image_stays_finite() -> None:
    flat = Sample(np.full((3, 20, 20), 9, np.float32), np.zeros((1, 20, 20), np.uint8), np.array([True]), None)
    for normalisation in ("unit", "sam"):
        for variant in (0, 1, 2, 3):
            image, _, _ = prepare(flat, preprocessing(size=32), normalisation, variant, 0)  # type: ignore[arg-type]
            assert torch.isfinite(image).all()


@pytest.mark.parametrize("size", [(100, 60), (33, 200), (64, 64), (20, 31)])
def test_restore_brings_a_mask_back_to_its_place(size: tuple[int, int]) -> None:
    given = sample(*size)
    _, masks, geometry = prepare(given, preprocessing(size=256), "unit", 0, 0)
    back = geometry.restore(masks * 20 - 10) > 0
    assert back.shape == (2, *size)
    both = (back[0].numpy() & (given.masks[0] > 0)).sum()
    assert 2 * both / (back[0].sum() + given.masks[0].sum()) > 0.97
    with pytest.raises(ValueError, match="expected"):
        geometry.restore(torch.zeros(2, 64, 64))


def test_same_arguments_same_bits_whatever_the_global_seed() -> None:
    given = sample()
    for variant in range(4):
        torch.manual_seed(1)
        np.random.seed(1)
        first = prepare(given, preprocessing(), "unit", variant, 5)
        torch.manual_seed(2)
        np.random.seed(2)
        state = torch.random.get_rng_state()
        # Another slice in between must leave no trace.
        prepare(sample(seed=3), preprocessing(), "unit", 7, 5)
        second = prepare(given, preprocessing(), "unit", variant, 5)
        assert torch.equal(first[0], second[0])
        assert torch.equal(first[1], second[1])
        assert torch.equal(state, torch.random.get_rng_state())


def test_bits_are_the_same_in_another_process() -> None:
    code = (
        "import hashlib; from tests.data.slices.test_preparation import *;"
        "i, m, _ = prepare(sample(), preprocessing(), 'sam', 3, 11);"
        "print(hashlib.sha256(i.numpy().tobytes() + m.numpy().tobytes()).hexdigest())"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    image, masks, _ = prepare(sample(), preprocessing(), "sam", 3, 11)
    assert run.stdout.strip() == hashlib.sha256(image.numpy().tobytes() + masks.numpy().tobytes()).hexdigest()


def test_variants_slices_and_seeds_differ() -> None:
    def image(variant: int, seed: int, content: int = 0) -> bytes:
        return prepare(sample(seed=content), preprocessing(), "unit", variant, seed)[0].numpy().tobytes()

    variants = [image(variant, 0) for variant in range(9)]
    assert len(set(variants)) >= 8
    assert image(1, 0) != image(1, 1)
    assert image(0, 0) == image(0, 1)


def test_augmented_masks_stay_on_their_structure() -> None:
    given = sample(90, 90)
    moved = 0
    for variant in range(1, 21):
        image, masks, _ = prepare(given, preprocessing(size=64), "unit", variant, 0)
        assert set(masks.unique().tolist()) <= {0.0, 1.0}
        assert not masks[1].any()
        disc, rest = image[0][masks[0] > 0], image[0][masks[0] == 0]
        # The disc is the brightest thing in the image, so mask and image have moved together.
        assert float(disc.mean()) > float(rest.mean()) + 0.3
        assert float((disc > 0.75).float().mean()) > 0.9
        moved += int(not torch.equal(masks, prepare(given, preprocessing(size=64), "unit", 0, 0)[1]))
    assert moved >= 15


def test_importing_the_data_package_is_light() -> None:
    code = (
        "import sys, fedfms.data.slices.dataset, fedfms.data.quality.check, fedfms.data.slices.preparation;"
        "import fedfms.datasets.phantom;"
        "print([name for name in ('monai', 'pydicom', 'nibabel', 'torchvision', 'tifffile') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_the_same_variant_moves_different_slices_differently() -> None:
    first, second = sample(seed=0), sample(seed=1)
    assert np.array_equal(first.masks, second.masks)
    moved = [
        torch.equal(*(prepare(item, preprocessing(), "unit", variant, 0)[1] for item in (first, second)))
        for variant in range(1, 11)
    ]
    assert sum(moved) <= 3
