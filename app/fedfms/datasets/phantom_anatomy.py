"""Synthetic upper abdomens for the demo: an irregular organ, a lesion inside it, and tissues that look similar.

This is not a physical simulation, only as similar to MR images as a demonstration of training needs. Coordinates are
millimetres in LPS in an axial plane: x to the patient's left, y to posterior.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Field = npt.NDArray[np.floating[Any]]
Window = tuple[slice, slice]


@dataclass(frozen=True)
class Scanner:
    """The scanner of a hospital: how an anatomy appears in its images.

    Attributes:
        name: Written into the files as the station's name.
        rows, columns: Matrix size.
        spacing: Pixel side in mm.
        slice_distance: Distance of neighbouring slices in mm.
        tilt: Angle of the slices against the axial plane in degrees.
        signal: Tissue -> brightness in 0..1; ``lesion`` is that of the strongest lesion.
        noise: Standard deviation of the two noise channels (Rician noise), in the same unit.
        bias: Strength of the receive field's inhomogeneity (natural logarithm, edge against centre).
        blur: Point spread in pixels.
        full_scale: Stored value of brightness 1.
        slope, intercept: Rescale of the stored values.
        bits: BitsStored.
        signed: PixelRepresentation.
        field_strength, repetition_time, echo_time: Written into the files; tesla, ms, ms.
        reversed_files: Files are numbered from the top slice down, and masks stored in another axis order.
    """

    name: str
    rows: int
    columns: int
    spacing: float
    slice_distance: float
    tilt: float
    signal: dict[str, float]
    noise: float
    bias: float
    blur: float
    full_scale: float
    slope: float
    intercept: float
    bits: int
    signed: bool
    field_strength: float
    repetition_time: float
    echo_time: float
    reversed_files: bool


SCANNERS: tuple[Scanner, ...] = (
    Scanner(
        "T1 1.5T",
        rows=256,
        columns=256,
        spacing=1.45,
        slice_distance=7.0,
        tilt=0.0,
        signal={
            "fat": 0.86, "muscle": 0.36, "marrow": 0.52, "canal": 0.14, "organ": 0.55, "lesion": 0.24,
            "spleen": 0.37, "cortex": 0.45, "medulla": 0.32, "fluid": 0.13, "bowel": 0.38, "gas": 0.03,
            "vessel": 0.32,
        },
        noise=0.018,
        bias=0.15,
        blur=0.5,
        full_scale=1100.0,
        slope=1.0,
        intercept=0.0,
        bits=12,
        signed=False,
        field_strength=1.5,
        repetition_time=180.0,
        echo_time=4.2,
        reversed_files=False,
    ),
    Scanner(
        "T2 fat-saturated 3T",
        rows=260,
        columns=320,
        spacing=1.1,
        slice_distance=6.0,
        tilt=7.0,
        signal={
            "fat": 0.14, "muscle": 0.17, "marrow": 0.20, "canal": 0.95, "organ": 0.29, "lesion": 0.66,
            "spleen": 0.50, "cortex": 0.55, "medulla": 0.70, "fluid": 0.95, "bowel": 0.48, "gas": 0.03,
            "vessel": 0.43,
        },
        noise=0.03,
        bias=0.65,
        blur=0.8,
        full_scale=5200.0,
        slope=1.0,
        intercept=0.0,
        bits=16,
        signed=False,
        field_strength=3.0,
        repetition_time=2600.0,
        echo_time=82.0,
        reversed_files=False,
    ),
    Scanner(
        "T2 0.35T open",
        rows=192,
        columns=192,
        spacing=2.0,
        slice_distance=9.0,
        tilt=-4.0,
        signal={
            "fat": 0.80, "muscle": 0.24, "marrow": 0.50, "canal": 0.88, "organ": 0.38, "lesion": 0.70,
            "spleen": 0.52, "cortex": 0.50, "medulla": 0.60, "fluid": 0.92, "bowel": 0.46, "gas": 0.05,
            "vessel": 0.18,
        },
        noise=0.055,
        bias=0.35,
        blur=0.9,
        full_scale=300.0,
        slope=0.25,
        intercept=-20.0,
        bits=16,
        signed=True,
        field_strength=0.35,
        repetition_time=3200.0,
        echo_time=96.0,
        reversed_files=True,
    ),
)  # fmt: skip


@dataclass(frozen=True)
class _Blob:
    """An irregular ellipse whose outline drifts from slice to slice."""

    center: tuple[float, float]
    radii: tuple[float, float]
    angle: float
    amplitudes: Field  # of the outline's harmonics 2, 3, 4 ...
    phases: Field
    drift: tuple[float, float] = (0.0, 0.0)  # mm of centre per mm of z
    growth: float = 0.0  # relative radius per mm of z

    def distance(self, xs: Field, ys: Field, z: float, margin: float) -> tuple[Window, Field]:
        """Approximate distance from the outline in mm (negative inside) within a window around the blob."""
        x0, y0 = self.center[0] + self.drift[0] * z, self.center[1] + self.drift[1] * z
        scale = max(0.05, 1 + self.growth * z)
        reach = max(self.radii) * scale * (1 + float(np.abs(self.amplitudes).sum())) + margin
        window = (_within(ys, y0, reach), _within(xs, x0, reach))
        x, y = xs[window[1]][None, :] - x0, ys[window[0]][:, None] - y0
        cosine, sine = np.cos(self.angle), np.sin(self.angle)
        u, v = (cosine * x + sine * y) / self.radii[0], (-sine * x + cosine * y) / self.radii[1]
        theta = np.arctan2(v, u)
        outline = np.full_like(theta, scale)
        for order, (amplitude, phase) in enumerate(zip(self.amplitudes, self.phases, strict=True), start=2):
            outline += scale * amplitude * np.cos(order * theta + phase + 0.02 * order * z)
        return window, (np.hypot(u, v) - outline) * min(self.radii)


@dataclass(frozen=True)
class Patient:
    """One synthetic patient; the same seed gives the same anatomy on every scanner."""

    body: _Blob
    fat: float
    wall: float
    tissues: tuple[tuple[str, _Blob], ...]
    organ: _Blob
    vessels: tuple[tuple[Field, float], ...]
    after_organ: tuple[tuple[str, _Blob], ...]
    lesion_center: tuple[float, float, float]
    lesion_radius: float
    lesion: _Blob
    lesion_strength: float
    lesion_rim: float
    shift: tuple[float, float]
    seed: int = field(repr=False)


def make_patient(seed: int) -> Patient:
    """Draw an anatomy at random; the same seed gives the same anatomy."""
    rng = np.random.default_rng(seed)

    def blob(x: float, y: float, a: float, b: float, rough: float, angle: float = 0.0, jitter: float = 6.0) -> _Blob:
        size = rng.uniform(0.88, 1.12)
        return _Blob(
            center=(x + rng.uniform(-jitter, jitter), y + rng.uniform(-jitter, jitter)),
            radii=(a * size * rng.uniform(0.92, 1.08), b * size * rng.uniform(0.92, 1.08)),
            angle=angle + rng.uniform(-0.15, 0.15),
            amplitudes=rough * rng.uniform(-1, 1, 5) / np.arange(1, 6) ** 0.7,
            phases=rng.uniform(0, 2 * np.pi, 5),
            drift=(rng.uniform(-0.25, 0.25), rng.uniform(-0.25, 0.25)),
            growth=rng.uniform(-0.006, 0.006),
        )

    body = blob(0, 0, 168, 118, 0.02, jitter=0.0)
    organ = blob(-58, -14, 84, 64, 0.16, angle=rng.uniform(-0.3, 0.3))
    tissues = [
        ("marrow", blob(0, 52, 22, 18, 0.05)),
        ("canal", blob(0, 77, 9, 7, 0.05, jitter=2)),
        ("muscle", blob(-34, 82, 26, 18, 0.08)),
        ("muscle", blob(34, 82, 26, 18, 0.08)),
        ("spleen", blob(104, 26, 24, 44, 0.12, angle=-0.35)),
        ("cortex", blob(-62, 58, 22, 29, 0.06, angle=0.3)),
        ("medulla", blob(-61, 58, 11, 17, 0.15, angle=0.3)),
        ("cortex", blob(62, 56, 22, 29, 0.06, angle=-0.3)),
        ("medulla", blob(61, 56, 11, 17, 0.15, angle=-0.3)),
        ("fluid" if rng.random() < 0.5 else "bowel", blob(58, -42, 44, 27, 0.12, angle=0.5, jitter=10)),
        ("vessel", blob(10, 30, 10, 10, 0.03)),
        ("vessel", blob(-20, 32, 12, 9, 0.06)),
    ]
    for _ in range(int(rng.integers(3, 7))):
        kind = str(rng.choice(["bowel", "fluid", "gas", "bowel"]))
        size = rng.uniform(9, 17)
        tissues.append((kind, blob(rng.uniform(5, 95), rng.uniform(-75, 5), size, size * 0.8, 0.15)))
    vessels = []
    for _ in range(int(rng.integers(3, 7))):
        # Branches that start at the hilum and curve into the organ.
        start = np.array([organ.center[0] + 35, organ.center[1] + 15]) + rng.normal(0, 8, 2)
        heading = rng.uniform(np.pi * 0.6, np.pi * 1.5)
        points = [start]
        for _ in range(5):
            heading += rng.normal(0, 0.35)
            points.append(points[-1] + rng.uniform(12, 22) * np.array([np.cos(heading), np.sin(heading)]))
        vessels.append((np.array(points), float(rng.uniform(1.5, 3.5))))
    turn, part = rng.uniform(0, 2 * np.pi), np.sqrt(rng.uniform(0, 0.36))
    radius = float(rng.uniform(18, 32))
    lesion_x = organ.center[0] + part * organ.radii[0] * np.cos(turn)
    lesion_y = organ.center[1] + part * organ.radii[1] * np.sin(turn)
    lesion = blob(lesion_x, lesion_y, radius, radius * rng.uniform(0.7, 1.0), 0.14, rng.uniform(0, 3), jitter=0)
    return Patient(
        body=body,
        fat=float(rng.uniform(9, 24)),
        wall=float(rng.uniform(9, 14)),
        tissues=tuple(tissues),
        organ=organ,
        vessels=tuple(vessels),
        after_organ=(("fluid", blob(organ.center[0] + 42, organ.center[1] + 28, 11, 17, 0.1, 0.6)),),
        lesion_center=(lesion_x, lesion_y, float(rng.uniform(-4, 4))),
        lesion_radius=radius,
        lesion=lesion,
        lesion_strength=float(rng.uniform(0.65, 1.0)),
        lesion_rim=float(rng.choice([0.0, 0.0, rng.uniform(0.2, 0.6)])),
        shift=(float(rng.uniform(-12, 12)), float(rng.uniform(-10, 10))),
        seed=seed,
    )


def render(patient: Patient, scanner: Scanner, z: float, index: int) -> tuple[Field, npt.NDArray[np.uint8]]:
    """Render one slice.

    Args:
        patient: The anatomy.
        scanner: Contrast, noise and grid.
        z: Position along the slice direction in mm.
        index: Number of the slice; seeds the noise.

    Returns:
        Brightness (rows, columns), 0 to about 1.3; labels (rows, columns) uint8: 0 background, 1 organ, 2 lesion.
    """
    xs = (np.arange(scanner.columns) - (scanner.columns - 1) / 2) * scanner.spacing - patient.shift[0]
    ys = (np.arange(scanner.rows) - (scanner.rows - 1) / 2) * scanner.spacing - patient.shift[1]
    rng = np.random.default_rng([patient.seed, index, 7])
    pixel, signal = scanner.spacing, scanner.signal
    image = np.full((scanner.rows, scanner.columns), 0.01)

    def paint(window: Window, coverage: Field, brightness: float | Field) -> None:
        image[window] += coverage * (brightness - image[window])

    window, body = patient.body.distance(xs, ys, z, 3 * pixel)
    paint(window, _coverage(body, pixel), signal["fat"])
    paint(window, _coverage(body + patient.fat, pixel), signal["muscle"])
    cavity, wall = np.full(image.shape, 1e3), np.full(image.shape, 1e3)
    wall[window] = body + 0.9 * patient.fat
    cavity[window] = body + patient.fat + patient.wall
    # Fat between the organs is streaked with connective tissue.
    paint(window, _coverage(cavity[window], pixel), 0.8 * signal["fat"] + 0.2 * signal["muscle"])
    for kind, shape in patient.tissues:
        window, distance = shape.distance(xs, ys, z, 3 * pixel)
        # The spine and the muscles beside it are part of the wall, everything else is in the cavity.
        limit = wall if kind in ("marrow", "canal", "muscle") else cavity
        paint(window, _coverage(np.maximum(distance, limit[window]), pixel), signal[kind])

    window, organ = patient.organ.distance(xs, ys, z, 3 * pixel)
    organ = np.maximum(organ, cavity[window] + 2)
    inside = _coverage(organ, pixel)
    paint(window, inside, signal["organ"] * (1 + _texture(rng, organ.shape, 14 / pixel, 0.05)))
    for points, radius in patient.vessels:
        tube = _coverage(_tube_distance(points, xs[window[1]], ys[window[0]]) - radius, pixel)
        paint(window, tube * inside, signal["vessel"])
    labels = np.zeros(image.shape, dtype=np.uint8)
    labels[window][organ < 0] = 1

    height = z - patient.lesion_center[2]
    if abs(height) < patient.lesion_radius:
        shrink = np.sqrt(1 - (height / patient.lesion_radius) ** 2)
        found, distance = patient.lesion.distance(xs, ys, z, 3 * pixel)
        distance = distance + (1 - shrink) * patient.lesion_radius
        whole = np.full(image.shape, 1e3)
        whole[window] = organ + 1
        distance = np.maximum(distance, whole[found])
        strength = patient.lesion_strength * (signal["lesion"] - signal["organ"])
        core = strength * (1 - patient.lesion_rim * _coverage(distance + 0.35 * patient.lesion_radius, 4 * pixel))
        core = core + abs(strength) * _texture(rng, distance.shape, 5 / pixel, 0.15)
        paint(found, _coverage(distance, 2 * pixel), signal["organ"] + core)
        labels[found][distance < 0] = 2
    for kind, shape in patient.after_organ:
        found, distance = shape.distance(xs, ys, z, 3 * pixel)
        paint(found, _coverage(distance, pixel) * (labels[found] == 0), signal[kind])
    return _scanned(image, scanner, rng), labels


def _scanned(image: Field, scanner: Scanner, rng: np.random.Generator) -> Field:
    image = image * (1 + _texture(rng, image.shape, 4, 0.05))
    image = ndimage.gaussian_filter(image, scanner.blur)
    rows, columns = image.shape
    v, u = np.linspace(-1, 1, rows)[:, None], np.linspace(-1, 1, columns)[None, :]
    tilt, waves = rng.uniform(-0.5, 0.5, 2), rng.uniform(0, 2 * np.pi, 2)
    shape = (
        0.5 * (u**2 + v**2) + tilt[0] * u + tilt[1] * v + 0.3 * np.sin(2.2 * u + waves[0]) * np.cos(2.0 * v + waves[1])
    )
    image = image * np.exp(scanner.bias * (shape - shape.mean()))
    real = image + rng.normal(0, scanner.noise, image.shape)
    imaginary = rng.normal(0, scanner.noise, image.shape)
    magnitude: Field = np.hypot(real, imaginary)
    return magnitude


def _within(axis: Field, center: float, reach: float) -> slice:
    inside = np.flatnonzero(np.abs(axis - center) <= reach)
    return slice(int(inside[0]), int(inside[-1]) + 1) if inside.size else slice(0, 0)


def _coverage(distance: Field, width: float) -> Field:
    coverage: Field = np.clip(0.5 - distance / width, 0, 1)
    return coverage


def _texture(rng: np.random.Generator, shape: tuple[int, ...], grain: float, strength: float) -> Field:
    coarse = rng.normal(0, 1, tuple(max(2, int(side / max(grain / 2, 1)) + 2) for side in shape))
    smooth = ndimage.zoom(coarse, [side / part for side, part in zip(shape, coarse.shape, strict=True)], order=1)
    result: Field = strength * smooth[tuple(slice(0, side) for side in shape)]
    return result


def _tube_distance(points: Field, xs: Field, ys: Field) -> Field:
    x, y = xs[None, :], ys[:, None]
    nearest = np.full((ys.size, xs.size), np.inf)
    for start, end in pairwise(points):
        step = end - start
        along = np.clip(((x - start[0]) * step[0] + (y - start[1]) * step[1]) / (step @ step), 0, 1)
        nearest = np.minimum(nearest, np.hypot(x - start[0] - along * step[0], y - start[1] - along * step[1]))
    return nearest
