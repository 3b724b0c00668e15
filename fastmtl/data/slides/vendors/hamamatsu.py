"""Hamamatsu NDPI: a level is one JPEG in one strip, cut by restart markers whose places a tag lists.

What lies between two markers, behind the JPEG's header with a tile's size, is an image of its own. OpenSlide adds
levels between those of the file by decoding JPEG at a half, a quarter and an eighth; this module adds the same, so that
levels have the same numbers.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from os import SEEK_END
from struct import unpack, unpack_from
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from ...sizes import MAX_PIXELS as MAX_PIECE_PIXELS
from .. import jpeg
from ..raster import Encoding, Raster
from ..scale import number, tag_scale
from .arranged import Arranged, NotHereError, need

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPage

_FORMAT, _LENS, _FOCAL_PLANE, _STARTS = 65420, 65421, 65424, 65426
_MACRO = -1.0  # in place of the objective's power
_HEADER = 2**16  # bytes; enough for tables and comments before a JPEG's scan
_SCALES = (2, 4, 8)


def has_wide_offsets(stream: BinaryIO) -> bool:
    """Whether a file is an NDPI, whose offsets have 64 bits beside TIFF's 32; leaves the stream at its beginning."""
    size = stream.seek(0, SEEK_END)
    stream.seek(0)
    head = stream.read(12)
    place, found = int.from_bytes(head[4:], "little"), False
    if head[:4] == b"II*\0" and place < size:
        stream.seek(place)
        (count,) = unpack("<H", stream.read(2).ljust(2, b"\0"))
        page = stream.read(12 * count)
        found = any(unpack_from("<H", page, at)[0] == _FORMAT for at in range(0, len(page) - 11, 12))
    stream.seek(0)
    return found


def arrange_hamamatsu(file: TiffFile) -> Arranged:
    """Raises NotHereError for files that OpenSlide should read, or refuse."""
    pages = [page.aspage() for page in file.pages]
    powers = [number(str(page.tags.valueof(_LENS, ""))) for page in pages]
    need(None not in powers, "a page does not say its magnification")
    stored: list[Raster] = []
    for page, power in zip(pages, powers, strict=True):
        if power and power > 0 and not int(page.tags.valueof(_FOCAL_PLANE, 0)):
            stored.append(_raster(file, page))
    need(stored, "it has no levels")
    need(all(one.width > other.width for one, other in pairwise(stored)), "its levels are mixed")
    levels = {}
    for raster in stored:
        levels[raster.width] = raster  # what is stored is better than what is computed from a finer level
        for scale in _SCALES:
            if raster.tile_width % scale == raster.tile_height % scale == 0:
                levels[raster.width // scale] = _scaled(raster, scale)
    macro = [page for page, power in zip(pages, powers, strict=True) if power == _MACRO]
    return Arranged(
        [levels[width] for width in sorted(levels, reverse=True)],
        tag_scale(pages[0])._replace(magnification=powers[0]),
        {"macro": _whole(file, macro[-1])} if macro else {},
    )


def _raster(file: TiffFile, page: TiffPage) -> Raster:
    """A level whose tiles are the parts between restart markers, or which is one JPEG."""
    if _STARTS not in page.tags:
        return _whole(file, page)
    try:
        header = jpeg.read_header(page.jpegheader or b"", len(jpeg.SOI))
    except ValueError as error:
        raise NotHereError(str(error)) from error
    tile = header.width, header.height
    need(header.components == 3, f"a level has {header.components} colours")
    need(jpeg.stacks_exactly(page.jpegheader or b""), "its colours are stored in fewer rows than its pixels")
    need(0 < tile[0] * tile[1] <= MAX_PIECE_PIXELS, "its restart markers lie too far apart")
    need(page.imagewidth % tile[0] == page.imagelength % tile[1] == 0, "its restart markers do not cut it evenly")
    offsets, counts = np.asarray(page.dataoffsets, np.int64), np.asarray(page.databytecounts, np.int64)
    encoding = Encoding("jpeg part", tables=page.jpegheader or b"")
    raster = Raster(page.imagewidth, page.imagelength, *tile, encoding, offsets, counts)
    need(len(offsets) == len(counts) == raster.rows * raster.columns, "its list of restart markers has another length")
    need((counts > 0).all() and (offsets > 0).all(), "its list of restart markers is damaged")
    return raster


def _whole(file: TiffFile, page: TiffPage) -> Raster:
    need(len(page.dataoffsets) == 1, "a page has several strips")
    offset, count = page.dataoffsets[0], page.databytecounts[0]
    file.filehandle.seek(offset)
    data = file.filehandle.read(min(count, _HEADER))
    try:
        header = jpeg.read_header(data, len(jpeg.SOI)) if data[:2] == jpeg.SOI else None
    except ValueError as error:
        raise NotHereError(str(error)) from error
    need(header is not None and header.components == 3, "a page is no JPEG of three colours")
    size = (header.width, header.height) if header else (0, 0)
    need(size == (page.imagewidth, page.imagelength), "a page's JPEG has another size")
    need(size[0] * size[1] <= MAX_PIECE_PIXELS, "a page without restart markers is too large")
    need(not jpeg.restart_interval(data), "the places of its restart markers are not listed")
    places = np.array([offset], np.int64), np.array([count], np.int64)
    return Raster(*size, *size, Encoding("plain jpeg"), *places)


def _scaled(raster: Raster, scale: int) -> Raster:
    """The same tiles, decoded smaller."""
    return replace(
        raster,
        width=raster.width // scale,
        height=raster.height // scale,
        tile_width=raster.tile_width // scale,
        tile_height=raster.tile_height // scale,
        encoding=replace(raster.encoding, scale=scale),
    )
