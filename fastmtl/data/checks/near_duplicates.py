"""Images of two patients that look alike: saved again, resized, brightened, or turned; a split leaks by them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from ...utils.optional_imports import require
from ...utils.words import counted
from ..dataset import Dataset, Problem, Tile
from ..images.pictures import open_picture
from .duplicates import equal_pictures

_SIDE = 32  # of a thumbnail, pixels
_COARSE = 8  # of the thumbnail that is compared first
_ALIKE = 0.98  # correlation of two thumbnails; unrelated tiles of one stain reach 0.8
_COARSE_ALIKE = 0.95
_DETAILS_ALIKE = 0.9
_FLAT = 3.0  # grey levels: a thumbnail with a smaller deviation shows nothing
_ROWS = 512  # thumbnails that are compared with all others at once


def near_duplicate_notices(dataset: Dataset, num_threads: int = 2) -> list[Problem]:
    """A notice if tiles of different groups look alike, also if one is turned or mirrored.

    Compares the grey levels of thumbnails of 32 x 32 pixels. Tiles that cannot be read or show nothing are left out,
    and so are pictures that are equal, which `duplicate_notices` reports.
    """
    if len(dataset.groups) < 2:
        return []
    with ThreadPoolExecutor(num_threads) as pool:
        found = list(pool.map(_thumbnail, dataset.tiles))
    shown = [(tile, one) for tile, one in zip(dataset.tiles, found, strict=True) if one is not None]
    pairs = list(_alike([tile for tile, _ in shown], [one for _, one in shown]))
    number = {tile.id: at for at, own in enumerate(equal_pictures(dataset.tiles).values()) for tile in own}
    pairs = [(one, other) for one, other in pairs if number[one.id] != number[other.id]]
    if not pairs:
        return []
    first, other = pairs[0]
    tiles = {tile.id for pair in pairs for tile in pair}
    reason = (
        f"{counted(len(tiles), 'tile')} look like one of another patient (saved again, resized or turned?): if they "
        f"are the same, a split can leak; first {first.id} of {first.group} and {other.id} of {other.group}"
    )
    return [Problem(dataset.root, reason)]


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


def _alike(tiles: Sequence[Tile], thumbnails: Sequence[NDArray[np.float32]]) -> Iterator[tuple[Tile, Tile]]:
    """Pairs of tiles of different groups whose thumbnails are alike, in the order of the tiles."""
    if not tiles:
        return
    fine = np.stack(thumbnails)
    cells = _SIDE // _COARSE
    coarse = _normalised(fine.reshape(-1, _COARSE, cells, _COARSE, cells).mean((2, 4)))
    flat = coarse.reshape(len(tiles), -1)
    groups = np.unique([tile.group for tile in tiles], return_inverse=True)[1]
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
