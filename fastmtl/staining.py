"""From a recipe's [data.stain] table to a stain normaliser that knows the slides of a data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from . import data
from .config import ConfigError, Recipe
from .names import nearest

_OPTIONS = ("method", "convention", "target", "per", "sample", "min_tissue", "fallback", "augmentation")
_SAMPLE = 16
FILE = "stain.npz"
"""The normaliser in a run folder."""


def build_normalizer(recipe: Recipe) -> data.StainNormalizer | None:
    """The recipe's normaliser with its target; None where it has no stain.method.

    Raises:
        ConfigError: an option that cannot be used, or a target that cannot be read.
    """
    options = dict(recipe.data.stain)
    if not options:
        return None
    _check_names(options)
    if "method" not in options:
        raise ConfigError('data.stain needs a method, for example method = "macenko".')
    target, sample = options.pop("target", ""), options.pop("sample", _SAMPLE)
    if isinstance(sample, bool) or not isinstance(sample, int) or sample < 1:
        raise ConfigError(f"data.stain.sample must be a whole number of 1 or more; got {sample!r}.")
    if isinstance(options.get("augmentation"), list):
        options["augmentation"] = tuple(options["augmentation"])  # TOML has no tuples
    try:
        normalizer = data.StainNormalizer(**options)
        if target:
            normalizer.fit(_target(target))
        elif normalizer.target is None:
            raise ValueError(f"{normalizer.method} has no published target: give target, an image file")
    except (ValueError, TypeError, OSError) as error:
        raise ConfigError(f"data.stain cannot be used: {error}") from error
    return normalizer


def normalizer_of(recipe: Recipe, run: Path | None) -> data.StainNormalizer | None:
    """What a training run takes: the normaliser that `run` kept, when it is continued, or the recipe's."""
    kept = None if run is None else load_normalizer(run)
    return kept or build_normalizer(recipe)


def _target(path: object) -> Tensor:
    if not isinstance(path, str):
        raise ValueError(f"target must be an image file; got {path!r}")
    try:
        return _pixels(Path(path))[0]
    except FileNotFoundError:
        raise ValueError(f"there is no target {path} (from {Path.cwd()})") from None


def _check_names(options: Mapping[str, object]) -> None:
    for option in options:
        if option not in _OPTIONS:
            raise ConfigError(f"data.stain has no option {option!r}; {nearest(option, _OPTIONS)}")


def fit_slides(normalizer: data.StainNormalizer, tiles: Sequence[data.Tile], recipe: Recipe) -> None:
    """Store the stains of every slide (or patient, for image files) that is not stored, from data.stain.sample of its
    tiles, evenly taken. One in which no two stains are found is not stored: its tiles fall back."""
    if normalizer.per != "slide":
        return
    by_slide: dict[str, list[data.Tile]] = {}
    for tile, key in zip(tiles, data.slides_of(tiles), strict=True):
        by_slide.setdefault(key, []).append(tile)
    for key, own in by_slide.items():
        if key not in normalizer.slides:
            step = max(1, -(-len(own) // recipe.data.stain.get("sample", _SAMPLE)))
            normalizer.fit_slide(key, (_pixels(tile.image) for tile in own[::step]))


def load_normalizer(run: Path) -> data.StainNormalizer | None:
    """The normaliser that a run was trained with; None where it had none."""
    return data.StainNormalizer.load(run / FILE) if (run / FILE).exists() else None


def _pixels(picture: data.Picture) -> Tensor:
    """uint8 [1, H, W, 3]."""
    return torch.from_numpy(data.open_picture(picture).copy())[None]
