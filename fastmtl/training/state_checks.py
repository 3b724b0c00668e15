"""Loads the parts of a training state and refuses those of another training.

torch's fused optimizers read past the end of moments that have another shape, and a state that fits in part would mix
two trainings.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .errors import CheckpointError
from .sharding import model_like, optimizer_like

StateDict = dict[str, Any]
_LIKE_PARAMETER = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer")
_HOW = ("fused", "foreach")  # options of an optimizer that change how it computes, not what
_SHOWN = 3  # keys named of those that differ


def refuse(problem: str) -> None:
    """Raise CheckpointError unless `problem` is empty."""
    if problem:
        raise CheckpointError(problem)


@contextmanager
def loading(part: str) -> Iterator[None]:
    """Turn any error in the block into a CheckpointError about this part: a damaged or edited state can raise any."""
    try:
        yield
    except Exception as error:
        said = str(error) if isinstance(error, (CheckpointError, ValueError)) else f"{type(error).__name__}: {error}"
        raise CheckpointError(f"its {part} is of another training, or damaged: {' '.join(said.split())}") from error


def load_model(model: nn.Module, weights: Any) -> None:
    """Load `weights` of the same keys, shapes and dtypes into `model`."""
    refuse(model_problem(model, weights))
    model.load_state_dict(model_like(model, weights))


def load_balancer(balancer: Any, state: Any, tasks: Sequence[str]) -> None:
    """Load `state` into `balancer`, if it has these tasks."""
    known = state.get("tasks")
    if known is not None and list(known) != list(tasks):
        refuse(f"it is of the tasks {', '.join(map(str, known))}, and here they are {', '.join(tasks)}")
    load_like(balancer, state)


def load_optimizer(optimizer: torch.optim.Optimizer, state: Any) -> None:
    """Load `state` into `optimizer`, if its moments have the parameters' shapes."""
    refuse(optimizer_problem(optimizer, state))
    own = [{name: group[name] for name in _HOW if name in group} for group in optimizer.param_groups]
    optimizer.load_state_dict(optimizer_like(optimizer, state))
    for group, how in zip(optimizer.param_groups, own, strict=True):
        group |= how


def load_like(part: Any, state: Any) -> None:
    """Load `state` into `part`, if it has the structure of what `part` would save."""
    if not isinstance(state, Mapping):
        refuse("there is none")
    refuse(mismatch(part.state_dict(), state))
    part.load_state_dict(state)


def model_problem(model: nn.Module, weights: Any) -> str:
    """Why `weights` are not a state of `model`: the first keys that differ; "" if they fit."""
    if not isinstance(weights, Mapping) or not all(isinstance(value, Tensor) for value in weights.values()):
        return "no tensors by name"
    own = model.state_dict()
    for what, keys in (("lacks", own.keys() - weights.keys()), ("has besides", weights.keys() - own.keys())):
        if keys:
            shown = ", ".join(sorted(map(str, keys))[:_SHOWN])
            return f"{what} {shown}{f' and {len(keys) - _SHOWN} more' if len(keys) > _SHOWN else ''}"
    for key, value in own.items():
        if isinstance(value, Tensor) and _words(weights[key]) != _words(value):
            return f"{key} is {_words(weights[key])}, and the network's is {_words(value)}"
    return ""


def optimizer_problem(optimizer: torch.optim.Optimizer, state: Any) -> str:
    """Why `state` is not a state of `optimizer`; "" if it fits.

    For Adam and SGD of torch and apex everything is compared; for others, the groups and entries of the same names.
    """
    if not isinstance(state, Mapping) or not isinstance(state.get("param_groups"), list):
        return "it has no param_groups"
    saved, own = state["param_groups"], optimizer.param_groups
    if len(saved) != len(own):
        return f"it has {len(saved)} groups of parameters, and here there are {len(own)}"
    parameters: list[Tensor] = []
    numbers: list[Any] = []
    for number, (group, mine) in enumerate(zip(saved, own, strict=True)):
        listed = group.get("params") if isinstance(group, Mapping) else None
        if not isinstance(listed, list) or len(listed) != len(mine["params"]):
            return f"its group {number} is not of {len(mine['params'])} parameters, as here"
        for key, value in mine.items():
            if key in ("params", *_HOW) or key not in group:
                continue
            problem = mismatch(value, group[key], key)
            if problem or (isinstance(value, bool) and value != group[key]):
                return problem or f"{key} is {group[key]}, and here it is {value}"
        parameters += mine["params"]
        numbers += listed
    moments = state.get("state")
    known = dict(zip(numbers, parameters, strict=True))
    if not isinstance(moments, Mapping) or len(known) < len(numbers) or not moments.keys() <= known.keys():
        return "it has moments of parameters that are not here"
    for number, values in moments.items():
        if problem := _moments_problem(optimizer, known[number], values):
            return f"of parameter {number}, {list(known[number].shape)}, it has {problem}"
    return ""


def _moments_problem(optimizer: torch.optim.Optimizer, parameter: Tensor, values: Any) -> str:
    if not isinstance(values, Mapping):
        return f"{type(values).__name__} for moments"
    needed = ("step", "exp_avg", "exp_avg_sq") if values and isinstance(optimizer, torch.optim.Adam) else ()
    if lacking := [name for name in needed if name not in values]:
        return f"no {lacking[0]}"
    for name, value in values.items():
        if name in _LIKE_PARAMETER and value is not None:
            if not isinstance(value, Tensor):
                return f"{name} that is {_article(value)}"
            if value.shape != parameter.shape or not value.is_floating_point():
                return f"{name} {_words(value)}"
        elif name == "step" and (value.dim() if isinstance(value, Tensor) else not isinstance(value, (int, float))):
            return "a step that is no number"
    return ""


def mismatch(own: Any, saved: Any, what: str = "it") -> str:
    """How `saved` differs in kind from `own`, the current state; "" if it fits.

    Tensors are compared by shape, dicts and lists by their common entries; None (not set yet) fits everything.
    """
    if own is None or saved is None:
        return ""
    if isinstance(own, Tensor) and isinstance(saved, Tensor):
        if not own.numel() or not saved.numel():  # learned weights are empty until the first step gives their number
            return ""
        same = own.shape == saved.shape and own.is_floating_point() == saved.is_floating_point()
        return "" if same else f"{what} is {_words(saved)}, and here it is {_words(own)}"
    if _kind(own) != _kind(saved):
        return f"{what} is {_article(saved)}, and here it is {_article(own)}"
    keys: Any = ()
    if isinstance(own, Mapping):
        keys = [key for key in own if key in saved]
    elif isinstance(own, (list, tuple)):
        keys = range(min(len(own), len(saved)))
    return next((said for key in keys if (said := mismatch(own[key], saved[key], f"{what}.{key}"))), "")


def _kind(value: Any) -> type:
    for kind in (Tensor, Mapping, bool):
        if isinstance(value, kind):
            return kind
    if isinstance(value, (int, float)):
        return float
    return list if isinstance(value, (list, tuple)) else type(value)


def _article(value: Any) -> str:
    words = {Tensor: "a tensor", Mapping: "a table", bool: "true or false", float: "a number", list: "a list"}
    return words.get(_kind(value), "text" if isinstance(value, str) else type(value).__name__)


def _words(value: Tensor) -> str:
    return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
