"""Scan a TIFF: find the slide, its levels, its associated images, and the pictures to ignore."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...utils.optional_imports import require
from . import tiff_metadata
from .empty_tiles import said_of_empty
from .errors import SlideError
from .raster import Layout, Raster, levels_of
from .scale import Scale, aperio_scale, first_of, ome_scale, tag_scale
from .tiff_pictures import Picture, main_of, pictures_of, stacked_with
from .tiff_raster import placed_levels, raster_of
from .vendors import ARRANGE
from .vendors.arranged import DECLARATIONS, NotHereError
from .vendors.hamamatsu import has_wide_offsets

if TYPE_CHECKING:
    from tifffile import TiffFile

TIFF_SIGNATURES = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
"""First bytes of TIFF and BigTIFF, little and big endian."""
_MAX_PAGES = 10_000


def scan_tiff(path: Path, max_pixels: int) -> Layout:
    """Read all headers of a TIFF and none of its pixels.

    Raises:
        SlideError: damaged, larger than `max_pixels` at level 0, or of an unsupported kind; the message says which.
        NotHereError: OpenSlide should read it.
    """
    tifffile = require("tifffile", "opening TIFF slides")
    try:
        with path.open("rb") as stream:
            kind = {"is_ndpi": True} if has_wide_offsets(stream) else {}
            with tifffile.TiffFile(stream, _multifile=False, **kind) as file:
                return _scan(path, file, max_pixels)
    except (SlideError, NotHereError, ImportError):
        raise
    except Exception as error:  # damaged headers make tifffile raise nearly any type
        raise SlideError(path, f"not a readable TIFF, truncated or damaged: {error or type(error).__name__}") from error


def _scan(path: Path, file: TiffFile, max_pixels: int) -> Layout:
    if _is_longer(file, _MAX_PAGES):
        raise SlideError(path, f"has more than {_MAX_PAGES:,} pages, which no slide has")
    if len(file.pages) and any(words in file.pages.first.description for words in DECLARATIONS):
        raise SlideError(path, "its description declares a document type or entities, which no slide needs")
    vendor = tiff_metadata.vendor(file)
    if vendor in tiff_metadata.LEFT_TO_OPENSLIDE:
        raise NotHereError(vendor)
    if not len(file.pages):
        raise SlideError(path, "a TIFF without a page: truncated")
    if vendor in ARRANGE:
        return _arranged(path, file, vendor, max_pixels)
    pictures = pictures_of(file, vendor)
    main = main_of(pictures)
    _check_size(path, *main.size, max_pixels)
    problems: list[str] = []
    try:
        base = raster_of(file, main.levels[0], problems)
        problems += _kept_of(main, pictures)
    except ValueError as error:
        raise SlideError(path, str(error)) from error
    rasters: list[Raster] = [base]
    associated: dict[str, Raster] = {}
    for picture in pictures:
        for pages in picture.levels[1:] if picture is main else picture.levels[:1]:
            try:
                raster = raster_of(file, pages, problems)
            except ValueError as error:
                problems.append(f"{picture.name or f'page {pages[0].index}'} is left out: {error}")
                continue
            same_view = _has_same_view(raster, base)
            name = picture.name or _guessed_name(picture, main, vendor, same_view)
            if same_view and _is_level(picture, raster, main, base):
                rasters.append(raster)
            elif picture is main:
                size = f"{raster.width}x{raster.height}"
                problems.append(f"a level of {size} is left out: it does not show the slide's view")
            else:
                associated.setdefault(name or f"page {picture.page.index}", raster)
                if not name:
                    problems.append(f"{picture.called} is set aside: neither a level of the slide nor known by a name")
    rasters = _distinct(rasters, problems)
    if vendor == "aperio":
        _spread_empty(rasters)
    damage = _truncated(file, rasters)
    problems += said_of_empty(rasters)
    scale = _scale(file, main, vendor)
    turned = base.encoding.orientation >= 5
    return Layout(
        reader="native",
        vendor=vendor,
        levels=levels_of(tuple(rasters)),
        rasters=tuple(rasters),
        associated=associated,
        mpp=(scale.mpp[1], scale.mpp[0]) if scale.mpp and turned else scale.mpp,
        mpp_source=scale.source,
        why_no_mpp=scale.why_no_mpp,
        magnification=scale.magnification,
        bounds=(0, 0, *base.shown_size),
        damage=damage,
        problems=(*([damage] if damage else []), *problems, *scale.said),
    )


def _check_size(path: Path, width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        size = f"{width}x{height}"
        raise SlideError(path, f"declares {size} pixels, more than max_pixels={max_pixels:,}; raise it if that is true")


def _arranged(path: Path, file: TiffFile, vendor: str, max_pixels: int) -> Layout:
    """A file whose vendor's metadata say what its pages are."""
    found, problems = ARRANGE[vendor](file), list[str]()
    first = found.levels[0] if isinstance(found.levels[0], Raster) else found.levels[0][1]
    _check_size(path, first.width, first.height, max_pixels)
    try:
        rasters = placed_levels(file, found.levels, problems)
    except ValueError as error:
        raise NotHereError(str(error)) from error
    associated: dict[str, Raster] = {}
    for name, page in found.associated.items():
        try:
            associated[name] = page if isinstance(page, Raster) else raster_of(file, (page,), problems)
        except ValueError as error:
            problems.append(f"{name} is left out: {error}")
    damage = _truncated(file, rasters)
    problems += said_of_empty(rasters)
    levels = levels_of(tuple(rasters))
    return Layout(
        reader="native",
        vendor=vendor,
        levels=levels,
        rasters=tuple(rasters),
        associated=associated,
        mpp=found.scale.mpp,
        mpp_source=found.scale.source,
        why_no_mpp=found.scale.why_no_mpp,
        magnification=found.scale.magnification,
        bounds=found.bounds or (0, 0, levels[0].width, levels[0].height),
        damage=damage,
        problems=(*([damage] if damage else []), *problems, *found.scale.said),
    )


def _is_longer(file: TiffFile, most: int) -> bool:
    """Whether the file has more than `most` pages. Counted here, because tifffile takes minutes for so many."""
    handle, tiff = file.filehandle, file.tiff

    def number(at: int, form: str, size: int) -> int:
        handle.seek(at)
        data = handle.read(size)
        return struct.unpack(form, data)[0] if len(data) == size else 0

    seen: set[int] = set()
    page = number(8 if tiff.is_bigtiff else 4, tiff.offsetformat, tiff.offsetsize)
    while page and page not in seen and len(seen) <= most:
        seen.add(page)
        tags = number(page, tiff.tagnoformat, tiff.tagnosize)
        page = number(page + tiff.tagnosize + tags * tiff.tagsize, tiff.offsetformat, tiff.offsetsize)
    return len(seen) > most


def _kept_of(main: Picture, pictures: list[Picture]) -> list[str]:
    """Notes on pictures ignored in favour of the slide; ValueError if they may be its colour planes."""
    if main.refused:
        raise ValueError(main.refused)
    notes = list(main.notes)
    if main is not pictures[0]:
        notes.append(f"{pictures[0].called} comes first and is set aside: {main.called} is the largest, and is read")
    alike = stacked_with(main, pictures)
    if alike and main.page.samplesperpixel == 1 and len(alike) in (2, 3):
        raise ValueError(
            f"holds {len(alike) + 1} grey pages of one size, which may be its colours; save them as one RGB picture, "
            "or the page that is meant by itself"
        )
    if alike:
        pictures[:] = [one for one in pictures if one not in alike]
        notes.append(f"holds {len(alike) + 1} pictures of its size: {main.called} is read, the others are set aside")
    return notes


def _has_same_view(raster: Raster, base: Raster) -> bool:
    """Whether it can be the same field of view, smaller. Writers round sizes down, up, or to whole tiles of the level
    above."""
    (width, height), (full_width, full_height) = raster.shown_size, base.shown_size
    if width > full_width or raster.encoding.orientation != base.encoding.orientation:
        return False
    return abs(full_height * width / full_width - height) <= max(2.0, 0.01 * height)


def _is_level(picture: Picture, raster: Raster, main: Picture, base: Raster) -> bool:
    """Whether a smaller picture of the same view is a level: marked as reduced, or tiled if the slide is tiled."""
    if picture.name or raster.shown_size == base.shown_size:
        return False
    if picture is main:
        return True
    tiled = picture.page.is_tiled
    told = picture.is_reduced or (tiled and picture.image < 0)  # another image of OME is no level
    return tiled == main.page.is_tiled and told


def _guessed_name(picture: Picture, main: Picture, vendor: str, same_view: bool) -> str:
    if vendor == "aperio" and picture.page.index == 1:
        return "thumbnail"
    return (
        "" if picture.page.is_tiled and main.page.is_tiled else tiff_metadata.name_by_kind(picture.subfile, same_view)
    )


def _distinct(rasters: list[Raster], problems: list[str]) -> list[Raster]:
    """The levels, finest first; of several levels of one size only the first."""
    kept: list[Raster] = []
    for raster in sorted(rasters, key=lambda raster: -raster.shown_size[0]):
        if kept and raster.shown_size[0] == kept[-1].shown_size[0]:
            problems.append(f"has a second level of {raster.shown_size[0]} pixels width: it is set aside")
        else:
            kept.append(raster)
    return kept


def _spread_empty(rasters: list[Raster]) -> None:
    """Aperio sometimes writes empty tiles as corrupt data: treat them as empty, as OpenSlide does, and draw them from
    the finer level."""
    for number in range(1, len(rasters)):
        finer, raster = rasters[number - 1], rasters[number]
        rows, columns = np.nonzero(~finer.stored)
        if len(rows):
            down, across = max(1, round(finer.rows / raster.rows)), max(1, round(finer.columns / raster.columns))
            stored = raster.stored.copy()
            stored[np.minimum(rows // down, raster.rows - 1), np.minimum(columns // across, raster.columns - 1)] = False
            counts = np.where(np.tile(stored.ravel(), raster.encoding.planes), raster.counts, 0)
            rasters[number] = replace(raster, counts=counts)


def _truncated(file: TiffFile, rasters: list[Raster]) -> str:
    """The parts of the levels, or of the list of pages, that lie beyond the end of the file; "" if it is complete."""
    size, found = file.filehandle.size, []
    for level, raster in enumerate(rasters):
        if lost := int(np.count_nonzero((raster.counts > 0) & (raster.counts > size - raster.offsets))):
            found.append(f"{lost} of {raster.offsets.size} tiles of level {level}")
    file.filehandle.seek(file.pages.next_page_offset or size)  # where the last page says where the next one is
    number = file.filehandle.read(file.tiff.offsetsize)
    if len(number) == file.tiff.offsetsize and struct.unpack(file.tiff.offsetformat, number)[0] >= size:
        found.append(f"the pages after the first {len(file.pages)}")
    return f"truncated: {', '.join(found)} lie beyond its end; copy it again" if found else ""


def _scale(file: TiffFile, main: Picture, vendor: str) -> Scale:
    if vendor == "aperio":
        return aperio_scale(main.page.description)
    ome = [ome_scale(file.ome_metadata, main.image, main.size)] if vendor == "ome" and file.ome_metadata else []
    unit = str((file.imagej_metadata or {}).get("unit", "")) if file.is_imagej else ""
    return first_of([*ome, tag_scale(main.page, unit)])
