"""JPEG streams of TIFF tiles: joined with their shared tables, marked with their colour space, checked for damage.

A TIFF's tiles are cut short: the tables stand once in the file, and the colour space is the TIFF's word alone. Decoders
that know no TIFF guess it from markers and component numbers, and guess wrong for RGB: 48 grey levels off.
"""

from __future__ import annotations

from typing import NamedTuple

_SOI, _EOI = b"\xff\xd8", b"\xff\xd9"
_APP0, _APP14, _SOS, _DHT = 0xE0, 0xEE, 0xDA, 0xC4
_FRAMES = {0xC0, 0xC1, 0xC2}  # baseline, extended, progressive: what decoders read
_OTHER_FRAMES = {0xC3, *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0)}
HOLE = bytes(64)
"""Zeros that no scan holds in a row: JPEG stuffs and Huffman-codes."""
_TAIL = 4096  # writers may pad after the end marker

# Adobe's marker: version 100, no flags, then the transform: 0 is RGB, 1 is YCbCr.
_ADOBE = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00"


class Header(NamedTuple):
    """What stands before a stream's first scan."""

    width: int
    height: int
    components: int
    scan: int
    """Where the first scan begins, bytes."""
    zeros_are_data: bool
    """Whether a run of zero bytes can be a picture: where the all-zero Huffman code means "block ends here", as
    encoders with optimised tables write for a blank tile, and in progressive files. With the usual tables it cannot."""


def prefix(tables: bytes, colour: str) -> bytes:
    """What replaces a tile's first two bytes (SOI): SOI, the mark of its colour space, the shared tables."""
    mark = {"rgb": _ADOBE + b"\x00", "ycbcr": _ADOBE + b"\x01"}.get(colour, b"")
    return _SOI + mark + tables


def shared_tables(stream: bytes) -> bytes:
    """The TIFF tag JPEGTables without its SOI, EOI and colour marks."""
    if stream[:2] != _SOI or stream[-2:] != _EOI:
        raise ValueError("JPEGTables is no JPEG stream")
    kept, at = [], 2
    while at + 4 <= len(stream) - 2:
        end = at + 2 + int.from_bytes(stream[at + 2 : at + 4], "big")
        if stream[at] != 0xFF or end > len(stream) - 2:
            raise ValueError("JPEGTables is damaged")
        if stream[at + 1] not in (_APP0, _APP14):
            kept.append(stream[at:end])
        at = end
    return b"".join(kept)


def splice(buffer: bytearray, room: int, prefix: bytes) -> int:
    """Put `prefix` in the place of the SOI of the stream that starts at `room`; where the result starts.

    Leading markers of a colour space go: decoders believe them before Adobe's, and the TIFF's word counts.
    """
    if buffer[room : room + 2] != _SOI:
        raise ValueError("the JPEG has no start marker: overwritten, or not a JPEG")
    at = room + 2
    while buffer[at] == 0xFF and buffer[at + 1] in (_APP0, _APP14):
        at += 2 + int.from_bytes(buffer[at + 2 : at + 4], "big")
        if at + 4 > len(buffer):
            raise ValueError("the JPEG's header is damaged")
    start = at - len(prefix)
    buffer[start:at] = prefix
    return start


def read_header(stream: bytes | bytearray, start: int = 0) -> Header:
    """The header of the stream from `start` on.

    Raises:
        ValueError: there is none, it is damaged, or it is of a kind that decoders do not read.
    """
    at, frame, zeros_are_data = start + 2, None, False
    while at + 4 <= len(stream):
        if stream[at] != 0xFF:
            raise ValueError("the JPEG's header is damaged")
        marker, end = stream[at + 1], at + 2 + int.from_bytes(stream[at + 2 : at + 4], "big")
        if marker == 0xFF:  # a fill byte before the marker
            at += 1
            continue
        if marker == _SOS:
            if frame is None:
                raise ValueError("the JPEG has no frame header")
            return Header(*frame, at, zeros_are_data)
        if marker in _FRAMES:
            if stream[at + 4] != 8:
                raise ValueError(f"the JPEG has {stream[at + 4]} bits a sample, not 8")
            height, width = (
                int.from_bytes(stream[at + 5 : at + 7], "big"),
                int.from_bytes(stream[at + 7 : at + 9], "big"),
            )
            frame = width, height, stream[at + 9]
            zeros_are_data |= marker == 0xC2
        elif marker in _OTHER_FRAMES:
            raise ValueError("the JPEG is lossless, hierarchical or arithmetic-coded")
        elif marker == _DHT:
            zeros_are_data |= _ends_block_with_zeros(stream, at + 4, end)
        at = end
    raise ValueError("the JPEG has no picture data")


def check(stream: bytearray, start: int, least: tuple[int, int], most: tuple[int, int]) -> None:
    """Raise ValueError where the stream from `start` on is visibly damaged, or its (width, height) out of range."""
    header = read_header(stream, start)
    if stream.rfind(_EOI, max(header.scan, len(stream) - _TAIL)) < 0:
        raise ValueError("the JPEG has no end marker: truncated or overwritten")
    if not header.zeros_are_data and stream.find(HOLE, header.scan) >= 0:
        raise ValueError(f"the JPEG has {len(HOLE)} or more zero bytes inside: partly overwritten")
    if not (least[0] <= header.width <= most[0] and least[1] <= header.height <= most[1]):
        raise ValueError(f"the JPEG is {header.width}x{header.height} pixels, the tile {most[0]}x{most[1]}")


def _ends_block_with_zeros(stream: bytes | bytearray, table: int, end: int) -> bool:
    found = False
    while table + 17 < end:
        found |= stream[table] == 0x10 and stream[table + 17] == 0  # luma AC; the all-zero code is its first symbol's
        table += 17 + sum(stream[table + 1 : table + 17])
    return found
