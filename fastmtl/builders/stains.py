"""Builds the stain normaliser of a recipe's [data.stain] table and estimates the stains of slides."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from .. import data
from ..config import ConfigError, Recipe
from ..distributed import World
from ..utils.suggestions import nearest

_OPTIONS = ("method", "convention", "target", "per", "sample", "min_tissue", "fallback", "augmentation")
_SAMPLE = 16
_PRINT_EVERY = 100
MOSAIC = "mosaic"
"""The target that consists of sampled training tiles of all slides."""
FILE = "stain.npz"
"""The normaliser in a run folder."""


def build_normalizer(recipe: Recipe) -> data.StainNormalizer | None:
    """The recipe's normaliser with its target; None if the recipe has no [data.stain].

    Raises:
        ConfigError: an option is invalid, or the target cannot be read.
    """
    options = dict(recipe.data.stain)
    if not options:
        return None
    for option in options:
        if option not in _OPTIONS:
            raise ConfigError(f"data.stain has no option {option!r}; {nearest(option, _OPTIONS)}")
    if "method" not in options:
        raise ConfigError('data.stain needs a method, for example method = "macenko".')
    target, sample = options.pop("target", ""), options.pop("sample", _SAMPLE)
    if isinstance(sample, bool) or not isinstance(sample, int) or sample < 1:
        raise ConfigError(f"data.stain.sample must be an integer of at least 1; got {sample!r}.")
    if isinstance(options.get("augmentation"), list):
        options["augmentation"] = tuple(options["augmentation"])  # TOML has no tuples
    try:
        normalizer = data.StainNormalizer(**options)
        if target == MOSAIC and not normalizer.has_stains:
            raise ValueError(
                f"{normalizer.method} has no stains to estimate from a mosaic: set target to an image file"
            )
        if target == MOSAIC:
            normalizer.target = None  # until the training tiles are known
        elif target:
            normalizer.fit(_target(target))
        elif normalizer.target is None:
            raise ValueError(f"{normalizer.method} has no published target: set target to an image file")
    except (ValueError, TypeError, OSError) as error:
        raise ConfigError(f"data.stain cannot be used: {error}") from error
    return normalizer


def _target(path: object) -> Tensor:
    if not isinstance(path, str):
        raise ValueError(f"target must be an image file or {MOSAIC!r}; got {path!r}")
    try:
        return _pixels(Path(path))[0]
    except FileNotFoundError:
        raise ValueError(f"the target {path} does not exist (in {Path.cwd()})") from None


def fit_slides(
    normalizer: data.StainNormalizer,
    tiles: Sequence[data.Tile],
    recipe: Recipe,
    world: World | None = None,
    console: Console | None = None,
) -> None:
    """Estimate and store the stains of each new slide (for image files, of each patient) from data.stain.sample evenly
    spaced tiles. A slide without two stains is not stored, and its tiles use the fallback.

    The target of a normaliser without one becomes the mosaic of all sampled tiles.

    Args:
        tiles: the same on all ranks; each rank estimates its share of the slides.
        console: where progress is printed, every hundred slides.

    Raises:
        ConfigError: the mosaic does not have two stains.
    """
    world, per_slide, mosaic = world or World(), normalizer.per == "slide", normalizer.target is None
    by_slide: dict[str, list[data.ImageSource]] = {}
    for tile, key in zip(tiles, data.slides_of(tiles), strict=True):
        by_slide.setdefault(key, []).append(tile.image)
    wanted = [key for key in by_slide if mosaic or (per_slide and key not in normalizer.slides)]
    known, total = dict(normalizer.slides), data.StainStatistics(normalizer.convention)
    for number, key in enumerate(wanted[world.rank :: world.size], 1):
        step = max(1, -(-len(by_slide[key]) // recipe.data.stain.get("sample", _SAMPLE)))
        statistics = data.slide_statistics(by_slide[key][::step], normalizer.convention)
        if mosaic:
            total.merge(statistics)
        if per_slide:
            normalizer.fit_slide(key, statistics)
        if console is not None and number % _PRINT_EVERY == 0:
            console.print(f"stains: {number * world.size} of {len(wanted)} slides")
    found = world.gather_entries({key: normalizer.slides[key] for key in wanted if key in normalizer.slides})
    normalizer.slides = known | {key: found[key] for key in wanted if key in found}  # in the same order on all ranks
    if mosaic:
        parts = world.gather_entries({world.rank: total}).values()
        try:
            normalizer.fit(sum(parts, data.StainStatistics(normalizer.convention)))
        except ValueError as error:
            raise ConfigError(f'data.stain.target = "{MOSAIC}" cannot be used: {error}') from error


def load_normalizer(run: Path, recipe: Recipe) -> data.StainNormalizer | None:
    """The normaliser that a run was trained with; None if its recipe has none.

    Raises:
        StainFileError: the file is missing or cannot be read.
    """
    return data.StainNormalizer.load(run / FILE) if recipe.data.stain else None


def _pixels(picture: data.ImageSource) -> Tensor:
    """uint8 [1, H, W, 3]."""
    return torch.from_numpy(data.open_picture(picture).copy())[None]
