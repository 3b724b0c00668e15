"""Ways in which spreadsheets, Windows, Macs and copied text write one name."""

from __future__ import annotations

import unicodedata

from hypothesis import strategies as st

PATIENTS = ("P1", "P11", "p2", "1", "11", "15", "1.5", "1e3", "1000", "01", "Pä7", "Weiß", "Anna K", "AnnaK", "A-1")
"""Names that are no two of one patient."""

_WIDE = {ord("0") + digit: 0xFF10 + digit for digit in range(10)}


def _whole(name: str) -> str:
    return name + ".0" if name.isdigit() else name


WAYS = (
    str.upper,
    str.lower,
    _whole,
    lambda name: unicodedata.normalize("NFD", name),
    lambda name: name.translate(_WIDE),
    lambda name: name.replace(" ", "\u00a0"),
    lambda name: name.replace(" ", "  "),
    lambda name: name.replace("-", "\u2011"),
    lambda name: name[:1] + "\u200b" + name[1:],
    lambda name: "\ufeff" + name,
    lambda name: name + " ",
    lambda name: "\t" + name,
    lambda name: name + ".",
)


def spellings(name: str) -> st.SearchStrategy[str]:
    """`name` written in up to three odd ways at once."""

    def write(ways: list) -> str:
        text = name
        for way in ways:
            text = way(text)
        return text

    return st.lists(st.sampled_from(WAYS), max_size=3).map(write)


@st.composite
def named_tiles(draw: st.DrawFn) -> list[tuple[int, str]]:
    """(index into PATIENTS, spelling) of the tiles of all patients, several each."""
    found = []
    for index, name in enumerate(PATIENTS):
        found += [(index, draw(spellings(name))) for _ in range(draw(st.integers(2, 4)))]
    return draw(st.permutations(found))
