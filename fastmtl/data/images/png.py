"""Decode common PNG files, 8-bit grey or RGB, on the CPU in half the time of libpng and DALI.

libdeflate decompresses and checks, Numba undoes the row filters. DALI decodes the rare kinds.
"""

from __future__ import annotations

import zlib
from struct import unpack_from

import numpy as np
from numpy.typing import NDArray

from ...utils.optional_imports import require

SIGNATURE = b"\x89PNG\r\n\x1a\n"

_CHANNELS = {0: 1, 2: 3}  # colour type of the header: grey, RGB
_CHANGING = (b"tRNS", b"eXIf")  # chunks by which decoders change pixels: transparency, orientation
_GREATEST_RATIO = 1032  # of deflate: a file that declares more pixels is damaged, and gets no memory for them


def png_size(data: bytes) -> tuple[int, int]:
    """(width, height) that the header of a PNG file declares; ValueError where it is damaged."""
    if data[12:16] != b"IHDR" or len(data) < 33:
        raise ValueError("the PNG's header is damaged")
    return unpack_from(">II", data, 16)


def decode_png(data: bytes, channels: int) -> NDArray[np.uint8] | None:
    """uint8 [h, w, channels] of a PNG file; None for one that is interlaced, transparent, turned, or not 8-bit with
    exactly `channels`.

    Args:
        data: the whole file, from `SIGNATURE` on.
        channels: 1 or 3.

    Raises:
        ValueError: damaged or truncated.
    """
    png_size(data)
    width, height, depth, colour, _, _, interlaced, checksum = unpack_from(">IIBBBBBI", data, 16)
    if zlib.crc32(data[12:29]) != checksum or not width or not height:
        raise ValueError("the PNG's header is damaged")
    if depth != 8 or _CHANNELS.get(colour) != channels or interlaced:
        return None
    parts = []
    at = 33
    while (kind := data[at + 4 : at + 8]) != b"IEND":
        if kind in _CHANGING:
            return None
        if len(kind) < 4:
            raise ValueError("the PNG has no end: truncated or overwritten")
        (length,) = unpack_from(">I", data, at)
        if kind == b"IDAT":
            parts.append(data[at + 8 : at + 8 + length])
        at += 12 + length
    return _unpacked(b"".join(parts), width, height, channels)


def _unpacked(stream: bytes, width: int, height: int, channels: int) -> NDArray[np.uint8]:
    from ...kernels.png_numba import undo_filters

    codecs = require("imagecodecs", "decoding PNG")
    size = height * (1 + width * channels)
    if size > _GREATEST_RATIO * len(stream):
        raise ValueError(f"the PNG declares {width}x{height} pixels, more than its {len(stream)} bytes can hold")
    try:
        rows = np.frombuffer(codecs.deflate_decode(stream, out=size), np.uint8)
    except codecs.DeflateError as error:
        raise ValueError("the PNG's pixels do not decompress: truncated or overwritten") from error
    if rows.size != size:
        raise ValueError(f"the PNG holds {rows.size} bytes of pixels, not {size}: truncated or overwritten")
    pixels = np.empty((height, width * channels), np.uint8)
    bad = undo_filters(rows.reshape(height, -1), channels, pixels)
    if bad >= 0:
        raise ValueError(f"the PNG's row {bad} has a filter that does not exist")
    return pixels.reshape(height, width, channels)
