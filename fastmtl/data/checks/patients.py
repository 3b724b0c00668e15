"""How the patients of a data set were found, and suspicious results."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from ...utils.suggestions import folded
from ...utils.words import counted, few, named
from ..dataset import Dataset, Problem, Region, Tile, class_counts
from ..images.pictures import file_of
from ..patient_names import name_without_ending
from ..splits.sites import Units

_NEARLY_ALL = 0.8  # a patient with more than this share of the tiles is suspicious
_FEW = 8  # tiles; fewer allow no conclusion
_PATIENT_COLUMN = re.compile(r"(patient|subject|case|donor|participant)s?(id|no|nr|num|number|code|name|key)?")
_SITE_COLUMN = re.compile(
    r"(site|cent(er|re)|hospital|institut(e|ion)|clinic|lab|laboratory|tss|tissuesourcesite)s?(id|no|code|name)?"
)
_SHOWN = 20  # classes of a column in one line


def patients_found(dataset: Dataset) -> dict[str, dict[str, int]]:
    """How they were found -> {"patients", "tiles"}, the most tiles first.

    File names that the rule does not match name a patient as a whole, and count separately.
    """
    ways: dict[str, list[Tile]] = {}
    for tile in dataset.tiles:
        whole = dataset.patients_from.startswith("file name") and _is_whole_name(tile)
        ways.setdefault("whole file name" if whole else dataset.patients_from or "unknown", []).append(tile)
    return {
        way: {"patients": len({tile.group for tile in own}), "tiles": len(own)}
        for way, own in sorted(ways.items(), key=lambda item: -len(item[1]))
    }


def patient_notices(dataset: Dataset) -> tuple[Problem, ...]:
    """Notices if every tile or slide is its own patient, or one patient has nearly all tiles: the rule that finds
    patients is then probably wrong, and a split leaks or leaves one side empty."""
    if dataset.patients_from == "group_by tile" or dataset.patients_from.startswith("the layout of"):
        return ()  # requested, or published that way
    tiles, sizes = dataset.tiles, Counter(tile.group for tile in dataset.tiles)
    cure = "if file names say more, set data.patient in the recipe"
    if not dataset.patients_from.startswith("file name"):
        cure = f"look at the {dataset.patients_from or 'groups'}"
    reasons = []
    slides = {tile.image.slide: tile.group for tile in tiles if isinstance(tile.image, Region)}
    if len(sizes) == len(tiles) > 1:
        reasons.append(f"every tile is its own patient; {cure}")
    elif 1 < len(slides) == len(set(slides.values())) and dataset.patients_from.startswith("file name"):
        reasons.append(f"every slide is its own patient; {cure}")
    (largest, count) = sizes.most_common(1)[0] if sizes else ("", 0)
    if len(tiles) >= _FEW and count > _NEARLY_ALL * len(tiles):
        share = f"all {count}" if count == len(tiles) else f"{count} of the {len(tiles)}"
        reasons.append(f"patient {largest!r} has {share} tiles, and a split must keep them together; {cure}")
    reasons += [*_unused_patient_columns(dataset), *_unused_site_columns(dataset)]
    return tuple(Problem(dataset.root, reason) for reason in reasons)


def _unused_patient_columns(dataset: Dataset) -> Iterator[str]:
    """Unused columns that seem to name patients, if a value has tiles in several groups: the same patient under two
    names. Beside a column of patients, cases do not count: they are often numbered within the patient."""
    if dataset.patients_from.startswith("group_by"):
        return
    has_column = dataset.patients_from.startswith("column")
    for name in dict.fromkeys(name for tile in dataset.tiles for name in tile.values):
        if not _PATIENT_COLUMN.fullmatch("".join(filter(str.isalnum, name.lower()))):
            continue
        if has_column and name.lower().startswith("case"):
            continue
        groups: dict[Any, set[str]] = {}
        for tile in dataset.tiles:
            if (value := tile.values.get(name)) is not None:
                groups.setdefault(value, set()).add(tile.group)
        cure = f"look at {dataset.patients_from}" if has_column else "call it patient, or set data.group_by"
        torn = sum(len(own) > 1 for own in groups.values())
        if torn:
            yield (
                f"column {name!r} is not read as patients, and tiles of {torn} of its {len(groups)} values may be on "
                f"two sides of a split; {cure}"
            )


def _unused_site_columns(dataset: Dataset) -> Iterator[str]:
    """Columns that seem to name sites, if splits do not keep them together and each has several patients."""
    if any(tile.site for tile in dataset.tiles) or dataset.patients_from.startswith("group_by"):
        return
    for name in dict.fromkeys(name for tile in dataset.tiles for name in tile.values):
        if not _SITE_COLUMN.fullmatch("".join(filter(str.isalnum, name.lower()))):
            continue
        patients: dict[Any, set[str]] = {}
        for tile in dataset.tiles:
            if (value := tile.values.get(name)) is not None:
                patients.setdefault(value, set()).add(tile.group)
        if len(patients) > 1 and any(len(own) > 1 for own in patients.values()):
            yield (
                f"column {name!r} has {len(patients)} values, and one may be on two sides of a split; if they are "
                f'hospitals or laboratories, set data.site = "{name}"'
            )


def summary_lines(dataset: Dataset, own: str = "label") -> list[str]:
    """A line on the patients and how they were found, and one with the counts of each label column's classes; `own`
    names the tiles' own."""
    sizes = sorted(Counter(tile.group for tile in dataset.tiles).values())
    each = f"{sizes[0]} to {sizes[-1]} tiles" if sizes[0] < sizes[-1] else counted(sizes[0], "tile")
    ways = patients_found(dataset)
    found_by = ", ".join(f"{way} ({found['patients']})" if len(ways) > 1 else way for way, found in ways.items())
    if dataset.patients_from == "group_by tile":
        lines = [f"patients: not kept together; each of the {len(sizes)} tiles is a group of its own (group_by tile)"]
    else:
        lines = [f"patients: {len(sizes)}, found by {found_by}; {each} each"]
    if any(tile.site for tile in dataset.tiles):
        units = Units(dataset)
        lines.append(f"sites: a split keeps together {units.in_words()}")
    for column, classes in class_counts(dataset).items():
        counts = [f"{named(name)} {found['tiles']}" for name, found in classes.items()]
        lines.append(f"{own if column == 'label' else column}: {few(counts, _SHOWN)}")
    return lines


def _is_whole_name(tile: Tile) -> bool:
    return folded(tile.group) == folded(name_without_ending(file_of(tile.image).name))
