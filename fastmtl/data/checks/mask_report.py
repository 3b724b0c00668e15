"""What `examine` says of masks: the values they hold, how much is foreground by slide and by patient, which are nearly
empty. Every mask is read."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import reason_of
from ..dataset import Dataset, ImageSource, Problem, Region, Tile, maps_of
from ..images.pictures import file_of
from .damaged_tiles import named_file
from .mask_facts import MANY_VALUES, count_mask
from .mask_rules import MASK_THRESHOLD
from .seen_masks import seen_masks

NEAR_EMPTY = 0.001
"""A mask with some foreground, and less than this share of it, is nearly empty: a stray click rather than a lesion."""
_IGNORED = 255  # the usual index of pixels that count for no class


@dataclass
class _Masks:
    """The masks of a column, counted.

    Attributes:
        pixels: of each value, int64 [256].
        masks: that hold each value, int64 [256].
        kinds: the values of one mask, in words -> masks.
        seen: (tile, pixels not 0, pixels above the threshold, pixels that are 255, all pixels) of each mask.
        indices_beside_255: whether a mask holds class indices and 255.
    """

    pixels: NDArray[np.int64] = field(default_factory=lambda: np.zeros(256, np.int64))
    masks: NDArray[np.int64] = field(default_factory=lambda: np.zeros(256, np.int64))
    kinds: Counter[str] = field(default_factory=Counter)
    seen: list[tuple[Tile, int, int, int, int]] = field(default_factory=list)
    indices_beside_255: bool = False

    def add(self, tile: Tile, counts: NDArray[np.int64]) -> None:
        values = np.flatnonzero(counts).tolist()
        self.pixels += counts
        self.masks[values] += 1
        self.kinds[_kind(values)] += 1
        above = int(counts[MASK_THRESHOLD + 1 :].sum())
        self.seen.append((tile, int(counts[1:].sum()), above, int(counts[_IGNORED]), int(counts.sum())))
        small = [value for value in values if 0 < value <= MASK_THRESHOLD]
        is_indices = bool(small) and len(values) <= MANY_VALUES
        self.indices_beside_255 |= is_indices and [v for v in values if v > MASK_THRESHOLD] == [_IGNORED]

    @property
    def are_indices(self) -> bool:
        return self.indices_beside_255 or not self.masks[MASK_THRESHOLD + 1 :].any()

    def foreground(self) -> Iterator[tuple[Tile, int, int]]:
        """(tile, pixels of foreground, pixels that count) of each mask."""
        for tile, nonzero, above, ignored, total in self.seen:
            if self.are_indices:
                ignored = ignored if self.indices_beside_255 else 0
                yield tile, nonzero - ignored, total - ignored
            else:
                yield tile, above, total


def examine_masks(
    dataset: Dataset, bad: set[Path], num_threads: int
) -> tuple[dict[str, dict[str, Any]], list[Problem], list[Problem]]:
    """(column -> what its masks hold, notices, masks that cannot be read).

    What they hold: "masks", their number; "values", value -> {"share" of all pixels, "masks" that have it}; "kinds",
    the values of one mask in words -> masks; "foreground", what counts as such: "above 127" or "not 0", where they hold
    class indices; "share" of all pixels that is foreground; "slides" (of regions) and "patients", each name -> share;
    "empty" and "full", numbers of masks; "near_empty", tile id -> share, the emptiest first.

    Args:
        dataset: of which every tile's masks are read.
        bad: files known to be broken; masks of them and over them are passed over.
        num_threads: that read.
    """
    every = [
        (tile, column, picture)
        for tile in dataset.tiles
        for column, picture in maps_of(tile)
        if bad.isdisjoint((named_file(picture, tile.image), file_of(tile.image)))
    ]
    columns: dict[str, _Masks] = defaultdict(_Masks)
    broken = _no_masks(every)
    with ThreadPoolExecutor(num_threads) as pool:
        for (tile, column, picture), counts in zip(every, pool.map(lambda one: _counts(one[2]), every), strict=True):
            if isinstance(counts, str):
                where = named_file(picture, tile.image)
                broken.append(Problem(where, f"a mask of it cannot be read: {counts.removeprefix(f'{where}: ')}"))
            else:
                columns[column].add(tile, counts)
    found = {column: _described(masks) for column, masks in columns.items()}
    notices = [
        Problem(dataset.root, f"masks of column {column!r}: {reason}")
        for column, masks in columns.items()
        for reason in _odd(masks, found[column])
    ]
    firsts = {problem.path: problem for problem in reversed(broken)}
    return found, notices, list(firsts.values())


def _no_masks(every: Sequence[tuple[Tile, str, ImageSource]]) -> list[Problem]:
    """Mask slides that are no masks, whatever the task; of files and drawings `check_tiles` says so."""
    regions: dict[str, list[Tile]] = defaultdict(list)
    for tile, column, picture in every:
        if isinstance(picture, Region):
            regions[column].append(tile)
    seen = [one for column, tiles in regions.items() for one in seen_masks(tiles, "" if column == "mask" else column)]
    return [Problem(file_of(one.mask), f"cannot be used as a mask: {one.wrong}") for one in seen if one.wrong]


def _counts(picture: ImageSource) -> NDArray[np.int64] | str:
    """Pixels of each value, all channels together, int64 [256]; why not, where it cannot be read."""
    try:
        return count_mask(picture).counts
    except Exception as error:  # as for images: whatever a reader raises, it must not be trained on
        return reason_of(error)


def _kind(values: Sequence[int]) -> str:
    few = len(values) <= 8
    return ", ".join(map(str, values)) if few else f"more than 8 values, up to {values[-1]}"


def _described(masks: _Masks) -> dict[str, Any]:
    total = int(masks.pixels.sum())
    counted = list(masks.foreground())
    shares = {tile.id: inside / pixels if pixels else 0.0 for tile, inside, pixels in counted}
    near = {name: share for name, share in shares.items() if 0 < share < NEAR_EMPTY}
    return {
        "masks": len(counted),
        "values": {
            str(value): {"share": int(masks.pixels[value]) / total, "masks": int(masks.masks[value])}
            for value in np.flatnonzero(masks.masks).tolist()
        },
        "kinds": dict(masks.kinds.most_common()),
        "foreground": "not 0" if masks.are_indices else f"above {MASK_THRESHOLD}",
        "share": sum(inside for _, inside, _ in counted) / max(1, sum(pixels for _, _, pixels in counted)),
        "slides": _shares(counted, lambda tile: str(file_of(tile.image))) if _has_regions(counted) else {},
        "patients": _shares(counted, lambda tile: tile.group),
        "empty": sum(share == 0 for share in shares.values()),
        "full": sum(share == 1 for share in shares.values()),
        "near_empty": dict(sorted(near.items(), key=lambda item: item[1])),
    }


def _has_regions(counted: Sequence[tuple[Tile, int, int]]) -> bool:
    return any(isinstance(tile.image, Region) for tile, _, _ in counted)


def _shares(counted: Sequence[tuple[Tile, int, int]], name_of: Callable[[Tile], str]) -> dict[str, float]:
    """Share of foreground by name, the least first."""
    inside: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for tile, foreground, pixels in counted:
        inside[name_of(tile)] += foreground
        total[name_of(tile)] += pixels
    shares = {name: inside[name] / pixels if pixels else 0.0 for name, pixels in total.items()}
    return dict(sorted(shares.items(), key=lambda item: (item[1], item[0])))


def _odd(masks: _Masks, found: dict[str, Any]) -> Iterator[str]:
    """What a colleague would say before anything is trained on them."""
    if not masks.are_indices:
        low = [tile for tile, nonzero, above, _, _ in masks.seen if nonzero and not above]
        if low:
            yield (
                f"{len(low)} of {len(masks.seen)} have pixels that are not 0 and none above {MASK_THRESHOLD} (first "
                f"{low[0].id}): their foreground is ignored; were some saved as 0 and 1, others as 0 and 255?"
            )
    if not masks.masks[1:].any():
        yield "all are empty: every pixel is 0"
    elif found["full"] == len(masks.seen):
        yield "all are full: there is no background"
    near = found["near_empty"]
    if near:
        first, share = next(iter(near.items()))
        yield f"{len(near)} are nearly empty (below {NEAR_EMPTY:.1%} of the pixels), first {first} with {share:.2g}"
    for name, what in (("slides", "slide"), ("patients", "patient")):
        none = [one for one, share in found[name].items() if share == 0]
        if 0 < len(none) < len(found[name]):
            yield f"{len(none)} of {len(found[name])} {what}s have no foreground at all, {none[0]} for example"
