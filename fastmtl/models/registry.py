"""Models by name: built-in, registered by a decorator, or from packages' entry points."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from ..utils.suggestions import check_options, nearest
from .heads import Output
from .sizes import check_sizes
from .weights import load_weights

Builder = TypeVar("Builder", bound=Callable[..., nn.Module])
ENTRY_POINTS = "fastmtl.models"
PRESETS = ("full", "tiny")


@dataclass(frozen=True)
class Row:
    """A model with one set of tasks from its paper.

    Attributes:
        tasks: task name -> `Output`.
        parameters: number of parameters of the full model with these tasks, including frozen ones.
        options: further options it is built with.
    """

    tasks: Mapping[str, Output]
    parameters: int
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class ModelInfo:
    """What `fastmtl models` shows about a model.

    Attributes:
        summary: the network in one line.
        paper: its source.
        channels, strides: of the encoder's feature maps, finest first, at full size.
        extra: the optional dependency it needs, as in pip install 'fastmtl-engine[EXTRA]'; empty for none.
        rows: configurations trained in the paper: label -> tasks and number of parameters.
        tiny: the options of the preset "tiny", which trains on a CPU in seconds.
    """

    summary: str = ""
    paper: str = ""
    channels: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    extra: str = ""
    rows: Mapping[str, Row] = field(default_factory=dict[str, Row])
    tiny: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class _Entry:
    build: Callable[..., nn.Module]
    info: ModelInfo


_MODELS: dict[str, _Entry] = {}


def register_model(name: str, info: ModelInfo | None = None) -> Callable[[Builder], Builder]:
    """Decorator for a model class, or a function that builds one: makes it available to `create_model` and recipes.

    It is called with the tasks (name -> `Output`) and the options; its result must satisfy `fastmtl.protocols.Model`.
    A package's models are found without an import if the package has entry points in the group "fastmtl.models" that
    map a model's name to the class or function.

    Raises:
        TypeError: the class has no `shared_parameters`.
    """

    def decorate(build: Builder) -> Builder:
        if inspect.isclass(build):
            _check_shared(name, build)
        _MODELS[name] = _Entry(build, info or ModelInfo())
        return build

    return decorate


def register_variant(name: str, base: str, info: ModelInfo, **options: Any) -> None:
    """Register `base` with these options under its own name."""
    _MODELS[name] = _Entry(functools.partial(_MODELS[base].build, **options), info)


def list_models() -> list[str]:
    """The registered names, sorted, including those of packages' entry points."""
    _load_entry_points()
    return sorted(_MODELS)


def model_info(name: str) -> ModelInfo:
    """Information about a model without building it.

    Raises:
        ValueError: unknown name.
    """
    return _entry(name).info


def create_model(
    name: str, tasks: Mapping[str, Output], *, preset: str = "full", weights: str | Path | None = None, **options: Any
) -> nn.Module:
    """Build a registered model.

    Args:
        name: one of `list_models()`.
        tasks: task name -> `Output`, in the order of the model's outputs.
        preset: "full", or "tiny" for a model that trains on a CPU in seconds; `options` override the preset.
        weights: a file, or the name of a repository on the Hugging Face hub; see `models.load_weights`.
        options: keyword arguments of the model's class or function.

    Raises:
        ValueError: unknown name or option (the message lists the nearest), tasks that the model does not support, or
            weights of another architecture.
        ImportError: the model's extra is not installed; the message says how to install it.

    Example:
        >>> from fastmtl import models
        >>> tasks = {"mask": models.Output("map", 1), "grade": models.Output("vector", 4)}
        >>> model = models.create_model("joint_unet", tasks=tasks, base_channels=8)
    """
    check_model(name, [*options, "preset", "weights"])
    entry = _entry(name)
    if preset not in PRESETS:
        raise ValueError(f"`preset` of model {name!r} must be one of {', '.join(PRESETS)}; got {preset!r}.")
    if preset == "tiny":
        if not entry.info.tiny:
            raise ValueError(f"model {name!r} has no preset 'tiny'; omit `preset`.")
        options = {**entry.info.tiny, **options}
    if _is_built_in(entry.build):  # in other models the same names may mean anything
        check_sizes(name, options)
    try:
        model = entry.build(tasks, **options)
    except TypeError as error:  # an option of another type: "8" for 8
        raise ValueError(f"model {name!r} cannot be built with {options}: {error}") from error
    _check_shared(name, model)
    if weights is not None:
        load_weights(model, weights)
    return model


def check_model(name: str, options: Iterable[str]) -> None:
    """Raise ValueError, as `create_model` would, for an unknown model or option."""
    rest = [option for option in options if option not in ("preset", "weights")]
    check_options(_entry(name).build, rest, f"model {name!r}", given=("tasks",))


def _is_built_in(build: Any) -> bool:
    return (getattr(build, "func", build).__module__ or "").startswith(f"{__package__}.")


def _check_shared(name: str, model: object) -> None:
    if not callable(getattr(model, "shared_parameters", None)):
        kind = model.__name__ if isinstance(model, type) else type(model).__name__
        raise TypeError(f"model {name!r} must have a method shared_parameters(); {kind} has none.")


def _entry(name: str) -> _Entry:
    if name not in _MODELS:
        known = list_models()  # including the models of packages
        if name not in _MODELS:
            raise ValueError(f"unknown model {name!r}; {nearest(name, known)}")
    return _MODELS[name]


@functools.cache
def _load_entry_points() -> None:
    """Read the entry points once: a broken package must not hide the models of others."""
    for point in entry_points(group=ENTRY_POINTS):
        try:
            build = point.load()
            if point.name not in _MODELS:  # its decorator may have registered it
                register_model(point.name)(build)
        except Exception as error:
            where = point.dist.name if point.dist else point.value
            warnings.warn(f"model {point.name!r} of package {where} cannot be loaded: {error}", stacklevel=2)
