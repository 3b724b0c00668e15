"""Groups for splits by units other than patients: cases, specimens, days of a patient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ...utils.suggestions import nearest
from ..dataset import Dataset, with_one_spelling
from ..identifiers import sample_key, says_missing
from ..manifest.column_types import write_value


def with_groups(dataset: Dataset, template: str) -> Dataset:
    """The same tiles with another group: a column's name, or an expression over columns such as "{case}-{day}".

    Spellings of one name count as one (see `identifiers`), and "nan" as empty. Besides columns there are "patient" (or
    "group"), the current group, and "tile", which makes each tile its own group.

    Raises:
        ValueError: a column that the data set does not have, or that is empty for a tile.

    >>> from pathlib import Path
    >>> from fastmtl.data import Tile
    >>> tiles = [Tile("a", Path("a.png"), None, None, "p1", {"case": "c7", "day": 2.0})]
    >>> with_groups(Dataset(Path("."), (), tuple(tiles)), "{case}-{day}").groups
    ('c7-2',)
    """
    expression = template if "{" in template else f"{{{template}}}"
    known = {"patient", "group", "tile", *(name for tile in dataset.tiles for name in tile.values)}
    tiles = []
    for tile in dataset.tiles:
        cells = {name: _group_cell(value, dataset.classes.get(name)) for name, value in tile.values.items()}
        try:
            group = expression.format_map(
                _Filled({"group": tile.group, "patient": tile.group, "tile": tile.id} | cells, tile.id)
            )
        except KeyError as error:
            if error.args[0] in known:
                raise ValueError(f"`group_by`: tile {tile.id} has no {error.args[0]}") from None
            raise ValueError(
                f"`group_by` names {error.args[0]!r}; {nearest(str(error.args[0]), sorted(known))}"
            ) from None
        except (IndexError, AttributeError, ValueError) as error:
            raise ValueError(f"`group_by` must read like case or {{case}}-{{day}}; got {template!r}: {error}") from None
        tiles.append(replace(tile, group=group))
    return with_one_spelling(replace(dataset, tiles=tuple(tiles), patients_from=f"group_by {template}"))


class _Filled(dict):
    """Cells by name; an empty cell is an error, because its tile could belong to any group."""

    def __init__(self, cells: Mapping[str, str], tile: str):
        super().__init__(cells)
        self._tile = tile

    def __getitem__(self, name: str) -> str:
        value = super().__getitem__(name)
        if value == "":
            raise ValueError(f"tile {self._tile} has no {name}")
        return value


def _group_cell(value: Any, classes: Sequence[str] | None) -> str:
    if value is None:
        return ""
    if classes is not None:
        return str(classes[value])
    return ("" if says_missing(value) else sample_key(value)) if isinstance(value, str) else write_value(value)
