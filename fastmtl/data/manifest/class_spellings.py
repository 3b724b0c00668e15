"""Class names that are spelled alike: "Tumor" beside "tumor ", which training would take for two classes."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence

from ..dataset import Dataset, Problem, class_counts
from ..identifiers import is_invisible

_BETWEEN = re.compile(r"(?<=([^\W_]))[\s_\-\u2010-\u2015\u2212]+(?=([^\W_]))")  # spaces and dashes inside a name

_ANSWERS = (("yes", "y", "true", "t", "1"), ("no", "n", "false", "f", "0"))


def alike(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Groups of `names` that differ only by case, by spaces, dashes and underscores between words, by invisible blanks,
    or by their Unicode form; in the order of `names`.

    A sign at an end counts: "HER2" and "HER2-" differ. So do separators of digits: "1 2" is not "12".

    >>> alike(["Tumor", "stroma", "tumor ", "HER2", "HER2-"])
    [('Tumor', 'tumor ')]
    """
    found: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        found.setdefault(_folded(name), []).append(name)
    return [tuple(spelled) for spelled in found.values() if len(spelled) > 1]


def quoted(names: Sequence[str]) -> list[str]:
    """Each of `names` in quotes, escaped where readers would not see how they differ."""
    composed = [unicodedata.normalize("NFKC", name) for name in names]
    return [ascii(name) if composed.count(form) > 1 else repr(name) for name, form in zip(names, composed, strict=True)]


def spelling_problem(counts: Mapping[str, int], of: str, unit: str) -> str | None:
    """The notice about names that are spelled alike; None if there are none.

    Args:
        counts: name -> how often it appears.
        of: what has these names, for example "column 'label'".
        unit: what is counted, "tiles" or "polygons".
    """
    groups = [_counted(group, counts) for group in alike(list(counts))]
    if not groups:
        return None
    return (
        f"{of}: classes that differ only by spaces, case, dashes or Unicode form: {'; '.join(groups)} {unit}; they "
        "count as different classes: write them alike if they are one"
    )


def spelling_notices(dataset: Dataset) -> tuple[Problem, ...]:
    """A notice for each label column with classes that are spelled alike."""
    columns = {
        column: {name: found["tiles"] for name, found in classes.items()}
        for column, classes in class_counts(dataset).items()
    }
    reasons = []
    for column, counts in columns.items():
        for answers in _ANSWERS:
            same = [name for name in counts if name.casefold() in answers]
            if len({name.casefold() for name in same}) > 1:
                reasons.append(
                    f"column {column!r}: {', '.join(quoted(same))} may be one answer; write them alike if so"
                )
        reasons.append(spelling_problem(counts, f"column {column!r}", "tiles"))
    return tuple(Problem(dataset.root, reason) for reason in reasons if reason)


def merged_spellings(column: str, written: Mapping[str, tuple[str, int]], class_of: Callable[[str], str]) -> list[str]:
    """Notices of cells that are written differently and read as one class: "tumor " and "tumor".

    Args:
        column: for the message.
        written: cell as written -> (cell as read, how often).
        class_of: the class of a cell as read.
    """
    spelled: dict[str, list[str]] = {}
    for name, (cell, _) in written.items():
        spelled.setdefault(class_of(cell), []).append(name)
    counts = {name: count for name, (_, count) in written.items()}
    return [
        f"column {column!r}: {_counted(cells, counts)} cells are read as one class, {name!r}"
        for name, cells in spelled.items()
        if len(cells) > 1
    ]


def _counted(names: Sequence[str], counts: Mapping[str, int]) -> str:
    return ", ".join(f"{shown} ({counts[name]})" for name, shown in zip(names, quoted(names), strict=True))


def _folded(name: str) -> str:
    plain = unicodedata.normalize("NFKC", name).casefold()
    seen = "".join(letter for letter in plain if not is_invisible(letter))
    return _BETWEEN.sub(lambda found: " " if found[1].isdigit() and found[2].isdigit() else "", seen.strip())
