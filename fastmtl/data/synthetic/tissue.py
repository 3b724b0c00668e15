"""Colon-like tissue drawn from random numbers: glands, nuclei and stroma, then haematoxylin and eosin.

All arithmetic is float64, so that last-bit differences between machines do not change an 8-bit pixel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Map = NDArray[np.float64]


@dataclass(frozen=True)
class Architecture:
    """The architecture of a tissue class. Lengths in pixels, ranges as (low, high), fractions of the gland's radius.

    Attributes:
        pitch: distance between neighbouring glands.
        jitter: distance of a gland from its grid point, as a fraction of `pitch`.
        missing: probability that a grid point has no gland.
        radius: of a gland.
        elongation: long over short axis.
        aligned: whether the glands of a tile point the same way.
        wobble: irregularity of the outline, fraction.
        lumen: radius of the open centre, fraction.
        layers: positions of the epithelium's nuclei, fraction.
        nucleus: radius of an epithelial nucleus.
        nuclei_per_pixel: epithelial nuclei per pixel of gland outline.
        cytoplasm: concentrations of haematoxylin and eosin.
    """

    pitch: float
    jitter: float
    missing: float
    radius: tuple[float, float]
    elongation: tuple[float, float]
    aligned: bool
    wobble: float
    lumen: tuple[float, float]
    layers: tuple[float, float]
    nucleus: tuple[float, float]
    nuclei_per_pixel: float
    cytoplasm: tuple[float, float]


ARCHITECTURES = {
    "Adenocarcinoma": Architecture(
        pitch=30, jitter=0.35, missing=0.46, radius=(9, 18), elongation=(1.0, 1.9), aligned=False, wobble=0.28,
        lumen=(0.0, 0.3), layers=(0.1, 0.95), nucleus=(2.2, 4.2), nuclei_per_pixel=0.2, cytoplasm=(0.36, 0.40),
    ),
    "Normal": Architecture(
        pitch=45, jitter=0.08, missing=0.04, radius=(14, 18), elongation=(1.0, 1.2), aligned=False, wobble=0.03,
        lumen=(0.38, 0.52), layers=(0.78, 0.9), nucleus=(1.6, 2.1), nuclei_per_pixel=0.22, cytoplasm=(0.24, 0.32),
    ),
    "Polyp": Architecture(
        pitch=29, jitter=0.1, missing=0.1, radius=(10, 13), elongation=(1.9, 2.7), aligned=True, wobble=0.07,
        lumen=(0.18, 0.32), layers=(0.55, 0.9), nucleus=(1.6, 2.4), nuclei_per_pixel=0.42, cytoplasm=(0.32, 0.36),
    ),
}  # fmt: skip
"""Class name -> architecture, in label order."""

_HAEMATOXYLIN = np.array([0.65, 0.70, 0.29])  # Ruifrok and Johnston 2001, optical density of R, G, B
_EOSIN = np.array([0.07, 0.99, 0.11])


@dataclass(frozen=True)
class Stain:
    """One slide's stain: optical density per unit of concentration [2, 3] and the light without tissue, 0..255."""

    vectors: NDArray[np.float64]
    light: float


def random_stain(rng: np.random.Generator) -> Stain:
    """Published vectors, slightly rotated and scaled: stains vary between laboratories and days."""
    vectors = np.stack([_HAEMATOXYLIN, _EOSIN]) + rng.normal(0, 0.035, (2, 3))
    vectors = np.maximum(vectors, 0.02) / np.linalg.norm(vectors, axis=1, keepdims=True)
    return Stain(vectors * rng.uniform((0.85, 0.7), (1.25, 1.15))[:, None], float(rng.uniform(236, 250)))


def paint(
    rng: np.random.Generator, height: int, width: int, architecture: Architecture
) -> tuple[Map, Map, NDArray[np.bool_]]:
    """Concentrations of haematoxylin and eosin [H, W] and which pixels are gland [H, W]."""
    shape = (height, width)
    haematoxylin = 0.12 + 0.04 * _waves(rng, shape, 12, 40)
    eosin = 0.56 + 0.11 * _waves(rng, shape, 5, 30)
    depth = np.full(shape, 2.0)  # 0 at a gland's centre, 1 at its outline
    lumen = np.zeros(shape, bool)
    nuclei: list[Map] = []
    for gland in _glands(rng, shape, architecture):
        _add_gland(rng, gland, architecture, depth, lumen, nuclei)
    inside = depth < 1
    haematoxylin[inside], eosin[inside] = architecture.cytoplasm
    lumen &= inside
    haematoxylin[lumen], eosin[lumen] = 0.02, 0.03
    nuclei.append(_stromal_nuclei(rng, inside))
    _stamp(haematoxylin, rng, np.concatenate(nuclei))
    return haematoxylin, eosin, inside


def expose(rng: np.random.Generator, haematoxylin: Map, eosin: Map, stain: Stain) -> NDArray[np.uint8]:
    """RGB uint8 [H, W, 3] by Beer and Lambert's law, light * exp(-concentrations @ vectors), with blur and noise."""
    density = np.stack([_blur(haematoxylin), _blur(eosin)], -1) @ stain.vectors
    colours = stain.light * np.exp(-density) + rng.normal(0, 3.0, density.shape)
    return np.clip(np.rint(colours), 0, 255).astype(np.uint8)


def _glands(rng: np.random.Generator, shape: tuple[int, int], architecture: Architecture) -> Map:
    """[n, 7]: centre y, x, radius, elongation, angle, lumen, and a phase for the outline."""
    pitch = architecture.pitch
    rows, columns = (int(side / pitch) + 4 for side in shape)
    y, x = np.mgrid[:rows, :columns].reshape(2, -1).astype(float)
    x += 0.5 * (y % 2)  # a honeycomb, as crypts cut across
    offset = rng.uniform(-1.5, -0.5, 2)
    centres = np.stack([y + offset[0], x + offset[1]], 1) * pitch
    centres += rng.uniform(-1, 1, centres.shape) * architecture.jitter * pitch
    count = len(centres)
    spread = rng.normal(0, 0.12, count) if architecture.aligned else rng.uniform(0, np.pi, count)
    angle = rng.uniform(0, np.pi) + spread
    elongation = rng.uniform(*architecture.elongation, count)
    if architecture.aligned:  # stretch the honeycomb with its glands, else they would overlap along the long axis
        centres = _stretch(centres, float(angle.mean()), float(np.mean(architecture.elongation)), shape)
    glands = np.column_stack(
        [
            centres,
            rng.uniform(*architecture.radius, count),
            elongation,
            angle,
            rng.uniform(*architecture.lumen, count),
            rng.uniform(0, 2 * np.pi, count),
        ]
    )
    return glands[rng.random(count) >= architecture.missing]


def _stretch(centres: Map, angle: float, factor: float, shape: tuple[int, int]) -> Map:
    middle = np.array(shape) / 2
    along = np.array([np.sin(angle), np.cos(angle)])
    across = np.array([np.cos(angle), -np.sin(angle)])
    offsets = centres - middle
    # Only outwards along the axis: a circle around the tile stays covered as long as the grid covered it across.
    return middle + np.outer(offsets @ along, along) * factor + np.outer(offsets @ across, across)


def _add_gland(
    rng: np.random.Generator,
    gland: Map,
    architecture: Architecture,
    depth: Map,
    lumen: NDArray[np.bool_],
    nuclei: list[Map],
) -> None:
    y, x, radius, elongation, angle, lumen_radius, _ = gland
    reach = radius * elongation * (1 + 2 * architecture.wobble) + 1
    window = (_span(y, reach), _span(x, reach))
    harmonics = architecture.wobble * rng.uniform(0.4, 1, 3) / np.array([1, 1.5, 2])
    phases = gland[6] * np.array([1, 2, 3])
    if depth[window].size:
        dy = np.arange(depth.shape[0])[window[0], None] - y
        dx = np.arange(depth.shape[1])[window[1]] - x
        relative = np.hypot(dy, dx) / _outline(np.arctan2(dy, dx) - angle, radius, elongation, harmonics, phases)
        depth[window] = np.minimum(depth[window], relative)
        lumen[window] |= relative < lumen_radius
    count = int(architecture.nuclei_per_pixel * np.pi * radius * (1 + elongation))
    theta = 2 * np.pi * (np.arange(count) + rng.uniform(-0.3, 0.3, count)) / max(count, 1)
    distance = _outline(theta, radius, elongation, harmonics, phases) * rng.uniform(*architecture.layers, count)
    size = rng.uniform(*architecture.nucleus, count)
    turn = theta + angle
    nuclei.append(
        np.column_stack([y + distance * np.sin(turn), x + distance * np.cos(turn), 1.35 * size, 0.8 * size, turn])
    )


def _outline(theta: Map, radius: float, elongation: float, harmonics: Map, phases: Map) -> Map:
    ellipse = radius * elongation / np.hypot(np.cos(theta), elongation * np.sin(theta))
    waves = sum(h * np.cos((k + 2) * theta + p) for k, (h, p) in enumerate(zip(harmonics, phases, strict=True)))
    return ellipse * (1 + waves)


def _stromal_nuclei(rng: np.random.Generator, inside: NDArray[np.bool_]) -> Map:
    """[n, 5]: spindles and, in patches, round lymphocytes, outside the glands."""
    height, width = inside.shape
    count = rng.poisson(inside.size / 130)
    y, x = rng.uniform(0, height, count), rng.uniform(0, width, count)
    crowded = _waves(rng, inside.shape, 25, 60)[y.astype(int), x.astype(int)] > 0.8
    size = rng.uniform(1.3, 1.9, count)
    long = np.where(crowded, size, 1.9 * size)
    short = np.where(crowded, size, 0.6 * size)
    keep = ~inside[y.astype(int), x.astype(int)] & (crowded | (rng.random(count) < 0.55))
    return np.column_stack([y, x, long, short, rng.uniform(0, np.pi, count)])[keep]


def _stamp(haematoxylin: Map, rng: np.random.Generator, nuclei: Map) -> None:
    """Draw each nucleus: centre y, x, half axes, angle."""
    strengths = rng.uniform(0.8, 1.7, len(nuclei))
    height, width = haematoxylin.shape
    rows, columns = np.arange(height), np.arange(width)
    near = (np.abs(nuclei[:, 0] - height / 2) < height / 2 + 8) & (np.abs(nuclei[:, 1] - width / 2) < width / 2 + 8)
    for (y, x, long, short, angle), strength in zip(nuclei[near].tolist(), strengths[near].tolist(), strict=True):
        down, right = _span(y, long + 1), _span(x, long + 1)
        dy, dx = rows[down, None] - y, columns[right] - x
        cos, sin = math.cos(angle), math.sin(angle)
        along, across = dx * (cos / long) + dy * (sin / long), dy * (cos / short) - dx * (sin / short)
        inked = np.minimum(strength * 2.2 - (strength * 1.6) * (along * along + across * across), strength)
        patch = haematoxylin[down, right]
        np.maximum(patch, inked, out=patch)


def _span(centre: float, reach: float) -> slice:
    return slice(max(int(centre - reach), 0), max(int(centre + reach) + 2, 0))


def _waves(rng: np.random.Generator, shape: tuple[int, int], shortest: float, longest: float) -> Map:
    """Smooth noise [H, W] of mean 0 and deviation 1: 24 plane waves, each an outer product of rows and columns."""
    count = 24
    frequency = 2 * np.pi / rng.uniform(shortest, longest, count)
    direction, phase = rng.uniform(0, np.pi, count), rng.uniform(0, 2 * np.pi, count)
    rows = np.outer(np.arange(shape[0]), frequency * np.sin(direction))
    columns = np.outer(np.arange(shape[1]), frequency * np.cos(direction)) + phase
    total = np.cos(rows) @ np.cos(columns).T - np.sin(rows) @ np.sin(columns).T
    return total * np.sqrt(2 / count)


def _blur(values: Map) -> Map:
    """The microscope's: 1 2 1 along both axes, edges repeated."""
    padded = np.pad(values, 1, mode="edge")
    rows = 0.25 * padded[:-2] + 0.5 * padded[1:-1] + 0.25 * padded[2:]
    return 0.25 * rows[:, :-2] + 0.5 * rows[:, 1:-1] + 0.25 * rows[:, 2:]
