"""Whether masks hold what a task takes them for: as many channels, known class indices, a foreground that shows."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..protocols import Target
from .check import named_file
from .dataset import Drawn, Picture, Region, Tile
from .pictures import decode_image, read_encoded
from .targets import MapColumn

MASK_THRESHOLD = 127
"""Pixels above it are foreground."""
_LOOKED_AT = 100  # masks of a data set have one maker: what the first hundred hold, the others do


def wrong_maps(tiles: Sequence[Tile], target: Target, classes: int, ignore_index: int | None = None) -> str | None:
    """Why the maps of `tiles` are not what a task with this target learns from; None where nothing speaks against it.

    Maps of class indices are all read, of masks a hundred spread over the tiles; masks inside slides are not.

    Args:
        tiles: whose files are known to be readable.
        target: of kind "mask", "masks" or "classes"; others have no maps.
        classes: how many class indices the task has; for "classes".
        ignore_index: an index beside them that the task leaves out.
    """
    if target.kind not in ("mask", "masks", "classes"):
        return None
    column = MapColumn(target.kind, target.column, target.size)
    found = [(tile, picture) for tile in tiles if (picture := column.of(tile)) and not isinstance(picture, Region)]
    if target.kind != "classes":
        found = found[:: len(found) // _LOOKED_AT + 1]
    with ThreadPoolExecutor() as pool:
        if target.kind == "classes":
            allowed = np.zeros(256, bool)
            allowed[[*range(classes), *([] if ignore_index is None else [ignore_index])]] = True
            reasons = pool.map(lambda pair: _strange_class(pair[0], pair[1], allowed, classes), found)
            return next((reason for reason in reasons if reason), None)
        seen = list(pool.map(lambda pair: _pixels(pair[1]), found))
    if target.kind == "masks":
        for (tile, picture), pixels in zip(found, seen, strict=True):
            channels = pixels.shape[2] if pixels.ndim == 3 else 1
            if channels != target.size:
                return f"the mask of {_named(tile, picture)} has {channels} channels, and each structure is one"
    top = max((int(pixels.max(initial=0)) for pixels in seen), default=0)
    if 0 < top <= MASK_THRESHOLD:
        return (
            f"its masks hold no value above {top}, and pixels above {MASK_THRESHOLD} are foreground; "
            "save them as 0 and 255, or learn class indices: multiclass_segmentation"
        )
    return None


def _strange_class(tile: Tile, picture: Path | Drawn, allowed: NDArray[np.bool_], classes: int) -> str | None:
    values = np.flatnonzero(np.bincount(_pixels(picture).reshape(-1), minlength=256))
    strange = values[~allowed[values]]
    if not len(strange):
        return None
    return f"the mask of {_named(tile, picture)} holds {strange[0]}, and class indices are 0 to {classes - 1}"


def _pixels(picture: Path | Drawn) -> NDArray[np.uint8]:
    if isinstance(picture, Path):
        pixels = decode_image(read_encoded(picture))
        return pixels[..., 0] if pixels.ndim == 3 and (pixels == pixels[..., :1]).all() else pixels
    return picture.draw()


def _named(tile: Tile, picture: Picture) -> str:
    return f"tile {tile.id}, {named_file(picture, tile.image)},"
