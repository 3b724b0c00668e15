"""Constant maps, from which a task learns nothing."""

from __future__ import annotations

from collections.abc import Sequence

from ...protocols import Target
from .mask_rules import MASK_THRESHOLD
from .seen_masks import SeenMask, values_of


def constant_maps(masks: Sequence[SeenMask], target: Target, structures: Sequence[str] = ()) -> str | None:
    """The single value of all masks; None if they differ.

    Args:
        masks: of the training data.
        target: of kind "mask", "masks" or "classes".
        structures: names of the classes or channels.
    """
    if not masks:
        return None
    if target.kind != "classes":
        return _constant_masks(masks, structure_names(structures, target.size))
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


def structure_names(structures: Sequence[str], count: int) -> tuple[str, ...]:
    """`structures` if there are `count` of them, else numbers."""
    return tuple(structures) if len(structures) == count else tuple(map(str, range(count)))
