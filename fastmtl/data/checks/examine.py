"""The contents and damage of a data set: every file is opened and every region decoded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ...errors import reason_of
from ...utils.words import counted, few
from ..dataset import Dataset, Problem, Region, Tile, class_counts, kind_of, maps_of
from ..images.pictures import file_of, open_picture, picture_size
from ..splits.sites import site_notices
from ..splits.split import split_by_column
from .damaged_tiles import MAX_PIXELS, check_tiles, named_file
from .duplicates import duplicate_notices
from .mask_report import examine_masks
from .near_duplicates import near_duplicate_notices
from .patients import patient_notices, patients_found, summary_lines
from .side_report import count_sides, sides_of_column
from .slide_report import polygons_of_tiles, scale_notices, slides_of_tiles


def examine(dataset: Dataset, *, max_pixels: int = MAX_PIXELS, num_threads: int = 2) -> dict[str, Any]:
    """Counts and problems as plain JSON types.

    Returns:
        "path", "num_tiles", "num_patients", "num_slides"; "summary", a few lines; "patients_found", how -> {"patients",
        "tiles"}; "columns": name -> {"kind", "present", for labels "classes": name -> tiles and "patients": name ->
        patients, for numbers "range"}; "splits": of the column split, see `count_sides`; "patients": name -> tiles;
        "sizes": "WIDTHxHEIGHT" -> tiles; "masks", "slides", "polygons": see `examine_masks`, `slides_of_tiles`,
        `polygons_of_tiles`; "broken": [{"path", "reason"}], files that training could not use, "damaged_tiles", the
        ids of theirs; "notices": the same as "broken" for what is odd.
    """
    tiles = dataset.tiles
    broken = check_tiles(tiles, max_pixels=max_pixels, num_threads=num_threads)
    bad = {problem.path for problem in broken}
    masks, of_masks, unreadable = examine_masks(dataset, bad, num_threads)
    broken += unreadable + _undecodable(tiles, {problem.path for problem in broken}, num_threads)
    slides = slides_of_tiles(dataset)
    polygons, of_polygons = polygons_of_tiles(dataset)
    columns = _columns(dataset)
    odd = [
        *patient_notices(dataset),
        *site_notices(dataset),
        *_column_notices(dataset, columns),
        *_split_notices(dataset),
        *of_masks,
        *duplicate_notices(dataset),
        *near_duplicate_notices(dataset, num_threads),
    ]
    notices = [*dataset.problems, *odd, *scale_notices(dataset, slides), *of_polygons]
    return {
        "path": str(dataset.root),
        "num_tiles": len(tiles),
        "num_patients": len(dataset.groups),
        "num_slides": len({tile.image.slide for tile in tiles if isinstance(tile.image, Region)}),
        "summary": summary_lines(dataset),
        "patients_found": patients_found(dataset),
        "columns": columns,
        "splits": count_sides(dataset, sides_of_column(dataset)),
        "patients": dict(sorted(Counter(tile.group for tile in tiles).items())),
        "sizes": dict(Counter(_size(tile) for tile in tiles if file_of(tile.image) not in bad).most_common()),
        "masks": masks,
        "slides": slides,
        "polygons": polygons,
        "broken": _plain(broken),
        "damaged_tiles": _damaged(tiles, {problem.path for problem in broken}),
        "notices": _plain(dict.fromkeys(notices)),
    }


def _damaged(tiles: Sequence[Tile], bad: set[Path]) -> list[str]:
    return [
        tile.id
        for tile in tiles
        if file_of(tile.image) in bad or any(named_file(mask, tile.image) in bad for _, mask in maps_of(tile))
    ]


def _plain(problems: Iterable[Problem]) -> list[dict[str, str]]:
    return [{"path": str(problem.path), "reason": problem.reason} for problem in problems]


def _undecodable(tiles: Sequence[Tile], known: set, num_threads: int) -> list[Problem]:
    """Regions of slides that cannot be decoded: one entry per slide, with their number and the first reason."""

    def reason(tile: Tile) -> tuple[Any, str] | None:
        if not isinstance(tile.image, Region) or tile.image.slide in known:
            return None
        try:
            open_picture(tile.image)
        except Exception as error:  # readers raise many types on damaged data, and each means: do not train on it
            return tile.image.slide, reason_of(error).removeprefix(f"{tile.image.slide}: ")
        return None

    with ThreadPoolExecutor(num_threads) as pool:
        found = [one for one in pool.map(reason, tiles) if one is not None]
    counts = Counter(slide for slide, _ in found)
    firsts = dict(reversed(found))
    return [
        Problem(slide, f"{counted(counts[slide], 'region')} cannot be decoded: {firsts[slide]}") for slide in counts
    ]


def _columns(dataset: Dataset) -> dict[str, dict[str, Any]]:
    tiles = dataset.tiles
    columns: dict[str, dict[str, Any]] = {}
    if any(tile.mask is not None for tile in tiles):
        columns["mask"] = {"kind": "picture", "present": sum(tile.mask is not None for tile in tiles)}
    for name, classes in class_counts(dataset).items():
        columns[name] = {
            "kind": "label",
            "present": sum(each["tiles"] for each in classes.values()),
            "classes": {label: each["tiles"] for label, each in classes.items()},
            "patients": {label: each["patients"] for label, each in classes.items()},
        }
    for name in dict.fromkeys(name for tile in tiles for name in tile.values):
        if name not in columns:
            values = [value for tile in tiles if (value := tile.values.get(name)) is not None]
            columns[name] = {"kind": kind_of(values[0]) if values else "picture", "present": len(values)}
            if columns[name]["kind"] == "number":
                columns[name]["range"] = [min(values), max(values)]
    return columns


def _column_notices(dataset: Dataset, columns: dict[str, dict[str, Any]]) -> list[Problem]:
    """Constant columns, and classes that any split by patient has on one side only."""
    reasons = []
    for name, column in columns.items():
        classes = {label: count for label, count in column.get("classes", {}).items() if count}
        if len(classes) == 1 and column["present"] > 1:
            reasons.append(f"column {name!r} has only one class, {next(iter(classes))!r}: there is nothing to learn")
        elif len(classes) > 1:
            lone = [label for label in classes if column["patients"][label] == 1]
            if lone and len(dataset.groups) > 1:
                shown = few([f"{label!r} ({counted(classes[label], 'tile')})" for label in lone], 5)
                reasons.append(f"column {name!r}: only one patient has {shown}: any split has it on one side only")
        low, high = column.get("range", (0, 1))
        if low == high and column["present"] > 1 and name != "position":
            reasons.append(f"column {name!r} holds {low:g} in every tile: there is nothing to learn")
    return [Problem(dataset.root, reason) for reason in reasons]


def _split_notices(dataset: Dataset) -> list[Problem]:
    """Why training would reject the column split."""
    try:
        split_by_column(dataset)
    except ValueError as error:
        return [Problem(dataset.root, f"column 'split': {str(error).removeprefix(f'{dataset.root}: ')}")]
    return []


def _size(tile: Tile) -> str:
    width, height = picture_size(tile.image)
    return f"{width}x{height}"
