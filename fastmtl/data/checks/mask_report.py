"""The report of `examine` on masks: values, foreground per slide and per patient, nearly empty masks."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import reason_of
from ..dataset import Dataset, ImageSource, Problem, Region, Tile, maps_of
from ..images.pictures import file_of
from .damaged_tiles import named_file
from .mask_facts import MANY_VALUES, MaskFacts, count_mask, pixels_above, total_counts
from .mask_rules import MASK_THRESHOLD
from .seen_masks import seen_masks

NEAR_EMPTY = 0.001
"""A mask with less foreground than this fraction, but some, is nearly empty: a stray click rather than a lesion."""
_IGNORED = 255  # the usual index of pixels that count for no class


class _Column:
    """The masks of a column: mask n belongs to tile n.

    Attributes:
        are_indices: whether the masks hold class indices: everything but 0 is foreground then.
        foreground: [N], foreground pixels of each mask.
        total: [N], pixels of each mask that count.
    """

    def __init__(self, tiles: Sequence[Tile], facts: Sequence[MaskFacts]):
        self.tiles, self.facts = tiles, facts
        self.values = np.concatenate([one.values for one in facts])
        self.nonzero, self.total = pixels_above(facts, 0)
        self.above, _ = pixels_above(facts, MASK_THRESHOLD)
        with_ignored = any(map(_are_indices_and_255, facts))
        self.are_indices = with_ignored or self.values.max(initial=0) <= MASK_THRESHOLD
        self.foreground = self.nonzero if self.are_indices else self.above
        if with_ignored:
            ignored, _ = pixels_above(facts, _IGNORED - 1)
            self.foreground, self.total = self.foreground - ignored, self.total - ignored
        self.shares = self.foreground / np.maximum(self.total, 1)

    def described(self) -> dict[str, Any]:
        counts, masks = total_counts(self.facts), np.bincount(self.values, minlength=256)
        near = np.flatnonzero((self.shares > 0) & (self.shares < NEAR_EMPTY))
        has_regions = any(isinstance(tile.image, Region) for tile in self.tiles)
        return {
            "masks": len(self.tiles),
            "values": {
                str(value): {"share": float(counts[value] / counts.sum()), "masks": int(masks[value])}
                for value in np.flatnonzero(masks).tolist()
            },
            "kinds": dict(Counter(_values_in_words(one) for one in self.facts).most_common()),
            "foreground": "not 0" if self.are_indices else f"above {MASK_THRESHOLD}",
            "share": float(self.foreground.sum() / max(1, self.total.sum())),
            "slides": self._share_by(lambda tile: str(file_of(tile.image))) if has_regions else {},
            "patients": self._share_by(lambda tile: tile.group),
            "empty": int((self.shares == 0).sum()),
            "full": int((self.shares == 1).sum()),
            "near_empty": {
                self.tiles[number].id: float(self.shares[number])
                for number in sorted(near.tolist(), key=lambda number: self.shares[number])
            },
        }

    def _share_by(self, name_of: Callable[[Tile], str]) -> dict[str, float]:
        """Foreground fraction by name, the smallest first."""
        names, owner = np.unique([name_of(tile) for tile in self.tiles], return_inverse=True)
        inside, total = (np.bincount(owner, pixels) for pixels in (self.foreground, self.total))
        shares = zip(names.tolist(), (inside / np.maximum(total, 1)).tolist(), strict=True)
        return dict(sorted(shares, key=lambda item: (item[1], item[0])))

    def notices(self, found: dict[str, Any]) -> Iterator[str]:
        """Notices about the masks, given the result of `described`."""
        faint = np.flatnonzero((self.nonzero > 0) & (self.above == 0))
        if len(faint) and not self.are_indices:
            yield (
                f"{len(faint)} of {len(self.tiles)} have pixels that are not 0 and none above {MASK_THRESHOLD} (first "
                f"{self.tiles[faint[0]].id}): their foreground is ignored; were some saved as 0 and 1, others as 0 and "
                "255?"
            )
        if not self.values.any():
            yield "all are empty: every pixel is 0"
        elif found["full"] == len(self.tiles):
            yield "all are full: there is no background"
        if near := found["near_empty"]:
            first, share = next(iter(near.items()))
            yield f"{len(near)} are nearly empty (below {NEAR_EMPTY:.1%} of the pixels), first {first} with {share:.2g}"
        for name in ("slides", "patients"):
            none = [one for one, share in found[name].items() if share == 0]
            if 0 < len(none) < len(found[name]):
                yield f"{len(none)} of {len(found[name])} {name} have no foreground at all, {none[0]} for example"


def examine_masks(
    dataset: Dataset, bad: set[Path], num_threads: int
) -> tuple[dict[str, dict[str, Any]], list[Problem], list[Problem]]:
    """(column -> what its masks hold, notices, masks that cannot be read). Every mask is read.

    What they hold: "masks", their number; "values", value -> {"share" of all pixels, "masks" that have it}; "kinds",
    the values of one mask in words -> masks; "foreground", what counts as such: "above 127" or "not 0", where they hold
    class indices; "share" of all pixels that is foreground; "slides" (of regions) and "patients", each name -> share;
    "empty" and "full", numbers of masks; "near_empty", tile id -> share, the emptiest first.

    Args:
        dataset: of which every tile's masks are read.
        bad: files known to be broken; masks in them and of them are skipped.
        num_threads: that read.
    """
    every = [
        (tile, column, picture)
        for tile in dataset.tiles
        for column, picture in maps_of(tile)
        if bad.isdisjoint((named_file(picture, tile.image), file_of(tile.image)))
    ]
    read: dict[str, list[tuple[Tile, MaskFacts]]] = defaultdict(list)
    broken = _unusable_slides(every)
    with ThreadPoolExecutor(num_threads) as pool:
        for (tile, column, picture), facts in zip(every, pool.map(lambda one: _read(one[2]), every), strict=True):
            if isinstance(facts, str):
                where = named_file(picture, tile.image)
                broken.append(Problem(where, f"a mask of it cannot be read: {facts.removeprefix(f'{where}: ')}"))
            else:
                read[column].append((tile, facts))
    found, notices = {}, []
    for name, pairs in read.items():
        column = _Column([tile for tile, _ in pairs], [facts for _, facts in pairs])
        found[name] = column.described()
        notices += [
            Problem(dataset.root, f"masks of column {name!r}: {reason}") for reason in column.notices(found[name])
        ]
    firsts = {problem.path: problem for problem in reversed(broken)}
    return found, notices, list(firsts.values())


def _unusable_slides(every: Sequence[tuple[Tile, str, ImageSource]]) -> list[Problem]:
    """Mask slides that cannot be masks for any task; `check_tiles` reports such files and drawings."""
    regions: dict[str, list[Tile]] = defaultdict(list)
    for tile, column, picture in every:
        if isinstance(picture, Region):
            regions[column].append(tile)
    seen = [one for column, tiles in regions.items() for one in seen_masks(tiles, "" if column == "mask" else column)]
    return [Problem(file_of(one.mask), f"cannot be used as a mask: {one.wrong}") for one in seen if one.wrong]


def _read(picture: ImageSource) -> MaskFacts | str:
    """The contents of a mask, or why it cannot be read."""
    try:
        return count_mask(picture)
    except Exception as error:  # as for images: any error means that it must not be used for training
        return reason_of(error)


def _values_in_words(facts: MaskFacts) -> str:
    values = facts.values.tolist()
    return ", ".join(map(str, values)) if len(values) <= 8 else f"more than 8 values, up to {facts.top}"


def _are_indices_and_255(facts: MaskFacts) -> bool:
    """Whether a mask holds class indices and pixels to ignore."""
    values = facts.values.tolist()
    large = [value for value in values if value > MASK_THRESHOLD]
    return large == [_IGNORED] and any(values[:-1]) and len(values) <= MANY_VALUES
