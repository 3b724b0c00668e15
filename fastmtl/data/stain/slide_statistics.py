"""Stain statistics of a slide, counted once for all runs: kept beside its index."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import astuple
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from ...errors import UserError
from ..dataset import ImageSource, Region
from ..images.pictures import open_picture
from ..slides.index import Identity, identify, index_path
from .files import StainFileError
from .statistics import StainStatistics, collected


def slide_statistics(pictures: Sequence[ImageSource], convention: str = "torchstain") -> StainStatistics:
    """The colours of pictures of one slide (or patient); what cannot be read is left out.

    Where all are regions of one slide that has an index (`index_slide`, `fastmtl prepare`), the counts are kept beside
    it, in NAME.stain.npz, and taken from there as long as the slide, the regions and the convention stay the same.

    Args:
        pictures: RGB; each may have a size of its own.
        convention: as in `StainStatistics`.

    Raises:
        SlideError: the slide is not there.
    """
    regions = [one for one in pictures if isinstance(one, Region)]
    slides = {region.slide for region in regions}
    if len(slides) != 1 or len(regions) < len(pictures):
        return collected(_readable(pictures), convention)
    slide = slides.pop()
    identity = identify(slide)
    index = index_path(slide, identity)
    path, source = index.with_suffix(".stain.npz"), _digest(identity, regions, convention)
    with suppress(StainFileError):  # not there, of something else, damaged: as good as none
        return StainStatistics.load(path, source)
    unread: list[ImageSource] = []
    statistics = collected(_readable(pictures, unread), convention)
    if index.exists() and not unread:  # a disk that failed today would thin out the counts for ever
        with suppress(OSError):  # a folder that cannot be written to costs the next run another look
            statistics.save(path, source)
    return statistics


def _digest(identity: Identity, regions: Sequence[Region], convention: str) -> str:
    """All that the counts depend on; not where the slide lies, since folders move."""
    places = [astuple(region)[1:] for region in regions]
    return blake2b(repr((astuple(identity), places, convention)).encode(), digest_size=16).hexdigest()


def _readable(pictures: Sequence[ImageSource], unread: list[ImageSource] | None = None) -> Iterator[NDArray[np.uint8]]:
    """Those that can be read; the others go to `unread`."""
    for picture in pictures:
        try:
            pixels = open_picture(picture)
        except (OSError, ValueError, UserError):  # the loader sets it aside and says why
            if unread is not None:
                unread.append(picture)
            continue
        yield pixels
