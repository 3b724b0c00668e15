"""JSON and TOML that may be damaged: any fault is a ValueError."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .limited_reads import MAX_JSON, MAX_TOML, read_whole

JsonObject = dict[str, Any]
JsonMapping = Mapping[str, Any]

_MAX_DOTS = 200  # in a line of TOML: the parser takes quadratic time and memory for a key of so many parts


def read_json(path: Path) -> Any:
    """Read a JSON file; ValueError if it is damaged, OSError if it cannot be read."""
    return parse_json(read_whole(path, MAX_JSON).decode())


def parse_json(text: str | bytes) -> Any:
    """The values in `text`.

    >>> parse_json("[" * 100_000)
    Traceback (most recent call last):
        ...
    ValueError: it is nested too deeply
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file; ValueError if it is damaged, OSError if it cannot be read."""
    return parse_toml(read_whole(path, MAX_TOML).decode())


def parse_toml(text: str) -> dict[str, Any]:
    """The tables in `text`.

    >>> parse_toml("a." * 300 + "b = 1")
    Traceback (most recent call last):
        ...
    ValueError: line 1 has 300 dots, more than 200: too many parts for a key
    """
    for number, line in enumerate(text.splitlines(), 1):
        if (dots := line.count(".")) > _MAX_DOTS:
            raise ValueError(f"line {number} has {dots} dots, more than {_MAX_DOTS}: too many parts for a key")
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
