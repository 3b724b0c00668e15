"""Scan a TIFF: which of its pages are levels, which are pictures beside the slide, and how their tiles are stored."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np

from ...extras import require
from ..sizes import MAX_PIXELS as MAX_PIECE_PIXELS
from . import jpeg, tiff_words
from .codecs import JPEG2000_YCBCR, TIFF_CODECS
from .errors import SlideError
from .orientation import CODES
from .raster import Encoding, Layout, Raster, levels_of

TIFF_SIGNATURES = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
"""First bytes of TIFF and BigTIFF, little and big endian."""

_COLOURS = {0: "inverted", 1: "grey", 2: "rgb", 3: "palette", 6: "ycbcr"}
_SAMPLES = {"inverted": (1, 2), "grey": (1, 2), "rgb": (3, 4), "palette": (1,), "ycbcr": (3,)}
_SUBFILE, _ORIENTATION, _TILE_WIDTH, _TILE_HEIGHT = 254, 274, 322, 323
_REDUCED = 1


class NotHereError(Exception):
    """The file is a TIFF of a vendor whose pages mean more than their tags say: OpenSlide knows."""


def scan_tiff(path: Path, max_pixels: int) -> Layout:
    """Read all headers of a TIFF and none of its pixels.

    Raises:
        SlideError: damaged, larger than `max_pixels` at level 0, or of a kind that is not read; says which.
        NotHereError: OpenSlide should read it.
    """
    tifffile = require("tifffile", "opening TIFF slides")
    try:
        with tifffile.TiffFile(path) as file:
            return _scan(path, file, max_pixels)
    except (SlideError, NotHereError, ImportError):
        raise
    except Exception as error:  # damaged headers make tifffile raise nearly any type
        raise SlideError(path, f"not a readable TIFF, truncated or damaged: {error or type(error).__name__}") from error


def _scan(path: Path, file: Any, max_pixels: int) -> Layout:
    vendor = tiff_words.vendor(file)
    if vendor in tiff_words.LEFT_TO_OPENSLIDE:
        raise NotHereError(vendor)
    if not len(file.pages):
        raise SlideError(path, "a TIFF without a page: truncated")
    pages = [page.aspage() for page in file.pages]
    first = pages[0]
    if first.imagewidth * first.imagelength > max_pixels:
        size = f"{first.imagewidth}x{first.imagelength}"
        raise SlideError(path, f"declares {size} pixels, more than max_pixels={max_pixels:,}; raise it if that is true")
    problems: list[str] = []
    try:
        rasters = [_raster(file, first, problems)]
    except ValueError as error:
        raise SlideError(path, str(error)) from error
    associated: dict[str, Raster] = {}
    sub_pages = [page.aspage() for page in first.pages or ()]
    for page in [*sub_pages, *pages[1:]]:
        name = tiff_words.associated_name(page, vendor)
        try:
            raster = _raster(file, page, problems)
        except ValueError as error:
            problems.append(f"{_called(page, name)} is left out: {error}")
            continue
        if not name and _is_level(raster, rasters, first, page):
            rasters.append(raster)
        elif page not in sub_pages:
            name = name or ("thumbnail" if vendor == "aperio" and page.index == 1 else f"page {page.index}")
            associated.setdefault(name, raster)
    for level, raster in enumerate(rasters):
        lost = int(np.count_nonzero(raster.offsets + raster.counts > file.filehandle.size))
        if lost:
            problems.append(f"truncated: {lost} of {raster.offsets.size} tiles of level {level} lie beyond its end")
    mpp, magnification, found = tiff_words.scale(first, file, vendor)
    width, height = rasters[0].shown_size
    return Layout(
        reader="native",
        vendor=vendor,
        levels=levels_of(tuple(rasters)),
        rasters=tuple(rasters),
        associated=associated,
        mpp=(mpp[1], mpp[0]) if mpp and rasters[0].encoding.orientation >= 5 else mpp,
        magnification=magnification,
        bounds=(0, 0, width, height),
        problems=(*problems, *found),
    )


def _is_level(raster: Raster, levels: list[Raster], first: Any, page: Any) -> bool:
    """A smaller picture of the same field of view, tiled if the slide is, or said to be of reduced resolution."""
    base, (width, height) = levels[0], raster.shown_size
    full_width, full_height = base.shown_size
    if width >= levels[-1].shown_size[0] or raster.encoding.orientation != base.encoding.orientation:
        return False
    said = bool(page.tags.valueof(_SUBFILE, 0) & _REDUCED)
    if page.is_tiled != first.is_tiled or not (page.is_tiled or said):
        return False
    # Writers round sizes down, up, or to whole tiles of the level above.
    ratio = full_width / width
    return abs(full_height / ratio - height) <= max(2.0, 0.01 * height)


def _raster(file: Any, page: Any, problems: list[str]) -> Raster:
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
    needed = raster.rows * raster.columns
    if min(len(offsets), len(counts)) < needed:
        raise ValueError(f"lists {min(len(offsets), len(counts))} tiles where its size needs {needed}")
    if (counts < 0).any() or (offsets < 0).any():
        raise ValueError("its list of tiles is damaged")
    return Raster(
        page.imagewidth, page.imagelength, tile_width, tile_height, encoding, offsets[:needed], counts[:needed]
    )


def _encoding(file: Any, page: Any, problems: list[str]) -> Encoding:
    """How the page's tiles are to be read; ValueError with a reason for a page that cannot be."""
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
    if int(page.planarconfig) != 1 and samples > 1:
        raise ValueError("keeps its channels apart (planar); convert it to interleaved RGB")
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
    )


def _alpha(page: Any, samples: int) -> str:
    extra = tuple(int(kind) for kind in page.extrasamples)
    return {1: "premultiplied", 2: "straight"}.get(extra[-1] if extra and samples in (2, 4) else 0, "")


def _palette(page: Any) -> bytes:
    """TIFF's colour map: 16 bits, [3, 256], though some writers fill only the lower 8."""
    colours = np.asarray(page.colormap)
    return (colours if colours.max() < 256 else colours >> 8).astype(np.uint8).T.tobytes()


def _orientation(file: Any, page: Any, problems: list[str]) -> int:
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


def _called(page: Any, name: str) -> str:
    return name or f"page {page.index}"
