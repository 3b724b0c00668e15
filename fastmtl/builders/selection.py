"""Which images choose the epoch that a run is scored by: the recipe's `protocol` and its inner share."""

from __future__ import annotations

from .. import data
from ..config import ConfigError, Recipe, optimizer_of
from .sets import column_in


def selects(recipe: Recipe) -> str:
    """The first setting by which the watching images decide something, as "key = value"; "" if they decide nothing.

    >>> from fastmtl.config import load_recipe
    >>> selects(load_recipe("ebhi_joint_unet"))
    'training.checkpoint = "best"'
    >>> selects(load_recipe("ebhi_best"))
    ''
    """
    if recipe.training.checkpoint == "best":
        return 'training.checkpoint = "best"'
    if recipe.training.patience:
        return f"training.patience = {recipe.training.patience}"
    if any(optimizer_of(recipe, stage).schedule == "plateau" for stage in recipe.stages) or (
        not recipe.stages and recipe.optimizer.schedule == "plateau"
    ):
        return 'optimizer.schedule = "plateau"'
    return next((f'stages.{stage.name}.start = "best"' for stage in recipe.stages if stage.start == "best"), "")


def with_inner_share(recipe: Recipe, folder: data.Dataset, split: data.Split) -> data.Split:
    """`split` with the inner share that the recipe asks for, unless it has one already (from a split file).

    Raises:
        ConfigError: the recipe's protocol is unbiased, and the scored images would choose the epoch; or the inner share
            cannot be drawn.
    """
    config, key = recipe.data, f"recipe {recipe.name}: "
    if config.inner_fraction and recipe.protocol != "published" and not split.inner:
        try:
            split = data.with_inner_share(
                folder, split, config.inner_fraction, config.split_seed, stratify=config.stratify
            )
        except ValueError as error:
            raise ConfigError(
                f"{key}data.inner_fraction = {config.inner_fraction:g} cannot be drawn: {error}."
            ) from None
        _check_classes(recipe, folder, split)
    if recipe.protocol == "unbiased" and not split.inner and not split.test and (setting := selects(recipe)):
        raise ConfigError(
            f'{key}protocol = "unbiased", but {setting} and the images that are scored would choose; set '
            'data.inner_fraction (0.2, for example), data.test_fraction, or training.checkpoint = "last".'
        )
    return split


def chosen_by(recipe: Recipe, *, inner: bool, test: bool) -> str:
    """Which images chose the epoch of a run, for its summary and the tables.

    Args:
        recipe: of the run.
        inner: whether it has an inner share.
        test: whether it has test images.

    >>> from fastmtl.config import load_recipe
    >>> chosen_by(load_recipe("ebhi_joint_unet"), inner=False, test=False)
    'the held-out images, which are also scored'
    """
    if not selects(recipe):
        return "nothing: no image had a part in it"
    if inner:
        return "an inner share of the training patients; the scored images chose nothing"
    if test:
        return "the held-out images; the test images chose nothing"
    return "the held-out images, which are also scored"


def _check_classes(recipe: Recipe, folder: data.Dataset, split: data.Split) -> None:
    """Raise ConfigError if the inner share takes every training image of a class."""
    for column in dict.fromkeys([recipe.data.stratify, *(column_in(recipe, task) for task in recipe.tasks)]):
        left, taken = (
            {data.label_of(tile, column) for tile in part.tiles}
            for part in (folder.subset(split.train), folder.subset(split.inner))
        )
        for index in sorted(taken - left - {None}, key=str):
            assert index is not None
            raise ConfigError(
                f"recipe {recipe.name}: the inner share (data.inner_fraction = {recipe.data.inner_fraction:g}) takes "
                f"all training images of class {folder.names_of(column)[index]!r}; take a smaller data.inner_fraction "
                "or another data.split_seed."
            )
