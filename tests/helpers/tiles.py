"""Small tile folders for the data tests."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastmtl.data import Augmentation, Dataset, Tile, TileLoader, read_tile_folder
from helpers.paths import ROOT

TARGETS = {"segmentation": "mask", "classification": "label"}


def shared_data(name: str) -> Path:
    """A folder of the real images; skips the test where they are absent."""
    root = Path(os.environ.get("FASTMTL_DATA", ROOT.parent / "shared" / "data"))
    if not (root / name).exists():
        pytest.skip(f"real images not found: {root / name} (set FASTMTL_DATA)")
    return root / name


def write_image(path: Path, pixels: np.ndarray, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def random_pixels(seed: int, size: int = 24) -> np.ndarray:
    """RGB uint8 [size, size, 3] with detail at every scale, so that no two tiles or crops look alike."""
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


def write_folder(root: Path, counts: dict[str, int], *, tiles_per_group: int = 2, size: int = 24) -> Dataset:
    """Random PNG tiles with blocky masks: `counts` tiles a class, one patient for each `tiles_per_group`."""
    number = 0
    for name, count in counts.items():
        for index in range(count):
            stem = f"GT{number // tiles_per_group:04d}-1-400-{index:03d}"
            write_image(root / name / "image" / f"{stem}.png", random_pixels(number, size))
            mask = random_pixels(1000 + number, size // 4)[..., 0] > 127
            write_image(root / name / "label" / f"{stem}.png", np.kron(mask, np.ones((4, 4))).astype(np.uint8) * 255)
            number += 1
    return read_tile_folder(root)


def coordinate_tile(folder: Path, size: int = 128) -> Tile:
    """A tile whose red and green are its x and y coordinate (2 levels a pixel from 0) and whose mask is a disc."""
    y, x = np.mgrid[:size, :size]
    scale = 255 / (size - 1)
    pixels = np.stack([x * scale, y * scale, np.full_like(x, 128)], -1).round().astype(np.uint8)
    mask = in_shape((x + 0.5) / size, (y + 0.5) / size).astype(np.uint8) * 255
    image = write_image(folder / "image.png", pixels)
    return Tile("coordinates", image, write_image(folder / "mask.png", mask), 0, "P")


def in_shape(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Whether positions in 0..1 lie in a shape without any symmetry: a disc off the centre and a bar."""
    return ((x - 0.35) ** 2 + (y - 0.4) ** 2 < 0.04) | ((x > 0.6) & (y > 0.55) & (y < 0.7))


def make_loader(tiles, **options) -> TileLoader:
    """A small augmenting loader; `options` override."""
    defaults = {"targets": TARGETS, "size": 16, "batch_size": 4, "augmentation": Augmentation(), "seed": 7}
    return TileLoader(tiles, **{**defaults, **options})


def raw_loader(tiles, **options) -> TileLoader:
    """The same with images in 0..255."""
    return make_loader(tiles, mean=(0, 0, 0), std=(1 / 255,) * 3, **options)


def by_id(batches) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Tile id -> its image and mask."""
    return {
        name: (batch.images[row], batch.targets["segmentation"][row])
        for batch in batches
        for row, name in enumerate(batch.ids)
    }
