"""What a data set holds and what is broken in it, counted: every file is opened and every region decoded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from .check import MAX_PIXELS, check_tiles
from .dataset import Dataset, Problem, Region, Tile
from .pictures import file_of, open_picture, picture_size


def examine(dataset: Dataset, *, max_pixels: int = MAX_PIXELS, num_threads: int = 2) -> dict[str, Any]:
    """Counts and problems as plain JSON types.

    Returns:
        "path", "num_tiles", "num_patients", "num_slides"; "columns": name -> {"kind", "present", and for labels
        "classes": name -> tiles}; "splits": side -> {"tiles", "patients"}; "patients": name -> tiles; "sizes":
        "WIDTHxHEIGHT" -> tiles; "broken": [{"path", "reason"}], files that training could not use; "notices": the same
        for what is odd about the table or folder.
    """
    tiles = dataset.tiles
    broken = check_tiles(tiles, max_pixels=max_pixels, num_threads=num_threads)
    bad = {problem.path for problem in broken}
    broken += _undecodable(tiles, {problem.path for problem in broken}, num_threads)
    return {
        "path": str(dataset.root),
        "num_tiles": len(tiles),
        "num_patients": len(dataset.groups),
        "num_slides": len({tile.image.slide for tile in tiles if isinstance(tile.image, Region)}),
        "columns": _columns(dataset),
        "splits": _splits(tiles),
        "patients": dict(sorted(Counter(tile.group for tile in tiles).items())),
        "sizes": dict(Counter(_size(tile) for tile in tiles if file_of(tile.image) not in bad).most_common()),
        "broken": [{"path": str(problem.path), "reason": problem.reason} for problem in broken],
        "notices": [{"path": str(problem.path), "reason": problem.reason} for problem in dataset.problems],
    }


def _undecodable(tiles: Sequence[Tile], known: set, num_threads: int) -> list[Problem]:
    """Regions of slides that cannot be decoded: one entry a slide, with the first reason and how many there are."""

    def reason(tile: Tile) -> tuple[Any, str] | None:
        if not isinstance(tile.image, Region) or tile.image.slide in known:
            return None
        try:
            open_picture(tile.image)
        except Exception as error:  # as in `check`: whatever a reader raises, it must not be trained on
            return tile.image.slide, str(error).removeprefix(f"{tile.image.slide}: ")
        return None

    with ThreadPoolExecutor(num_threads) as pool:
        found = [one for one in pool.map(reason, tiles) if one is not None]
    counts = Counter(slide for slide, _ in found)
    firsts = dict(reversed(found))
    return [
        Problem(slide, f"{counts[slide]} region{'s' * (counts[slide] > 1)} cannot be decoded: {firsts[slide]}")
        for slide in counts
    ]


def _columns(dataset: Dataset) -> dict[str, dict[str, Any]]:
    tiles = dataset.tiles
    columns: dict[str, dict[str, Any]] = {}
    if any(tile.mask is not None for tile in tiles):
        columns["mask"] = {"kind": "picture", "present": sum(tile.mask is not None for tile in tiles)}
    if dataset.class_names:
        columns["label"] = _label_column([tile.label for tile in tiles], dataset.class_names)
    for name in dict.fromkeys(name for tile in tiles for name in tile.values):
        values = [tile.values.get(name) for tile in tiles]
        if name in dataset.classes:
            columns[name] = _label_column(values, dataset.classes[name])
        else:
            columns[name] = {"kind": _kind(values), "present": sum(value is not None for value in values)}
    return columns


def _label_column(values: Sequence[int | None], names: Sequence[str]) -> dict[str, Any]:
    counts = Counter(value for value in values if value is not None)
    classes = {name: counts[index] for index, name in enumerate(names)}
    return {"kind": "label", "present": sum(counts.values()), "classes": classes}


def _kind(values: Sequence[Any]) -> str:
    value = next((value for value in values if value is not None), None)
    if isinstance(value, tuple):
        return "vector"
    if isinstance(value, str):
        return "text"
    return "number" if isinstance(value, int | float) else "picture"


def _splits(tiles: Sequence[Tile]) -> dict[str, dict[str, int]]:
    sides: dict[str, list[Tile]] = {}
    for tile in tiles:
        if tile.values.get("split") is not None:
            sides.setdefault(tile.values["split"], []).append(tile)
    return {side: {"tiles": len(own), "patients": len({tile.group for tile in own})} for side, own in sides.items()}


def _size(tile: Tile) -> str:
    width, height = picture_size(tile.image)
    return f"{width}x{height}"
