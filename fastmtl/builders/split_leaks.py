"""Refuses a split with the same image or slide on two sides, and finds images on two sides that look alike."""

from __future__ import annotations

from .. import data
from ..config import ConfigError, Recipe
from ..data.checks.duplicates import Duplicates, duplicates_across
from ..data.checks.near_duplicates import near_duplicate_notices, shows_nothing
from ..utils.words import few

_SHOWN = 3
_COMPARED = 2**28  # pixels that are decoded to find images that look alike: a few seconds


def split_leaks(recipe: Recipe, folder: data.Dataset, split: data.Split, found: Duplicates) -> list[data.Problem]:
    """Notices of images on two sides of the split that are the same, if data.on_duplicates accepts that, or look alike.

    Equal images of two patients that show nothing, as empty slices of a scan, are not copies.

    Args:
        recipe: its [data] table is used.
        folder: the tiles; those without a side are passed over.
        split: of them.
        found: what appears more than once among them.

    Raises:
        ConfigError: the same image or slide is on two sides, and data.on_duplicates does not accept it.
    """
    sides = {name: side for side, ids in split.sides.items() for name in ids}
    crossing = [tiles for tiles in found.pictures if len({sides.get(tile.id) for tile in tiles}) > 1]
    found = found._replace(pictures=[tiles for tiles in crossing if not shows_nothing(tiles[0])])
    notices = []
    if across := duplicates_across(found, sides):
        number = "an image or slide is" if len(across) == 1 else f"{len(across)} images or slides are"
        said = f"{number} the same on two sides of the split: {few(across, _SHOWN, '; ')}"
        if recipe.data.on_duplicates == "raise":
            raise ConfigError(
                f"{folder.root}: {said}. Scores would be too high: remove the copies, give them the same patient, or "
                'accept them with data.on_duplicates = "keep".'
            )
        notices.append(data.Problem(folder.root, f"{said}: scores are too high"))
    return notices + near_duplicate_notices(folder, recipe.data.num_threads, sides=sides, most_pixels=_COMPARED)
