"""Rows of a manifest that name the same image with two labels, or the same mask for two images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...utils.words import few
from ..dataset import ImageSource, Problem, Region, Tile
from ..images.pictures import file_of
from ..images.polygons import Polygons


def rows_that_share(tiles: Sequence[Tile], path: Path) -> list[Problem]:
    """Notices about images and masks that several rows of the manifest `path` name."""
    return [*_images_with_two_labels(tiles, path), *_masks_of_several(tiles)]


def _images_with_two_labels(tiles: Sequence[Tile], path: Path) -> list[Problem]:
    labelled: dict[ImageSource, Tile] = {}
    labels = [
        f"{tile.id} and {other.id} are one image with two labels: one of them is wrong"
        for tile in tiles
        if tile.label is not None and (other := labelled.setdefault(tile.image, tile)).label != tile.label
    ]
    return [Problem(path, few(labels, 3, "; "))] if labels else []


def _masks_of_several(tiles: Sequence[Tile]) -> list[Problem]:
    """Mask files of more than one slide or image, as filling down in a spreadsheet produces."""
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
