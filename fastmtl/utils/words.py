"""Counts, shares and lists in words."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite


def counted(count: int, noun: str) -> str:
    """A number and its noun, whose plural ends in s.

    >>> counted(1, "image"), counted(0, "patient")
    ('1 image', '0 patients')
    """
    return f"{count} {noun}{'s' * (count != 1)}"


def named(name: str) -> str:
    """A name followed by a number: in quotes if it ends in a digit.

    >>> named("Polyp"), named("2"), named("G3")
    ('Polyp', "'2'", "'G3'")
    """
    return repr(name) if name[-1:].isdigit() else name


def printable(name: str) -> str:
    """A name from a file as it is written in a message: quoted if it would break the line or hide a character.

    >>> printable("age (years)"), printable("age\\n(years)")
    ('age (years)', "'age\\\\n(years)'")
    """
    return name if name.isprintable() else repr(name)


def few(items: Sequence[str], most: int, mark: str = ", ") -> str:
    """The first `most` items and the number of others.

    >>> few(["a", "b", "c", "d"], 2), few(["a", "b"], 2)
    ('a, b, and 2 more', 'a, b')
    """
    rest = len(items) - most
    return mark.join(items[:most]) + (f"{mark}and {rest} more" if rest > 0 else "")


def percent(share: float) -> str:
    """A fraction in percent. Only exactly 1 gives 100% and only exactly 0 gives 0%.

    >>> percent(0.5), percent(1.0), percent(0.996), percent(0.0001), percent(0.99999)
    ('50%', '100%', '99.6%', '<0.1%', '>99.9%')
    """
    if not isfinite(share):
        return "unknown"
    for text in (f"{share:.0%}", f"{share:.1%}"):
        if share in (0, 1) or text not in ("0%", "100%", "0.0%", "100.0%"):
            return text
    return "<0.1%" if share < 0.5 else ">99.9%"


def megabytes(count: int) -> str:
    """A number of bytes.

    >>> megabytes(412_300_000), megabytes(0), megabytes(70_000)
    ('412 MB', '0.0 MB', '0.1 MB')
    """
    return f"{count / 1e6:.0f} MB" if count >= 1e7 else f"{count / 1e6:.1f} MB"


def listed(names: Sequence[str]) -> str:
    """Names in a sentence.

    >>> listed(["a"]), listed(["a", "b", "c"])
    ('a', 'a, b and c')
    """
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))
