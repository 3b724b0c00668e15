"""Ventana BIF and TIFF: levels are marked "level=N mag=M", and level 0 may hold scanned areas of overlapping tiles.

Files without areas, and those of one area whose tiles do not overlap (as the DP 200 writes), are tiled images like any
other. Overlapping tiles and several areas are left to OpenSlide, which composes them.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import TYPE_CHECKING
from xml.etree.ElementTree import Element

from ..raster import Placement
from ..scale import believed, number
from .arranged import Arranged, NotHereError, need, parsed, whole

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPage

_XMP = 700
_LEVEL = re.compile(r"(?:^| )level=(\d+)(?: |$)")
_POWER = re.compile(r"(?:^| )mag=([0-9.]+)(?: |$)")
_ASSOCIATED = {"Label Image": "macro", "Label_Image": "macro", "Thumbnail": "thumbnail"}  # it shows the whole glass


def arrange_ventana(file: TiffFile) -> Arranged:
    """Raises NotHereError for files that OpenSlide should read, or refuse."""
    pages = [page.aspage() for page in file.pages]
    root = parsed(_xmp(pages[0]))
    scan = root if root.tag == "iScan" else root.find("iScan")
    need(scan is not None, "its XML is of another kind")
    levels = [(page, _power(page)) for page in pages if "level=" in page.description]
    need(levels, "it has no levels")
    numbers = [int(found[1]) if (found := _LEVEL.search(page.description)) else -1 for page, _ in levels]
    powers = [power for _, power in levels]
    shrinks = all(finer > coarser for finer, coarser in pairwise(powers))
    need(numbers == list(range(len(levels))) and shrinks, "its levels are not ordered")
    first = levels[0][0]
    tile = first.tilewidth, first.tilelength
    need(all(page.is_tiled and (page.tilewidth, page.tilelength) == tile for page, _ in levels), "its tiles differ")
    area = _area(first) if _XMP in first.tags else None
    placed = [(page, _place(page, area, powers[0] / power)) for page, power in levels]
    words = scan.attrib if scan is not None else {}
    mpp, power = number(words.get("ScanRes", "")), number(words.get("Magnification", ""))
    scale = believed((mpp, mpp) if mpp else None, "description", "Ventana's ScanRes", power)
    names = {_ASSOCIATED[page.description]: page for page in reversed(pages) if page.description in _ASSOCIATED}
    return Arranged(placed, scale, {name: names[name] for name in ("macro", "thumbnail") if name in names})


def _place(page: TiffPage, area: tuple[int, int, int, int] | None, downsample: float) -> Placement:
    """Where a page lies in its level: from the corner without an area, else as far as the area's tiles reach."""
    if area is None:
        return Placement(0, 0, page.imagewidth, page.imagelength, downsample)
    left, top, columns, rows = area
    width, height = columns * page.tilewidth, rows * page.tilelength
    parts = [value / downsample for value in (left, top, width, height, page.tilewidth, page.tilelength)]
    need(all(part == int(part) for part in parts), "its areas do not begin at whole pixels of a level")
    x, y, w, h, *_ = map(int, parts)
    fits = page.imagewidth >= w and page.imagelength >= h
    need(fits, "a level holds fewer pixels than its area")
    return Placement(x, y, x + w, y + h, downsample)


def _area(page: TiffPage) -> tuple[int, int, int, int]:
    """Left and top edge in level-0 pixels, columns and rows of tiles of the only scanned area."""
    root = parsed(_xmp(page))
    infos, origins = root.findall("SlideStitchInfo/ImageInfo"), root.findall("AoiOrigin/*")
    need(root.tag == "EncodeInfo" and infos and len(infos) == len(origins), "its areas are not described")
    scanned = [both for both in zip(infos, origins, strict=True) if whole(both[0], "AOIScanned")]
    need(len(scanned) == 1, f"it has {len(scanned)} scanned areas")
    info, origin = scanned[0]
    need((whole(origin, "OriginX"), whole(origin, "OriginY")) == (0, 0), "its area does not begin at the first tile")
    size = whole(info, "Width"), whole(info, "Height")
    need(size == (page.tilewidth, page.tilelength), "its area has tiles of another size")
    columns, rows = whole(info, "NumCols"), whole(info, "NumRows")
    need(columns > 0 and rows > 0, "its area is empty")
    joints = info.findall("TileJointInfo")
    need(not any(_overlap(joint) for joint in joints), "its tiles overlap")
    named = [whole(joint, name) for joint in joints for name in ("Tile1", "Tile2")]
    need(all(0 < tile <= columns * rows for tile in named), "its joints name tiles that its area lacks")
    # OpenSlide spaces tiles by the mean overlap of such joints, and has none without them.
    certain = {joint.get("Direction") for joint in joints if whole(joint, "Confidence") > 0}
    need(certain == {"RIGHT", "UP"}, "its tiles' places are not certain")
    left = number(info.get("Pos-X", ""))
    need(left is not None and left >= 0, "its area has no place")
    return int(left or 0), 0, columns, rows


def _overlap(joint: Element) -> bool:
    return any(number(joint.get(name, "")) != 0 for name in ("OverlapX", "OverlapY"))


def _power(page: TiffPage) -> float:
    found = _POWER.search(page.description)
    power = number(found[1]) if found else None
    if not power:
        raise NotHereError("a level does not say its magnification")
    return power


def _xmp(page: TiffPage) -> str:
    data = page.tags.valueof(_XMP, b"")
    return data.decode("utf-8", "replace").rstrip("\0") if isinstance(data, bytes) else str(data)
