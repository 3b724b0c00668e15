"""The contents of a slide file: tiled images, the encoding of tiles, and the positions of their bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .joined_files import FilePart

Reader = Literal["native", "openslide", "zarr"]


@dataclass(frozen=True)
class Level:
    """One resolution of a slide.

    Attributes:
        width: pixels of this level.
        height: likewise.
        downsample: level-0 pixels per pixel of this level.
        tile_width: pixels of a tile as stored; strips are tiles as wide as the level.
        tile_height: likewise.
    """

    width: int
    height: int
    downsample: float
    tile_width: int
    tile_height: int


@dataclass(frozen=True)
class Encoding:
    """How a tile's bytes become pixels.

    Attributes:
        codec: "jpeg", "jpeg2000", "webp", "jpegxl", "png" hold complete images; "jpeg part" holds what lies between two
            restart markers; "lzw", "deflate", "zstd", "lzma", "packbits", "raw" hold rows of samples.
        colour: "rgb", "ycbcr", "grey", "inverted" (grey, 0 is white) or "palette".
        samples: values per pixel, all of 8 bits.
        alpha: of the last sample: "straight", "premultiplied" or "" where it is no alpha.
        predictor: whether rows of samples are differences.
        orientation: TIFF's and EXIF's code, 1 to 8; 1 is upright.
        tables: a JPEG stream's shared tables, without SOI and EOI; of a "jpeg part" the whole header of a tile.
        palette: RGB uint8 [n, 3] as bytes.
        scale: JPEG is decoded to a half, quarter or eighth: 2, 4 or 8.
        items: whether a tile's bytes are in one or several items of DICOM.
        planes: 1 if a tile holds all samples of its pixels; otherwise `samples`: each tile holds one sample, as grey.
    """

    codec: str
    colour: str = "rgb"
    samples: int = 3
    alpha: str = ""
    predictor: bool = False
    orientation: int = 1
    tables: bytes = b""
    palette: bytes = b""
    planes: int = 1
    scale: int = 1
    items: bool = False


@dataclass(frozen=True)
class Placement:
    """Where an image lies in its level, if metadata say so. Outside it, and where tiles do not exist, is background.

    Attributes:
        left: of the image, pixels of the level.
        top: likewise.
        width: of the level, pixels.
        height: likewise.
        downsample: of the level; 0 if that follows from its size.
    """

    left: int
    top: int
    width: int
    height: int
    downsample: float = 0.0


@dataclass(frozen=True, eq=False)
class Raster:
    """One image as stored, before it is rotated upright.

    Attributes:
        width: pixels as stored.
        height: likewise.
        tile_width: pixels; the tiles at the right and bottom edge may hold padding.
        tile_height: likewise.
        encoding: of every tile.
        offsets: int64 [planes * rows * columns], bytes from the start of the file, row by row, plane after plane; of
            a slide of several files as `joined_files` counts them.
        counts: likewise, bytes; 0 for a tile that does not exist.
        placement: in its level; None if it is the level.
    """

    width: int
    height: int
    tile_width: int
    tile_height: int
    encoding: Encoding
    offsets: NDArray[np.int64]
    counts: NDArray[np.int64]
    placement: Placement | None = None

    @property
    def columns(self) -> int:
        return -(-self.width // self.tile_width)

    @property
    def rows(self) -> int:
        return -(-self.height // self.tile_height)

    @property
    def shown_size(self) -> tuple[int, int]:
        """(width, height) upright."""
        return (self.height, self.width) if self.encoding.orientation >= 5 else (self.width, self.height)

    @property
    def level_size(self) -> tuple[int, int]:
        """(width, height) of its level, upright."""
        return (self.placement.width, self.placement.height) if self.placement else self.shown_size

    @cached_property
    def planes(self) -> tuple[Raster, ...]:
        """Grey rasters of red, green, blue and optionally alpha, if each plane is stored separately; else empty."""
        if self.encoding.planes == 1:
            return ()
        grey = replace(self.encoding, colour="grey", samples=1, alpha="", planes=1)
        parts = zip(*(np.split(array, self.encoding.planes) for array in (self.offsets, self.counts)), strict=True)
        return tuple(replace(self, encoding=grey, offsets=offsets, counts=counts) for offsets, counts in parts)

    @cached_property
    def stored(self) -> NDArray[np.bool_]:
        """Which tiles exist, in any plane: bool [rows, columns]."""
        return np.any(self.counts.reshape(self.encoding.planes, self.rows, self.columns), axis=0)


@dataclass(frozen=True, eq=False)
class Layout:
    """A slide file, scanned.

    Attributes:
        reader: which reader reads its pixels.
        vendor: the writer of the file, if known.
        levels: finest first.
        rasters: of the levels, if the reader is "native".
        associated: label, macro, thumbnail and similar images, if the reader is "native".
        mpp: micrometres per level-0 pixel along x and y; None if unknown or implausible.
        mpp_source: its source: "description", "OME", "ImageJ", "resolution tags", "DICOM", "OME-Zarr" or "OpenSlide";
            else "".
        why_no_mpp: why `mpp` is None, in words, also in `problems`; else "".
        magnification: of the objective; None when unknown.
        bounds: (x, y, width, height) of the scanned part, level-0 pixels.
        damage: why the whole file is damaged (truncated), also in `problems`; else "".
        problems: what is unusual or wrong, in words.
        files: of which the slide consists, in its folder; empty if it is one.
    """

    reader: Reader
    vendor: str
    levels: tuple[Level, ...]
    rasters: tuple[Raster, ...] = ()
    associated: Mapping[str, Raster] = field(default_factory=dict)
    mpp: tuple[float, float] | None = None
    mpp_source: str = ""
    why_no_mpp: str = ""
    magnification: float | None = None
    bounds: tuple[int, int, int, int] = (0, 0, 0, 0)
    damage: str = ""
    problems: tuple[str, ...] = ()
    files: tuple[FilePart, ...] = ()


def levels_of(rasters: tuple[Raster, ...]) -> tuple[Level, ...]:
    """Levels with OpenSlide's downsample: the mean of both axes' ratios, if metadata do not say it."""
    width, height = rasters[0].level_size
    levels = []
    for raster in rasters:
        w, h = raster.level_size
        tile = (raster.tile_width, raster.tile_height)
        tile = tile[::-1] if raster.encoding.orientation >= 5 else tile
        downsample = (raster.placement and raster.placement.downsample) or (width / w + height / h) / 2
        levels.append(Level(w, h, downsample, *tile))
    return tuple(levels)
