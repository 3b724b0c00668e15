"""A synthetic demo data set: colon tiles with gland masks, and a few whole slides.

Three classes that differ in gland architecture; every patient has tiles of two classes, so a split by tile would leak
and a split by class alone would not stratify. Nothing in it is medical data.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...utils.optional_imports import require
from .folder import check_limits, make_folder
from .tissue import ARCHITECTURES, Stain, expose, paint, random_stain

VERSION = 1
"""Increased when the same parameters produce other pixels; older data sets are then regenerated."""

CLASS_NAMES = tuple(ARCHITECTURES)
_SLIDE_LEVELS = 3
_SLIDE_TILE = 256
_GLASS_MARGIN = 0.06  # of the slide's side, without tissue
_MPP = 2.0  # micrometres per pixel: a crypt of 35 pixels is then its real 70


@dataclass(frozen=True)
class Recipe:
    """The parameters, stored with the data to identify it."""

    num_patients: int
    tiles_per_patient: int
    tile_size: int
    num_slides: int
    slide_size: int
    seed: int
    generator: str = "fastmtl.data.synthetic.tiles"
    version: int = VERSION


def generate(
    root: str | Path,
    *,
    num_patients: int = 24,
    tiles_per_patient: int = 12,
    tile_size: int = 128,
    num_slides: int = 2,
    slide_size: int = 2048,
    seed: int = 0,
) -> Path:
    """Write the data set to `root` atomically and return `root`.

    Tiles: `root/CLASS/{image,label}/GT1234567-1-400-001.png`, RGB and grey of 0 and 255 (gland). Slides:
    `root/slides/NAME.tiff`, a pyramid of JPEG tiles (256 x 256, three levels, 2 micrometres per pixel) with its gland
    mask in `root/slides/label/NAME.png`. The same arguments give the same pixels on all machines; nothing is done if
    `root` already holds them; data of another version or with other parameters is replaced.

    Args:
        root: the folder to make.
        num_patients: each has one stain and one main class; 3 or more, so that no class is empty.
        tiles_per_patient: two thirds of the main class, one third of the next.
        tile_size: pixels a side.
        num_slides: of the first patients, one each.
        slide_size: pixels a side, a multiple of 4.
        seed: 0 .. 2**63 - 1.

    Raises:
        ValueError: an argument is out of range.
        FileExistsError: `root` is a folder that this function did not make; it is left alone.
    """
    recipe = Recipe(num_patients, tiles_per_patient, tile_size, num_slides, slide_size, seed)
    _check(recipe)
    return make_folder(Path(root), asdict(recipe), lambda folder: _write_all(folder, recipe))


def _check(recipe: Recipe) -> None:
    limits = {
        "num_patients": (3, 10_000),
        "tiles_per_patient": (1, 999),
        "tile_size": (32, 4096),
        "num_slides": (0, recipe.num_patients),
        "slide_size": (64, 16_384),
        "seed": (0, 2**63 - 1),
    }
    check_limits(recipe, limits)


def _write_all(root: Path, recipe: Recipe) -> None:
    for name in CLASS_NAMES:
        (root / name / "image").mkdir(parents=True)
        (root / name / "label").mkdir()
    (root / "slides" / "label").mkdir(parents=True)
    for patient in range(recipe.num_patients):
        stain = random_stain(_random(recipe, patient, 0))
        for number in range(recipe.tiles_per_patient):
            _write_tile(root, recipe, patient, number, stain)
        if patient < recipe.num_slides:
            _write_slide(root / "slides", recipe, patient, stain)


def _random(recipe: Recipe, patient: int, item: int) -> np.random.Generator:
    """Each picture has its own random stream, so that generating more pictures does not change the others."""
    return np.random.Generator(np.random.Philox(key=[recipe.seed, 0x64656D6F], counter=[0, 0, item, patient]))


def _name(patient: int) -> str:
    return f"GT{3_000_000 + 37 * patient:07d}-1"


def _write_tile(root: Path, recipe: Recipe, patient: int, number: int, stain: Stain) -> None:
    is_main = number % 3 != 2
    name = CLASS_NAMES[(patient + (not is_main)) % len(CLASS_NAMES)]
    rng = _random(recipe, patient, 1 + number)
    haematoxylin, eosin, gland = paint(rng, recipe.tile_size, recipe.tile_size, ARCHITECTURES[name])
    file = f"{_name(patient)}-400-{number + 1:03d}.png"
    _save(root / name / "image" / file, expose(rng, haematoxylin, eosin, stain))
    _save(root / name / "label" / file, gland.astype(np.uint8) * 255)


def _write_slide(folder: Path, recipe: Recipe, patient: int, stain: Stain) -> None:
    rng = _random(recipe, patient, 1000)
    size = recipe.slide_size
    haematoxylin, eosin, gland = paint(rng, size, size, ARCHITECTURES[CLASS_NAMES[patient % len(CLASS_NAMES)]])
    tissue = tissue_outline(rng, size)
    level = expose(rng, haematoxylin * tissue, eosin * tissue, stain)
    _save(folder / "label" / f"{_name(patient)}.png", (gland & tissue).astype(np.uint8) * 255)
    write_pyramid(folder / f"{_name(patient)}.tiff", level)


def write_pyramid(path: Path, level: NDArray[np.uint8]) -> None:
    """A slide of JPEG tiles, 256 x 256, in three levels; RGB uint8 [side, side, 3], a side that is a multiple of 4."""
    with require("tifffile", "writing slides").TiffWriter(path) as tiff:
        for reduction in range(_SLIDE_LEVELS):
            per_cm = 1e4 / (_MPP * 2**reduction)
            tiff.write(
                level,
                photometric="rgb",
                compression="jpeg",
                compressionargs={"level": 90},
                tile=(_SLIDE_TILE, _SLIDE_TILE),
                resolution=(per_cm, per_cm),
                resolutionunit="CENTIMETER",
                subfiletype=int(reduction > 0),
                metadata=None,
                software=f"fastmtl demo data {VERSION}",
            )
            level = _halved(level)


def tissue_outline(rng: np.random.Generator, size: int) -> NDArray[np.bool_]:
    """[size, size]: a wavy piece of tissue in the middle of the glass."""
    side = size // 4
    y, x = np.mgrid[:side, :side] / (side - 1) * 2 - 1
    theta = np.arctan2(y, x)
    waves = sum(rng.uniform(0.01, 0.05) * np.cos(k * theta + rng.uniform(0, 2 * np.pi)) for k in (2, 3, 5, 7))
    tissue = (np.abs(x) ** 4 + np.abs(y) ** 4) ** 0.25 < (1 - 2 * _GLASS_MARGIN) * (1 - np.abs(waves))
    return tissue.repeat(4, 0).repeat(4, 1)


def _halved(level: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height, width, channels = level.shape
    blocks = level.reshape(height // 2, 2, width // 2, 2, channels).astype(np.uint16)
    return ((blocks.sum((1, 3)) + 2) // 4).astype(np.uint8)


def _save(path: Path, pixels: NDArray[np.uint8]) -> None:
    require("PIL.Image", "writing images").fromarray(pixels).save(path, compress_level=3)
