"""Open slides of this process, shared by manifests, checks, pictures and loaders."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from threading import RLock

from ..dataset import Region
from ..identifiers import near_file
from .dicom.instances import is_dicom
from .identity import kind_of
from .ome_zarr.metadata import described_by
from .remote.path import RemotePath
from .slide import Slide, open_slide

_MOST_OPEN = 128  # each about a megabyte of tile offsets
_lock = RLock()  # scanning may take seconds: one thread opens the slide, the others wait


class UnreadableSlideError(ValueError):
    """A slide cannot be opened."""


def opened(slide: Path, place: str = "", mpp: float | None = None) -> Slide:
    """The slide, opened once until its file changes.

    Args:
        slide: its file.
        place: source of the path, such as a manifest's line; errors begin with it.
        mpp: micrometres per pixel of level 0, if a manifest gives it.

    Raises:
        UnreadableSlideError: the slide cannot be opened.
    """
    try:
        is_store = isinstance(slide, RemotePath) and kind_of(slide) == "zarr"
        state = (described_by(slide) if is_store else slide).stat()
        with _lock:
            return _open(slide, state.st_mtime_ns, state.st_size, mpp)
    except FileNotFoundError:
        raise UnreadableSlideError(f"{place}: {slide} does not exist{near_file(slide)}".removeprefix(": ")) from None
    except Exception as error:  # readers of slides raise many types; all mean that the slide cannot be opened
        raise UnreadableSlideError(f"{place}: {error}".removeprefix(": ")) from error


def pixel_file(slide: Path) -> Path:
    """The file of a slide with its finest pixels: of several DICOM files the first of level 0; else, and if it cannot
    be opened, itself."""
    if isinstance(slide, RemotePath) or not (slide.is_dir() or is_dicom(slide)):
        return slide
    try:
        return opened(slide).pixel_file
    except UnreadableSlideError:
        return slide


def forget_opened() -> None:
    """Forget all open slides, so that those opened before indexing use their index when opened again."""
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
    """The slide's problems except those reported as errors elsewhere: damage, and a missing mpp."""
    source = opened(slide, mpp=mpp)
    return [problem for problem in source.problems if problem not in (source.why_no_mpp, source.damage)]
