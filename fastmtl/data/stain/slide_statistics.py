"""Stain statistics of a slide, computed once and cached beside its index."""

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
from ..slides.identity import Identity, identify
from ..slides.index import index_path
from .files import StainFileError
from .statistics import StainStatistics, collected


def slide_statistics(pictures: Sequence[ImageSource], convention: str = "torchstain") -> StainStatistics:
    """The colour statistics of pictures of one slide (or patient); unreadable pictures are skipped.

    If all are regions of one slide with an index (`index_slide`, `fastmtl prepare`), the counts are cached beside the
    index in NAME.stain.npz and reused until the slide, the regions or the convention change.

    Args:
        pictures: RGB; sizes may differ.
        convention: as in `StainStatistics`.

    Raises:
        SlideError: the slide does not exist.
    """
    regions = [one for one in pictures if isinstance(one, Region)]
    slides = {region.slide for region in regions}
    if len(slides) != 1 or len(regions) < len(pictures):
        return collected(_readable(pictures), convention)
    slide = slides.pop()
    identity = identify(slide)
    index = index_path(slide, identity)
    path, source = index.with_suffix(".stain.npz"), _digest(identity, regions, convention)
    with suppress(StainFileError):  # missing, damaged or of other data: recompute
        return StainStatistics.load(path, source)
    unread: list[ImageSource] = []
    statistics = collected(_readable(pictures, unread), convention)
    if index.exists() and not unread:  # do not cache incomplete counts after a read error
        with suppress(OSError):  # in a read-only folder the next run computes them again
            statistics.save(path, source)
    return statistics


def _digest(identity: Identity, regions: Sequence[Region], convention: str) -> str:
    """Everything that the counts depend on; without the slide's folder, which may move."""
    places = [astuple(region)[1:] for region in regions]
    return blake2b(repr((astuple(identity), places, convention)).encode(), digest_size=16).hexdigest()


def _readable(pictures: Sequence[ImageSource], unread: list[ImageSource] | None = None) -> Iterator[NDArray[np.uint8]]:
    """The readable pictures; the others are added to `unread`."""
    for picture in pictures:
        try:
            pixels = open_picture(picture)
        except (OSError, ValueError, UserError):  # the loader sets it aside and says why
            if unread is not None:
                unread.append(picture)
            continue
        yield pixels
