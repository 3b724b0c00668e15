"""Philips TIFF: levels are padded to whole tiles, and the XML gives their true scales; tiles between several scanned
parts do not exist at any level and are background."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.etree.ElementTree import Element

from ..raster import Placement
from ..scale import believed, number
from .arranged import Arranged, NotHereError, need, parsed

if TYPE_CHECKING:
    from tifffile import TiffFile

_REDUCED = 1  # NewSubfileType
_HIGHEST_POWER = 200  # "levels=" begins with the objective's, or with a number above ten thousand


def arrange_philips(file: TiffFile) -> Arranged:
    """Raises NotHereError for files that OpenSlide should read, or refuse."""
    root = parsed(file.pages.first.description)
    need((root.tag, root.get("ObjectType")) == ("DataObject", "DPUfsImport"), "its XML is of another kind")
    scans = [scan for scan in root.findall(f"{_named('PIM_DP_SCANNED_IMAGES')}/Array/DataObject") if _is_slide(scan)]
    need(len(scans) == 1, f"it holds {len(scans)} slides")
    own = scans[0].findtext(_named("DICOM_PIXEL_SPACING"))
    told = scans[0].findall(
        f"{_named('PIIM_PIXEL_DATA_REPRESENTATION_SEQUENCE')}/Array/DataObject[@ObjectType='PixelDataRepresentation']/"
        + _named("DICOM_PIXEL_SPACING")
    )
    pages = [page.aspage() for page in file.pages]
    tiled = [page for page in pages if page.is_tiled]
    spacings = [_spacing(node.text or "") for node in told]
    need(tiled and len(spacings) == len(tiled), f"it has {len(tiled)} levels and {len(spacings)} scales of levels")
    full = tiled[0].imagewidth, tiled[0].imagelength
    levels = [(tiled[0], Placement(0, 0, *full))]
    for page, before, spacing in zip(tiled[1:], tiled, spacings[1:], strict=False):
        shrinks = page.imagewidth <= before.imagewidth and page.imagelength <= before.imagelength
        need(int(page.tags.valueof(254, 0)) & _REDUCED and shrinks, "its pages are not ordered as levels")
        downsample = round(sum(own / first for own, first in zip(spacing, spacings[0], strict=True)) / 2)
        need(downsample >= 1, "a level is finer than the first")
        size = full[0] // downsample, full[1] // downsample
        levels.append((page, Placement(0, 0, *size, float(downsample))))
    mpp = tuple(1000 * side for side in (_spacing(own) if own else spacings[0]))
    scale = believed((mpp[0], mpp[1]), "description", "Philips's DICOM_PIXEL_SPACING", _power(scans[0]))
    names = {page.description[:5].lower(): page for page in reversed(pages) if not page.is_tiled}
    return Arranged(levels, scale, {name: names[name] for name in ("label", "macro") if name in names})


def _named(name: str) -> str:
    return f"Attribute[@Name='{name}']"


def _is_slide(scan: Element) -> bool:
    return (scan.findtext(_named("PIM_DP_IMAGE_TYPE")) or "").strip() == "WSI"


def _spacing(text: str) -> tuple[float, float]:
    """Millimetres between columns and between rows, of a text such as '"0.00025" "0.00025"' (rows come first)."""
    found = [number(part.strip('" ')) for part in text.split()]
    if len(found) != 2 or found[0] is None or found[1] is None or min(found[0], found[1]) <= 0:
        raise NotHereError(f"a scale is {text[:40]!r}")
    return found[1], found[0]


def _power(scan: Element) -> float | None:
    """The objective's, from a derivation such as "tiff-useBigTIFF=1-levels=20,10003,10002-..."."""
    for item in (scan.findtext(_named("DICOM_DERIVATION_DESCRIPTION")) or "").split("-"):
        key, _, value = item.partition("=")
        if key == "sourceFilename":  # may hold anything
            break
        if key == "levels":
            first = number(value.split(",")[0])
            return first if first and 0 < first <= _HIGHEST_POWER else None
    return None
