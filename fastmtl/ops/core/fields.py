"""An op's tensors and options as NamedTuples: their annotations give the op's schema and the checks of the options."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple, TypeVar, get_origin, get_type_hints

import torch
from torch import Tensor

_WORDS = {
    Tensor: "Tensor",
    Tensor | None: "Tensor?",
    list[Tensor]: "Tensor[]",
    list[float]: "float[]",
    list[float] | None: "float[]?",
    torch.dtype: "ScalarType",
    float: "float",
    bool: "bool",
    int: "int",
    str: "str",
}


Options = TypeVar("Options", bound=NamedTuple)


def schema(fields: type) -> str:
    """The fields of a NamedTuple as arguments of a `torch.library` schema."""
    return ", ".join(f"{_WORDS[kind]} {name}" for name, kind in get_type_hints(fields).items())


def checks_of(options: type) -> Callable[[NamedTuple], None]:
    """A function that checks every field of `options` annotated `Annotated[kind, check]`: it calls check(name,
    value)."""
    kinds = get_type_hints(options, include_extras=True).items()
    checks = tuple((name, kind.__metadata__[0]) for name, kind in kinds if get_origin(kind) is Annotated)

    def check(options: NamedTuple) -> None:
        for name, run in checks:
            run(name, getattr(options, name))

    return check


def keywords(options: NamedTuple, *left_out: str) -> dict[str, Any]:
    """The fields of `options` by name, as keywords of the definition in `fastmtl.reference`."""
    return {name: getattr(options, name) for name in options._fields if name not in left_out}


def converted(options: NamedTuple, kind: type[Options], **changed: object) -> Options:
    """`options` converted to the options of another op: the common fields, then `changed`; defaults otherwise."""
    make: Any = kind
    return make(**{name: getattr(options, name) for name in options._fields if name in make._fields} | changed)
