"""Image and mask files that a check found sound, so that the next start need not decode them again.

A file counts as the one that was checked while its path, size and times of change are the same. Files with a problem
are never recorded: they are checked, and reported, at every start.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ... import __version__
from ...utils.atomic_io import write_whole
from ...utils.json_toml import read_json
from ...utils.limited_reads import MAX_JSON
from ...utils.optional_imports import require
from ..sizes import MAX_PIXELS
from .mask_facts import MaskFacts, note_facts, recall

_FORMAT = 1
_MOST_BYTES = MAX_JSON // 2  # further files are not recorded; names may become longer in JSON


class Identity(NamedTuple):
    """Identifies the content of a file without reading it; times in nanoseconds.

    `changed` also changes when a program sets `modified` back.
    """

    size: int
    modified: int
    changed: int


class CheckedFiles:
    """Reads and writes such a record; for one value of `max_pixels`. Threads may share it.

    Args:
        path: of the record; None keeps none. One that is missing, damaged or of another version counts as empty.
    """

    def __init__(self, path: Path | None = None, max_pixels: int = MAX_PIXELS) -> None:
        self.path, self.max_pixels = path, max_pixels
        self._stored = _read(path, max_pixels) if path is not None else {}
        self._files: dict[str, list[Any]] = {}  # seen in this process

    def find(self, file: Path, is_mask: bool) -> tuple[Identity | None, tuple[int, int] | None]:
        """The identity of a file, None if it cannot be read; and its width and height, None if it must be checked.

        The contents of a mask are then known to `mask_facts.recall`.
        """
        try:
            state = os.stat(file)
        except OSError:
            return None, None
        identity, key = Identity(state.st_size, state.st_mtime_ns, state.st_ctime_ns), _key(file, is_mask)
        found = self._stored.get(key)
        if found is None or found[:3] != [*identity]:
            return identity, None
        width, height, *contents = found[3:]
        if is_mask:
            facts = _unpack(contents, width * height)
            if facts is None:
                return identity, None
            note_facts(file, facts)
        self._files[key] = found
        return identity, (width, height)

    def add(self, file: Path, is_mask: bool, identity: Identity | None, size: tuple[int, int]) -> None:
        """Record a sound file; `identity` is from before it was read."""
        facts = recall(file) if is_mask else None
        if identity is not None and (facts is not None or not is_mask):
            self._files[_key(file, is_mask)] = [*identity, *size, *(_pack(facts) if facts is not None else ())]

    def save(self) -> None:
        """Add what was found sound in this process. If it cannot be written, the next start checks again."""
        every = self._stored | self._files
        if self.path is None or every == self._stored:
            return
        room, kept = _MOST_BYTES, {}
        for key, entry in (self._files | every).items():  # first those that still exist
            room -= len(key) + len(json.dumps(entry))
            if room < 0:
                break
            kept[key] = entry
        with suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self.path, json.dumps(_header(self.max_pixels) | {"files": kept}))


def _key(file: Path, is_mask: bool) -> str:
    return f"{'mask' if is_mask else 'image'} {os.path.abspath(file)}"


def _header(max_pixels: int) -> dict[str, Any]:
    """What a check depends on besides the files."""
    readers = {"pillow": require("PIL", "checking images").__version__, "numpy": np.__version__}
    return {"format": _FORMAT, "fastmtl": __version__, "max_pixels": max_pixels} | readers


def _read(path: Path, max_pixels: int) -> dict[str, list[Any]]:
    try:
        found = read_json(path)
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict) or not isinstance(files := found.pop("files", None), dict):
        return {}
    if found != _header(max_pixels):
        return {}
    return {key: entry for key, entry in files.items() if _is_entry(entry, max_pixels)}


def _is_entry(entry: Any, max_pixels: int) -> bool:
    if not isinstance(entry, list) or len(entry) < 5 or not all(type(number) is int for number in entry[:5]):
        return False
    width, height = entry[3:5]
    return width > 0 and height > 0 and width * height <= max_pixels


def _pack(facts: MaskFacts) -> list[Any]:
    pixels = [value for plane in facts.pixels.tolist() for value in plane]
    return [facts.values.tolist(), pixels, facts.solid.tolist(), facts.channels, facts.is_lossy]


def _unpack(contents: Sequence[Any], num_pixels: int) -> MaskFacts | None:
    """The contents of a mask of `num_pixels`; None if no mask has them: the record may come from anywhere."""
    if len(contents) != 5:
        return None
    values, pixels, solid, channels, is_lossy = contents
    for numbers in (values, pixels, solid):
        if not isinstance(numbers, list) or not all(type(one) is int and 0 <= one <= num_pixels for one in numbers):
            return None
    count = len(values)
    if not 0 < count <= 256 or len(solid) != count or len(pixels) % count or values != sorted(set(values)):
        return None
    planes = len(pixels) // count
    if values[-1] > 255 or not 1 <= planes <= 4 or type(channels) is not int or type(is_lossy) is not bool:
        return None
    if not planes <= channels <= 4 or sum(pixels) != planes * num_pixels:
        return None
    counts = np.array(pixels, np.int64).reshape(planes, count)
    return MaskFacts(np.array(values, np.uint8), counts, np.array(solid, np.int64), channels, is_lossy)
