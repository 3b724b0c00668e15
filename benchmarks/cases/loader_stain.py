"""The cost of stain normalisation in the loader: an epoch of tiles normalised to one target, with known stains of each
slide, compared with the same epoch without."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastmtl import data
from fastmtl.data.dataset import BACKGROUND
from fastmtl.data.loading.transform_cpu import colour_matrices

from ..registry import Case, Inputs, Run, register
from .loader import BATCH, SEED, SIZE, TILE, WORKERS, PillowTiles, _checked_once, _digest, tiles


@cache
def _normalizer(backend: str = "auto") -> data.StainNormalizer:
    """It knows every slide, here every patient."""
    own = tiles()
    normalizer = data.StainNormalizer(target=data.open_picture(own[0].image), fallback="reference", backend=backend)
    by_slide: dict[str, list[data.Tile]] = {}
    for tile, key in zip(own, data.slides_of(own), strict=True):
        by_slide.setdefault(key, []).append(tile)
    for key, members in by_slide.items():
        normalizer.fit_slide(key, [data.open_picture(tile.image) for tile in members])
    return normalizer


def _make(augmentation: data.Augmentation) -> Callable[[torch.device], Inputs]:
    return lambda device: {"tiles": tiles(), "augmentation": augmentation, "device": device}


def _epoch(inputs: Inputs, stain: data.StainNormalizer | None) -> Callable[[], list[Any]]:
    loader = data.TileLoader(
        inputs["tiles"],
        targets={"segmentation": "mask", "classification": "label"},
        size=SIZE,
        batch_size=BATCH,
        augmentation=inputs["augmentation"],
        stain=stain,
        seed=SEED,
        device="gpu" if inputs["device"].type == "cuda" else "cpu",
        num_threads=WORKERS,
    )

    def epoch() -> list[Any]:
        loader.set_epoch(0)
        batches = (batch.to(inputs["device"], non_blocking=True) for batch in loader)
        return [(batch.images, *batch.targets.values()) for batch in batches]

    return epoch


def _with(inputs: Inputs) -> Run:
    run = _checked_once(_epoch(inputs, _normalizer()))
    return lambda: _inner(run())


def _inner(digest: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Without the outer blocks: Pillow takes no share of the background at a tile's edge, and stains stretch that."""
    return (digest[0][..., 1:-1, 1:-1], *digest[1:]) if digest else ()


def _without(inputs: Inputs) -> Run:
    """Hands out our answer once: its own is of other colours, and judged in the case `TileLoader`."""
    epoch, answer = _epoch(inputs, None), _with(inputs)()
    judged = False

    def run() -> tuple[Tensor, ...]:
        nonlocal judged
        epoch()
        judged, first = True, not judged
        return answer if first else ()

    return run


def _truth(inputs: Inputs) -> tuple[Tensor, ...]:
    """Resampled by Pillow; stains, colour and statistics by the exact definition."""
    from PIL import Image

    own, augmentation = inputs["tiles"], inputs["augmentation"]
    peer, normalizer, batch = PillowTiles(own, augmentation), _normalizer("reference"), []
    for index, (tile, key) in enumerate(zip(own, data.slides_of(own), strict=True)):
        drawn = augmentation.sample(SEED, 0, index)
        with Image.open(str(tile.image)) as image:
            pixels = np.array(peer._warp(image.convert("RGB"), drawn.matrix[0], (BACKGROUND,) * 3))
            within = np.array(peer._warp(Image.new("L", image.size, 255), drawn.matrix[0], 0)) > 127
        planes = torch.from_numpy(pixels).permute(2, 0, 1)[None].contiguous()
        draws = None if augmentation.is_none else torch.from_numpy(drawn.stain)
        colour, inside = torch.from_numpy(colour_matrices(drawn.colour)), torch.from_numpy(within)[None]
        normal = normalizer(planes, slides=[key], inside=inside, colour=colour, draws=draws)
        batch.append((normal[0], *peer[index][1:]))
    digest = _digest([torch.utils.data.default_collate(batch)])
    return tuple(part.to(inputs["device"]) for part in _inner(digest))


for _name, _augmentation in {"augmented": data.Augmentation(), "not augmented": data.Augmentation.none()}.items():
    register(
        Case(
            op="loader_stain",
            shape=f"192 PNG tiles {TILE} x {TILE} to {SIZE} x {SIZE}, masks and labels, B={BATCH}, {_name}",
            mode="one epoch, stains known per slide",
            make=_make(_augmentation),
            contenders={"fastmtl": _with, "the same loader without stains": _without},
            min_bytes=0,
            tolerance=0.05,
            truth=_truth,
            figures={"the same loader without stains": 0.8},  # at most a quarter longer
            items=192,
        )
    )
