"""Whether maps hold what a task takes them for: a foreground that shows, known class indices, a channel a structure."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...protocols import MAPS, Target
from ...utils.words import counted
from ..dataset import Problem, Region, Tile
from ..images.arrays import ArrayRow
from ..images.polygons import Polygons
from ..slides.opened import damage_of
from .damaged_tiles import named_file
from .mask_facts import MANY_VALUES, MaskFacts, pixels_above, total_counts
from .mask_rules import MASK_THRESHOLD, labels, merged, stray, too_faint, too_small, values_in_words
from .seen_masks import SeenMask, seen_masks, values_of

_INVERTED = 0.95  # share of foreground in every mask, from which it may be the background
_GREY = (15, 239)  # between them a pixel is neither background nor foreground: soft edges are few
_AS_CLASSES = "or learn class indices: multiclass_segmentation"


class Judgement(NamedTuple):
    """What came of looking at maps.

    Attributes:
        wrong: why they are not what the task learns from; None where nothing speaks against them.
        odd: what a careful reader would ask about.
        words: what was seen, in a line; "" where there are no maps.
    """

    wrong: str | None
    odd: tuple[Problem, ...] = ()
    words: str = ""


def judge_maps(
    masks: Sequence[SeenMask],
    target: Target,
    classes: int,
    ignore_index: int | None = None,
    structures: Sequence[str] = (),
) -> Judgement:
    """Whether a task with this target can learn from `masks`, and be scored against them.

    Of mask slides a sample was seen (`seen_masks`). What it misses: an unknown class is found by the loss in training,
    on a CPU alone; a foreground of small values counts as background.

    Args:
        masks: in the target's column.
        target: of kind "mask", "masks" or "classes".
        classes: how many class indices the task has; for "classes".
        ignore_index: an index beside them that the task leaves out.
        structures: names of the classes or channels.
    """
    if not masks:
        return Judgement(None)
    if target.kind == "classes":
        look: _Look = _Classes(masks, _names(structures, classes), ignore_index)
    else:
        look = _Structures(masks, _names(structures, target.size), is_grey=target.kind == "mask")
    return Judgement(look.wrong(), (*_of_slides(masks), *look.odd()), f"{look.seen()}, {look.shares()}")


def wrong_maps(tiles: Sequence[Tile], target: Target, classes: int, ignore_index: int | None = None) -> str | None:
    """`judge_maps` of the maps of `tiles`, whose files are known to be readable: what is wrong. None for other targets
    than maps."""
    if target.kind not in MAPS:
        return None
    return judge_maps(seen_masks(tiles, target.column), target, classes, ignore_index).wrong


class _Look(ABC):
    """The masks of a data set, and what to say of them."""

    def __init__(self, masks: Sequence[SeenMask], names: Sequence[str]):
        self.masks, self.names = masks, names

    @abstractmethod
    def wrong(self) -> str | None:
        """Why they are not what the task learns from."""

    @abstractmethod
    def odd(self) -> list[Problem]:
        """What a careful reader would ask about."""

    @abstractmethod
    def shares(self) -> str:
        """How much of the pixels is of each structure or class."""

    def seen(self) -> str:
        values = sorted(self.values())
        sampled = " (a sample of the mask slides)" if any(mask.facts.is_sample for mask in self.masks) else ""
        return f"{len(self.masks)} in all, {'values ' * (len(values) <= 6)}{values_in_words(values)}{sampled}"

    def values(self) -> set[int]:
        return values_of(self.masks)

    def fault(self, rules: Sequence[Callable[[SeenMask], str]], among: Sequence[SeenMask] | None = None) -> str | None:
        """What the first rule that finds something says, of its first mask, and how many others it finds."""
        for rule in rules:
            found = [(mask, said) for mask in (self.masks if among is None else among) if (said := rule(mask))]
            if found:
                mask, said = found[0]
                reason, _, cure = said.partition("; ")
                more = f" ({len(found)} of {len(self.masks)} masks)" if len(found) > 1 else ""
                return f"the mask of {_named(mask)} {reason}{more}" + ("; " + cure) * bool(cure)
        return None

    def notice(self, said: str, mask: SeenMask, count: int = 1) -> Problem:
        more = f" ({count} of {len(self.masks)} masks)" if count > 1 else ""
        return Problem(named_file(mask.mask, mask.tile.image), f"the mask {said}{more}")

    def notices(self, rule: Callable[[MaskFacts], str], among: Sequence[SeenMask] | None = None) -> list[Problem]:
        """One notice for all masks that a rule finds odd."""
        found = [(mask, said) for mask in (self.masks if among is None else among) if (said := rule(mask.facts))]
        return [self.notice(found[0][1], found[0][0], len(found))] if found else []


class _Structures(_Look):
    """Maps of 0 and 255: one structure in grey, or one a channel."""

    def __init__(self, masks: Sequence[SeenMask], names: Sequence[str], is_grey: bool):
        super().__init__(masks, names)
        self._is_grey = is_grey
        self._doubtful = [mask for mask in masks if not mask.facts.is_plain]
        self._none_shows = all(mask.facts.top <= MASK_THRESHOLD for mask in masks)

    def wrong(self) -> str | None:
        form = (_is_grey("0 and 255") if self._is_grey else self._has_channels,)
        found = self.fault((_usable, *form)) or self.fault((self._shows, self._is_one), self._doubtful)
        if found or len(self.names) == 1 or any(len(mask.facts.pixels) > 1 for mask in self.masks):
            return found
        filled = next((mask for mask in self.masks if mask.facts.top), None)
        said = f"and all others have equal channels: grey, and not {len(self.names)} structures"
        return filled and f"the mask of {_named(filled)} {said}"

    def odd(self) -> list[Problem]:
        found = [one for rule in (too_faint, stray, merged) for one in self.notices(_on_planes(rule), self._doubtful)]
        above, total = self._above(MASK_THRESHOLD, 0)
        least = (above / np.maximum(total, 1)).min()
        if self._is_grey and len(total) > 1 and _INVERTED < least < 1:
            said = f"is foreground (above {MASK_THRESHOLD}) in more than {_INVERTED:.0%}; is 255 the background?"
            found.append(self.notice(said, self.masks[0], len(total)))
        return found + self._grey()

    def _grey(self) -> list[Problem]:
        """Masks that are mostly between black and white: photographs, maps of probabilities."""
        (above, total), (below, _) = self._above(_GREY[0]), self._above(_GREY[1])
        many = np.array([len(mask.facts.values) > MANY_VALUES for mask in self.masks])
        mostly = np.flatnonzero(many & (2 * (above - below) > total))
        said = "is mostly grey, and cut at half; is it a photograph, or a map of probabilities?"
        return [self.notice(said, self.masks[mostly[0]], len(mostly))] if len(mostly) else []

    def shares(self) -> str:
        found = (self._above(MASK_THRESHOLD, channel) for channel in range(len(self.names)))
        shares = [f"{above.sum() / max(1, total.sum()):.1%}" for above, total in found]
        if self._is_grey:
            return f"foreground {shares[0]}"
        return ", ".join(f"{name} {share}" for name, share in zip(self.names, shares, strict=True))

    def _above(self, threshold: int, channel: int | None = None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return pixels_above([mask.facts for mask in self.masks], threshold, channel)

    def _has_channels(self, mask: SeenMask) -> str:
        if mask.facts.channels == len(self.names):
            return ""
        has = f"has {counted(mask.facts.channels, 'channel')}"
        return f"{has}, and each structure is one; save {len(self.names)}"

    def _shows(self, mask: SeenMask) -> str:
        none_shows = self._none_shows
        said = _on_planes(lambda values, solid: too_small(values, solid, none_shows))(mask.facts)
        return f"{said}; {_cure(mask)}" if said else ""

    def _is_one(self, mask: SeenMask) -> str:
        said = _on_planes(labels)(mask.facts)
        return f"{said}; save what is meant as 0 and 255, {_AS_CLASSES}" if said else ""


class _Classes(_Look):
    """Maps of class indices."""

    def __init__(self, masks: Sequence[SeenMask], names: Sequence[str], ignored: int | None):
        super().__init__(masks, names)
        self._ignored = ignored
        self._allowed = {*range(len(names)), *([] if ignored is None else [ignored])}

    def wrong(self) -> str | None:
        found = self.fault((_usable, _is_grey("class indices"), self._is_known))
        if found is None and self._ignored == 255 and self.values() == {0, 255}:
            cure = (
                f"save class indices{_or_classes_of_polygons(self.masks[0])}, or learn one structure from 0 and 255: "
            )
            return (
                f"its masks hold only 0 and 255, and 255 is the ignore_index: all that counts is {self.names[0]!r}; "
                f"{cure}binary_segmentation"
            )
        return found

    def odd(self) -> list[Problem]:
        found = [*self.notices(self._lossy), *self.notices(self._perhaps_ignored)]
        missing = [name for index, name in enumerate(self.names) if index not in self.values()]
        if missing and len(missing) < len(self.names) - 1:  # `constant_maps` reports a single class
            where = "the sample that was read" if any(mask.facts.is_sample for mask in self.masks) else "any mask"
            first = self.masks[0]
            said = f"no {' or '.join(map(repr, missing))} in {where}"
            found.append(Problem(named_file(first.mask, first.tile.image), said))
        return found

    def shares(self) -> str:
        counts = total_counts([mask.facts for mask in self.masks])
        total = max(1, int(counts.sum()))
        return ", ".join(f"{name} {counts[index] / total:.1%}" for index, name in enumerate(self.names))

    def _is_known(self, mask: SeenMask) -> str:
        strange = set(mask.facts.values.tobytes()) - self._allowed
        if not strange:
            return ""
        cure = f"save class indices{_or_classes_of_polygons(mask)}"
        if mask.facts.top == len(self.names) and 0 not in self.values():
            cure += " from 0; these seem to count from 1"
        if set(mask.facts.values.tobytes()) <= {0, 255}:
            cure += ", or learn one structure from 0 and 255: binary_segmentation"
        return f"holds {min(strange)}, and class indices are 0 to {len(self.names) - 1}; {cure}"

    def _lossy(self, facts: MaskFacts) -> str:
        return "is compressed with loss, as JPEG is, which changes class indices; save it as PNG" * facts.is_lossy

    def _perhaps_ignored(self, facts: MaskFacts) -> str:
        if self._ignored != 255 or facts.values.tobytes() not in (b"\xff", b"\x00\xff"):
            return ""
        return "holds nothing but 0 and 255, and 255 is the ignore_index; if it is a structure, save its class index"


def constant_maps(masks: Sequence[SeenMask], target: Target, structures: Sequence[str] = ()) -> str | None:
    """What all masks hold, where that is one value; None where they differ.

    Args:
        masks: that are learned from.
        target: of kind "mask", "masks" or "classes".
        structures: names of the classes or channels.
    """
    if not masks:
        return None
    if target.kind != "classes":
        return _constant_masks(masks, _names(structures, target.size))
    seen = values_of(masks) - {255}
    if len(seen) > 1:
        return None
    (only,) = seen or {255}
    return f"every pixel is {structures[only]!r}" if only < len(structures) else f"every pixel is {only}"


def _constant_masks(masks: Sequence[SeenMask], names: Sequence[str]) -> str | None:
    found = []
    for channel, name in enumerate(names):
        shows = {value > MASK_THRESHOLD for value in values_of(masks, channel)}
        if len(shows) == 1:
            what = "all foreground" if True in shows else "empty"
            found.append(f"every mask{f' of {name!r}' if len(names) > 1 else ''} is {what}")
    return "; ".join(found) or None


def _of_slides(masks: Sequence[SeenMask]) -> list[Problem]:
    """What is odd about mask slides themselves, besides their scale, which their slides have."""
    regions = [mask.mask for mask in masks if isinstance(mask.mask, Region)]
    return [Problem(region.slide, reason) for region in regions for reason in damage_of(region.slide)]


def _names(structures: Sequence[str], count: int) -> tuple[str, ...]:
    return tuple(structures) if len(structures) == count else tuple(map(str, range(count)))


def _usable(mask: SeenMask) -> str:
    return mask.wrong


def _is_grey(what: str) -> Callable[[SeenMask], str]:
    def rule(mask: SeenMask) -> str:
        if mask.facts.channels not in (1, 3):
            return f"has {mask.facts.channels} channels; save one, 8-bit grey of {what}"
        return f"is coloured; save it as 8-bit grey of {what}" if len(mask.facts.pixels) > 1 else ""

    return rule


def _on_planes(rule: Callable[..., str]) -> Callable[[MaskFacts], str]:
    """What a rule of `mask_rules` says of the first channel that it finds something in; solid areas are known of all
    channels together."""

    def of(facts: MaskFacts) -> str:
        if len(facts.pixels) == 1:
            return rule(facts.values, facts.solid)
        return next(
            (said for plane in facts.pixels if (said := rule(facts.values[plane > 0], facts.solid[plane > 0]))), ""
        )

    return of


def _cure(mask: SeenMask) -> str:
    if isinstance(mask.mask, Polygons):
        return f"leave data.polygon_classes out, {_AS_CLASSES}"
    if isinstance(mask.mask, ArrayRow) and set(mask.facts.values.tobytes()) <= {0, 1}:
        return f"multiply the array by 255, in a manifest with *255 after the row, {_AS_CLASSES}"
    return f"save them as 0 and 255, {_AS_CLASSES}"


def _or_classes_of_polygons(mask: SeenMask) -> str:
    return ", here by data.polygon_classes" if isinstance(mask.mask, Polygons) else ""


def _named(mask: SeenMask) -> str:
    return f"tile {mask.tile.id}, {named_file(mask.mask, mask.tile.image)},"
