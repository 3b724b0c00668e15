"""Read the compressed tiles of a rectangle from the open file: each becomes a complete image, checked for damage."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...utils.optional_imports import require
from ..dataset import BACKGROUND
from . import jpeg
from .codecs import Pixels, dali_decodes, decode, joined
from .decoded_tiles import decoded_tiles
from .dicom.frames import content_of
from .empty_tiles import empty_in, finer_box, holds
from .errors import DamagedPieceError, SlideError
from .joined_files import JoinedFiles, PartChanged, end_of, state_of
from .open_files import OpenFile, open_files
from .orientation import Box, shown_box, stored_box, upright
from .raster import Encoding, Layout, Raster
from .recent_tiles import recent_tiles
from .remote.backoff import RemoteFileChanged
from .remote.files import RemoteFile
from .tile_grid import TileGrid
from .wanted_tiles import Wanted, runs_of, stacks, tiles_in

_CHANGED = "changed since it was opened; open it again"


@dataclass(frozen=True, eq=False)
class EncodedTile:
    """A tile of a slide region, or a whole image file; encoded or already decoded.

    Attributes:
        x: the left edge in the region, pixels; may be negative.
        y: the top edge.
        width: valid pixels from the left of the image (0: all); the image beyond them is the file's padding.
        height: likewise from the top.
        data: uint8 [n], an encoded image that DALI decodes; None where `pixels` are given.
        pixels: uint8 [height, width, C], where no decoder of DALI is reliable; RGB for slides.
        stored: which tile of which image of a slide the data are; equal for the same data.
    """

    x: int = 0
    y: int = 0
    width: int = 0
    height: int = 0
    data: NDArray[np.uint8] | None = None
    pixels: Pixels | None = None
    stored: tuple[Raster, int] | None = None


class _Head(NamedTuple):
    """The common start of all JPEG tiles of an encoding."""

    prefix: bytes
    zeros_are_data: bool


_NO_HEAD = _Head(jpeg.SOI, False)  # a JPEG file has its own


class EncodedTileReader:
    """Reads tiles of one file's rasters. Thread-safe; the file is opened on first use."""

    def __init__(self, path: Path, state: tuple[int, int], layout: Layout):
        """
        Args:
            path: the slide's file.
            state: its bytes and time of change, nanoseconds, when it was scanned; if it is several files, the layout's.
            layout: its levels.
        """
        state = state_of(layout.files) if layout.files else state
        self._path, self._state, self._layout, self._files = path, state, layout, open_files
        self._heads: dict[Encoding, _Head] = {}

    def close(self) -> None:
        self._files.close(self)

    def __del__(self) -> None:
        self.close()

    def encoded_tiles(self, raster: Raster, window: Box) -> list[EncodedTile]:
        """The tiles of `raster` in the rectangle `window` (upright pixels; it may extend beyond the raster).

        Raises:
            DamagedPieceError: a tile cannot be read, or is visibly damaged.
        """
        if raster.planes:
            return [EncodedTile(0, 0, window[2], window[3], pixels=self.read(raster, window))]
        window = _in_image(raster, window)
        shown, code = raster.shown_size, raster.encoding.orientation
        drawn = [_decoded_tile(*part) for part in self._drawn(raster, window)]
        box = stored_box(window, shown, code)
        wanted = list(tiles_in(raster, box))
        if dali_decodes(raster.encoding) and not TileGrid.of(raster).keeps(box[2:]):
            return drawn + [
                EncodedTile(
                    x - window[0],
                    y - window[1],
                    width,
                    height,
                    data=stream,
                    stored=(raster, tile),
                )
                for (tile, (x, y, width, height), _, _), stream in self._encoded(raster, wanted)
            ]
        decoded = self._pixels(raster, wanted, box[2:])
        return drawn + [_decoded_tile(*self._cut(raster, item, pixels, window)) for item, pixels in decoded]

    def read(self, raster: Raster, window: Box) -> Pixels:
        """RGB uint8 [height, width, 3] of the rectangle `window`; pixels outside the raster are `BACKGROUND`."""
        image = np.full((window[3], window[2], 3), BACKGROUND, np.uint8)
        if raster.planes:
            image = joined([self.read(plane, window)[..., 0] for plane in raster.planes], raster.encoding)
        for x, y, part in self._drawn(raster, window):
            image[y : y + part.shape[0], x : x + part.shape[1]] = part
        if raster.planes:
            return image
        window = _in_image(raster, window)
        box = stored_box(window, raster.shown_size, raster.encoding.orientation)
        for item, pixels in self._pixels(raster, list(tiles_in(raster, box)), box[2:]):
            x, y, part = self._cut(raster, item, pixels, window)
            image[y : y + part.shape[0], x : x + part.shape[1]] = part
        return image

    def _drawn(self, raster: Raster, window: Box) -> Iterator[tuple[int, int, Pixels]]:
        """Tiles in the window that do not exist at this level, drawn from the finer one, as OpenSlide does: left and
        top edge in the window, pixels."""
        level = self._level_of(raster)
        if level <= 0 or raster.placement or raster.stored.all():
            return
        shown, code = raster.shown_size, raster.encoding.orientation
        for box in empty_in(raster, stored_box(window, shown, code)):
            x, y, width, height = shown_box(box, shown, code)
            left, top = max(x, window[0]), max(y, window[1])
            right, bottom = min(x + width, window[0] + window[2]), min(y + height, window[1] + window[3])
            finer, edges = finer_box(self._layout, level, (left, top, right - left, bottom - top))
            if holds(self._layout, level - 1, finer):
                pixels = self.read(self._layout.rasters[level - 1], finer)
                image = require("PIL.Image", "reading slides")
                size = right - left, bottom - top
                small = image.fromarray(pixels).resize(size, image.Resampling.BOX, box=edges)
                yield left - window[0], top - window[1], np.array(small)

    def _level_of(self, raster: Raster) -> int:
        """-1 of a picture beside the slide, and of one colour plane."""
        return next((number for number, known in enumerate(self._layout.rasters) if known is raster), -1)

    def _locate(self, raster: Raster, box: Box) -> tuple[int, int, int]:
        """Level-0 x, y and level of a rectangle of a raster as stored, for errors; -1 is a picture beside the slide."""
        rasters = self._layout.rasters
        level = next((at for at, known in enumerate(rasters) if known is raster or raster in known.planes), -1)
        scale = self._layout.levels[level].downsample if level >= 0 else 1
        x, y, *_ = shown_box(box, raster.shown_size, raster.encoding.orientation)
        if raster.placement:
            x, y = x + raster.placement.left, y + raster.placement.top
        return round(x * scale), round(y * scale), level

    def _cut(self, raster: Raster, item: Wanted, pixels: Pixels, window: Box) -> tuple[int, int, Pixels]:
        """The part of a decoded tile inside the window, upright, and its left and top edge there."""
        code = raster.encoding.orientation
        x, y, width, height = shown_box(item.box, raster.shown_size, code)
        turned = upright(pixels[: item.box[3], : item.box[2]], code)
        left, top = max(window[0] - x, 0), max(window[1] - y, 0)
        right, bottom = min(window[0] + window[2] - x, width), min(window[1] + window[3] - y, height)
        return x + left - window[0], y + top - window[1], turned[top:bottom, left:right]

    def _pixels(self, raster: Raster, wanted: list[Wanted], size: tuple[int, int]) -> Iterator[tuple[Wanted, Pixels]]:
        """The wanted tiles, decoded for a region of (width, height) as stored."""
        if not TileGrid.of(raster).keeps(size):
            return self._decoded(raster, wanted)
        self._open()  # a changed file is not read from the cache either
        return decoded_tiles.read(raster, wanted, lambda missing: self._decoded(raster, missing))

    def _decoded(self, raster: Raster, wanted: list[Wanted]) -> Iterator[tuple[Wanted, Pixels]]:
        for item, buffer, start in self._streams(raster, wanted):
            try:
                rows = -(-item.box[3] // raster.tile_height) * raster.tile_height  # of several, in a stack
                pixels = decode(memoryview(buffer)[start:], raster.encoding, item.box[2:], (raster.tile_width, rows))
            except ValueError as error:
                raise self._damaged(raster, item, str(error)) from error
            yield item, pixels

    def _encoded(self, raster: Raster, wanted: list[Wanted]) -> Iterable[tuple[Wanted, NDArray[np.uint8]]]:
        """Each tile, or stack of parts of a JPEG, as a complete image."""

        def read(missing: list[Wanted]) -> Iterator[tuple[Wanted, NDArray[np.uint8]]]:
            for item, buffer, start in self._streams(raster, missing):
                yield item, np.frombuffer(buffer, np.uint8, offset=start)

        if raster.encoding.codec == "jpeg part":
            return read(wanted)
        self._open()  # a changed file is not read from the cache either
        return recent_tiles.read(raster, wanted, read)

    def _streams(self, raster: Raster, wanted: list[Wanted]) -> Iterator[tuple[Wanted, bytearray, int]]:
        """Each tile's bytes, and where in them the stream starts; JPEG streams are whole and checked."""
        codec = raster.encoding.codec
        if codec == "jpeg part":
            yield from self._stacked(raster, wanted)
            return
        head = self._head(raster.encoding) if codec == "jpeg" else _NO_HEAD
        room, scale = len(head.prefix) - len(jpeg.SOI), raster.encoding.scale
        most = raster.tile_width * scale, raster.tile_height * scale
        for item, buffer in self._buffers(raster, wanted, room):
            start = room
            try:
                if raster.encoding.items:
                    buffer, start = content_of(buffer, start)
                if codec == "jpeg":
                    start = jpeg.splice(buffer, start, head.prefix)
                if codec.endswith("jpeg"):
                    header = jpeg.read_header(buffer, start + len(head.prefix))
                    if head.zeros_are_data:
                        header = header._replace(zeros_are_data=True)
                    least = item.box[2] * scale, item.box[3] * scale
                    jpeg.check_tile(buffer, header, least, most)
                elif codec == "plain png" and buffer.rfind(b"IEND") < 0:
                    raise ValueError("the PNG has no end: truncated")
            except ValueError as error:
                raise self._damaged(raster, item, str(error)) from error
            yield item, buffer, start

    def _stacked(self, raster: Raster, wanted: list[Wanted]) -> Iterator[tuple[Wanted, bytearray, int]]:
        """Streams of parts of a JPEG. Parts of eight rows each cost more as images than as pixels: those below each
        other become one."""
        head = self._head(raster.encoding)
        parts = {item.tile: (item, part) for item, part in self._buffers(raster, wanted, 0)}
        for item, part in parts.values():
            try:
                jpeg.check_part(part, head.zeros_are_data)
            except ValueError as error:
                raise self._damaged(raster, item, str(error)) from error
        for group in stacks(raster, wanted):
            x, y, width, _ = group[0].box
            whole = x, y, width, sum(item.box[3] for item in group)
            stream = jpeg.stacked(head.prefix, [parts[item.tile][1] for item in group])
            yield group[0]._replace(box=whole), stream, 0

    def _buffers(self, raster: Raster, wanted: list[Wanted], room: int) -> Iterator[tuple[Wanted, bytearray]]:
        """Bytes of the tiles behind `room` free ones; neighbours in the file are read in one call."""
        file = self._open()  # the reference keeps it open until the last byte is read
        for item in wanted:  # checked before allocation: a damaged count may be any number
            files = self._layout.files
            if item.offset + item.length > (end_of(files, item.offset) if files else self._state[0]):
                raise self._damaged(raster, item, "lies beyond the end of the file: truncated")

        def read(run: list[Wanted]) -> list[bytearray]:
            buffers = [bytearray(room + item.length) for item in run]
            parts: list[memoryview | bytearray] = []
            end = run[0].offset
            for item, buffer in zip(run, buffers, strict=True):
                if item.offset > end:
                    parts.append(bytearray(item.offset - end))
                parts.append(memoryview(buffer)[room:])
                end = item.offset + item.length
            try:
                got = file.read_into(parts, run[0].offset)
            except (PartChanged, RemoteFileChanged) as error:
                raise SlideError(self._path, _CHANGED) from error
            except OSError as error:
                raise self._damaged(raster, run[0], f"cannot be read: {error.strerror}") from error
            if got < end - run[0].offset:
                raise self._damaged(raster, run[0], "the file ends early: it changed while it was open")
            return buffers

        runs = list(runs_of(wanted, file.largest_gap))
        for run, buffers in zip(runs, file.each(read, runs), strict=True):
            yield from zip(run, buffers, strict=True)

    def _open(self) -> OpenFile | RemoteFile | JoinedFiles:
        try:
            file = self._files.get(self, self._path, self._layout.files)
        except OSError as error:
            raise SlideError(self._path, f"cannot be opened: {error.strerror}") from error
        if file.state() != self._state:  # raw and LZW tiles would not reveal a changed file
            raise SlideError(self._path, _CHANGED)
        return file

    def _head(self, encoding: Encoding) -> _Head:
        if encoding not in self._heads:
            if encoding.codec == "jpeg part":
                zeros_are_data = jpeg.read_header(encoding.tables, len(jpeg.SOI)).zeros_are_data
                self._heads[encoding] = _Head(encoding.tables, zeros_are_data)
            else:
                zeros_are_data = jpeg.tables_end_blocks_with_zeros(encoding.tables)
                self._heads[encoding] = _Head(jpeg.prefix(encoding.tables, encoding.colour), zeros_are_data)
        return self._heads[encoding]

    def _damaged(self, raster: Raster, item: Wanted, reason: str) -> DamagedPieceError:
        return DamagedPieceError(self._path, self._locate(raster, item.box), reason)


def _decoded_tile(x: int, y: int, pixels: Pixels) -> EncodedTile:
    return EncodedTile(x, y, pixels.shape[1], pixels.shape[0], pixels=np.ascontiguousarray(pixels))


def _in_image(raster: Raster, window: Box) -> Box:
    """A rectangle of the level, as seen from the image's corner."""
    place = raster.placement
    return window if place is None else (window[0] - place.left, window[1] - place.top, *window[2:])
