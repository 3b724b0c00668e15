"""Scan a slide once and store its index."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from .errors import DamagedPieceError, in_words
from .identity import identify
from .index import SlideIndex, load_index, save_index
from .remote.path import slide_path
from .scan import MAX_PIXELS, scan
from .slide import Slide
from .thumbnail import find_tissue


def index_slide(
    path: str | Path, *, index_folder: str | Path | None = None, max_pixels: int = MAX_PIXELS, force: bool = False
) -> SlideIndex:
    """Scan a slide, find its tissue and store both in a file for `open_slide`; if that file is valid, return it.

    Tiles that cannot be read while tissue is searched are counted in the layout's problems.

    Args:
        path: the slide, or its URL; the index of a slide on a server is a file of this computer.
        index_folder: the file's folder, required if the slide's is read-only; by default that of `use_index_folder`,
            else `.fastmtl` beside the slide.
        max_pixels: a level 0 that declares more is refused unread.
        force: scan even if there is a valid file.

    Raises:
        SlideError: as `open_slide`; also if the file cannot be written.
        ImportError: as `open_slide`.
    """
    path = slide_path(path)
    known = None if force else load_index(path, index_folder)
    if known is not None:
        return known
    identity, layout = identify(path), scan(path, max_pixels)
    damage: list[DamagedPieceError] = []
    with Slide(path, SlideIndex(identity, layout)) as slide:
        tissue = find_tissue(slide, damage)
        _try_first_tiles(slide, damage)
    layout = replace(layout, problems=(*layout.problems, *in_words(damage)))
    index = SlideIndex(identity, layout, tissue)
    save_index(index, path, index_folder)
    return index


def _try_first_tiles(slide: Slide, damage: list[DamagedPieceError]) -> None:
    """Find levels whose tiles no decoder reads, by their first tile."""
    met = {error.coordinate for error in damage}
    for number, level in enumerate(slide.levels):
        try:
            slide.read_region(0, 0, min(level.tile_width, level.width), min(level.tile_height, level.height), number)
        except DamagedPieceError as error:
            if error.coordinate not in met:
                damage.append(error)
