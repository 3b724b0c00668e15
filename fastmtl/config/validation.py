"""Checks the values of a recipe, beyond their types."""

from __future__ import annotations

from collections.abc import Mapping

from ..utils.suggestions import file_name_problem, folded, nearest
from .check_sets import check_sets
from .parsing import ConfigError
from .schema import DataConfig, DistributedConfig, OptimizerConfig, Recipe, StageConfig, TrainingConfig
from .stages import optimizer_of

_OURS = (".json", ".jsonl", ".tif", ".geojson")  # endings of prediction files
VIEWS = ("h", "v", "r90", "r180", "r270")  # flips and quarter turns of an image


def validate(recipe: Recipe) -> None:
    """Raise ConfigError for the first invalid value; the message is one line with the key and the value.

    Types have already been checked. Names of components are checked when the components are built.
    """
    try:
        for number, stage in enumerate(recipe.stages):  # first, because training.epochs is their sum
            _check_stage(recipe, number, stage)
        _check_data(recipe.data)
        check_sets(recipe, _check_data)
        _check_training(recipe.training, recipe.stages[-1].epochs if recipe.stages else recipe.training.epochs)
        _check_distributed(recipe.distributed)
        _check_monitor(recipe)
        _check_components(recipe)
        _check_optimizer("optimizer", recipe.optimizer)
        for stage in recipe.stages:
            _check_optimizer(f"stages.{stage.name}.optimizer", optimizer_of(recipe, stage))
    except ConfigError as error:
        raise ConfigError(f"recipe {recipe.name}: {error}") from None


def _check_data(data: DataConfig) -> None:
    _require(
        "data",
        data,
        {
            "size must be a positive multiple of 16": data.size > 0 and data.size % 16 == 0,
            "batch_size must be at least 1": data.batch_size >= 1,
            "val_batch_size must not be negative": data.val_batch_size >= 0,
            "val_fraction must be between 0 and 1": 0 < data.val_fraction < 1,
            "test_fraction must be between 0 and 1 - val_fraction": 0 <= data.test_fraction < 1 - data.val_fraction,
            "inner_fraction must be in [0, 1)": 0 <= data.inner_fraction < 1,
            "folds must be 0, or 2 and more": data.folds == 0 or data.folds >= 2,
            "fold must be 0 to folds - 1": 0 <= data.fold < max(data.folds, 1),
            "tile_size must be at least 1": data.tile_size >= 1,
            "mpp must be finite and not negative": 0 <= data.mpp < float("inf"),
            "overlap must be 0 to tile_size - 1": 0 <= data.overlap < data.tile_size,
            "min_tissue must be between 0 and 1": 0 <= data.min_tissue <= 1,
            "max_damaged must be in [0, 1)": 0 <= data.max_damaged < 1,
            "max_tiles must not be negative": data.max_tiles >= 0,
            "open_slides must not be negative": data.open_slides >= 0,
            "tile_cache must not be negative": data.tile_cache >= 0,
            "balance_power must be between 0 and 1": 0 <= data.balance_power <= 1,
            "per_slide must not be negative": data.per_slide >= 0,
            "patches_per_slide must not be negative": data.patches_per_slide >= 0,
            "polygon_offset must be x and y": len(data.polygon_offset) in (0, 2),
            "polygon_classes must name a class once": len(set(data.polygon_classes)) == len(data.polygon_classes),
            "polygon_classes must be at most 255, since pixels of 255 are ignored": len(data.polygon_classes) <= 255,
            "polygon_region must not be one of data.polygon_ignore": data.polygon_region not in data.polygon_ignore,
            "polygon_rename must map classes to classes, as text": _is_list([*data.polygon_rename.values()], str),
            "polygon_ignore needs data.polygon_classes": not data.polygon_ignore or bool(data.polygon_classes),
            "polygon_region needs data.polygon_classes": not data.polygon_region or bool(data.polygon_classes),
            "polygon_classes must name neither polygon_region nor one of polygon_ignore": not (
                {*data.polygon_ignore, data.polygon_region or None} & {*data.polygon_classes}
            ),
            "classes must map columns to lists of classes": all(
                _is_list(v, (str, int, float)) for v in data.classes.values()
            ),
            "metadata must map names to lists of columns": all(_is_list(v, str) for v in data.metadata.values()),
            "mean must be three numbers, R, G and B in 0..1": not data.mean or _is_colour(data.mean, 0.0),
            "std must be three numbers above 0, at most 1": not data.std or _is_colour(data.std, 1e-6),
            "mean and data.std are given together": bool(data.mean) == bool(data.std),
            "num_threads must be 1 to 1024": 1 <= data.num_threads <= 1024,
        },
    )


def _check_training(training: TrainingConfig, last_stage: int) -> None:
    begins = training.average_start < last_stage or not training.average
    _require(
        "training",
        training,
        {
            "epochs must be at least 1": training.epochs >= 1,
            "clip_norm must be finite and not negative": 0 <= training.clip_norm < float("inf"),
            "patience must not be negative": training.patience >= 0,
            "average_decay must be in (0, 1)": 0 < training.average_decay < 1,
            "average_start must not be negative": training.average_start >= 0,
            f"average_start must be less than the epochs of the last stage, {last_stage}": begins,
            f"tta must be views among {', '.join(VIEWS)}": set(training.tta) <= set(VIEWS),
            "tta must name a view once": len(set(training.tta)) == len(training.tta),
            "spike_factor must be 0 or above 1, and finite": (
                training.spike_factor == 0 or 1 < training.spike_factor < float("inf")
            ),
            "max_skipped must be between 0 and 1": 0 <= training.max_skipped <= 1,
            "max_restores must not be negative": training.max_restores >= 0,
            "log_every must be at least 1": training.log_every >= 1,
            "gradient_stats_every must not be negative": training.gradient_stats_every >= 0,
            "checkpoint_minutes must be finite and not negative": 0 <= training.checkpoint_minutes < float("inf"),
            "checkpoint_steps must not be negative": training.checkpoint_steps >= 0,
            "keep_checkpoints must be at least 1": training.keep_checkpoints >= 1,
            "rank_timeout must be 1 to 86400 seconds": 1 <= training.rank_timeout <= 86400,
        },
    )


def _check_distributed(distributed: DistributedConfig) -> None:
    has_shards = distributed.strategy == "fsdp2"
    _require(
        "distributed",
        distributed,
        {
            "replicas must be at least 1": distributed.replicas >= 1,
            'replicas above 1 needs distributed.strategy = "fsdp2"': distributed.replicas <= 1 or has_shards,
        },
    )


def _check_components(recipe: Recipe) -> None:
    for where, table in {"model": recipe.model, "balancer": recipe.balancer}.items():
        _need_name(where, table)
    if not recipe.tasks:
        raise ConfigError("tasks is empty: a recipe needs at least one [tasks.NAME] table with a `kind`.")
    _check_file_names(recipe)
    for name, task in recipe.tasks.items():
        if not isinstance(task, Mapping) or not isinstance(task.get("kind"), str):
            raise ConfigError(f"tasks.{name} needs a `kind`, for example 'classification'.")
        for key in ("column", "group_by"):
            if not isinstance(task.get(key, ""), str):
                raise ConfigError(f"tasks.{name}.{key} must be text, the name of a column; got {task[key]!r}.")
        if not _is_list(by := task.get("threshold_by", []), str):
            raise ConfigError(f"tasks.{name}.threshold_by must be a list of names of columns; got {by!r}.")


def _check_file_names(recipe: Recipe) -> None:
    """Files and folders are named after a recipe and its tasks, so no name may lead to another folder or file."""
    for part in recipe.name.split("/"):  # PAPER/ROW, or a name such as "U-Net / v1."
        if problem := file_name_problem(part.strip(". ")):
            raise ConfigError(f"its name is used for a folder, but {part!r} {problem}; choose another `name`.")
    alike: dict[str, str] = {}
    for name in recipe.tasks:
        problem = file_name_problem(name)
        if not problem and name.endswith(_OURS):
            problem = f"has an ending of prediction files ({', '.join(_OURS)})"
        if problem:
            raise ConfigError(f"tasks.{name!r} is used as a file name, but {problem}; choose another name.")
        other = alike.setdefault(folded(name), name)
        if other != name:
            raise ConfigError(
                f"tasks {other!r} and {name!r} would share a file on systems that ignore case; choose another name."
            )


def _check_monitor(recipe: Recipe) -> None:
    named = recipe.training.monitor_tasks
    if named and recipe.training.monitor != "loss":
        raise ConfigError(f'training.monitor_tasks ({", ".join(named)}) needs training.monitor = "loss".')
    for task in named:
        if task not in recipe.tasks:
            known = nearest(task, list(recipe.tasks))
            raise ConfigError(f"training.monitor_tasks has an unknown task {task!r}; {known}")


def _check_stage(recipe: Recipe, number: int, stage: StageConfig) -> None:
    where = f"stages.{stage.name}"
    if not stage.name or "." in stage.name:
        raise ConfigError(f"stages[{number}] needs a `name`, as text and without dots; got {stage.name!r}.")
    if [other.name for other in recipe.stages].count(stage.name) > 1:
        raise ConfigError(f"two stages have the name {stage.name!r}.")
    _require(
        where,
        stage,
        {
            "epochs must be at least 1": stage.epochs >= 1,
            "tasks must name a task once": len(set(stage.tasks)) == len(stage.tasks),
            "auxiliary_stride must not be negative": stage.auxiliary_stride >= 0,
        },
    )
    if stage.balancer:
        _need_name(f"{where}.balancer", stage.balancer)
    if number == 0 and stage.start == "best":
        raise ConfigError(f"{where} is the first stage, so it cannot start from the best weights of an earlier one.")
    if number == 0 and stage.keep_optimizer:
        raise ConfigError(f"{where} is the first stage, so it cannot keep the optimizer of an earlier one.")
    for task in stage.tasks:
        if task not in recipe.tasks:
            raise ConfigError(f"{where} has an unknown task {task!r}; {nearest(task, list(recipe.tasks))}")


def _check_optimizer(where: str, optimizer: OptimizerConfig) -> None:
    _require(
        where,
        optimizer,
        {
            "lr must be finite and not negative": 0 <= optimizer.lr < float("inf"),
            "encoder_lr_factor must be in (0, 1]": 0 < optimizer.encoder_lr_factor <= 1,
            "layer_decay must be in (0, 1]": 0 < optimizer.layer_decay <= 1,
            "weight_decay must be finite and not negative": 0 <= optimizer.weight_decay < float("inf"),
            "warmup must be in [0, 1)": 0 <= optimizer.warmup < 1,
            "plateau_factor must be in (0, 1)": 0 < optimizer.plateau_factor < 1,
            "plateau_patience must not be negative": optimizer.plateau_patience >= 0,
        },
    )


def _is_list(value: object, of: type | tuple[type, ...]) -> bool:
    return isinstance(value, list) and all(isinstance(one, of) for one in value)


def _is_colour(values: list[float], lowest: float) -> bool:
    return _is_list(values, (int, float)) and len(values) == 3 and all(lowest <= one <= 1 for one in values)


def _require(where: str, table: object, limits: Mapping[str, bool]) -> None:
    """Raise ConfigError for the first of `limits` that is not met; each begins with its key."""
    for limit, holds in limits.items():
        if not holds:
            raise ConfigError(f"{where}.{limit}; got {getattr(table, limit.split()[0])!r}.")


def _need_name(where: str, table: Mapping[str, object]) -> None:
    if not isinstance(table.get("name"), str):
        raise ConfigError(f"{where} needs a `name`, as text; got {table.get('name')!r}.")
