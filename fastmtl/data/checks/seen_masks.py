"""The masks of a data set and their values: of files, drawings, and a sample of the regions of mask slides."""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from ...errors import reason_of
from ..dataset import ImageSource, Region, Tile
from ..images.pictures import file_of, opened_image, read_encoded
from ..images.polygons import Polygons
from ..slides.errors import SlideError
from ..slides.opened import opened
from .mask_facts import MaskFacts, check_mode, count_mask, merged, recall

SAMPLE = 64
"""Number of regions to read of a mask slide: half of them evenly spread, half where it stores the most bytes."""

_TRANSPARENT = 240  # grey level of a transparent pixel of a slide


class SeenMask(NamedTuple):
    """A mask of a data set and its contents.

    Attributes:
        mask: the picture; for a mask slide or a file of polygons the first of its regions.
        tile: the first tile that it belongs to.
        facts: of all its regions together.
        wrong: why it cannot be a mask for any task; "" if it can.
    """

    mask: ImageSource
    tile: Tile
    facts: MaskFacts
    wrong: str = ""


def seen_masks(tiles: Iterable[Tile], column: str = "", *, sample: int | None = SAMPLE) -> list[SeenMask]:
    """The masks of `tiles` in their order: each file and drawing, and each mask slide and file of polygons once.

    Files and drawings are counted in full (`check_tiles` has already done so), mask slides by `sample` regions.

    Args:
        tiles: with readable files.
        column: of pictures; "" is the tiles' own masks.
        sample: number of regions of a mask slide; None reads all.
    """
    groups: dict[Hashable, list[tuple[Tile, ImageSource]]] = {}
    for tile in tiles:
        picture = tile.values.get(column) if column else tile.mask
        if picture is not None:
            groups.setdefault(_whole(picture, tile), []).append((tile, picture))
    known = {key: recall(group[0][1]) if len(group) == 1 else None for key, group in groups.items()}
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # only unknown masks are worth a thread
        others = pool.map(
            lambda key: _seen(groups[key], sample), [key for key, facts in known.items() if facts is None]
        )
        return [
            next(others) if (facts := known[key]) is None else SeenMask(picture, tile, facts)
            for key, ((tile, picture), *_) in groups.items()
        ]


def values_of(masks: Sequence[SeenMask], channel: int | None = None) -> set[int]:
    """All values of any mask, or of one channel of coloured ones."""
    found = [
        one.values if channel is None or len(one.pixels) == 1 else one.values[one.plane(channel) > 0]
        for one in (mask.facts for mask in masks)
    ]
    return set(np.unique(np.concatenate(found)).tolist())


def _whole(picture: ImageSource, tile: Tile) -> Hashable:
    """A key shared by tiles with the same mask slide or file of polygons; else the tile's id."""
    if isinstance(picture, Region):
        return picture.slide, picture.level
    if isinstance(picture, Polygons):
        return file_of(picture)
    return tile.id


def _seen(group: Sequence[tuple[Tile, ImageSource]], sample: int | None) -> SeenMask:
    tile, picture = group[0]
    if not isinstance(picture, Region):
        return SeenMask(picture, tile, merged([count_mask(one) for _, one in group]))
    try:
        return SeenMask(picture, tile, _of_slide([one for _, one in group if isinstance(one, Region)], sample))
    except ValueError as error:
        return SeenMask(picture, tile, merged([]), str(error))


def _of_slide(regions: Sequence[Region], sample: int | None) -> MaskFacts:
    """Of the regions of a mask slide, all of one level.

    Raises:
        ValueError: why the slide is no mask.
    """
    slide = opened(regions[0].slide)
    if slide.vendor == "image":  # a PNG or JPEG file is decoded in one piece anyway
        with opened_image(read_encoded(slide.path)) as image:
            check_mode(image)
        return count_mask(slide.path)
    others = [problem for problem in slide.problems if problem.startswith("holds ")]  # planes, channels, stacks
    if others:
        raise ValueError(f"{others[0]}; save the mask as one picture")
    if sample is None or len(regions) <= sample:
        facts = merged(_readable(regions))
    else:
        step = -(-len(regions) // (sample // 2))
        largest = np.argsort(-slide.stored_bytes(regions), kind="stable")[: sample // 2].tolist()
        facts = merged(_readable(regions[::step]), _readable([regions[number] for number in largest]), is_sample=True)
    encoding = slide.encoding(regions[0].level)
    if encoding is not None and encoding.alpha and _TRANSPARENT in facts.values:
        raise ValueError("has transparent parts, which are read as grey 240; save it as 8-bit grey without alpha")
    return facts


def _readable(regions: Sequence[Region]) -> list[MaskFacts]:
    """The contents of undamaged regions; the loader quarantines the others."""
    found = []
    for region in regions:
        try:
            found.append(count_mask(region))
        except (OSError, SlideError, ValueError) as error:
            reason_of(error)  # raises errors that are not about the slide
    return found
