"""Images of two patients, or on two sides of a split, that look alike: saved again, resized, brightened, or turned."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from ...utils.optional_imports import require
from ...utils.words import counted
from ..dataset import Dataset, Problem, Tile
from ..images.pictures import open_picture, picture_size
from .duplicates import equal_pictures

MOST_COMPARED = 2**14
"""Tiles that are compared at most."""

_FEWEST = 256  # tiles that are compared even if they are large
_SIDE = 32  # of a thumbnail, pixels
_COARSE = 8  # of the thumbnail that is compared first
_ALIKE = 0.98  # correlation of two thumbnails; unrelated tiles of one stain reach 0.8
_COARSE_ALIKE = 0.95
_DETAILS_ALIKE = 0.9
_FLAT = 3.0  # grey levels: a thumbnail with a smaller deviation shows nothing
_ROWS = 512  # thumbnails that are compared with all others at once


def near_duplicate_notices(
    dataset: Dataset, num_threads: int = 2, *, sides: Mapping[str, str] | None = None, most_pixels: int = 0
) -> list[Problem]:
    """A notice if tiles of different groups look alike, also if one is turned or mirrored.

    Compares the grey levels of thumbnails of 32 x 32 pixels. Tiles that cannot be read or show nothing are left out,
    and so are pictures that are equal, which `duplicate_notices` reports. Each tile is decoded once; then n tiles need
    12 KB each and n^2 / 2 comparisons of 64 numbers in eight positions, 5 s for n = 16,384 on one core. Of more tiles,
    that many are drawn, the same ones each time, and the notice says so.

    Args:
        dataset: the tiles to compare.
        num_threads: that decode.
        sides: id -> side of a split: only tiles on different sides are compared, and those on none are left out.
            Of the tiles that are drawn, half are of the largest side, if the others have as many.
        most_pixels: fewer tiles are drawn if they are large, about as many as have this number of pixels; 0: no limit.
    """
    tiles = [tile for tile in dataset.tiles if sides is None or tile.id in sides]
    most = MOST_COMPARED
    if most_pixels and tiles:
        width, height = picture_size(tiles[0].image)
        most = max(_FEWEST, min(most, most_pixels // (width * height)))
    tiles = _drawn(tiles, sides, most)
    apart = [sides[tile.id] if sides is not None else tile.group for tile in tiles]
    if len(set(apart)) < 2:
        return []
    with ThreadPoolExecutor(num_threads) as pool:
        found = list(pool.map(_thumbnail, tiles))
    shown = [(tile, one, name) for tile, one, name in zip(tiles, found, apart, strict=True) if one is not None]
    pairs = list(_alike(*map(list, zip(*shown, strict=True)))) if shown else []
    number = {tile.id: at for at, own in enumerate(equal_pictures(tiles).values()) for tile in own}
    pairs = [(one, other) for one, other in pairs if number[one.id] != number[other.id]]
    if not pairs:
        return []
    first, other = pairs[0]
    alike = {tile.id for pair in pairs for tile in pair}
    of_all = len(dataset if sides is None else sides)
    drawn = f" (of {len(tiles)} that were compared; the data have {of_all})" * (len(tiles) < of_all)
    whose = [f"{tile.id} of {tile.group}" for tile in (first, other)]
    where, leak = "another patient", "a split can leak"
    if sides is not None:
        whose = [f"{said} ({sides[tile.id]})" for said, tile in zip(whose, (first, other), strict=True)]
        where, leak = "another side of the split", "scores are too high"
    reason = (
        f"{counted(len(alike), 'tile')}{drawn} look like one of {where} (saved again, resized or turned?): if they "
        f"are the same, {leak}; first {' and '.join(whose)}"
    )
    return [Problem(dataset.root, reason)]


def shows_nothing(tile: Tile) -> bool:
    """Whether a tile is empty glass or cannot be read: such tiles are alike, or equal, without being copies."""
    return _thumbnail(tile) is None


def _drawn(tiles: Sequence[Tile], sides: Mapping[str, str] | None, most: int) -> list[Tile]:
    """At most `most` of the tiles, in their order, the small sides first."""
    if len(tiles) <= most:
        return list(tiles)
    draw = sorted(tiles, key=lambda tile: hashlib.sha256(tile.id.encode()).digest())
    if sides is not None:
        size = Counter(sides[tile.id] for tile in tiles)
        largest = max(size, key=lambda side: (size[side], side))
        others = [tile for tile in draw if sides[tile.id] != largest][: max(most // 2, most - size[largest])]
        draw = others + [tile for tile in draw if sides[tile.id] == largest]
    wanted = {tile.id for tile in draw[:most]}
    return [tile for tile in tiles if tile.id in wanted]


def _thumbnail(tile: Tile) -> NDArray[np.float32] | None:
    """float32 [32, 32], grey levels of mean 0 and length 1; None if the tile shows nothing or cannot be read."""
    image_module = require("PIL.Image", "comparing images")
    try:
        image = image_module.fromarray(open_picture(tile.image)).convert("L")
    except Exception:  # readers raise many types on damaged data; `check_tiles` reports it
        return None
    grey = np.asarray(image.resize((_SIDE, _SIDE), image_module.Resampling.BOX), np.float32)
    return _normalised(grey) if grey.std() >= _FLAT else None


def _normalised(grey: NDArray[np.float32]) -> NDArray[np.float32]:
    centred = grey - grey.mean((-2, -1), keepdims=True)
    return centred / np.maximum(np.sqrt((centred**2).sum((-2, -1), keepdims=True)), 1e-6)


def _alike(
    tiles: Sequence[Tile], thumbnails: Sequence[NDArray[np.float32]], apart: Sequence[str]
) -> Iterator[tuple[Tile, Tile]]:
    """Pairs of tiles that differ in `apart` and whose thumbnails are alike, in the order of the tiles."""
    fine = np.stack(thumbnails)
    cells = _SIDE // _COARSE
    coarse = _normalised(fine.reshape(-1, _COARSE, cells, _COARSE, cells).mean((2, 4)))
    flat = coarse.reshape(len(tiles), -1)
    groups = np.unique(apart, return_inverse=True)[1]
    for start in range(0, len(tiles), _ROWS):
        own = slice(start, start + _ROWS)
        found = np.zeros((len(groups[own]), len(tiles)), bool)
        for turned in _turned(coarse[own]):
            found |= turned.reshape(len(turned), -1) @ flat.T > _COARSE_ALIKE
        found &= groups[own, None] != groups[None]
        for number, row in enumerate(found, start):
            others = number + 1 + np.flatnonzero(row[number + 1 :])
            turned = np.stack(list(_turned(fine[number])))
            alike = (_correlations(turned, fine[others]) > _ALIKE) & (
                _correlations(_details(turned), _details(fine[others])) > _DETAILS_ALIKE
            )
            for other in others[alike.any(0)]:
                yield tiles[number], tiles[other]


def _correlations(some: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.float32]:
    """[n, m] of normalised images [n, 32, 32] and [m, 32, 32]."""
    return some.reshape(len(some), _SIDE**2) @ others.reshape(len(others), _SIDE**2).T


def _details(thumbnails: NDArray[np.float32]) -> NDArray[np.float32]:
    """What the coarse thumbnails do not show: two edges of tissue, or two heads, are alike in the rest."""
    cells = _SIDE // _COARSE
    blocks = thumbnails.reshape(-1, _COARSE, cells, _COARSE, cells)
    return _normalised((blocks - blocks.mean((2, 4), keepdims=True)).reshape(thumbnails.shape))


def _turned(images: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    """The eight quarter turns and reflections of images [..., n, n]."""
    for flipped in (images, images[..., ::-1]):
        for quarters in range(4):
            yield np.rot90(flipped, quarters, (-2, -1))
