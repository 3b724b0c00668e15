"""Numbers in a manifest's cells."""

from __future__ import annotations

import math
import re

from ..slides.scale import PLAUSIBLE_MPP

_COMMA = re.compile(r"[+-]?\d+,\d+")


def parse_number(cell: str) -> float | None:
    """The number in a cell; None if it holds none, or one that is not finite."""
    try:
        number = float(cell)
    except ValueError:
        return None
    return number if math.isfinite(number) and "_" not in cell else None


def parse_numbers(cell: str) -> tuple[float, ...]:
    """The numbers of "1 2.5 3", "1, 2.5, 3", "1;2" or "[1, 2]"; () when anything in it is not a number."""
    single = parse_number(cell)
    if single is not None:
        return (single,)
    words = [word for word in re.split(r"[\s,;]+", cell.strip("[]() ")) if word]
    numbers = [number for word in words if (number := parse_number(word)) is not None]
    return tuple(numbers) if len(numbers) == len(words) > 1 else ()


def parse_integer(cell: str, name: str, place: str) -> int:
    """A whole number, also written as 12.0; ValueError names the line and column."""
    number = parse_number(cell)
    if number is None or not number.is_integer():
        raise ValueError(f"{place}: {name} must be a whole number; got {cell!r}")
    return int(number)


def parse_mpp(cell: str, place: str) -> float:
    """Micrometres per pixel; ValueError with the line if the cell holds no plausible value."""
    number = parse_number(cell)
    if number is None or number <= 0:
        raise ValueError(f"{place}: mpp must be a number above 0; got {cell!r}{comma_hint(cell)}")
    low, high = PLAUSIBLE_MPP
    if not low <= number <= high:
        raise ValueError(f"{place}: mpp must be {low:g} to {high:g} micrometres per pixel; got {cell!r}")
    return number


def comma_hint(cell: str) -> str:
    """What to add to an error about a cell with a decimal comma."""
    return " (a decimal comma? write a point)" if _COMMA.fullmatch(cell) else ""
