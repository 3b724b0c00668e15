"""Rows of a manifest that name the same image or mask: of two patients, with two labels, over two slides."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .dataset import Picture, Problem, Region, Tile
from .pictures import file_of
from .polygons import Polygons


def rows_that_share(tiles: Sequence[Tile], path: Path) -> list[Problem]:
    """What is odd about images and masks that several rows of the manifest `path` name."""
    return [*_images_of_several(tiles, path), *_masks_of_several(tiles)]


def _images_of_several(tiles: Sequence[Tile], path: Path) -> list[Problem]:
    """Images in rows of several patients, or with several labels; regions of one slide may be of several patients, as
    in tissue arrays."""
    first: dict[Picture, Tile] = {}
    twice = [
        f"{tile.id} and {other.id} are one image, of {tile.group!r} and of {other.group!r}: it may be on two sides"
        for tile in tiles
        if not isinstance(tile.image, Region) and (other := first.setdefault(tile.image, tile)).group != tile.group
    ]
    labelled: dict[Picture, Tile] = {}
    labels = [
        f"{tile.id} and {other.id} are one image, with two labels: one of them is wrong"
        for tile in tiles
        if tile.label is not None and (other := labelled.setdefault(tile.image, tile)).label != tile.label
    ]
    return [Problem(path, reason) for reason in (*twice[:3], *labels[:3])]


def _masks_of_several(tiles: Sequence[Tile]) -> list[Problem]:
    """Files of masks over more than one slide or image, as filling down in a spreadsheet makes them."""
    images: dict[Path, dict[Path, None]] = {}
    for tile in tiles:
        if isinstance(tile.mask, Path | Region | Polygons) and (image := file_of(tile.image)) != Path():
            images.setdefault(file_of(tile.mask), {})[image] = None
    return [
        Problem(
            mask, f"is the mask of {len(own)} images, {' and '.join(path.name for path in list(own)[:2])} among them"
        )
        for mask, own in images.items()
        if len(own) > 1
    ]
