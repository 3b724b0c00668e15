"""Small slides as Hamamatsu's scanners write them: TIFF with 64-bit offsets, a JPEG with restart markers a level."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

TILE = (64, 8)
_KINDS = {"short": (3, "H"), "long": (4, "I"), "rational": (5, "II"), "float": (11, "f"), "slong": (9, "i")}


def jpeg_of(pixels: np.ndarray, *, subsampling: int = 1, interval: int = 0, **options: Any) -> bytes:
    """A JPEG with a restart marker after every `interval` blocks (0: none); 1 is 4:2:2."""
    buffer = BytesIO()
    marks = {"restart_marker_blocks": interval} if interval else {}
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90, subsampling=subsampling, **marks, **options)
    return buffer.getvalue()


def starts_of(stream: bytes) -> list[int]:
    """Where the data between restart markers begin."""
    first = stream.index(b"\xff\xda")
    first += 2 + int.from_bytes(stream[first + 2 : first + 4], "big")
    marks = [at + 2 for at in range(first, len(stream) - 1) if stream[at] == 255 and 0xD0 <= stream[at + 1] <= 0xD7]
    return [first, *marks]


def write_ndpi(
    path: Path,
    levels: Sequence[np.ndarray],
    macro: np.ndarray | None = None,
    *,
    starts: bool = True,
    planes: Sequence[int] = (0,),
    before: int = 0,
    tile_last: bool = False,
    subsampling: int = 1,
) -> Path:
    """Levels of tiles of 64x8 pixels, the last one without restart markers, at 20x and 0.5 micrometres.

    `planes` are focal planes of each level; `before` bytes are left empty in front of all (a hole of the file).
    """
    pages: list[tuple[bytes, np.ndarray, float, int, bool]] = []
    for number, pixels in enumerate(levels):
        tiled = number < len(levels) - 1 or tile_last
        # 4:2:2 has blocks of 16x8 pixels
        blocks = TILE[0] // (16 if subsampling else 8)
        for plane in planes:
            stream = jpeg_of(pixels, subsampling=subsampling, interval=blocks if tiled else 0)
            pages.append((stream, pixels, 20.0 / 2**number, plane, tiled and starts))
    if macro is not None:
        pages.append((jpeg_of(macro), macro, -1.0, 0, False))
    with path.open("wb") as file:
        file.write(b"II*\0" + bytes(8))
        link = 4
        file.seek(before, 1)
        for stream, pixels, lens, plane, listed in pages:
            place = file.tell()
            file.write(stream)
            tags: list[tuple[int, str, list[Any]]] = [
                (256, "long", [pixels.shape[1]]), (257, "long", [pixels.shape[0]]), (258, "short", [8, 8, 8]),
                (259, "short", [7]), (262, "short", [6]), (271, "ascii", [b"Hamamatsu\0"]), (273, "long", [place]),
                (277, "short", [3]), (278, "long", [pixels.shape[0]]), (279, "long", [len(stream)]),
                (282, "rational", [20000, 1]), (283, "rational", [20000, 1]), (296, "short", [3]),
                (65420, "long", [1]), (65421, "float", [lens]), (65424, "slong", [plane]),
            ]  # fmt: skip
            if listed:
                tags.append((65426, "long", starts_of(stream)))
                tags.append((65432, "long", [0] * len(starts_of(stream))))
            where = _write_page(file, tags)
            end = file.tell()
            file.seek(link)
            file.write(struct.pack("<Q", where))
            file.seek(end)
            link = where + 2 + 12 * len(tags)
    return path


def _write_page(file: Any, tags: Sequence[tuple[int, str, list[Any]]]) -> int:
    """Long values, then the page: tags of 12 bytes, the next page's place, the upper halves of the tags' values."""
    entries = []
    for code, kind, values in tags:
        number, form = (2, "") if kind == "ascii" else _KINDS[kind]
        big = kind == "long" and len(values) == 1
        data = (
            values[0]
            if kind == "ascii"
            else struct.pack("<" + form[0] * len(values), *[v % 2**32 if big else v for v in values])
        )
        count = len(data) if kind == "ascii" else len(values) // len(form)
        upper = values[0] >> 32 if big else 0
        if len(data) > 4:
            file.seek(-file.tell() % 2, 1)
            place = file.tell()
            file.write(data)
            data, upper = struct.pack("<I", place % 2**32), place >> 32
        entries.append((struct.pack("<HHI", code, number, count) + data.ljust(4, b"\0"), upper))
    file.seek(-file.tell() % 2, 1)
    where = file.tell()
    file.write(struct.pack("<H", len(entries)) + b"".join(entry for entry, _ in entries) + bytes(8))
    file.write(struct.pack(f"<{len(entries)}I", *(upper for _, upper in entries)))
    return where
