"""Groups for splits by units other than patients: cases, specimens, days of a patient."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from ...utils.suggestions import nearest
from ..dataset import Dataset, Tile, with_one_spelling
from ..identifiers import clean_name, sample_key, says_missing
from ..images.pictures import file_of
from ..manifest.column_types import write_value

_BARCODE = re.compile(r"(?<![A-Z0-9])TCGA-([A-Z0-9]{2})(?:-[A-Z0-9]|$)", re.IGNORECASE)


def with_groups(dataset: Dataset, template: str) -> Dataset:
    """The same tiles with another group: a column's name, or an expression over columns such as "{case}-{day}".

    Spellings of one name count as one (see `identifiers`), and "nan" as empty. Besides columns there are "patient" (or
    "group"), the current group, and "tile", which makes each tile its own group; and "tcga_site", the tissue source
    site in the TCGA barcode of the patient or the file.

    Raises:
        ValueError: a column that the data set does not have, or that is empty for a tile.

    >>> from pathlib import Path
    >>> from fastmtl.data import Tile
    >>> tiles = [Tile("a", Path("a.png"), None, None, "p1", {"case": "c7", "day": 2.0})]
    >>> with_groups(Dataset(Path("."), (), tuple(tiles)), "{case}-{day}").groups
    ('c7-2',)
    """
    tiles = [
        replace(tile, group=name)
        for tile, name in zip(dataset.tiles, names_of(dataset, template, "group_by"), strict=True)
    ]
    return with_one_spelling(replace(dataset, tiles=tuple(tiles), patients_from=f"group_by {template}"))


def names_of(dataset: Dataset, template: str, option: str) -> Iterator[str]:
    """The name that `template` (see `with_groups`) gives each tile; errors name the `option` that it comes from."""
    expression = template if "{" in template else f"{{{template}}}"
    known = {"patient", "group", "tile", "tcga_site", *(name for tile in dataset.tiles for name in tile.values)}
    for tile in dataset.tiles:
        cells = {name: _group_cell(value, dataset.classes.get(name)) for name, value in tile.values.items()}
        own = {"group": tile.group, "patient": tile.group, "tile": tile.id}
        if "tcga_site" in expression:
            own["tcga_site"] = _tcga_site(tile)
        try:
            yield expression.format_map(_Filled(own | cells))
        except KeyError as error:
            if error.args[0] in known:
                raise ValueError(f"`{option}`: tile {tile.id} has no {error.args[0]}") from None
            raise ValueError(
                f"`{option}` names {error.args[0]!r}; {nearest(str(error.args[0]), sorted(known))}"
            ) from None
        except (IndexError, AttributeError, ValueError) as error:
            raise ValueError(f"`{option}` must read like case or {{case}}-{{day}}; got {template!r}: {error}") from None


class _Filled(dict):
    """Cells by name; an empty cell counts as missing, because its tile could belong to any group."""

    def __getitem__(self, name: str) -> str:
        if (value := super().__getitem__(name)) == "":
            raise KeyError(name)
        return value


def _group_cell(value: Any, classes: Sequence[str] | None) -> str:
    if value is None:
        return ""
    if classes is not None:
        return str(classes[value])
    return ("" if says_missing(value) else sample_key(value)) if isinstance(value, str) else write_value(value)


def _tcga_site(tile: Tile) -> str:
    """The two letters or digits after TCGA-; "" where neither the patient nor the file nor the id is a barcode."""
    for name in (tile.group, file_of(tile.image).name, tile.id):
        if found := _BARCODE.search(clean_name(name)):
            return found[1].upper()
    return ""
