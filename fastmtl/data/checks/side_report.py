"""The report of `examine` on the sides of a split: tiles, patients, sites, classes and polygons of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..dataset import Dataset, Tile, class_counts, maps_of
from ..images.polygons import Polygons, polygon_classes
from ..splits.split import Split

SIDES = ("train", "val", "test", "inner")


def sides_of(split: Split) -> dict[str, str]:
    """Id -> one of `SIDES`."""
    every = zip(SIDES, (split.train, split.val, split.test, split.inner), strict=True)
    return {name: side for side, ids in every for name in ids}


def sides_of_column(dataset: Dataset) -> dict[str, str]:
    """Id -> the value of the column split; {} without the column."""
    return {tile.id: side for tile in dataset.tiles if (side := tile.values.get("split")) is not None}


def count_sides(dataset: Dataset, sides: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Side -> {"tiles", "patients", "sites" (0 where tiles have none), "classes": label column -> class -> tiles,
    "polygons": class -> polygons}, in the order of `SIDES`.

    The polygons of a file count on each side that has one of its tiles, also those that no tile shows.

    Args:
        dataset: the tiles.
        sides: id -> side; tiles on none are not counted.
    """
    own: dict[str, list[Tile]] = {side: [] for side in SIDES}
    for tile in dataset.tiles:
        if tile.id in sides:
            own.setdefault(sides[tile.id], []).append(tile)
    counted: dict[Path, Counter[str]] = {}
    found = {}
    for side, tiles in own.items():
        if not tiles:
            continue
        part = Dataset(dataset.root, dataset.class_names, tuple(tiles), classes=dataset.classes)
        polygons: Counter[str] = Counter()
        for file in sorted({one.file for tile in tiles for _, one in maps_of(tile) if isinstance(one, Polygons)}):
            polygons.update(counted[file] if file in counted else counted.setdefault(file, _polygons(file)))
        found[side] = {
            "tiles": len(tiles),
            "patients": len(part.groups),
            "sites": len({tile.site for tile in tiles if tile.site}),
            "classes": {
                column: {name: each["tiles"] for name, each in classes.items()}
                for column, classes in class_counts(part).items()
            },
            "polygons": dict(polygons.most_common()),
        }
    return found


def _polygons(file: Path) -> Counter[str]:
    try:
        return Counter(polygon_classes(file))
    except ValueError:  # `check_tiles` reports it
        return Counter()
