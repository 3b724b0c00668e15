"""The size in the header of an encoded image: checked first, because decoders allocate memory for it at once."""

from __future__ import annotations

from struct import error as TooShort
from struct import unpack_from

_MAX_JPEG2000_TILES = 4096  # each takes OpenJPEG 6 KB before a pixel is decoded
_JXL_RATIOS = ((1, 1), (6, 5), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))
_JXL_BITS = (9, 13, 18, 30)
_JXL_HEADER = 11  # bytes that the size takes at most


def declared_size(data: bytes | bytearray | memoryview, codec: str) -> tuple[int, int] | None:
    """(width, height) of a JPEG 2000, WebP, JPEG XL or PNG image; None for other codecs.

    Raises:
        ValueError: there is no such header, or it declares what no slide holds.
    """
    read = {"jpeg2000": _jpeg2000, "webp": _webp, "jpegxl": _jpegxl, "png": _png, "plain png": _png}.get(codec)
    if read is None:
        return None
    try:
        if found := read(bytes(data)):
            return found
    except TooShort:
        pass
    raise ValueError(f"does not decode as {codec}: its header is damaged")


def _jpeg2000(data: bytes) -> tuple[int, int] | None:
    at = 0 if data.startswith(b"\xff\x4f") else _box(data, (b"jp2c",))
    soc, siz, _, _, right, bottom, left, top, wide, high, tiles_left, tiles_top, samples = unpack_from(
        ">4H8IH", data, at
    )
    if (soc, siz) != (0xFF4F, 0xFF51) or not wide or not high or right <= left or bottom <= top:
        return None
    tiles = -(-(right - tiles_left) // wide) * -(-(bottom - tiles_top) // high)
    if samples > 4 or tiles > _MAX_JPEG2000_TILES:
        raise ValueError(f"is a JPEG 2000 of {samples} components and {tiles} tiles, which no slide holds")
    return right - left, bottom - top


def _webp(data: bytes) -> tuple[int, int] | None:
    kind = data[12:16]
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        if kind == b"VP8X":
            width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
            return width, height
        if kind == b"VP8L":
            (bits,) = unpack_from("<I", data, 21)
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        if kind == b"VP8 ":
            width, height = unpack_from("<HH", data, 26)
            return width & 0x3FFF, height & 0x3FFF
    return None


def _jpegxl(data: bytes) -> tuple[int, int] | None:
    at = 0 if data.startswith(b"\xff\x0a") else _box(data, (b"jxlc", b"jxlp"))
    if data[at : at + 2] != b"\xff\x0a" or len(data) < at + _JXL_HEADER:
        return None
    bits = int.from_bytes(data[at + 2 : at + 18], "little")

    def take(count: int) -> int:
        nonlocal bits
        value, bits = bits & ((1 << count) - 1), bits >> count
        return value

    small = take(1)

    def side() -> int:
        return 8 * (take(5) + 1) if small else take(_JXL_BITS[take(2)]) + 1

    height, ratio = side(), take(3)
    if not ratio:
        return side(), height
    over, under = _JXL_RATIOS[ratio - 1]
    return height * over // under, height


def _png(data: bytes) -> tuple[int, int] | None:
    if data[:8] != b"\x89PNG\r\n\x1a\n" or data[12:16] != b"IHDR":
        return None
    width, height = unpack_from(">II", data, 16)
    return width, height


def _box(data: bytes, kinds: tuple[bytes, ...]) -> int:
    """Where the codestream of a JPEG 2000 or JPEG XL file begins; the end where there is none."""
    at = 0
    while at + 8 <= len(data):
        (length,), kind, head = unpack_from(">I", data, at), data[at + 4 : at + 8], 8
        if kind == b"jp2h" and b"pclr" in data[at : at + (length or len(data))]:
            raise ValueError("is a JPEG 2000 with a palette, which no slide holds")
        if length == 1:
            (length,), head = unpack_from(">Q", data, at + 8), 16
        if kind in kinds:
            return at + head + (4 if kind == b"jxlp" else 0)
        if length < head:
            break
        at += length
    return len(data)
