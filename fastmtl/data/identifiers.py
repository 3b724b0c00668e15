"""Spellings of one name, of patients, cases, samples and files, share a key.

Spreadsheets, Windows, Macs and copied text write one name in several ways: "1" and "1.0", "P1" and "p1 ", "Pä" in two
code points or three. A patient under two names would be on both sides of a split. Names stay as written and are
compared by key.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

_DASHES = frozenset("\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe58\ufe63\uff0d")
# "1,0" is a spreadsheet's whole number where a comma is decimal; "1,000" may be a thousand.
_WHOLE = re.compile(r"([+-]?\d+)(?:\.0+|,00?)")
_MISSING = frozenset({"nan", "na", "n/a", "n.a", "<na>", "#n/a", "#na", "nat", "null", "none", "nil"})
_ERROR = re.compile(r"#[a-z/0]+[!?]")  # a spreadsheet's: #REF!, #DIV/0!, #NAME?
_LONGEST_MISSING = 16
LOOK_ALIKES = str.maketrans("авекмнорстухіοαρν", "abekmhopctyxioapv")  # Cyrillic and Greek beside Latin


def strip_invisible(text: str) -> str:
    """Without blanks, byte order marks and zero-width characters at both ends."""
    text = text.strip()
    if text.isascii():
        return text
    hidden = [at for at, letter in enumerate(text) if not (letter.isspace() or is_invisible(letter))]
    return text[hidden[0] : hidden[-1] + 1] if hidden else ""


def unicode_form(text: str) -> str:
    """NFC, in which an accented letter is one code point where there is one; Macs write file names in NFD."""
    return unicodedata.normalize("NFC", text)


@lru_cache(2**16)
def clean_name(text: str) -> str:
    """The normalised name: NFC, ASCII digits, dashes, blanks and slashes; without invisible characters, double
    blanks, and blanks and dots at the end, which Windows drops from file names.

    >>> clean_name("tiles\\\\P\uff11\u00a0 a. ")
    'tiles/P1 a'
    """
    if not (text.isascii() and text.isprintable()):
        text = unicode_form("".join(map(_plain_letter, unicode_form(text))))
    return " ".join(text.replace("\\", "/").split()).rstrip(". ")


@lru_cache(2**16)
def sample_key(text: str) -> str:
    """The key of a sample's id. Capitals count, as in file names.

    >>> sample_key("12.0"), sample_key("1.5"), sample_key("1e3")
    ('12', '1.5', '1e3')
    """
    name = clean_name(text)
    whole = _WHOLE.fullmatch(name)
    return whole[1] if whole else name


@lru_cache(2**16)
def identifier_key(text: str) -> str:
    """The key of a patient, group or case: a sample's key without capitals, and without blanks between a letter and a
    digit. Leading zeros count.

    >>> identifier_key("GTxc 17.") == identifier_key("GTXC17"), identifier_key("01") == identifier_key("1")
    (True, False)
    """
    name = unicode_form(sample_key(text).casefold())
    return re.sub(r"(?<=\d) (?=[^\W\d_])|(?<=[^\W\d_]) (?=\d)", "", name)


def says_missing(text: str) -> bool:
    """Whether a cell holds no name: nan, NA, n/a, null, None, an error of a spreadsheet, or no letter or digit.

    >>> says_missing("NaN"), says_missing("-"), says_missing("Nan Madol")
    (True, True, False)
    """
    if len(text) > _LONGEST_MISSING:
        return False
    name = identifier_key(text)
    return name in _MISSING or bool(_ERROR.fullmatch(name)) or not any(map(str.isalnum, name))


def last_part(path: str) -> str:
    """The file's name in a path of this system or of Windows.

    >>> last_part("tumor\\\\P1-a.png")
    'P1-a.png'
    """
    return re.split(r"[\\/]", path)[-1]


def tell_apart(one: Path, other: Path) -> str:
    """Two paths of one name for a message, escaped where they would look the same."""
    if unicode_form(str(one)) != unicode_form(str(other)):
        return f"{one} and {other.name}"
    return f"{one.parent}: {one.name!a} and {other.name!a} are one name in two Unicode forms; they"


def near_file(path: Path) -> str:
    """A hint for a missing file: a name in the same folder that differs in capitals, blanks or Unicode form."""
    for part in (path, *path.parents):
        home = part.parent
        if home.is_dir():
            try:
                near = _names_in(home, home.stat().st_mtime_ns).get(identifier_key(part.name))
            except OSError:  # a folder that may not be listed
                near = None
            return f"; {quoted_beside(near, part.name)} exists, and names must match exactly" if near else ""
    return ""


@lru_cache(8)
def _names_in(folder: Path, _changed: int) -> Mapping[str, str]:
    return {identifier_key(entry.name): entry.name for entry in folder.iterdir()}


@lru_cache(2**12)
def _plain_letter(letter: str) -> str:
    if letter in _DASHES:
        return "-"
    if is_invisible(letter):
        return ""
    if (digit := unicodedata.decimal(letter, None)) is not None:
        return str(digit)
    if unicodedata.decomposition(letter).startswith(("<wide>", "<narrow>", "<noBreak>")):
        return unicodedata.normalize("NFKC", letter)
    return letter


def is_invisible(letter: str) -> bool:
    category = unicodedata.category(letter)
    return category == "Cf" or (category == "Cc" and not letter.isspace())


def quoted_beside(name: str, beside: str) -> str:
    """`name` in quotes; escaped if it would look the same as `beside`."""
    looks = {identifier_key(one).translate(LOOK_ALIKES) for one in (name, beside)}
    return repr(name) if len(looks) > 1 else ascii(name)
