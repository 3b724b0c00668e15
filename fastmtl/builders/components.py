"""Builds a recipe's tasks, loaders, model and balancer."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from .. import balance, data, models
from ..config import ConfigError, Recipe, StageConfig
from ..distributed import World
from ..protocols import Balancer, Batch, Task
from ..tasks import check_task, create_task, target_kind
from ..utils.suggestions import check_options, nearest
from .pretrained import normalization_of
from .sets import build_balancers, column_in, sets_of, tile_sets

_OURS = ("kind", "column")  # keys of a task's table that are not options of the task


def device_of(name: str, local_rank: int = 0) -> torch.device:
    """The torch device. `auto` is a GPU if available, else the CPU; `auto` and `cuda` use the GPU of the local rank.

    Raises:
        ConfigError: the name is not a device, or a GPU is requested but not available.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"training.device must be auto, cpu, cuda or cuda:N; got {name!r}.") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"training.device is {name!r}, but torch {torch.__version__} finds no GPU; use cpu.")
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"training.device must be auto, cpu, cuda or cuda:N; got {name!r}.")
    if device.type == "cuda" and device.index is None and local_rank:
        if local_rank >= torch.cuda.device_count():
            raise ConfigError(
                f"local rank {local_rank} has no GPU: this machine has {torch.cuda.device_count()}. Start one process "
                "per GPU: torchrun --nproc-per-node gpu."
            )
        device = torch.device("cuda", local_rank)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # DALI and NCCL use the current one
    return device


def check_names(recipe: Recipe) -> None:
    """Raise ValueError for an unknown model, task, balancer or option, before any data is read."""
    models.check_model(recipe.model["name"], [key for key in recipe.model if key != "name"])
    for name, options in recipe.tasks.items():
        check_task(options["kind"], name, [key for key in options if key not in _OURS])
    for stage in (None, *recipe.stages):
        build_balancer(recipe, stage)
    _augmentation(recipe.data.augmentation)


def build_tasks(
    recipe: Recipe, class_names: Sequence[str], classes: Mapping[str, Sequence[str]] | None = None
) -> list[Task]:
    """The recipe's tasks, in the order of the columns of `Batch.has_label`.

    Args:
        recipe: its [tasks] tables are used; `column` is the task's target, by default the tile's own mask or label.
        class_names: classes of the tiles' own label.
        classes: label column -> its classes.

    Raises:
        ConfigError: a label task has no classes, or a column is not text.
    """
    classes = classes or {}
    groups = {"label": class_names, **classes} if class_names else classes
    tasks = []
    for number, (name, options) in enumerate(recipe.tasks.items()):
        rest = {key: value for key, value in options.items() if key not in _OURS}
        column = column_in(recipe, name, target_kind(options["kind"]))
        names = classes.get(column, ()) if column else class_names
        if target_kind(options["kind"]) == "label" and not names:
            raise ConfigError(
                f"task {name!r} needs at least two classes, but the data have no classes in column "
                f"{column or 'label'!r}; columns with classes: {', '.join(groups) or 'none'}. "
                + (f"Set tasks.{name}.column." if groups else f'Remove the task: without = ["tasks.{name}"].')
            )
        task = create_task(options["kind"], name, number, class_names=names, groups=groups, **rest)
        if column := column_in(recipe, name, task.target.kind):
            task.target = replace(task.target, column=column)
        task.sets = sets_of(recipe, name)
        tasks.append(task)
    return tasks


def build_model(recipe: Recipe, tasks: Sequence[Any], device: torch.device, *, trained: bool = False) -> nn.Module:
    """The recipe's network on `device`, seeded, in channels-last layout (the fastest for convolutions).

    Use `trained` if a checkpoint will be loaded: the file of model.weights, which may no longer exist, is not read. An
    empty model.weights is none.
    """
    left_out = ("name", "weights") if trained or not recipe.model.get("weights") else ("name",)
    options = {key: value for key, value in recipe.model.items() if key not in left_out}
    torch.manual_seed(recipe.training.seed)
    model = models.create_model(recipe.model["name"], tasks={task.name: task.output for task in tasks}, **options)
    return model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def check_size(recipe: Recipe, model: nn.Module) -> None:
    """Raise ConfigError if the model has a `stride` and `data.size` is not a multiple of it."""
    stride, size = getattr(model, "stride", 1), recipe.data.size
    if isinstance(stride, int) and size % stride:
        raise ConfigError(
            f"recipe {recipe.name}: data.size is {size}, but {recipe.model['name']} needs a multiple of {stride}; "
            f"{-(-size // stride) * stride} is the next one."
        )


def takes_one_image(recipe: Recipe, model: nn.Module, num_tasks: int, device: torch.device) -> bool:
    """Whether the model can be trained on a batch of one image. BatchNorm cannot if it gets one value per channel, for
    example after pooling the whole image (PSPNet, DeepLabV3+)."""
    trial = copy.deepcopy(model).train()  # a copy, because the trial changes its statistics
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            trial(empty_batch(recipe, 1, num_tasks, device))
    except Exception as error:  # another cause: the first real batch reports it better
        return "more than 1 value per channel" not in str(error)
    return True


def empty_batch(recipe: Recipe, number: int, num_tasks: int, device: torch.device) -> Batch:
    """`number` black images with zeros as metadata and no targets, for a trial forward pass."""
    data = recipe.data
    return Batch(
        torch.zeros(number, 3, data.size, data.size, device=device),
        {},
        torch.ones(number, num_tasks, dtype=torch.bool, device=device),
        {name: torch.zeros(number, len(columns), device=device) for name, columns in _metadata(recipe).items()},
    )


def build_loader(
    recipe: Recipe,
    folder: data.Dataset,
    tasks: Sequence[Any],
    *,
    train: bool,
    device: torch.device,
    world: World | None = None,
    stain: data.StainNormalizer | None = None,
    batch_size: int = 0,
    drop_single: bool = False,
) -> data.TileLoader:
    """This rank's batches of `folder`: shuffled and augmented for training, otherwise in order and unchanged. `stain`
    must be fitted (`stains.fit_slides`); a `batch_size` of 0 is the recipe's; `drop_single` is passed to the loader."""
    config, world = recipe.data, world or World()
    decode = config.decode if config.decode != "auto" else ("gpu" if device.type == "cuda" else "cpu")
    pairs = ("case", "position", config.pairs_apart) if config.pairs_apart else ("case", "position")
    tiles = _random_patches(recipe, folder) if train and config.patches_per_slide else folder.tiles
    mean, std = normalization_of(recipe)
    return data.TileLoader(
        tiles,
        targets={task.name: task.target for task in tasks},
        metadata=_metadata(recipe),
        size=config.size,
        batch_size=batch_size or (not train and config.val_batch_size) or config.batch_size,
        augmentation=_augmentation(config.augmentation) if train else data.Augmentation.none(),
        shuffle=train,
        balanced=train and config.sampler == "balanced" and (config.balance_by or True),
        balance_power=config.balance_power,
        sets=tile_sets(recipe, folder),
        pairs=pairs if train and config.sampler == "pairs" else None,
        open_slides=config.open_slides if train else 0,
        per_slide=config.per_slide if train else 0,
        stain=stain,
        max_damaged=config.max_damaged,
        drop_single=drop_single,
        mean=mean,
        std=std,
        mask_sampling=config.mask_sampling,
        seed=recipe.training.seed,
        rank=world.rank,
        world_size=world.size,
        device=decode,
        num_threads=config.num_threads,
        tile_cache=config.tile_cache << 20,
    )


def _metadata(recipe: Recipe) -> dict[str, list[str]]:
    """The recipe's metadata, and the columns by which tasks group their metrics and choose their thresholds."""
    tables = recipe.tasks.values()
    grouped = {
        column for options in tables for column in (options.get("group_by", ""), *options.get("threshold_by", ()))
    }
    return {**{column: [column] for column in sorted(grouped - {""})}, **recipe.data.metadata}


def columns_of_metadata(recipe: Recipe) -> set[str]:
    """The columns that batches need besides the targets."""
    return {column for columns in _metadata(recipe).values() for column in columns}


def _random_patches(recipe: Recipe, folder: data.Dataset) -> data.RandomPatches:
    config = recipe.data
    first = next((tile.image for tile in folder.tiles if isinstance(tile.image, data.Region)), None)
    if first is None:
        raise ConfigError(f"data.patches_per_slide needs slides, but {folder.root} has none.")
    reach = data.downsample_of(first) * first.width * (1 - config.overlap / config.tile_size)
    balanced = config.sampler == "balanced"
    return data.RandomPatches(
        folder.tiles,
        config.patches_per_slide,
        round(reach / 2),
        seed=recipe.training.seed,
        balanced=balanced,
        balance_power=config.balance_power,
    )


def build_balancer(recipe: Recipe, stage: StageConfig | None = None, model: nn.Module | None = None) -> Balancer:
    """The recipe's balancer, or the stage's own. With `model`, its option `layer` is the parameter of that name.

    Raises:
        ConfigError: the model has no such parameter, or it is frozen.
    """
    table = stage.balancer if stage is not None and stage.balancer else recipe.balancer
    options = {key: value for key, value in table.items() if key != "name"}
    if model is not None and isinstance(name := options.get("layer"), str):
        options["layer"] = _trained_parameter(recipe, model, name)
    if recipe.data.sets and recipe.data.sets_batches == "one":
        return build_balancers(recipe, table["name"], options, stage.tasks if stage is not None else ())
    return balance.create_balancer(table["name"], **options)


def _trained_parameter(recipe: Recipe, model: nn.Module, name: str) -> nn.Parameter:
    known = {one: parameter for one, parameter in model.named_parameters() if parameter.ndim > 1}
    if name not in known:
        raise ConfigError(
            f"recipe {recipe.name}: balancer.layer must be a weight of {recipe.model['name']}; "
            f"{nearest(name, list(known))}"
        )
    if not known[name].requires_grad:
        raise ConfigError(f"recipe {recipe.name}: balancer.layer names {name!r}, which is frozen.")
    return known[name]


def _augmentation(options: Mapping[str, object]) -> data.Augmentation:
    check_options(data.Augmentation, options, "data.augmentation")
    # TOML has no tuples.
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    try:
        return data.Augmentation(**values)
    except TypeError as error:  # text for a number, a number for a pair
        raise ConfigError(f"data.augmentation has a value of the wrong type ({error}); got {dict(options)}.") from error
