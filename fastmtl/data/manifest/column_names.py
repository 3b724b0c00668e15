"""The columns with a fixed meaning in manifests, and names that are slips of them."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ...utils.suggestions import nearest
from .column_types import KINDS
from .table_io import TextTable

REGION = ("x", "y", "width", "height", "level", "mpp")
RESERVED = ("id", "image", "slide", *REGION, "mask", "label", "patient", "group", "case", "position", "split")


def check_names(table: TextTable, names: Sequence[str], declared: Collection[str]) -> None:
    """Reject a table without images or slides, and columns that are missing, repeated or misspelled.

    Args:
        table: the manifest.
        names: of its columns, the reserved ones in lower case.
        declared: columns whose kind or classes are given.
    """
    path = table.path
    if "image" not in names and "slide" not in names:
        near = next((name for name in names if _is_slip(name, "image") or _is_slip(name, "slide")), None)
        hint = f"is {near!r} meant?" if near else f"its columns are {table.listed_names}"
        raise ValueError(f"{path} has neither a column image nor a column slide; {hint}; rename the one of files")
    twice = [name for at, name in enumerate(names) if name in names[:at]]
    if twice:
        raise ValueError(f"{path} has two columns named {twice[0]!r}, apart from capitals")
    for name in sorted(set(declared) - set(names)):
        raise ValueError(f"{path} has no column {name!r}; {nearest(name, names)}")
    for name in names:
        if name in RESERVED or name in declared:
            continue
        meant = [known for known in RESERVED if known not in names and _is_slip(name, known)]
        if meant:
            raise ValueError(
                f"{path} has an unknown column {name!r}; if {meant[0]!r} is meant, rename it; if not, declare its "
                f"kind ({', '.join(KINDS)})"
            )


def _is_slip(name: str, known: str) -> bool:
    """Whether `name` is `known` with one slip: a plural, a missing letter, blanks or dashes."""
    plain = "".join(letter for letter in name.lower() if letter.isalnum())
    slips = {known + "s", *(known[:at] + known[at + 1 :] for at in range(len(known)))} if len(known) > 3 else set()
    return plain == known or plain in slips
