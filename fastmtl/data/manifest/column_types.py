"""The kinds of a manifest's columns, given or inferred, and the values of their cells."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, get_args

from ...utils.suggestions import nearest
from ..identifiers import unicode_form
from .numbers import comma_hint, parse_number, parse_numbers
from .picture_refs import looks_like_picture
from .table_io import TextTable

Kind = Literal["picture", "label", "number", "vector", "box", "pixel_box", "text"]
KINDS: tuple[str, ...] = get_args(Kind)

_MOST_CLASSES = 64
_MEASURED = 10  # different numbers in a column that hardly holds classes
_FEW = 0.1  # share of cells that are no numbers by mistake


def infer_kind(name: str, cells: Sequence[str]) -> Kind:
    """The kind of a column with this name and these cells.

    "number": all cells are numbers; "vector": all cells hold the same number of numbers; "box": four numbers of 0..1,
    and the name contains "box": centre x, centre y, width, height in shares of the image; "pixel_box": likewise with
    larger numbers: left, top, width, height in pixels of the image; "picture": all look like image files, polygons or
    run-length codes; "label": text with at most 64 different values, at least one of them twice; "text": anything else.
    Empty cells do not count.

    >>> infer_kind("age", ["51", "", "62.5"]), infer_kind("head_box", ["1 2 30 40"]), infer_kind("grade", ["G1", "G1"])
    ('number', 'pixel_box', 'label')
    """
    filled = [cell for cell in cells if cell]
    if not filled:
        return "text"
    lengths = {len(numbers) if (numbers := parse_numbers(cell)) else 0 for cell in filled}
    if 0 not in lengths and len(lengths) == 1:
        length = lengths.pop()
        if length == 1:
            return "number"
        if length != 4 or "box" not in name.lower():
            return "vector"
        return "box" if all(0 <= number <= 1 for cell in filled for number in parse_numbers(cell)) else "pixel_box"
    if all(map(looks_like_picture, filled)):
        return "picture"
    distinct = len(set(filled))
    return "label" if distinct <= _MOST_CLASSES and distinct < len(filled) else "text"


def are_classes(cells: Sequence[str]) -> bool:
    """Whether numbers may be classes: whole numbers, at most 64 different ones, at least one of them twice.

    >>> are_classes(["1", "2", "", "2"]), are_classes(["51", "62.5", "51"]), are_classes(["1", "2", "3"])
    (True, False, False)
    """
    numbers = [parse_number(cell) for cell in cells if cell]
    is_whole = all(number is not None and number.is_integer() for number in numbers)
    return is_whole and len(set(numbers)) <= _MOST_CLASSES and len(set(numbers)) < len(numbers)


def why_no_number(name: str, kind: Kind, cells: Sequence[str], lines: Sequence[int]) -> str:
    """The notice about a column that is text, or classes although nearly all its cells are different numbers; names the
    line of the first cell that is no number, where most are. "" for other columns.

    >>> why_no_number("age", "text", ["51", "62", "4O"], [2, 3, 4])
    "column 'age' is text, for '4O' (line 4) is no number; leave cells empty where there is none"
    """
    filled = [(cell, line) for cell, line in zip(cells, lines, strict=True) if cell]
    others = [(cell, line) for cell, line in filled if not parse_numbers(cell)] if kind in ("text", "label") else []
    if kind == "label":
        numbers = {cell for cell, _ in filled} - {cell for cell, _ in others}
        if len(numbers) < _MEASURED or len(others) > _FEW * len(filled):
            return ""
    if others and 2 * len(others) < len(filled):
        (cell, line), what = others[0], "text" if kind == "text" else "taken for classes"
        return (
            f"column {name!r} is {what}, for {cell!r} (line {line}) is no number; leave cells empty where there is none"
        )
    return f"column {name!r} is text: kept, no task can learn it" if kind == "text" else ""


def why_commas(name: str, kind: Kind, cells: Sequence[str]) -> str:
    """The notice about a column that would be numbers without its commas; "" for others."""
    filled = [cell for cell in cells if cell]
    with_comma = [cell for cell in filled if re.fullmatch(r"[+-]?\d+(?:[.,]\d+)*,\d+", cell)]
    if kind == "number" or not with_comma or any(parse_number(cell) is None for cell in set(filled) - set(with_comma)):
        return ""
    return (
        f"column {name!r} has commas in its numbers, such as {with_comma[0]!r}, and is taken for a {kind}; if they are "
        "one number each, write a point for a decimal comma and none between thousands"
    )


def why_sentinel(name: str, cells: Sequence[str]) -> str:
    """The notice about a number such as -999, far from all others of a column; "" where there is none."""
    numbers = [number for cell in cells if (number := parse_number(cell)) is not None]
    for end in (min(numbers, default=0.0), max(numbers, default=0.0)):
        others = [number for number in numbers if number != end]
        if not re.fullmatch(r"-?9{2,}", f"{end:.0f}") or len(set(others)) < 2:
            continue
        if min(abs(end - number) for number in others) > max(others) - min(others):
            count = len(numbers) - len(others)
            return f"column {name!r} holds {end:g} ({count}), far from all others; if nobody knows, leave cells empty"
    return ""


def class_names(name: str, table: TextTable, cells: Sequence[str], given: Sequence[str] | None) -> tuple[str, ...]:
    """The classes of a label column: `given`, else the different cells, sorted (as numbers where all are numbers).

    Raises:
        ValueError: a cell is not among the given classes.
    """
    found = {_label(cell) for cell in cells if cell}
    if given is None:
        numeric = all(parse_number(cell) is not None for cell in found)
        return tuple(sorted(found, key=float if numeric else str))
    classes = tuple(map(str, given))
    if not classes or len(set(classes)) != len(classes):
        raise ValueError(f"the classes of column {name!r} must be distinct and not empty; got {list(classes)}")
    known = set(map(unicode_form, classes))
    for row, cell in enumerate(cells):
        if cell and _label(cell) not in known:
            raise ValueError(
                f"{table.place(row)}: {name} is {cell!r}, which is not one of its classes; {nearest(cell, classes)}"
            )
    return classes


def parse_cell(
    kind: Kind, cell: str, name: str, place: str, classes: Sequence[str] = ()
) -> int | float | str | tuple[float, ...] | None:
    """The value of a cell that holds no picture; None if it is empty.

    Raises:
        ValueError: not of this kind; names the line, the column and the cell.
    """
    if not cell:
        return None
    if kind == "text":
        return cell
    if kind == "label":
        return list(map(unicode_form, classes)).index(_label(cell))
    numbers = parse_numbers(cell)
    expected = {"number": 1, "box": 4, "pixel_box": 4}.get(kind)
    if not numbers or (expected and len(numbers) != expected):
        wanted = {"number": "a number", "vector": "numbers"}.get(kind, "a box, four numbers")
        raise ValueError(f"{place}: {name} must be {wanted}; got {cell!r}{comma_hint(cell)}")
    if expected == 4 and not (numbers[2] > 0 and numbers[3] > 0):
        raise ValueError(f"{place}: {name} must be a box with a width and height above 0; got {cell!r}")
    if kind == "box" and not all(0 <= number <= 1 for number in numbers):
        raise ValueError(f"{place}: {name} must be shares of the image, 0..1; got {cell!r} (in pixels? pixel_box)")
    return numbers[0] if kind == "number" else numbers


def box_of_pixels(box: tuple[float, ...], width: int, height: int) -> tuple[float, ...]:
    """(left, top, width, height) in pixels as (centre x, centre y, width, height) in shares of the image.

    >>> box_of_pixels((10, 20, 20, 10), 100, 50)
    (0.2, 0.5, 0.2, 0.2)
    """
    left, top, across, down = box
    return (left + across / 2) / width, (top + down / 2) / height, across / width, down / height


def write_value(value: int | float | str | tuple[float, ...]) -> str:
    """The cell that `parse_cell` reads `value` from; labels are written elsewhere, by class name."""
    if isinstance(value, tuple):
        return " ".join(map(write_value, value))
    if isinstance(value, float) and value == int(value):
        return str(int(value))
    return str(value)


def _label(cell: str) -> str:
    """The name of a class; whole numbers lose the ".0" that a table with empty cells gives them."""
    number = parse_number(cell)
    if number is not None and number == int(number) and "." in cell:
        return str(int(number))
    return unicode_form(cell)
