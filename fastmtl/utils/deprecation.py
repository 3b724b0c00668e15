"""Renamed names: the old one works for one version and warns."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def warn_renamed(old: str, new: str, *, stacklevel: int = 3) -> None:
    """Warn that `old` is called `new`, at the caller of the function that calls this."""
    message = f"{old} is now called {new}; the old name will be removed in fastmtl 0.2."
    warnings.warn(message, DeprecationWarning, stacklevel=stacklevel)


def accept_renamed(**names: str) -> Callable[[Callable[_Arguments, _Result]], Callable[_Arguments, _Result]]:
    """Let a function also accept keyword arguments by their old names: `@accept_renamed(old="new")`."""

    def decorate(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
        @wraps(function)
        def call(*args: _Arguments.args, **options: _Arguments.kwargs) -> _Result:
            for old, new in names.items():
                if old in options:
                    warn_renamed(f"the argument `{old}`", f"`{new}`")
                    options[new] = options.pop(old)
            return function(*args, **options)

        return call

    return decorate


def adopt(instance: object, **names: str) -> None:
    """An object that has an attribute only under its old name gets the new one."""
    for old, new in names.items():
        if not hasattr(instance, new) and hasattr(instance, old):
            warn_renamed(f"{type(instance).__name__}.{old}", new, stacklevel=4)
            setattr(instance, new, getattr(instance, old))


def carry_over(cls: type, **names: str) -> None:
    """For `__init_subclass__`: an attribute that a subclass sets by its old name counts under the new one."""
    for old, new in names.items():
        if old in vars(cls):
            warn_renamed(f"{cls.__name__}.{old}", new, stacklevel=4)
            setattr(cls, new, vars(cls)[old])
