"""Group the pages of a TIFF into pictures: colour planes, resolutions, and ignored pages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from . import tiff_metadata

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPage, TiffPageSeries

_SUBFILE, _REDUCED = 254, 1
_STACKED = ("ome", "imagej")  # kinds of series that say what their pages are to one another


@dataclass
class Picture:
    """One picture.

    Attributes:
        levels: pages of each resolution that the file declares to belong together, finest first: red, green, blue (and
            alpha) if each has its own page, else one.
        name: "label", "macro", "thumbnail", "overview" if the file declares it, else "".
        called: its name in messages.
        image: its number among OME's images; -1 if OME does not list it.
        notes: its ignored parts, in words.
        refused: why it cannot be read, if known.
    """

    levels: list[tuple[TiffPage, ...]]
    name: str
    called: str
    image: int = -1
    notes: list[str] = field(default_factory=list)
    refused: str = ""

    @property
    def page(self) -> TiffPage:
        return self.levels[0][0]

    @property
    def size(self) -> tuple[int, int]:
        return self.page.imagewidth, self.page.imagelength

    @property
    def is_reduced(self) -> bool:
        """Whether it is marked as a picture of reduced resolution."""
        return bool(self.subfile & _REDUCED)

    @property
    def subfile(self) -> int:
        """NewSubfileType."""
        return int(self.page.tags.valueof(_SUBFILE, 0))


def pictures_of(file: TiffFile, vendor: str) -> list[Picture]:
    """All pictures of a `tifffile.TiffFile`, in its order."""
    found = [
        _of_series(file, series, number)
        for number, series in enumerate(file.series if file.is_ome or file.is_imagej else ())
        if series.kind in _STACKED and series.pages[0] is not None
    ]
    told = {page.index for series in file.series for page in series.pages if page is not None} if found else set()
    for page in file.pages:
        if page.index not in told:
            page = page.aspage()
            name = tiff_metadata.associated_name(page, vendor)
            levels = [(page,), *((each.aspage(),) for each in page.pages or ())]
            found.append(Picture(levels, name, _called(page, name)))
    return found


def main_of(pictures: Sequence[Picture]) -> Picture:
    """The slide: the largest picture without another name; a tiled one if the first is tiled."""
    candidates = [one for one in pictures if not one.name] or list(pictures)
    if pictures[0].page.is_tiled:
        candidates = [one for one in candidates if one.page.is_tiled] or candidates
    return max(candidates, key=lambda one: prod(one.size))


def stacked_with(main: Picture, pictures: Sequence[Picture]) -> list[Picture]:
    """Other pictures of the same size and kind that nothing distinguishes: colour planes, focal planes, times."""

    def kind(one: Picture) -> tuple[object, ...]:
        return one.size, one.page.samplesperpixel, one.page.is_tiled, one.name, one.is_reduced

    return [one for one in pictures if one is not main and kind(one) == kind(main)]


def _of_series(file: TiffFile, series: TiffPageSeries, number: int) -> Picture:
    """The picture of a series of pages: the first focal plane and time, all colour planes."""
    first = _page(series, 0)
    is_ome = series.kind == "ome"
    name = tiff_metadata.name_in(series.name) if is_ome else ""
    picture = Picture([], name, _called(first, series.name), number if is_ome else -1)
    depth = max(len(series.axes) - len(first.axes), 0)
    axes, counts = series.axes[:depth], series.shape[:depth]
    place: list[int | list[int]] = [0] * depth
    for at, (axis, count) in enumerate(zip(axes, counts, strict=True)):
        names = _names(file, series, number, count)
        if first.samplesperpixel == 1 and (planes := tiff_metadata.colour_planes(names)) is not None:
            place[at] = planes
        elif axis == "C":
            listed = ", ".join(str(each) for each in names if isinstance(each, str) and each)
            picture.refused = (
                f"holds {count} channels{f' ({listed[:80]})' if listed else ''}, not declared as red, green and blue; "
                "save it as one RGB picture"
            )
        else:
            what = {"Z": "focal planes", "T": "times"}.get(axis, "pictures of one size")
            picture.notes.append(f"holds {count} {what}: the first is read, the others are set aside")
    numbers = np.atleast_1d(np.arange(prod(counts)).reshape(counts)[tuple(place)]).tolist()
    if max(numbers) >= len(series.pages) or any(series.pages[each] is None for each in numbers):
        numbers, picture.refused = [0], picture.refused or "lacks pages that its description names"
    for level in series.levels:
        picture.levels.append(tuple(_page(level, each) for each in numbers))
    return picture


def _page(series: TiffPageSeries, number: int) -> TiffPage:
    page = series.pages[number]
    if page is None:
        raise ValueError(f"lacks page {number} of {series.name}")
    return page.aspage()


def _names(file: TiffFile, series: TiffPageSeries, number: int, count: int) -> list[str | int | None]:
    """Names or else colours of `count` planes; [] if unknown."""
    if series.kind == "ome":
        channels = tiff_metadata.ome_channels(file.ome_metadata or "", number)
        names: list[str | int | None] = [name for name, _ in channels]
        if channels and not any(names):
            names = [colour for _, colour in channels]
    else:
        names = list((file.imagej_metadata or {}).get("Labels") or ())
    return names if len(names) == count and None not in names else []


def _called(page: TiffPage, name: str) -> str:
    words = f", {name[:40]!r}" if name else ""
    return f"page {page.index} ({page.imagewidth}x{page.imagelength}{words})"
