"""JPEG streams: join TIFF tiles with their shared tables, mark their colour space, and check for damage.

JPEG tiles in TIFF are incomplete: the file stores the tables once, and only TIFF tags give the colour space. Decoders
without TIFF support guess it from markers and component numbers, and are wrong for RGB by up to 48 grey levels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from struct import unpack_from
from typing import NamedTuple

import numpy as np

SOI, _EOI = b"\xff\xd8", b"\xff\xd9"
_APP0, _APP14, _SOS, _DHT, _DRI = 0xE0, 0xEE, 0xDA, 0xC4, 0xDD
_RESTARTS = range(0xD0, 0xD8)
_FRAMES = {0xC0, 0xC1, 0xC2}  # baseline, extended, progressive: what decoders read
_PROGRESSIVE = 0xC2
_OTHER_FRAMES = {0xC3, *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0)}
HOLE = bytes(64)
"""A run of zero bytes that no intact scan contains, because of byte stuffing and Huffman coding."""
_DAMAGED = "the JPEG's header is damaged"
_TAIL = 4096  # writers may pad after the end marker
_START_OF_SCAN = bytes([0xFF, _SOS])
_MOST_KEPT = 1024  # bytes of a header that is remembered
_MAX_SCANS = 50  # progressive files have about ten; a scan of few bytes takes as long to decode as the whole picture

# Adobe's marker: version 100, no flags, then the transform: 0 is RGB, 1 is YCbCr.
_ADOBE = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00"


class Header(NamedTuple):
    """The part of a stream before its first scan.

    Attributes:
        width: pixels.
        height: likewise.
        components: 1 is grey, 3 is colour.
        scan: where the first scan begins, bytes.
        zeros_are_data: whether a run of zero bytes can be valid: if the all-zero Huffman code means "end of block", as
            in blank tiles of encoders with optimised tables, and in progressive files. With the standard tables it
            cannot.
    """

    width: int
    height: int
    components: int
    scan: int
    zeros_are_data: bool


def prefix(tables: bytes, colour: str) -> bytes:
    """What replaces a tile's first two bytes (SOI): SOI, the mark of its colour space, the shared tables."""
    mark = {"rgb": _ADOBE + b"\x00", "ycbcr": _ADOBE + b"\x01"}.get(colour, b"")
    return SOI + mark + tables


def shared_tables(stream: bytes) -> bytes:
    """The TIFF tag JPEGTables without its SOI, EOI and colour marks.

    Raises:
        ValueError: it is damaged.
    """
    if stream[:2] != SOI or stream[-2:] != _EOI:
        raise ValueError("its JPEGTables is no JPEG stream")
    tables = stream[2:-2]
    kept = [tables[at:end] for marker, at, end in _segments(tables, 0) if marker not in (_APP0, _APP14)]
    return b"".join(kept)


def tables_end_blocks_with_zeros(tables: bytes) -> bool:
    """Whether `Header.zeros_are_data` by what `shared_tables` returned."""
    return any(marker == _DHT and _ends_block_with_zeros(tables, at, end) for marker, at, end in _segments(tables, 0))


def marked_colour(start: bytes) -> str:
    """What the markers at the start of a stream of three colours say: "rgb", "ycbcr", or "" without any. Adobe's comes
    before that of JFIF, which is always YCbCr."""
    found = ""
    with suppress(ValueError):  # `start` may end within a segment
        for marker, at, end in _segments(start, len(SOI)):
            if marker == _APP14 and start[at + 4 : at + 9] == b"Adobe" and end - at >= 16:
                return "ycbcr" if start[at + 15] == 1 else "rgb"
            if marker == _APP0 and start[at + 4 : at + 9] == b"JFIF\0":
                found = "ycbcr"
    return found


def splice(buffer: bytearray, room: int, prefix: bytes) -> int:
    """Replace the SOI of the stream that starts at `room` with `prefix`; return the start of the result.
    Leading colour space markers are removed: decoders prefer them to Adobe's, but the TIFF tag decides.

    Raises:
        ValueError: there is no such stream.
    """
    if buffer[room : room + 2] != SOI:
        raise ValueError("the JPEG has no start marker: overwritten, or not a JPEG")
    at = room + 2
    while buffer[at : at + 2] in (b"\xff\xe0", b"\xff\xee"):
        at += 2 + int.from_bytes(buffer[at + 2 : at + 4], "big")
        if at > len(buffer):
            raise ValueError(_DAMAGED)
    start = at - len(prefix)
    buffer[start:at] = prefix
    return start


def check_part(part: bytes | bytearray, zeros_are_data: bool) -> None:
    """Raise ValueError if what lies before a restart or end marker, with that marker, is visibly damaged."""
    if len(part) < 2 or part[-2] != _EOI[0] or part[-1] not in (_EOI[1], *_RESTARTS):
        raise ValueError("the JPEG has no restart marker where one is listed: truncated or overwritten")
    if not zeros_are_data and part.find(HOLE) >= 0:
        raise ValueError(f"the JPEG has {len(HOLE)} or more zero bytes inside: partly overwritten")


def stacked(header: bytes, parts: Sequence[bytes | bytearray]) -> bytearray:
    """One image of parts that lie below each other, each a row of blocks with its marker; `header` is of one part."""
    stream = bytearray(header)
    at, height = _frame(header)
    stream[at : at + 2] = (height * len(parts)).to_bytes(2, "big")
    for number, part in enumerate(parts):
        stream += part
        stream[-1] = _RESTARTS[number % len(_RESTARTS)]
    stream[-2:] = _EOI
    return stream


def stacks_exactly(header: bytes) -> bool:
    """Whether rows of blocks decode to the same pixels in one image: if no colour is stored in fewer rows, which
    decoders fill in from the rows above and below."""
    at, _ = _frame(header)
    count = header[at + 4]
    return all(header[at + 6 + 3 * number] & 15 == 1 for number in range(count))


def _frame(header: bytes) -> tuple[int, int]:
    """Where the height is stored, and the height; ValueError if it is nowhere."""
    for marker, at, _ in _segments(header, len(SOI)):
        if marker in _FRAMES:
            return at + 5, int.from_bytes(header[at + 5 : at + 7], "big")
    raise ValueError("the JPEG has no frame header")


def read_header(stream: bytes | bytearray, start: int) -> Header:
    """The header, from the marker at `start`.

    Raises:
        ValueError: it is missing, damaged or of a kind that decoders do not support.
    """
    scan = stream.find(_START_OF_SCAN, start)
    end = scan + 2 + int.from_bytes(stream[scan + 2 : scan + 4], "big")
    if scan >= 0 and end - start <= _MOST_KEPT:
        # What looks like the start of a scan may be inside another segment, which then has no end.
        with suppress(ValueError):
            width, height, components, scan, zeros_are_data = _known_header(bytes(stream[start:end]))
            return Header(width, height, components, start + scan, zeros_are_data)
    return _read_header(stream, start)


@lru_cache(1024)  # the tiles of a slide have few different headers
def _known_header(stream: bytes) -> Header:
    return _read_header(stream, 0)


def _read_header(stream: bytes | bytearray, start: int) -> Header:
    frame, zeros_are_data = None, False
    for marker, at, end in _segments(stream, start):
        if marker == _SOS:
            if frame is None:
                raise ValueError("the JPEG has no frame header")
            return Header(*frame, at, zeros_are_data)
        if marker in _FRAMES:
            bits, height, width, components = unpack_from(">BHHB", stream, at + 4)
            if bits != 8:
                raise ValueError(f"the JPEG has {bits} bits a sample, not 8")
            frame = width, height, components
            zeros_are_data |= marker == _PROGRESSIVE
        elif marker in _OTHER_FRAMES:
            raise ValueError("the JPEG is lossless, hierarchical or arithmetic-coded")
        elif marker == _DHT:
            zeros_are_data |= _ends_block_with_zeros(stream, at, end)
    raise ValueError("the JPEG has no picture data: truncated or overwritten")


def restart_interval(stream: bytes) -> int:
    """Blocks between two restart markers; 0 without them."""
    found = (int.from_bytes(stream[at + 4 : at + 6], "big") for kind, at, _ in _segments(stream, 2) if kind == _DRI)
    return next(found, 0)


def check_file(data: bytes) -> Header:
    """The header; ValueError if a JPEG file is visibly damaged: decoders return grey pixels without an error."""
    header = read_header(data, len(SOI))
    check_scan(data, header)
    return header


def check_scan(stream: bytes | bytearray, header: Header) -> None:
    """Raise ValueError if a stream has no end marker, contains a hole or has too many scans."""
    end = stream.rfind(_EOI, max(header.scan, len(stream) - _TAIL))
    if end < 0:
        raise ValueError("the JPEG has no end marker: truncated or overwritten")
    check_num_scans(stream, header.scan)
    if not header.zeros_are_data and stream.find(HOLE, header.scan, end) >= 0:
        raise ValueError(f"the JPEG has {len(HOLE)} or more zero bytes inside: partly overwritten")


def check_num_scans(stream: bytes | bytearray, start: int = 0, streams: int = 1) -> None:
    """Raise ValueError for so many scans that decoding may take hours.

    Args:
        stream: one JPEG stream, or a file that contains several.
        start: where the first scan begins; 0 looks for it, because a thumbnail in the header has scans of its own.
        streams: the most streams that the file may contain.
    """
    if not start:
        with suppress(ValueError):
            start = next((at for marker, at, _ in _segments(stream, len(SOI)) if marker == _SOS), 0)
    values = np.frombuffer(stream, np.uint8, offset=start)  # several times as fast as `count`
    scans = np.count_nonzero((values[:-1] == _START_OF_SCAN[0]) & (values[1:] == _START_OF_SCAN[1]))
    if scans > _MAX_SCANS * streams:  # elsewhere a byte 255 is followed by 0
        raise ValueError(f"the JPEG has more than {_MAX_SCANS} scans, which no camera writes")


def check_tile(stream: bytearray, header: Header, least: tuple[int, int], most: tuple[int, int]) -> None:
    """`check_scan`; also ValueError where the (width, height) of a slide's tile is out of range."""
    check_scan(stream, header)
    if not (least[0] <= header.width <= most[0] and least[1] <= header.height <= most[1]):
        raise ValueError(f"the JPEG is {header.width}x{header.height} pixels, the tile {most[0]}x{most[1]}")


def _segments(stream: bytes | bytearray, at: int) -> Iterator[tuple[int, int, int]]:
    """(marker, where it begins, where it ends) up to the first scan, or the end."""
    while at + 4 <= len(stream):
        if stream[at] != 0xFF:
            raise ValueError(_DAMAGED)
        marker = stream[at + 1]
        if marker == 0xFF:  # a fill byte before the marker
            at += 1
            continue
        end = at + 2 + (stream[at + 2] << 8 | stream[at + 3])
        if end > len(stream):
            raise ValueError(_DAMAGED)
        yield marker, at, end
        if marker == _SOS:
            return
        at = end


def _ends_block_with_zeros(stream: bytes | bytearray, at: int, end: int) -> bool:
    found, table = False, at + 4
    while table + 17 < end:
        found |= stream[table] == 0x10 and stream[table + 17] == 0  # luma AC; the all-zero code is its first symbol's
        table += 17 + sum(stream[table + 1 : table + 17])
    return found
