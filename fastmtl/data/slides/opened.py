"""Slides that are open in this process: manifests, checks, pictures and loaders share them."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from threading import RLock

from ..dataset import Region
from ..identifiers import near_file
from .slide import Slide, open_slide

_MOST_OPEN = 128  # each about a megabyte of tile offsets
_lock = RLock()  # several threads may want a slide that takes seconds to scan: one of them opens it


class UnreadableSlideError(ValueError):
    """A slide cannot be opened."""


def opened(slide: Path, place: str = "", mpp: float | None = None) -> Slide:
    """The slide, opened once until its file changes.

    Args:
        slide: its file.
        place: where it is named, such as a manifest's line; errors begin with it.
        mpp: micrometres per pixel of level 0, where a manifest gives them.

    Raises:
        UnreadableSlideError: the slide cannot be opened.
    """
    try:
        state = slide.stat()
        with _lock:
            return _open(slide, state.st_mtime_ns, state.st_size, mpp)
    except FileNotFoundError:
        raise UnreadableSlideError(f"{place}: {slide} does not exist{near_file(slide)}".removeprefix(": ")) from None
    except Exception as error:  # readers of slides raise many types, and each means the same here
        raise UnreadableSlideError(f"{place}: {error}".removeprefix(": ")) from error


def forget_opened() -> None:
    """Open all slides again on their next use: those opened before they were indexed do not know their index."""
    _open.cache_clear()


@lru_cache(_MOST_OPEN)
def _open(slide: Path, _mtime: int, _size: int, mpp: float | None) -> Slide:
    return open_slide(slide, mpp=mpp)


def downsample_of(region: Region) -> float:
    """Level-0 pixels per pixel of the region."""
    return float(opened(region.slide).levels[region.level].downsample) if region.level else 1.0


def slide_size(slide: Path) -> tuple[int, int]:
    """(width, height) of level 0."""
    level = opened(slide).levels[0]
    return level.width, level.height


def damage_of(slide: Path, mpp: float | None = None) -> list[str]:
    """The slide's problems except those that are errors elsewhere: damage, and no mpp where one is needed."""
    source = opened(slide, mpp=mpp)
    return [problem for problem in source.problems if problem not in (source.why_no_mpp, source.damage)]
