"""The split that a recipe asks for: from a file, a column or published folds, or drawn."""

from __future__ import annotations

from pathlib import Path

from .. import data
from ..config import ConfigError, Recipe
from ..data.splits.sites import Units
from ..utils.words import counted, few
from . import selection
from .sets import column_in

_SHOWN = 3  # names in a message


def split_of(
    recipe: Recipe, folder: data.Dataset, root: Path, split_file: Path | None = None
) -> tuple[data.Split, str]:
    """The split for `read_splits`, with its inner share, and a description of where it comes from.

    Raises:
        ConfigError: in the recipe's fold a class has no held-out or no training tile, or the protocol is not possible.
        ValueError: the data cannot be split in this way.
    """
    split, origin = _held_out(recipe, folder, root, split_file)
    split = selection.with_inner_share(recipe, folder, split)
    if recipe.data.site:
        held_out = {*split.val, *split.test}
        sites, every = Units(folder.subset(held_out)), Units(folder)
        origin += f"; by site: {len(sites)} of {len(every)} sites held out ({few(sites.names, _SHOWN)})"
    share = f"; inner share: {counted(len(split.inner), 'training tile')}, which are not trained on"
    return split, origin + share * bool(split.inner)


def _held_out(recipe: Recipe, folder: data.Dataset, root: Path, split_file: Path | None) -> tuple[data.Split, str]:
    """The split without an inner share, unless a split file has one."""
    if split_file is None and (own := data.split_by_column(folder)) is not None:
        return own, f"the column split of {folder.root}"
    config = recipe.data
    stratified = f"stratified by {config.stratify or ('set' if config.sets else 'class')}"
    if config.folds and config.folds == len(folder.folds) and split_file is None:
        # Taken as it is, also if it holds none of a class out, as fold A of HEp-2 does of golgi: a notice says so.
        split, name = data.published_fold(folder, config.fold)
        return split, f"fold {name} of the tables in {folder.root}"
    if config.folds and split_file is None:
        split = data.kfold(folder, config.folds, config.split_seed, stratify=config.stratify)[config.fold]
        _check_classes(recipe, folder, split)
        return split, f"fold {config.fold} of {config.folds}, {stratified}"
    home = root if root.is_dir() else root.parent
    beside = home.resolve().with_name(f"{home.resolve().name}_reference_fold.json")
    found = split_file or next((path for path in (home / "split.json", beside) if path.is_file()), None)
    if found is not None:
        inner = () if recipe.protocol == "published" else data.load_inner_groups(found)
        listed = [data.load_groups(found), data.load_test_groups(found), inner]
        if config.max_tiles:  # the file may list patients without a drawn tile
            drawn = set(map(data.identifier_key, folder.groups))
            listed = [[one for one in some if data.identifier_key(str(one)) in drawn] for some in listed]
        split = data.split_by_groups(folder, *listed)
        return split, str(found) if split_file else f"{found} (found with the data)"
    split = data.grouped_split(
        folder, config.val_fraction, config.split_seed, test_fraction=config.test_fraction, stratify=config.stratify
    )
    tested = f", {config.test_fraction:.0%} to test" if config.test_fraction else ""
    share = len(split.val) / len(folder)
    odd = f" ({share:.0%} of the images: with few patients no closer split is possible)"
    near = abs(share - config.val_fraction) <= 0.1
    return split, f"{stratified}, {config.val_fraction:.0%} of the patients held out{'' if near else odd}{tested}"


def _check_classes(recipe: Recipe, folder: data.Dataset, split: data.Split) -> None:
    columns = [recipe.data.stratify or "label", *(column_in(recipe, task) for task in recipe.tasks)]
    for column in dict.fromkeys(columns):
        names = folder.names_of(column)
        held_out, every = set(split.val), [(tile.id, data.label_of(tile, column)) for tile in folder.tiles]
        for index in sorted({label for _, label in every if label is not None}):
            members = [name in held_out for name, label in every if label == index]
            if all(members) or not any(members):
                lacking = "leaves none to train on" if all(members) else "holds none out"
                raise ConfigError(
                    f"fold {recipe.data.fold} of {recipe.data.folds} of {folder.root} {lacking} of class "
                    f"{names[index]!r}, which has {len(members)} image(s); take fewer data.folds or another "
                    "data.split_seed."
                )
