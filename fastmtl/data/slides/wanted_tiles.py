"""The stored tiles that a rectangle needs: which, in which order, and which are decoded as one image."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import NamedTuple

from .orientation import Box
from .raster import Raster

_MOST_BUFFERS = 512  # POSIX grants a scattered read at least 1024 on Linux; each tile takes two
_MOST_STACKED = 2**20  # pixels
_MOST_ROWS = 65_500  # of a JPEG


class Wanted(NamedTuple):
    """A tile to be read: its number, its rectangle as stored (x, y, width, height) without padding, its bytes."""

    tile: int
    box: Box
    offset: int
    length: int


def tiles_in(raster: Raster, box: Box) -> Iterator[Wanted]:
    """The tiles that exist and overlap a rectangle of the raster as stored."""
    left, top = max(box[0], 0), max(box[1], 0)
    right, bottom = min(box[0] + box[2], raster.width), min(box[1] + box[3], raster.height)
    if right <= left or bottom <= top:
        return
    wide, high = raster.tile_width, raster.tile_height
    for row in range(top // high, (bottom - 1) // high + 1):
        for column in range(left // wide, (right - 1) // wide + 1):
            tile = row * raster.columns + column
            offset, count = int(raster.offsets[tile]), int(raster.counts[tile])
            if count > 0:
                x, y = column * wide, row * high
                yield Wanted(tile, (x, y, min(wide, raster.width - x), min(high, raster.height - y)), offset, count)


def runs_of(wanted: Iterable[Wanted], largest_gap: int) -> Iterator[list[Wanted]]:
    """Groups of tiles close enough in the file to be read at once."""
    ordered = sorted(wanted, key=lambda item: item.offset)
    run = ordered[:1]
    for before, item in pairwise(ordered):
        gap = item.offset - (before.offset + before.length)
        if not 0 <= gap <= largest_gap or 2 * len(run) >= _MOST_BUFFERS:
            yield run
            run = []
        run.append(item)
    if run:
        yield run


def stacks(raster: Raster, wanted: Iterable[Wanted]) -> Iterator[list[Wanted]]:
    """Groups of tiles that lie directly below each other, of about a million pixels at most."""
    high, across = raster.tile_height * raster.encoding.scale, raster.tile_width * raster.encoding.scale
    most = max(1, min(_MOST_STACKED // (across * high), _MOST_ROWS // high))
    stack: list[Wanted] = []
    for item in sorted(wanted, key=lambda item: item.box[:2]):
        x, y, _, height = stack[-1].box if stack else (-1, -1, 0, 0)
        if stack and (item.box[:2] != (x, y + height) or len(stack) == most):
            yield stack
            stack = []
        stack.append(item)
    if stack:
        yield stack
