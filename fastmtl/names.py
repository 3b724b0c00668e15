"""What to say when somebody misspells a name: which one, and the nearest that exist."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Collection, Iterable
from typing import Any


def nearest(name: str, known: Collection[str]) -> str:
    """A hint: "did you mean x?", or all of `known` where nothing is near.

    >>> nearest("pcgrd", ["linear", "pcgrad"])
    "did you mean 'pcgrad'?"
    >>> nearest("x", ["linear", "pcgrad"])
    'known: linear, pcgrad.'
    """
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(map(repr, close))}?" if close else f"known: {', '.join(known)}."


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
    known = [name for name in inspect.signature(make).parameters if name not in given]
    for option in options:
        if option not in known:
            raise ValueError(f"{what} has no option {option!r}; {nearest(option, known)}")
