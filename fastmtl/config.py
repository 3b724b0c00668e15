"""Recipes: frozen dataclasses, filled from defaults < `extends` < the recipe's TOML < command-line values.

An unknown key is an error that names the nearest known one; components (model, tasks, balancer, augmentation) are
named, never imported by path.
"""

from __future__ import annotations

import dataclasses
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from .errors import UserError
from .names import nearest

BUILT_IN = Path(__file__).parent / "recipes"


class ConfigError(UserError, ValueError):
    """A recipe that cannot be used, said in one line."""


@dataclass(frozen=True)
class DataConfig:
    """What is read, and in which batches."""

    generator: Literal["", "colon", "slides"] = ""
    """Make this synthetic data set when no data folder is given: tiles of colon, or whole slides with polygons."""
    format: str = "auto"
    """How the data lie on disk: manifest, tile_folder, ...; auto looks."""
    root: str = ""
    """Folder that no path of a manifest may leave; the manifest's own when empty."""
    columns: dict[str, Any] = field(default_factory=dict)
    """Kinds of a manifest's columns where they are not to be inferred: picture, label, number, vector, box, ..."""
    classes: dict[str, Any] = field(default_factory=dict)
    """Classes of label columns in order, for example grade = ["G1", "G2"]; sorted where they are not given."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """What the model sees beside the image: name in `Batch.metadata` -> columns."""
    tile_size: int = 256
    """Side of the tiles that whole slides are cut into, pixels at mpp."""
    mpp: float = 0.0
    """Micrometres per pixel of those tiles; 0 takes level 0."""
    overlap: int = 0
    """Pixels that neighbouring tiles of a slide share."""
    min_tissue: float = 0.5
    """Least share of such a tile that must be tissue."""
    polygon_classes: list[str] = field(default_factory=list)
    """Classes of polygons for maps of classes, the background first; empty draws all polygons as foreground."""
    polygon_offset: list[float] = field(default_factory=list)
    """x and y added to polygons' coordinates: a slide's bounds, where the viewer counted from them."""
    preprocessing: str = ""
    """What makes images 8-bit: min_max stretches 16-bit grey, image by image; empty takes them as they are."""
    size: int = 128
    """Side of the square images the network sees, pixels."""
    batch_size: int = 16
    """Images a step, of each rank."""
    sampler: Literal["shuffled", "balanced", "pairs"] = "shuffled"
    """Every tile once; classes equally often; or pairs of neighbours, by the columns `case` and `position`."""
    balance_by: str = ""
    """Label column whose classes the balanced sampler draws equally often; the label when empty."""
    open_slides: int = 0
    """Slides that are drawn from at a time; 0: all."""
    per_slide: int = 0
    """Tiles drawn of each slide in an epoch; 0: all."""
    patches_per_slide: int = 0
    """Instead of the grid's tiles, this many random patches of each slide, anew in each epoch; 0: the grid."""
    patient: str = "[^-]+"
    """Regular expression that finds the patient at the start of a file's name: its first group, or all it matches."""
    val_fraction: float = 0.2
    """Share of the tiles held out, whole patients at a time, where no split file and no column split says more."""
    test_fraction: float = 0.0
    """Share kept for a test that training never sees; 0.1 beside val_fraction = 0.2 splits 70 / 20 / 10."""
    folds: int = 0
    """Cross-validation: this many folds, of which `fold` is held out; 0 draws by val_fraction."""
    fold: int = 0
    """Which fold is held out, from 0."""
    group_by: str = ""
    """What a split keeps together: a column, or an expression such as "{case}-{day}"; the patient when empty."""
    stratify: str = ""
    """Label column whose classes a split shares out evenly; the label when empty."""
    split_seed: int = 0
    """Of the draw of held-out patients."""
    on_damaged: Literal["raise", "skip"] = "raise"
    """What to do with files that cannot be used: refuse to start, or leave them out."""
    max_damaged: float = 0.0
    """Share of the tiles that may turn out damaged during an epoch, others standing in; more, or any at 0, stops."""
    num_threads: int = 2
    """Threads that decode and augment."""
    decode: Literal["auto", "cpu", "gpu"] = "auto"
    """Where images are decoded and augmented; auto follows training.device."""
    augmentation: dict[str, Any] = field(default_factory=dict)
    """Fields of `fastmtl.data.Augmentation`."""


@dataclass(frozen=True)
class OptimizerConfig:
    """How parameters move."""

    optimizer: Literal["adamw", "adam", "sgd", "apex_adam", "apex_lamb"] = "adamw"
    lr: float = 1e-3
    """Learning rate at its highest."""
    weight_decay: float = 1e-2
    """On weights of two or more dimensions."""
    momentum: float = 0.9
    """For sgd."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """What the learning rate does after the warm-up: stay, or fall to 0."""
    warmup: float = 0.05
    """Share of all steps over which the learning rate rises from 0."""


@dataclass(frozen=True)
class TrainingConfig:
    """How long, how exact, and when to stop."""

    epochs: int = 10
    """Passes over the training tiles."""
    seed: int = 0
    """Of the weights, the order of tiles and their augmentation."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto: bfloat16 autocast where the processor multiplies it in hardware, else float32."""
    clip_norm: float = 1.0
    """Largest norm of the whole gradient; 0 does not clip."""
    fused_step: Literal["auto", True, False] = "auto"
    """Combine, clip and step in one pass (balance.FusedStep); auto: where the optimizer and the device support it."""
    patience: int = 0
    """Stop after this many epochs without a better validation score; 0 never stops early."""
    log_every: int = 20
    """Steps between looks at the losses (each waits for the device)."""
    compile: bool = False
    """Run the network through torch.compile."""


@dataclass(frozen=True)
class Recipe:
    """One training run, whole."""

    name: str
    summary: str = ""
    data: DataConfig = field(default_factory=DataConfig)
    model: dict[str, Any] = field(default_factory=lambda: {"name": "joint_unet"})
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    balancer: dict[str, Any] = field(default_factory=lambda: {"name": "linear"})
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)


def list_recipes() -> list[str]:
    """Names of the built-in recipes, sorted. Files named _*.toml are bases for others to extend."""
    return sorted(path.stem for path in BUILT_IN.glob("[!_]*.toml"))


def load_recipe(recipe: str | Path, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """A built-in recipe by name, or a TOML file by path.

    Args:
        recipe: name (see `list_recipes`) or path to a TOML file.
        overrides: nested mapping laid over the file, for example {"training": {"epochs": 3}}.

    Raises:
        ConfigError: unknown recipe, unreadable TOML, unknown key, wrong type; one line each.
    """
    path = _find(str(recipe))
    values = merge(_read(path, seen=()), overrides or {})
    values.setdefault("name", path.stem)
    built = _build(Recipe, values, "")
    _check(built)
    return built


def parse_override(text: str) -> dict[str, Any]:
    """`model.base_channels=8` -> {"model": {"base_channels": 8}}; the value is read as TOML, else taken as text."""
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise ConfigError(f"--set wants KEY=VALUE, for example model.base_channels=8; got {text!r}.")
    try:
        parsed = tomllib.loads(f"v = {value}")["v"]
    except tomllib.TOMLDecodeError:
        parsed = value
    *tables, last = key.split(".")
    nested: dict[str, Any] = {last: parsed}
    for table in reversed(tables):
        nested = {table: nested}
    return nested


def as_dict(recipe: Recipe) -> dict[str, Any]:
    """The resolved recipe as nested plain values; `load_recipe` of its TOML gives the same recipe."""
    return dataclasses.asdict(recipe)


def _find(recipe: str) -> Path:
    built_in = BUILT_IN / f"{recipe}.toml"
    if built_in.is_file():
        return built_in
    path = Path(recipe)
    if path.suffix == ".toml":
        if path.is_file():
            return path
        raise ConfigError(f"recipe file {recipe} does not exist.")
    raise ConfigError(f"unknown recipe {recipe!r}; {nearest(recipe, list_recipes())} A path must end in .toml.")


def _read(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path in seen:
        raise ConfigError(f"recipe {path.stem} extends itself: {' -> '.join(p.stem for p in (*seen, path))}.")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}.") from error
    base = values.pop("extends", None)
    if base is None:
        return values
    parent = path.parent / f"{base}.toml"
    return merge(_read(parent if parent.is_file() else _find(str(base)), (*seen, path)), values)


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid over `base`, table by table; a component of another name replaces the old one whole."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        if isinstance(value, Mapping) and isinstance(old, Mapping) and not _other_component(old, value):
            value = merge(old, value)
        merged[key] = value
    return merged


def _other_component(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether `new` names another model, balancer or kind of task: then the old one's options mean nothing to it."""
    return any(key in old and new.get(key, old[key]) != old[key] for key in ("name", "kind"))


def _build(cls: type[Any], values: Any, where: str) -> Any:
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where or 'a recipe'} must be a table; got {values!r}.")
    hints = typing.get_type_hints(cls)
    built = {}
    for key, value in values.items():
        name = f"{where}.{key}" if where else key
        if key not in hints:
            raise ConfigError(f"unknown key {name!r}; {_inside(key, hints) or nearest(key, list(hints))}")
        hint = hints[key]
        nested = isinstance(hint, type) and dataclasses.is_dataclass(hint)
        built[key] = _build(hint, value, name) if nested else _checked(hint, value, name)
    return cls(**built)


def _inside(key: str, hints: Mapping[str, Any]) -> str:
    """The hint for a key that belongs one table further down, as `epochs` does to `training`."""
    for table, hint in hints.items():
        if isinstance(hint, type) and dataclasses.is_dataclass(hint) and key in typing.get_type_hints(hint):
            return f"did you mean '{table}.{key}'?"
    return ""


def _checked(hint: Any, value: Any, name: str) -> Any:
    origin = typing.get_origin(hint)
    if origin is Literal:
        choices = typing.get_args(hint)
        if value not in choices:
            raise ConfigError(f"{name} must be one of {', '.join(map(repr, choices))}; got {value!r}.")
        return value
    expected = origin if isinstance(origin, type) and not isinstance(hint, types.UnionType) else hint
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
        raise ConfigError(f"{name} must be {_READABLE[expected]}; got {value!r}.")
    return value


_READABLE = {int: "an integer", float: "a number", bool: "true or false", str: "text", dict: "a table", list: "a list"}


def _check(recipe: Recipe) -> None:
    data, optimizer, training = recipe.data, recipe.optimizer, recipe.training
    limits = {
        "data.size must be a positive multiple of 16": data.size > 0 and data.size % 16 == 0,
        "data.batch_size must be at least 1": data.batch_size >= 1,
        "data.val_fraction must lie between 0 and 1": 0 < data.val_fraction < 1,
        "data.test_fraction must lie between 0 and 1 - val_fraction": 0 <= data.test_fraction < 1 - data.val_fraction,
        "data.folds must be 0, or 2 and more": data.folds == 0 or data.folds >= 2,
        "data.fold must be 0 to folds - 1": 0 <= data.fold < max(data.folds, 1),
        "data.tile_size must be at least 1": data.tile_size >= 1,
        "data.mpp must be finite and not negative": 0 <= data.mpp < float("inf"),
        "data.overlap must be 0 to tile_size - 1": 0 <= data.overlap < data.tile_size,
        "data.min_tissue must lie between 0 and 1": 0 <= data.min_tissue <= 1,
        "data.max_damaged must lie in [0, 1)": 0 <= data.max_damaged < 1,
        "data.open_slides must not be negative": data.open_slides >= 0,
        "data.per_slide must not be negative": data.per_slide >= 0,
        "data.patches_per_slide must not be negative": data.patches_per_slide >= 0,
        "data.polygon_offset must be x and y": len(data.polygon_offset) in (0, 2),
        "data.classes must map columns to lists of classes": all(isinstance(v, list) for v in data.classes.values()),
        "data.metadata must map names to lists of columns": all(isinstance(v, list) for v in data.metadata.values()),
        "data.num_threads must be at least 1": data.num_threads >= 1,
        "optimizer.lr must be finite and not negative": 0 <= optimizer.lr < float("inf"),
        "optimizer.weight_decay must be finite and not negative": 0 <= optimizer.weight_decay < float("inf"),
        "optimizer.warmup must lie in [0, 1)": 0 <= optimizer.warmup < 1,
        "training.epochs must be at least 1": training.epochs >= 1,
        "training.clip_norm must be finite and not negative": 0 <= training.clip_norm < float("inf"),
        "training.patience must not be negative": training.patience >= 0,
        "training.log_every must be at least 1": training.log_every >= 1,
        "model needs a `name`, as text": isinstance(recipe.model.get("name"), str),
        "balancer needs a `name`, as text": isinstance(recipe.balancer.get("name"), str),
        "tasks is empty: a recipe needs at least one [tasks.NAME] table with a `kind`": bool(recipe.tasks),
    }
    for message, holds in limits.items():
        if not holds:
            raise ConfigError(f"recipe {recipe.name}: {message}.")
    for name, task in recipe.tasks.items():
        if not isinstance(task, Mapping) or not isinstance(task.get("kind"), str):
            raise ConfigError(f"recipe {recipe.name}: tasks.{name} needs a `kind`, for example 'classification'.")
