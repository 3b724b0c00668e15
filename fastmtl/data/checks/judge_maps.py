"""Whether maps fit their task: a visible foreground, known class indices, one channel per structure."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...protocols import MAPS, Target
from ...utils.words import counted
from ..dataset import ImageSource, Problem, Region, Tile
from ..images.arrays import ArrayRow
from ..images.polygons import Polygons
from ..slides.opened import damage_of
from .constant_maps import structure_names
from .damaged_tiles import named_file
from .mask_facts import MANY_VALUES, MaskFacts, pixels_above, total_counts
from .mask_rules import MASK_THRESHOLD, labels, merged, stray, too_faint, too_small, values_in_words
from .seen_masks import SeenMask, seen_masks, values_of

_INVERTED = 0.95  # share of foreground in every mask, from which it may be the background
_GREY = (15, 239)  # a pixel between them is neither background nor foreground; soft edges have few
_AS_CLASSES = "or learn class indices: multiclass_segmentation"
_OR_BINARY = ", or learn one structure from 0 and 255: binary_segmentation"


class Judgement(NamedTuple):
    """The verdict on the maps of a task.

    Attributes:
        wrong: why the task cannot learn from them; None if it can.
        odd: suspicious properties.
        words: their contents in one line; "" without maps.
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
    """Whether a task with this target can be trained and evaluated with `masks`.

    `seen_masks` samples mask slides. Problems outside the sample appear later or never: the loss rejects an unknown
    class (on a CPU only), and a foreground of small values counts as background.

    Args:
        masks: in the target's column.
        target: of kind "mask", "masks" or "classes".
        classes: the task's number of classes; for "classes".
        ignore_index: a further index whose pixels the task ignores.
        structures: names of the classes or channels.
    """
    if not masks:
        return Judgement(None)
    if target.kind != "classes" and any(_leaves_pixels_out(mask.mask) for mask in masks):
        return Judgement(
            "data.polygon_ignore and data.polygon_region leave pixels out, which only a task of kind "
            "multiclass_segmentation can"
        )
    if target.kind == "classes":
        maps: _Maps = _ClassMaps(masks, structure_names(structures, classes), ignore_index)
    else:
        maps = _StructureMaps(masks, structure_names(structures, target.size), is_grey=target.kind == "mask")
    return Judgement(maps.wrong(), (*_slide_damage(masks), *maps.odd()), f"{maps.seen()}, {maps.shares()}")


def wrong_maps(tiles: Sequence[Tile], target: Target, classes: int, ignore_index: int | None = None) -> str | None:
    """The verdict of `judge_maps` on the maps of readable `tiles`; None for targets that are not maps."""
    if target.kind not in MAPS:
        return None
    return judge_maps(seen_masks(tiles, target.column), target, classes, ignore_index).wrong


class _Maps(ABC):
    """The masks of a data set in one column."""

    def __init__(self, masks: Sequence[SeenMask], names: Sequence[str]):
        self.masks, self.names = masks, names

    @abstractmethod
    def wrong(self) -> str | None:
        """Why the task cannot learn from them."""

    @abstractmethod
    def odd(self) -> list[Problem]:
        """Suspicious properties."""

    @abstractmethod
    def shares(self) -> str:
        """The share of pixels of each structure or class."""

    def seen(self) -> str:
        values = sorted(values_of(self.masks))
        sampled = " (a sample of the mask slides)" if self.is_sample else ""
        return f"{len(self.masks)} in all, {'values ' * (len(values) <= 6)}{values_in_words(values)}{sampled}"

    @property
    def is_sample(self) -> bool:
        return any(mask.facts.is_sample for mask in self.masks)

    def fault(self, rules: Sequence[Callable[[SeenMask], str]], among: Sequence[SeenMask] | None = None) -> str | None:
        """The first rule that any mask violates: its reason for the first such mask, and the number of violations."""
        for rule in rules:
            found = [(mask, text) for mask in (self.masks if among is None else among) if (text := rule(mask))]
            if found:
                mask, text = found[0]
                reason, _, cure = text.partition("; ")
                file = named_file(mask.mask, mask.tile.image)
                cure = cure and f"; {cure}"
                return f"the mask of tile {mask.tile.id}, {file}, {reason}{self._count(len(found))}{cure}"
        return None

    def notice(self, reason: str, mask: SeenMask, count: int = 1) -> Problem:
        return Problem(named_file(mask.mask, mask.tile.image), f"the mask {reason}{self._count(count)}")

    def notices(self, rule: Callable[[MaskFacts], str], among: Sequence[SeenMask] | None = None) -> list[Problem]:
        """One notice for all masks that a rule finds odd."""
        found = [(mask, reason) for mask in (self.masks if among is None else among) if (reason := rule(mask.facts))]
        return [self.notice(found[0][1], found[0][0], len(found))] if found else []

    def _count(self, count: int) -> str:
        return f" ({count} of {len(self.masks)} masks)" if count > 1 else ""


class _StructureMaps(_Maps):
    """Maps of 0 and 255: one structure in grey, or one per channel."""

    def __init__(self, masks: Sequence[SeenMask], names: Sequence[str], is_grey: bool):
        super().__init__(masks, names)
        self._is_grey = is_grey
        self._doubtful = [mask for mask in masks if not mask.facts.is_plain]
        self._none_shows = all(mask.facts.top <= MASK_THRESHOLD for mask in masks)

    def wrong(self) -> str | None:
        form = (_is_grey("0 and 255") if self._is_grey else self._has_channels,)
        found = self.fault((lambda mask: mask.wrong, *form)) or self.fault((self._shows, self._is_one), self._doubtful)
        if found or len(self.names) == 1 or any(len(mask.facts.pixels) > 1 for mask in self.masks):
            return found
        filled = next((mask for mask in self.masks if mask.facts.top), None)
        reason = f"has equal channels, as all others have: it is grey, and not {len(self.names)} structures"
        return self.fault((lambda mask: reason,), [filled]) if filled else None

    def odd(self) -> list[Problem]:
        found = [one for rule in (too_faint, stray, merged) for one in self.notices(_on_planes(rule), self._doubtful)]
        above, total = self._above(MASK_THRESHOLD, 0)
        least = (above / np.maximum(total, 1)).min()
        if self._is_grey and len(total) > 1 and _INVERTED < least < 1:
            reason = f"is foreground (above {MASK_THRESHOLD}) in more than {_INVERTED:.0%}; is 255 the background?"
            found.append(self.notice(reason, self.masks[0], len(total)))
        return found + self._mostly_grey()

    def _mostly_grey(self) -> list[Problem]:
        """Masks that are mostly between black and white: photographs, maps of probabilities."""
        (above, total), (below, _) = self._above(_GREY[0]), self._above(_GREY[1])
        many = np.array([len(mask.facts.values) > MANY_VALUES for mask in self.masks])
        mostly = np.flatnonzero(many & (2 * (above - below) > total))
        reason = "is mostly grey, and cut at half; is it a photograph, or a map of probabilities?"
        return [self.notice(reason, self.masks[mostly[0]], len(mostly))] if len(mostly) else []

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
        return f"has {counted(mask.facts.channels, 'channel')}, and each structure is one; save {len(self.names)}"

    def _shows(self, mask: SeenMask) -> str:
        none_shows = self._none_shows
        reason = _on_planes(lambda values, solid: too_small(values, solid, none_shows))(mask.facts)
        return f"{reason}; {_cure(mask)}" if reason else ""

    def _is_one(self, mask: SeenMask) -> str:
        reason = _on_planes(labels)(mask.facts)
        return f"{reason}; save what is meant as 0 and 255, {_AS_CLASSES}" if reason else ""


class _ClassMaps(_Maps):
    """Maps of class indices."""

    def __init__(self, masks: Sequence[SeenMask], names: Sequence[str], ignored: int | None):
        super().__init__(masks, names)
        self._ignored = ignored
        self._allowed = {*range(len(names)), *([] if ignored is None else [ignored])}

    def wrong(self) -> str | None:
        found = self.fault((lambda mask: mask.wrong, _is_grey("class indices"), self._is_known))
        if found is None and self._ignored == 255 and values_of(self.masks) == {0, 255}:
            return (
                f"its masks hold only 0 and 255, and 255 is the ignore_index: all that counts is {self.names[0]!r}; "
                f"save class indices{_or_classes_of_polygons(self.masks[0])}{_OR_BINARY}"
            )
        return found

    def odd(self) -> list[Problem]:
        found = [*self.notices(self._lossy), *self.notices(self._perhaps_ignored)]
        missing = [name for index, name in enumerate(self.names) if index not in values_of(self.masks)]
        if missing and len(missing) < len(self.names) - 1:  # `constant_maps` reports a single class
            where = "the sample that was read" if self.is_sample else "any mask"
            file = named_file(self.masks[0].mask, self.masks[0].tile.image)
            found.append(Problem(file, f"no {' or '.join(map(repr, missing))} in {where}"))
        return found

    def shares(self) -> str:
        counts = total_counts([mask.facts for mask in self.masks])
        total = max(1, int(counts.sum()))
        return ", ".join(f"{name} {counts[index] / total:.1%}" for index, name in enumerate(self.names))

    def _is_known(self, mask: SeenMask) -> str:
        values = set(mask.facts.values.tolist())
        strange = values - self._allowed
        if not strange:
            return ""
        cure = f"save class indices{_or_classes_of_polygons(mask)}"
        if mask.facts.top == len(self.names) and 0 not in values_of(self.masks):
            cure += " from 0; these seem to count from 1"
        if values <= {0, 255}:
            cure += _OR_BINARY
        return f"holds {min(strange)}, and class indices are 0 to {len(self.names) - 1}; {cure}"

    def _lossy(self, facts: MaskFacts) -> str:
        return "is compressed with loss, as JPEG is, which changes class indices; save it as PNG" * facts.is_lossy

    def _perhaps_ignored(self, facts: MaskFacts) -> str:
        if self._ignored != 255 or facts.values.tolist() not in ([255], [0, 255]):
            return ""
        return "holds nothing but 0 and 255, and 255 is the ignore_index; if it is a structure, save its class index"


def _slide_damage(masks: Sequence[SeenMask]) -> list[Problem]:
    """Problems of the mask slides' files; their scale is that of their slides."""
    regions = [mask.mask for mask in masks if isinstance(mask.mask, Region)]
    return [Problem(region.slide, reason) for region in regions for reason in damage_of(region.slide)]


def _is_grey(what: str) -> Callable[[SeenMask], str]:
    def rule(mask: SeenMask) -> str:
        if mask.facts.channels not in (1, 3):
            return f"has {mask.facts.channels} channels; save one, 8-bit grey of {what}"
        return f"is coloured; save it as 8-bit grey of {what}" if len(mask.facts.pixels) > 1 else ""

    return rule


def _on_planes(rule: Callable[..., str]) -> Callable[[MaskFacts], str]:
    """A rule of `mask_rules`, applied to one channel after the other until it finds something; solid areas are counted
    for all channels together."""

    def apply(facts: MaskFacts) -> str:
        if len(facts.pixels) == 1:
            return rule(facts.values, facts.solid)
        planes = (plane > 0 for plane in facts.pixels)
        return next((reason for plane in planes if (reason := rule(facts.values[plane], facts.solid[plane]))), "")

    return apply


def _leaves_pixels_out(picture: ImageSource | None) -> bool:
    return isinstance(picture, Polygons) and bool(picture.ignored or picture.region)


def _cure(mask: SeenMask) -> str:
    if isinstance(mask.mask, Polygons):
        return f"leave data.polygon_classes out, {_AS_CLASSES}"
    if isinstance(mask.mask, ArrayRow) and mask.facts.top <= 1:
        return f"multiply the array by 255, in a manifest with *255 after the row, {_AS_CLASSES}"
    return f"save them as 0 and 255, {_AS_CLASSES}"


def _or_classes_of_polygons(mask: SeenMask) -> str:
    return ", here by data.polygon_classes" if isinstance(mask.mask, Polygons) else ""
