"""Writes a data set as a manifest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..dataset import Dataset, ImageSource, Region, kind_of
from . import column_types as cells_of
from .column_names import RESERVED
from .path_rule import PathRule
from .picture_refs import write_picture
from .table_io import write_table


def write_manifest(dataset: Dataset, path: str | Path, root: str | Path | None = None) -> None:
    """Write a manifest that `read_manifest` reads the same tiles from; paths are relative to its folder.

    Problems and kinds of columns are not written: pass kinds and classes again if inference would differ.

    Args:
        dataset: to write.
        path: ending in .csv, .tsv or .parquet.
        root: as in `ManifestOptions`; only checked.

    Raises:
        ValueError: a picture that a manifest cannot name, a path outside `root`, or a column with a reserved name.
    """
    path = Path(path)
    rule = PathRule(path.parent, Path(root) if root is not None else path.parent)
    names = list(dict.fromkeys(name for tile in dataset.tiles for name in tile.values))
    clashes = [name for name in names if name in RESERVED and name not in ("case", "position", "split", "patient")]
    if clashes:
        raise ValueError(f"column {clashes[0]!r} has a reserved name in manifests; rename it")
    with_group = "group" if "patient" in names else "patient"
    rows = []
    for tile in dataset.tiles:
        label = "" if tile.label is None else dataset.class_names[tile.label]
        row = {"id": tile.id, **_image_cells(tile.image, rule), "label": label, with_group: tile.group}
        row["mask"] = "" if tile.mask is None else _checked(tile.mask, rule)
        for name in names:
            row[name] = _value_cell(tile.values.get(name), dataset.classes.get(name), rule)
        rows.append(row)
    order = [*RESERVED, *(name for name in names if name not in RESERVED)]
    used = [name for name in order if any(row.get(name) for row in rows)]
    write_table(path, used, [[row.get(name, "") for name in used] for row in rows])


def _image_cells(image: ImageSource, rule: PathRule) -> dict[str, str]:
    if not isinstance(image, Region):
        return {"image": _checked(image, rule)}
    numbers = {name: str(getattr(image, name)) for name in ("x", "y", "width", "height", "level")}
    return {"slide": _checked(image, rule), **numbers}


def _checked(picture: ImageSource, rule: PathRule) -> str:
    text = write_picture(picture, rule)
    if not isinstance(picture, Path | Region):
        return text
    check = rule.slide if isinstance(picture, Region) else rule.resolve
    check(text, f"writing {rule.folder}")
    return text


def _value_cell(value: Any, classes: Sequence[str] | None, rule: PathRule) -> str:
    if value is None:
        return ""
    if classes is not None:
        return str(classes[value])
    return _checked(value, rule) if kind_of(value) == "picture" else cells_of.write_value(value)
