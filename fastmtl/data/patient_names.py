"""Names of patients, groups and cases: found in file names, merged into one spelling, and checked for oddities."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

from ..utils.words import counted, few
from .identifiers import LOOK_ALIKES, clean_name, identifier_key, last_part, quoted_beside, says_missing

_SHORTENED = re.compile(r"\d(?:[.,]\d+)?e\+\d+", re.IGNORECASE)
_OME = re.compile(r"(?<=.)\.ome$", re.IGNORECASE)
_MOST_LISTED = 3

PATIENT = "[^-]+"
"""Matches the patient in the file names of EBHI-Seg: the part before the first "-"."""


def group_of(name: str, patient: str = PATIENT) -> str:
    """The patient in a file name, upper-cased: the first group of the regular expression `patient`, or its whole match.

    A name without a match is its own patient. The name is cleaned first (`clean_name`), and may be a Windows path.
    The ending is no part of it: of P1.ome.tif and P1.svs the patient is P1.

    >>> group_of("GTxc2012476-1-400-001.png")
    'GTXC2012476'
    >>> group_of("slide7_p03_12.png", r".*_(p[0-9]+)_")
    'P03'
    >>> group_of("P1.ome.tif")
    'P1'
    """
    stem = name_without_ending(name)
    found = re.match(patient, stem)
    if found is None:
        return stem.upper()
    return ((found.re.groups and found[1]) or found[0] or stem).upper()


def name_without_ending(name: str) -> str:
    """The cleaned name of a file without its ending, and without .ome before it."""
    return clean_name(_OME.sub("", Path(last_part(name)).stem))


def rule_in_words(patient: str = PATIENT) -> str:
    """How `group_of` finds a patient, in words."""
    return 'file name (before the first "-")' if patient == PATIENT else f"file name ({patient})"


def one_spelling(names: Iterable[str]) -> dict[str, str]:
    """Each name -> the spelling to keep: one without oddities, else the most frequent.

    >>> one_spelling(["1.0", "1", "1.0", "P2"])
    {'1.0': '1', '1': '1', 'P2': 'P2'}
    """
    counts = Counter(names)
    spellings: dict[str, list[str]] = defaultdict(list)
    for name in counts:
        spellings[identifier_key(name)].append(name)
    chosen = {
        key: min(found, key=lambda name: (identifier_key(name) != name.casefold(), -counts[name], name))
        for key, found in spellings.items()
    }
    return {name: chosen[identifier_key(name)] for name in counts}


def name_notices(names: Iterable[str], what: str, unit: str) -> list[str]:
    """Notices of names that were merged, names that look alike and are kept apart, and names that are likely wrong.

    Args:
        names: as written, one for each row or tile.
        what: what they name, for example "patient".
        unit: "row" or "tile", for counts.
    """
    counts = Counter(names)
    number = {name: counted(count, unit) for name, count in counts.items()}
    chosen = one_spelling(counts.elements())
    merged = [
        f"{what} {quoted_beside(name, one)} ({number[name]}) is taken for {quoted_beside(one, name)} ({number[one]})"
        for name, one in chosen.items()
        if name != one
    ]
    near: dict[str, list[str]] = defaultdict(list)
    for name in dict.fromkeys(chosen.values()):
        near[_near_key(name)].append(name)
    apart = [
        f"{what} {quoted_beside(name, first)} looks like {quoted_beside(first, name)} and is kept apart; "
        "write one name if it is one"
        for first, *others in near.values()
        for name in others
    ]
    shortened = [
        f"{what} {name!r} is a number that a spreadsheet shortened, so several may look alike; export it as text"
        for name in counts
        if _SHORTENED.fullmatch(clean_name(name))
    ]
    missing = [
        f"{what} {name!r} ({number[name]}) is not a name, and a split treats it as one {what}"
        for name in counts
        if says_missing(name)
    ]
    return [few(lines, _MOST_LISTED, "; ") for lines in (merged, apart, shortened, missing) if lines]


def _near_key(name: str) -> str:
    """A key that ignores leading zeros, quotes, dashes beside letters, and letters of other alphabets."""
    name = re.sub("['\"`]", "", identifier_key(name).translate(LOOK_ALIKES))
    joined = re.sub(r"(?<!\d)[\s_./-]+|[\s_./-]+(?!\d)", "", name)
    return re.sub(r"(?<![\d.])0+(?=\d)", "", joined)
