"""An op's tensors and options as NamedTuples: their annotations are the op's schema and the options' checks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple, TypeVar, get_origin, get_type_hints

from torch import Tensor

_WORDS = {
    Tensor: "Tensor",
    Tensor | None: "Tensor?",
    list[float]: "float[]",
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
    """A function that runs the check each field of `options` is annotated with: `Annotated[kind, check]`, called with
    the field's name and value."""
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
    """`options` as those of another op: the fields that both have, then `changed`; defaults for the rest."""
    make: Any = kind
    return make(**{name: getattr(options, name) for name in options._fields if name in make._fields} | changed)
