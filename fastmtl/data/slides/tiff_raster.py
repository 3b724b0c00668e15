"""How the tiles of a TIFF page are stored, from its tags; ValueError gives the reason if a page cannot be read."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ..sizes import MAX_PIXELS as MAX_PIECE_PIXELS
from . import jpeg
from .codecs import JPEG2000_YCBCR, TIFF_CODECS
from .orientation import CODES
from .raster import Encoding, Placement, Raster, levels_of

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPage

_COLOURS = {0: "inverted", 1: "grey", 2: "rgb", 3: "palette", 6: "ycbcr"}
_SAMPLES = {"inverted": (1, 2), "grey": (1, 2), "rgb": (3, 4), "palette": (1,), "ycbcr": (3,)}
_ORIENTATION, _TILE_WIDTH, _TILE_HEIGHT = 274, 322, 323


def raster_of(file: TiffFile, pages: Sequence[TiffPage], problems: list[str]) -> Raster:
    """One page, or the pages of red, green, blue (and alpha) as one.

    Raises:
        ValueError: it cannot be read, with the reason.
    """
    rasters = [_raster(file, page, problems) for page in pages]
    first = rasters[0]
    if len(rasters) == 1:
        return first
    kinds = {(one.width, one.height, one.tile_width, one.tile_height, one.encoding) for one in rasters}
    if len(kinds) > 1 or first.encoding.colour != "grey" or first.encoding.samples > 1:
        raise ValueError("has colour planes that differ in size, tiles or encoding; save it as one RGB picture")
    count = len(rasters)
    alpha = "straight" if count == 4 else ""
    return replace(
        first,
        encoding=replace(first.encoding, colour="rgb", samples=count, alpha=alpha, planes=count),
        offsets=np.concatenate([one.offsets for one in rasters]),
        counts=np.concatenate([one.counts for one in rasters]),
    )


def placed_levels(
    file: TiffFile, levels: Sequence[tuple[TiffPage, Placement] | Raster], problems: list[str]
) -> list[Raster]:
    """The levels, without those that end elsewhere than level 0 if their pages have the scale that the metadata say.

    Raises:
        ValueError: one cannot be read.
    """
    kept: list[Raster] = []
    for one in levels:
        if isinstance(one, Raster):
            kept.append(one)
            continue
        stored, place = raster_of(file, one[:1], problems), one[1]
        raster = _placed(stored, place)
        first = kept[0] if kept else raster
        downsample = levels_of((first, raster))[1].downsample
        ends = (place.left + stored.width, place.top + stored.height) if kept else _end(raster)
        few = 4 * downsample  # what is rounded; the last tiles may be padded besides
        tiles = stored.tile_width * downsample, stored.tile_height * downsample
        beyond = [end * downsample - whole for end, whole in zip(ends, _end(first), strict=True)]
        slack = [few + 0.01 * whole for whole in _end(first)]
        if all(-most <= by <= most + tile for by, most, tile in zip(beyond, slack, tiles, strict=True)):
            kept.append(raster)
        else:
            size = f"{stored.width}x{stored.height}"
            problems.append(
                f"a level of {size} is left out: the metadata give it another size (downsample {downsample:g})"
            )
    return kept


def _end(raster: Raster) -> tuple[int, int]:
    """Where a placed raster ends in its level."""
    place = raster.placement
    return (place.left + raster.width, place.top + raster.height) if place else (raster.width, raster.height)


def _placed(raster: Raster, place: Placement) -> Raster:
    """The raster in its level, without the tiles and pixels that reach beyond it.

    Raises:
        ValueError: nothing of it lies in the level, or it is rotated.
    """
    width, height = min(raster.width, place.width - place.left), min(raster.height, place.height - place.top)
    if min(width, height) < 1 or raster.encoding.orientation != 1:
        raise ValueError("a level is rotated, or shows nothing of the slide")
    columns, rows = -(-width // raster.tile_width), -(-height // raster.tile_height)
    grid = raster.encoding.planes, raster.rows, raster.columns
    offsets, counts = (array.reshape(grid)[:, :rows, :columns].reshape(-1) for array in (raster.offsets, raster.counts))
    return replace(raster, width=width, height=height, offsets=offsets, counts=counts, placement=place)


def _raster(file: TiffFile, page: TiffPage, problems: list[str]) -> Raster:
    encoding = _encoding(file, page, problems)
    if _TILE_WIDTH in page.tags or _TILE_HEIGHT in page.tags:  # tifffile takes tiles of no size for strips
        tile_width, tile_height = page.tilewidth, page.tilelength
    else:
        tile_width, tile_height = page.imagewidth, min(page.rowsperstrip or page.imagelength, page.imagelength)
    if min(page.imagewidth, page.imagelength, tile_width, tile_height) < 1:
        size, tile = f"{page.imagewidth}x{page.imagelength}", f"{tile_width}x{tile_height}"
        raise ValueError(f"declares {size} pixels in tiles of {tile}: nothing can have that size")
    if tile_width * tile_height > MAX_PIECE_PIXELS:
        kind = "tiles" if page.is_tiled else "strips"
        raise ValueError(
            f"{kind} of {tile_width}x{tile_height} pixels are more than {MAX_PIECE_PIXELS:,}, which is decoded in one "
            "piece; convert it to smaller tiles, for example with: vips tiffsave IN OUT --tile --pyramid"
        )
    offsets, counts = np.asarray(page.dataoffsets, np.int64), np.asarray(page.databytecounts, np.int64)
    raster = Raster(page.imagewidth, page.imagelength, tile_width, tile_height, encoding, offsets, counts)
    needed = raster.rows * raster.columns * encoding.planes
    if min(len(offsets), len(counts)) < needed:
        raise ValueError(f"lists {min(len(offsets), len(counts))} tiles where its size needs {needed}")
    if (counts < 0).any() or (offsets < 0).any():
        raise ValueError("its list of tiles is damaged")
    return replace(raster, offsets=offsets[:needed], counts=counts[:needed])


def _encoding(file: TiffFile, page: TiffPage, problems: list[str]) -> Encoding:
    """The encoding of the page's tiles; ValueError with the reason if they cannot be read."""
    compression, colour = int(page.compression), _COLOURS.get(int(page.photometric))
    if compression not in TIFF_CODECS:
        known = ", ".join(sorted(set(TIFF_CODECS.values())))
        raise ValueError(f"has TIFF compression {compression}; readable are {known}")
    codec, bits, samples = TIFF_CODECS[compression], page.bitspersample, page.samplesperpixel
    if bits != 8 or int(page.sampleformat) != 1:
        raise ValueError(f"has {bits}-bit samples; scale them to 8-bit unsigned first")
    if colour is None:
        raise ValueError(f"has photometric interpretation {int(page.photometric)}; convert it to RGB or grey")
    if samples not in _SAMPLES[colour]:
        raise ValueError(f"has {samples} samples a pixel where {colour} has {_SAMPLES[colour][0]}; convert it to RGB")
    is_planar = int(page.planarconfig) != 1 and samples > 1
    if is_planar and colour != "rgb":
        raise ValueError(f"keeps the samples of its {colour} apart (planar); convert it to interleaved RGB")
    if int(page.predictor) not in (1, 2):
        raise ValueError(f"has predictor {int(page.predictor)}; save it with horizontal differencing or none")
    if int(page.fillorder) != 1:
        raise ValueError("has its bits in reverse order (FillOrder 2); save it again with FillOrder 1")
    rows_of_ycbcr = colour == "ycbcr" and codec not in ("jpeg", "jpeg2000", "webp", "jpegxl")
    if rows_of_ycbcr and tuple(page.tags.valueof(530, (2, 2))) != (1, 1):
        raise ValueError("has subsampled YCbCr that is not JPEG; convert it to RGB")
    if codec == "jpeg2000":  # other writers let the codestream say what its components are
        colour = "ycbcr" if compression == JPEG2000_YCBCR else "rgb" if colour == "ycbcr" else colour
    if codec in ("webp", "jpegxl") and colour == "ycbcr":
        colour = "rgb"  # both decode to RGB
    return Encoding(
        codec=codec,
        colour=colour,
        samples=samples,
        alpha=_alpha(page, samples),
        predictor=int(page.predictor) == 2,
        orientation=_orientation(file, page, problems),
        tables=jpeg.shared_tables(page.jpegtables) if codec == "jpeg" and page.jpegtables else b"",
        palette=_palette(page) if colour == "palette" else b"",
        planes=samples if is_planar else 1,
    )


def _alpha(page: TiffPage, samples: int) -> str:
    extra = tuple(int(kind) for kind in page.extrasamples)
    return {1: "premultiplied", 2: "straight"}.get(extra[-1] if extra and samples in (2, 4) else 0, "")


def _palette(page: TiffPage) -> bytes:
    """TIFF's colour map: 16 bits, [3, 256], though some writers fill only the lower 8."""
    colours = np.asarray(page.colormap)
    return (colours if colours.max() < 256 else colours >> 8).astype(np.uint8).T.tobytes()


def _orientation(file: TiffFile, page: TiffPage, problems: list[str]) -> int:
    tag = page.tags.get(_ORIENTATION)
    if tag is None:
        return 1
    file.filehandle.seek(tag.valueoffset)  # tifffile logs a warning for values that TIFF does not know
    (code,) = struct.unpack(file.byteorder + "H", file.filehandle.read(2))
    if code not in CODES:
        if page.index == 0:
            problems.append(f"has orientation {code}, which TIFF does not know: taken for upright")
        return 1
    return code
