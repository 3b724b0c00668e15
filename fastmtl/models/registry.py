"""Models by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from torch import nn

from ..names import check_options, nearest
from .heads import Output

ModelClass = TypeVar("ModelClass", bound=type[nn.Module])
_MODELS: dict[str, type[nn.Module]] = {}


def register_model(name: str) -> Callable[[ModelClass], ModelClass]:
    """Class decorator: makes a model available to `create_model` and to recipes as `name`.

    Raises:
        TypeError: the class has no `shared_parameters` (see `fastmtl.protocols.Model`).
    """

    def decorate(model: ModelClass) -> ModelClass:
        if not callable(getattr(model, "shared_parameters", None)):
            raise TypeError(f"model {name!r} must have a method shared_parameters(); {model.__name__} has none.")
        _MODELS[name] = model
        return model

    return decorate


def list_models() -> list[str]:
    """The registered names, sorted."""
    return sorted(_MODELS)


def create_model(name: str, tasks: Mapping[str, Output], **options: Any) -> nn.Module:
    """Build a registered model.

    Args:
        name: one of `list_models()`.
        tasks: task name -> `Output`, in the order of the model's outputs.
        options: keyword arguments of the model's class.

    Raises:
        ValueError: unknown name or option; the message lists the nearest.

    Example:
        >>> from fastmtl import models
        >>> tasks = {"mask": models.Output("map", 1), "grade": models.Output("vector", 4)}
        >>> model = models.create_model("joint_unet", tasks=tasks, base_channels=8)
    """
    check_model(name, options)
    try:
        return _MODELS[name](tasks, **options)
    except TypeError as error:  # an option of another type: "8" for 8
        raise ValueError(f"model {name!r} cannot be built with {options}: {error}") from error


def check_model(name: str, options: Iterable[str]) -> None:
    """Raise ValueError, as `create_model` would, for an unknown model or option."""
    if name not in _MODELS:
        raise ValueError(f"unknown model {name!r}; {nearest(name, list_models())}")
    check_options(_MODELS[name], options, f"model {name!r}", given=("tasks",))
