"""Small slides that the slide tests write."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import tifffile

TILE = 64


def tissue_like(width: int = 300, height: int = 210, seed: int = 0) -> np.ndarray:
    """RGB uint8 [height, width, 3]: smooth, coloured, different everywhere, so that JPEG keeps it nearly as it is."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / rng.uniform(9, 30) + y / rng.uniform(9, 30) + rng.uniform(0, 6)) for _ in range(3)]
    levels = np.array([170, 110, 160]) + 50 * np.stack(waves, -1)
    return np.clip(levels, 0, 255).astype(np.uint8)


def halved(pixels: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(pixels[::2, ::2])


def write_tiff(path: Path, pixels: np.ndarray, *, levels: int = 1, tile: int = TILE, **options: Any) -> Path:
    """A tiled TIFF with `levels` resolutions; `options` are tifffile's."""
    defaults = {"photometric": "rgb" if pixels.ndim == 3 else "minisblack", "tile": (tile, tile)}
    options = {**defaults, "resolution": (20000, 20000), "resolutionunit": "CENTIMETER", **options}
    with tifffile.TiffWriter(path, bigtiff=options.pop("bigtiff", False)) as file:
        for level in range(levels):
            file.write(pixels, subfiletype=1 if level else 0, metadata=None, **options)
            pixels = halved(pixels)
    return path


def write_jpeg_with_tables(
    path: Path, pixels: np.ndarray, colour: str, *, tile: int = TILE, marked: bool = False, tags: Sequence[tuple] = ()
) -> Path:
    """As SVS: the tables stand once in the tag JPEGTables, and the tiles say nothing of their colour space.

    `marked` leaves a JFIF marker in each tile, which says YCbCr whatever is true; `tags` are further ones.
    """
    inside = "YCBCR" if colour == "ycbcr" else "RGB"
    streams, tables = [], b""
    for top in range(0, pixels.shape[0], tile):
        for left in range(0, pixels.shape[1], tile):
            part = pixels[top : top + tile, left : left + tile]
            missing = ((0, tile - part.shape[0]), (0, tile - part.shape[1]), (0, 0))
            part = np.ascontiguousarray(np.pad(part, missing, mode="edge"))
            stream = imagecodecs.jpeg8_encode(part, level=90, colorspace="RGB", outcolorspace=inside, subsampling="444")
            tables, short = _apart(stream)
            jfif = b"\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00" if marked else b""
            streams.append(short[:2] + jfif + short[2:])
    with tifffile.TiffWriter(path) as file:
        file.write(
            iter(streams),
            shape=pixels.shape,
            dtype=np.uint8,
            tile=(tile, tile),
            photometric=colour,
            compression="jpeg",
            compressionargs={"outcolorspace": colour},  # else tifffile takes RGB for YCbCr
            subsampling=(1, 1) if colour == "ycbcr" else None,
            extratags=[(347, 7, len(tables), tables, True), *tags],
            resolution=(20000, 20000),
            resolutionunit="CENTIMETER",
            metadata=None,
        )
    return path


def _apart(stream: bytes) -> tuple[bytes, bytes]:
    """The tables of a JPEG stream as a stream of their own, and the rest without them and without colour markers."""
    tables, rest, at = [], [], 2
    while True:
        marker, end = stream[at + 1], at + 2 + int.from_bytes(stream[at + 2 : at + 4], "big")
        if marker in (0xDB, 0xC4):
            tables.append(stream[at:end])
        elif marker not in (0xE0, 0xEE):
            rest.append(stream[at:end])
        at = end
        if marker == 0xDA:
            return b"\xff\xd8" + b"".join(tables) + b"\xff\xd9", b"\xff\xd8" + b"".join(rest) + stream[at:]


def patch_tile(path: Path, number: int, change: Any, *, page: int = 0) -> None:
    """Change the stored bytes of a tile in place: `change` takes a bytearray and keeps its length."""
    with tifffile.TiffFile(path) as file:
        offset, count = file.pages[page].dataoffsets[number], file.pages[page].databytecounts[number]
    data = bytearray(path.read_bytes())
    part = data[offset : offset + count]
    change(part)
    assert len(part) == count
    data[offset : offset + count] = part
    path.write_bytes(data)


def patch_tag(path: Path, code: int, value: int, *, page: int = 0) -> None:
    """Overwrite the first value of a tag in place."""
    with tifffile.TiffFile(path) as file:
        tag = file.pages[page].tags[code]
        width = {1: 1, 3: 2, 4: 4, 16: 8}[int(tag.dtype)]
        at, order = tag.valueoffset, "little" if file.byteorder == "<" else "big"
    data = bytearray(path.read_bytes())
    data[at : at + width] = value.to_bytes(width, order)
    path.write_bytes(data)
