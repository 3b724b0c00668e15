"""An open slide: its levels, scale, associated images, the pixels of a region, and its compressed tiles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from operator import index as as_int
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...utils.deprecation import warn_renamed
from ..dataset import Region
from .codecs import Pixels
from .encoded_tiles import EncodedTile, EncodedTileReader
from .errors import DamagedPieceError, SlideError, in_words
from .identity import identify
from .index import SlideIndex, load_index
from .joined_files import PART
from .ome_zarr.reader import OmeZarrReader
from .openslide_reader import OpenSlideReader
from .orientation import Box
from .raster import Encoding, Level
from .remote.path import slide_path
from .scale import PLAUSIBLE_MPP
from .scan import MAX_PIXELS, scan
from .thumbnail import find_tissue, thumbnail
from .tile_grid import TileGrid
from .tissue_mask import TissueMask

_OTHER_MPP = 0.1  # smaller relative differences between a given mpp and the file's own are not reported


def open_slide(
    path: str | Path,
    *,
    mpp: float | None = None,
    max_pixels: int = MAX_PIXELS,
    index_folder: str | Path | None = None,
) -> Slide:
    """Open a slide; the format is detected from the content, not the file name.

    Built in: SVS, NDPI, Leica, Philips, Ventana without overlaps, tiled, pyramidal and stripped TIFF and BigTIFF,
    OME-TIFF, of 8-bit RGB, grey and palette, in JPEG, JPEG 2000, WebP, JPEG XL, PNG, LZW, Deflate, Zstandard, LZMA,
    PackBits or raw; DICOM; OME-Zarr; PNG, JPEG and JPEG 2000 files as slides of one level. OpenSlide, if installed,
    reads all others (MIRAX, ...).

    A slide with an index (`index_slide`) opens in milliseconds; others are scanned.

    Args:
        path: the file, or a URL (https://, s3://, ...), of which only the bytes that are needed are read; of DICOM the
            folder of a series, or a file of one; of OME-Zarr the folder.
        mpp: micrometres per pixel of level 0, if the file has none or an implausible one (see `Slide.problems`). A
            difference of more than a tenth from the file's own is reported there too.
        max_pixels: a level 0 that declares more is refused unread.
        index_folder: the folder given to `index_slide`; by default that of `use_index_folder`, else beside the slide.

    Raises:
        SlideError: missing, damaged, too large, or of a kind that cannot be read.
        ImportError: a required package is not installed; the message says how to install it.
    """
    path = slide_path(path)
    if mpp is not None and not PLAUSIBLE_MPP[0] <= mpp <= PLAUSIBLE_MPP[1]:
        raise ValueError(f"`mpp` must be {PLAUSIBLE_MPP[0]} to {PLAUSIBLE_MPP[1]} micrometres per pixel; got {mpp}")
    index = load_index(path, index_folder) or SlideIndex(identify(path), scan(path, max_pixels))
    width, height = index.layout.levels[0].width, index.layout.levels[0].height
    if width * height > max_pixels:
        raise SlideError(path, f"has {width}x{height} pixels, more than max_pixels={max_pixels:,}")
    return Slide(path, index, mpp=mpp)


class Slide:
    """An open slide. Thread-safe; other processes must open the slide themselves.

    Attributes:
        path: the file.
        levels: finest first.
        mpp: micrometres per pixel of level 0, the mean of both axes; None if unknown or implausible.
        mpp_source: its source: "given" (to `open_slide`), "description", "OME", "ImageJ", "resolution tags",
            "DICOM", "OME-Zarr", "OpenSlide"; "" if it is unknown.
        why_no_mpp: why `mpp` is None, in words; "" if it is known.
        damage: why the whole file is damaged, in words (truncated); else "".
        magnification: of the objective; None when unknown.
        bounds: (x, y, width, height) of what was scanned, level-0 pixels.
        vendor: the writer of the file, if known.
        problems: what is unusual or wrong, in words; includes tiles that could not be read while searching tissue.
    """

    def __init__(self, path: Path, index: SlideIndex, *, mpp: float | None = None):
        layout = index.layout
        self.path, self._index, self._layout = path, index, layout
        self.levels: tuple[Level, ...] = layout.levels
        own = layout.mpp and math.fsum(layout.mpp) / 2
        self.mpp = own if mpp is None else mpp
        self.mpp_source = layout.mpp_source if mpp is None else "given"
        self.why_no_mpp = layout.why_no_mpp if self.mpp is None else ""
        self.damage = layout.damage
        self.magnification, self.bounds, self.vendor = layout.magnification, layout.bounds, layout.vendor
        self.problems = tuple(word for word in layout.problems if self.why_no_mpp or word != layout.why_no_mpp)
        if mpp and own and abs(math.log(mpp / own)) > math.log(1 + _OTHER_MPP):
            given = f"{mpp:g} micrometres per pixel were given, and the slide says {own:.4g} ({layout.mpp_source})"
            self.problems += (f"{given}: the given value is used",)
        self._native = EncodedTileReader(path, (index.identity.size, index.identity.modified), layout)
        foreign = {"openslide": OpenSlideReader, "zarr": OmeZarrReader}.get(layout.reader)
        self._foreign = foreign(path, layout.levels) if foreign else None

    def __enter__(self) -> Slide:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        size = f"{self.levels[0].width}x{self.levels[0].height}"
        return f"Slide({str(self.path)!r}, {size}, {len(self.levels)} levels, mpp={self.mpp})"

    @property
    def pixel_file(self) -> Path:
        """The file with the first tile of level 0; of OME-Zarr the folder."""
        if not self._layout.files:
            return self.path
        raster = self._layout.rasters[0]
        first = int(raster.offsets[raster.counts > 0].min(initial=0))
        return (self.path if self.path.is_dir() else self.path.parent) / self._layout.files[first // PART].name

    def close(self) -> None:
        """Close the file; the next read opens it again."""
        self._native.close()
        if self._foreign:
            self._foreign.close()

    def read_region(self, x: int, y: int, width: int, height: int, level: int = 0) -> Pixels:
        """RGB uint8 [height, width, 3], as OpenSlide reads it, transparency laid over background.

        Args:
            x: left edge, level-0 pixels; the nearest pixel of `level` is used. It may be outside the slide, which is
                background (grey 240).
            y: top edge.
            width: pixels of `level`.
            height: likewise.
            level: 0 is the finest.

        Raises:
            DamagedPieceError: a tile cannot be read.
            ValueError: no such level, or a region without pixels.
        """
        region = self._checked(Region(self.path, x, y, width, height, level))
        if self._foreign:
            return self._foreign.read(region.level, region.x, region.y, region.width, region.height)
        return self._native.read(self._layout.rasters[region.level], self._window(region))

    def encoded_tiles(self, region: Region) -> list[EncodedTile]:
        """The tiles that cover `region`: compressed images, or pixels if DALI has no reliable decoder. Areas without
        tiles are background.

        Raises:
            DamagedPieceError: a tile cannot be read, or is visibly damaged.
            ValueError: no such level, or a region without pixels.
        """
        region = self._checked(region)
        if self._foreign:
            pixels = self._foreign.read(region.level, region.x, region.y, region.width, region.height)
            return [EncodedTile(0, 0, region.width, region.height, pixels=pixels)]
        return self._native.encoded_tiles(self._layout.rasters[region.level], self._window(region))

    def pieces(self, region: Region) -> list[EncodedTile]:
        """Deprecated: `encoded_tiles`."""
        warn_renamed("Slide.pieces", "Slide.encoded_tiles")
        return self.encoded_tiles(region)

    def encoding(self, level: int = 0) -> Encoding | None:
        """How the tiles of a level are stored; None if OpenSlide or zarr reads the slide."""
        return None if self._foreign else self._layout.rasters[self._level(level)].encoding

    def stored_bytes(self, regions: Sequence[Region]) -> NDArray[np.int64]:
        """int64 [n], bytes of the largest tile in each region, all of one level: blank tiles compress to few bytes.
        Looks up nine points of each region and reads no pixels. Zeros if tiles are rotated or OpenSlide or
        zarr reads the slide."""
        raster = None if self._foreign else self._layout.rasters[regions[0].level]
        if raster is None or raster.encoding.orientation != 1:
            return np.zeros(len(regions), np.int64)
        scale = self.levels[regions[0].level].downsample
        box = np.array([(one.x, one.y, one.width, one.height) for one in regions], np.float64).T
        grid = np.linspace(0, 1, 3)[:, None]
        left, top = (raster.placement.left, raster.placement.top) if raster.placement else (0, 0)
        columns = (box[0] / scale - left + grid * (box[2] - 1)) // raster.tile_width
        rows = (box[1] / scale - top + grid * (box[3] - 1)) // raster.tile_height
        at = np.clip(rows, 0, raster.rows - 1)[:, None] * raster.columns + np.clip(columns, 0, raster.columns - 1)
        return raster.counts[at.astype(np.int64)].max((0, 1))

    def tile_grid(self, level: int = 0) -> TileGrid | None:
        """How a level is cut into tiles; None if OpenSlide reads the slide."""
        if self._foreign:
            return None
        return TileGrid.of(self._layout.rasters[self._level(level)], self.levels[level].downsample)

    @cached_property
    def associated_names(self) -> tuple[str, ...]:
        """Images stored with the slide: "label", "macro", "thumbnail" and others."""
        return self._foreign.associated_names() if self._foreign else tuple(self._layout.associated)

    def associated(self, name: str) -> Pixels:
        """RGB uint8 [h, w, 3] of one of `associated_names`."""
        if name not in self.associated_names:
            raise ValueError(f"`name` must be one of {', '.join(self.associated_names) or 'none'}; got {name!r}")
        if self._foreign:
            return self._foreign.associated(name)
        raster = self._layout.associated[name]
        return self._native.read(raster, (0, 0, *raster.shown_size))

    def thumbnail(self, max_size: int = 1024) -> Pixels:
        """The whole slide, reduced by averaging to at most `max_size` pixels a side: RGB uint8 [h, w, 3]."""
        return thumbnail(self, max_size)

    @cached_property
    def tissue(self) -> TissueMask:
        """The tissue mask, from the index or computed now from the coarsest level. Unreadable tiles count as no tissue
        and are added to the problems."""
        if self._index.tissue:
            return self._index.tissue
        damage: list[DamagedPieceError] = []
        tissue = find_tissue(self, damage)
        self.problems += in_words(damage)
        return tissue

    def tissue_fraction(self, region: Region) -> float:
        """The tissue fraction of a region, 0 to 1; areas outside the slide are not tissue."""
        region = self._checked(region)
        scale = self.levels[region.level].downsample
        return self.tissue.fraction(region.x, region.y, region.width * scale, region.height * scale)

    def _checked(self, region: Region) -> Region:
        x, y, width, height = (as_int(value) for value in (region.x, region.y, region.width, region.height))
        level = self._level(region.level)
        if width < 1 or height < 1:
            raise ValueError(f"`width` and `height` must be at least 1 pixel; got {width}x{height}")
        return Region(region.slide, x, y, width, height, level)

    def _level(self, level: int) -> int:
        if not 0 <= as_int(level) < len(self.levels):
            raise ValueError(f"`level` must be 0 to {len(self.levels) - 1} in {self.path}; got {level}")
        return as_int(level)

    def _window(self, region: Region) -> Box:
        downsample = self.levels[region.level].downsample
        return round(region.x / downsample), round(region.y / downsample), region.width, region.height
