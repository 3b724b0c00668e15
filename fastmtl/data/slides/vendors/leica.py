"""Leica SCN: a picture of the whole glass, and pyramids of its parts, placed on it in nanometres.

Level 0 is the whole glass at the pyramid's resolution, as in OpenSlide, so that annotations keep their places; outside
the pyramid it is background. Slides of several pyramids, or of fluorescence, are left to OpenSlide.
"""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING
from xml.etree.ElementTree import Element

from ..raster import Placement
from ..scale import believed, first_of, number, tag_scale
from .arranged import Arranged, NotHereError, need, parsed, whole

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPage

_BRIGHT = "brightfield"


def arrange_leica(file: TiffFile) -> Arranged:
    """Raises NotHereError for files that OpenSlide should read."""
    collection = parsed(file.pages.first.description).find("collection")
    need(collection is not None, "it has no collection")
    glass = whole(collection, "sizeX"), whole(collection, "sizeY")
    main, macro = [], []
    for image in collection if collection is not None else ():
        if image.tag == "image" and image.findtext("scanSettings/illuminationSettings/illuminationSource") == _BRIGHT:
            (macro if _view(image) == (0, 0, *glass) else main).append(image)
    need(len(main) == 1 and len(macro) <= 1, f"it has {len(main)} pyramids and {len(macro)} pictures of the glass")
    left, top, across, _ = _view(main[0])
    levels = []
    for page, width in _pages(file, main[0]):
        pixel = across / width  # nanometres
        size = ceil(glass[0] / pixel), ceil(glass[1] / pixel)
        levels.append((page, Placement(int(left / pixel), int(top / pixel), *size)))
    page, place = levels[0]
    objective = number(main[0].findtext("scanSettings/objectiveSettings/objective") or "")
    pixel = across / page.imagewidth / 1000
    scale = first_of([tag_scale(page), believed((pixel, pixel), "description", "Leica's sizes", objective)])
    return Arranged(
        levels,
        scale._replace(magnification=objective),
        {"macro": _pages(file, macro[0])[0][0]} if macro else {},
        (place.left, place.top, page.imagewidth, page.imagelength),
    )


def _view(image: Element) -> tuple[int, int, int, int]:
    """Left and top edge, width and height on the glass, nanometres."""
    view = image.find("view")
    x, y, width, height = (whole(view, name) for name in ("offsetX", "offsetY", "sizeX", "sizeY"))
    need(width > 0 and height > 0 and x >= 0 and y >= 0, "a picture has no extent")
    return x, y, width, height


def _pages(file: TiffFile, image: Element) -> list[tuple[TiffPage, int]]:
    """The pages of an image's first focal plane with their declared widths, finest first."""
    found = []
    for node in image.findall("pixels/dimension"):
        if node.get("z", "0") == "0":
            page = whole(node, "ifd")
            need(0 <= page < len(file.pages) and whole(node, "sizeX") > 0, f"its page {page} is absent")
            found.append((file.pages[page].aspage(), whole(node, "sizeX")))
    if not found or len({width for _, width in found}) < len(found):
        raise NotHereError("an image has no pages, or several of one size")
    return sorted(found, key=lambda one: -one[1])
