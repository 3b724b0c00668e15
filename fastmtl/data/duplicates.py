"""Images that are there twice: of two patients they let a split leak, however carefully it is made."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path

from ..words import few
from .dataset import Dataset, Picture, Problem, Tile


def duplicate_notices(dataset: Dataset) -> list[Problem]:
    """A notice where tiles show the same picture: the same file or region, or image files that are equal byte for byte.

    Only files of one size are read.
    """
    groups = [tiles for tiles in _same(dataset.tiles).values() if len(tiles) > 1]
    if not groups:
        return []
    count = sum(len(tiles) for tiles in groups)
    leaks = [tiles for tiles in groups if len({tile.group for tile in tiles}) > 1]
    first = (leaks or groups)[0]
    shown = f"{first[0].id} and {first[1].id}"
    if leaks:
        other = next(tile for tile in first if tile.group != first[0].group)
        shown = f"{first[0].id} of {first[0].group} and {other.id} of {other.group}"
    of_two = f", {len(leaks)} of them in two patients, so a split can leak" if leaks else ""
    return [Problem(dataset.root, f"{len(groups)} pictures appear more than once, in {count} tiles{of_two}: {shown}")]


def shared_pictures(dataset: Dataset) -> tuple[Problem, ...]:
    """A notice where one file or region is the image of several patients; opens no file."""
    first: dict[Hashable, Tile] = {}
    twice = [
        f"{tile.id} and {other.id} are one image, of {tile.group!r} and of {other.group!r}: it may be on two sides"
        for tile in dataset.tiles
        if (other := first.setdefault(_key(tile.image), tile)).group != tile.group
    ]
    return (Problem(dataset.root, few(twice, 3, "; ")),) if twice else ()


def _key(picture: Picture) -> Hashable:
    """An own format's pictures may have no hash; each is then taken for another."""
    return picture if isinstance(picture, Hashable) else id(picture)


def _same(tiles: Sequence[Tile]) -> dict[Hashable, list[Tile]]:
    by_picture: dict[Hashable, list[Tile]] = defaultdict(list)
    contents = _contents({tile.image for tile in tiles if isinstance(tile.image, Path)})
    for tile in tiles:
        image = _key(tile.image)
        by_picture[contents.get(image, image) if isinstance(image, Path) else image].append(tile)
    return by_picture


def _contents(files: Iterable[Path]) -> dict[Path, bytes]:
    """A digest of each file that has another's size."""
    by_size: dict[int, list[Path]] = defaultdict(list)
    for file in files:
        try:
            by_size[file.stat().st_size].append(file)
        except OSError:  # `check_tiles` says so
            continue
    return {
        file: hashlib.sha256(file.read_bytes()).digest()
        for same in by_size.values()
        if len(same) > 1
        for file in same
        if file.is_file()
    }
