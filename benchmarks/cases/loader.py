"""TileLoader compared with torch's DataLoader and Pillow: the same generated tiles and augmentation, two threads or
two workers."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastmtl import data
from fastmtl.data.dataset import BACKGROUND
from fastmtl.data.loading.loader import IMAGENET_MEAN, IMAGENET_STD
from fastmtl.data.loading.transform_cpu import colour_matrices

from ..decoding import NAME, decode_alone
from ..registry import Case, Inputs, Run, register

SIZE, TILE, WORKERS, BATCH, SEED = 96, 128, 2, 16, 0
TARGETS = {"segmentation": "mask", "classification": "label"}


@cache
def tiles() -> tuple[data.Tile, ...]:
    """The demo's tiles (24 patients of 8), in a folder that goes when the process ends."""
    folder = Path(tempfile.mkdtemp(prefix="fastmtl-bench-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    root = data.generate(folder / "colon", tiles_per_patient=8, tile_size=TILE, num_slides=0)
    return data.read_tile_folder(root).tiles


class PillowTiles(torch.utils.data.Dataset):
    """What TileLoader does to a tile, with Pillow and NumPy: image float32 [3, SIZE, SIZE], mask uint8 [1, SIZE, SIZE],
    label."""

    def __init__(self, tiles: tuple[data.Tile, ...], augmentation: data.Augmentation):
        self.tiles, self.augmentation = tiles, augmentation
        self.mean, self.std = np.array(IMAGENET_MEAN, np.float32), np.array(IMAGENET_STD, np.float32)

    def __len__(self) -> int:
        return len(self.tiles)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int]:
        from PIL import Image

        tile = self.tiles[index]
        drawn = self.augmentation.sample(SEED, 0, index)
        with Image.open(str(tile.image)) as image:
            pixels = self._warp(image.convert("RGB"), drawn.matrix[0], (BACKGROUND,) * 3)
        colour = colour_matrices(drawn.colour)[0]
        pixels = np.clip(np.asarray(pixels, np.float32) @ colour[:, :3].T + colour[:, 3], 0, 255)
        normalised = (pixels / np.float32(255) - self.mean) / self.std
        with Image.open(str(tile.mask)) as image:
            mask = np.asarray(self._warp(image.convert("L"), drawn.matrix[0], 0)) > 127
        planes = np.ascontiguousarray(normalised.transpose(2, 0, 1))
        return torch.from_numpy(planes), torch.from_numpy(mask.astype(np.uint8))[None], tile.label or 0

    @staticmethod
    def _warp(image: Any, matrix: Any, outside: Any) -> Any:
        """Bilinear, no low-pass filter. Pillow counts output positions in pixels, the matrix in 0..1."""
        from PIL import Image

        extent = np.array([[image.width], [image.height]], np.float64)
        x, y = (matrix * extent / (SIZE, SIZE, 1)).tolist()  # Pillow adds the half pixel itself
        return image.transform(
            (SIZE, SIZE), Image.Transform.AFFINE, (*x, *y), Image.Resampling.BILINEAR, fillcolor=outside
        )


def _make(augmentation: data.Augmentation) -> Callable[[torch.device], Inputs]:
    return lambda device: {"tiles": tiles(), "augmentation": augmentation, "device": device}


def _ours(inputs: Inputs, decode: str = "") -> Run:
    loader = data.TileLoader(
        inputs["tiles"],
        targets=TARGETS,
        size=SIZE,
        batch_size=BATCH,
        augmentation=inputs["augmentation"],
        seed=SEED,
        device=decode or ("gpu" if inputs["device"].type == "cuda" else "cpu"),  # type: ignore[arg-type]
        num_threads=WORKERS,
    )

    def epoch() -> list[Any]:
        loader.set_epoch(0)  # the same augmentation every time
        batches = (batch.to(inputs["device"], non_blocking=True) for batch in loader)
        return [(batch.images, *batch.targets.values()) for batch in batches]

    return _checked_once(epoch)


def _decoding(inputs: Inputs) -> Run:
    """Returns our answer the first time, because it does not resample what it decodes."""
    answers, device = iter([_truth(inputs)]), inputs["device"]
    run = decode_alone(inputs["tiles"], TARGETS, batch_size=BATCH, num_threads=WORKERS, device=device)

    def epoch() -> tuple[Tensor, ...]:
        run()
        return next(answers, ())

    return epoch


def _torch(inputs: Inputs) -> Run:
    loader = torch.utils.data.DataLoader(
        PillowTiles(inputs["tiles"], inputs["augmentation"]),
        batch_size=BATCH,
        num_workers=WORKERS,
        persistent_workers=True,
        # A fork would copy DALI's thread objects without running threads.
        multiprocessing_context="spawn",
        pin_memory=inputs["device"].type == "cuda",
    )
    device = inputs["device"]
    return _checked_once(lambda: [[part.to(device, non_blocking=True) for part in batch] for batch in loader])


def _checked_once(epoch: Callable[[], list[Any]]) -> Run:
    """Only the first run is compared, so the others do not compute the digest."""
    compared = False

    def run() -> tuple[Tensor, ...]:
        nonlocal compared
        batches = epoch()
        compared, first = True, not compared
        return _digest(batches) if first else ()

    return run


def _digest(batches: list[Any]) -> tuple[Tensor, ...]:
    """What must agree: means of blocks of pixels. Single ones may not, where a sum is rounded, a mask is cut at its
    threshold, or Pillow takes no share of the background at a tile's edge."""
    images, masks, labels = zip(*batches, strict=True)
    pool = torch.nn.functional.avg_pool2d
    means = pool(torch.cat(images).float(), 16), pool(torch.cat(masks).float(), 32)
    return *means, torch.cat(labels)


def _truth(inputs: Inputs) -> tuple[Tensor, ...]:
    dataset = PillowTiles(inputs["tiles"], inputs["augmentation"])
    batch = torch.utils.data.default_collate([dataset[index] for index in range(len(dataset))])
    return tuple(part.to(inputs["device"]) for part in _digest([batch]))


# With a GPU, "fastmtl" decodes on it.
_ON_CPU = {"fastmtl, decoded on the CPU": partial(_ours, decode="cpu")} if torch.cuda.is_available() else {}
for _name, _augmentation in {"augmented": data.Augmentation(), "not augmented": data.Augmentation.none()}.items():
    register(
        Case(
            op="TileLoader",
            shape=f"192 PNG tiles {TILE} x {TILE} to {SIZE} x {SIZE}, masks and labels, B={BATCH}, {_name}",
            mode="one epoch",
            make=_make(_augmentation),
            contenders={"fastmtl": _ours, "torch DataLoader, 2 workers, Pillow": _torch, NAME: _decoding, **_ON_CPU},
            min_bytes=0,
            tolerance=0.05,  # Pillow rounds to whole grey levels between resampling and colour
            truth=_truth,
            figures={"torch DataLoader, 2 workers, Pillow": 2.0},
            items=192,
        )
    )
