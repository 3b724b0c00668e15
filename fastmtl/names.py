"""What to say when somebody misspells a name: which one, and the nearest that exist."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Collection, Iterable
from typing import Any

_MOST_LISTED = 30  # every balancer and model; the recipes are more, and `fastmtl recipes` shows them better


def nearest(name: str, known: Collection[str]) -> str:
    """A hint: "did you mean x?", or what is known where nothing is near.

    >>> nearest("pcgrd", ["linear", "pcgrad"])
    "did you mean 'pcgrad'?"
    >>> nearest("x", ["linear", "pcgrad"])
    'known: linear, pcgrad.'
    """
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(map(repr, close))}?"
    rest = len(known) - _MOST_LISTED
    return f"known: {', '.join(list(known)[:_MOST_LISTED])}{f' and {rest} more' if rest > 0 else ''}."


def option_names(make: Callable[..., Any]) -> tuple[list[str], bool]:
    """The names that `make` takes as keywords, and whether it takes any others too.

    A class whose constructor ends in **options hands them on: those of its base class count as well.

    Args:
        make: a function or class.
    """
    names: list[str] = []
    for each in inspect.getmro(make) if inspect.isclass(make) else (make,):
        if each is object:
            break
        if each is not make and "__init__" not in vars(each):
            continue
        parameters = inspect.signature(each).parameters.values()
        names += [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        if all(p.kind is not p.VAR_KEYWORD for p in parameters):
            return names, False
    return names, True


def check_options(
    make: Callable[..., Any], options: Iterable[str], what: str, given: Collection[str] = ("self",)
) -> None:
    """Raise ValueError for the first of `options` that `make` has no parameter for.

    Args:
        make: a function or class.
        options: names somebody wants to pass it.
        what: what it is called in the message, for example "balancer 'pcgrad'".
        given: parameters that are passed by other means.
    """
    names, others = option_names(make)
    known = [name for name in names if name not in given]
    for option in options:
        if option in given or not (others or option in known):
            raise ValueError(f"{what} has no option {option!r}; {nearest(option, known)}")
