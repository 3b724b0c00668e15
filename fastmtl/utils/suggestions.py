"""Hints for misspelled names, checks of options, and names that files can have."""

from __future__ import annotations

import difflib
import hashlib
import inspect
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable

from .words import printable

_MOST_LISTED = 30  # every balancer and model; for more there are commands such as `fastmtl recipes`

_DEVICE = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)  # reserved on Windows
_LONGEST = 200  # bytes; file systems allow 255, with endings such as .geojson
_UNSAFE = re.compile(r"[%/\\\x00-\x1f\x7f]|^[. ]|[. ]$")


def file_name_problem(name: str) -> str:
    """Why `name` cannot be a file or folder name on every system; "" if it can.

    >>> file_name_problem("gland 2"), file_name_problem("../gland")
    ('', "holds '/'")
    """
    if not name:
        return "is empty"
    wrong = next((one for one in name if one in "/\\" or unicodedata.category(one) in ("Cc", "Cs")), "")
    if wrong:
        return f"holds {wrong!r}"
    if name[0] in ". " or name[-1] in ". ":
        return "begins or ends with a dot or a space"
    if len(name.encode()) > _LONGEST:
        return f"is longer than {_LONGEST} bytes"
    return "is the name of a device" if _DEVICE.fullmatch(name) else ""


def file_name(name: str) -> str:
    """A valid, unique file name for `name`: invalid characters become %XX. For names from data, such as structures;
    invalid names in a recipe are refused by `file_name_problem` instead.

    >>> file_name("Gleason 3/4"), file_name("..")
    ('Gleason 3%2F4', '%2E%2E')
    """
    if _DEVICE.fullmatch(name):
        return f"%{ord(name[0]):02X}{name[1:]}"
    safe = _UNSAFE.sub(lambda found: f"%{ord(found[0]):02X}", name)
    if len(safe.encode("utf-8", "surrogatepass")) <= _LONGEST:
        return safe
    return f"%-{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()}"


def folded(name: str) -> str:
    """A key that is the same for names which file systems without case or Unicode forms do not distinguish.

    >>> folded("Caf\N{LATIN SMALL LETTER E WITH ACUTE}") == folded("CAFE\N{COMBINING ACUTE ACCENT}")
    True
    """
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def nearest(name: str, known: Collection[str]) -> str:
    """A hint: "did you mean x?", or the known names if none is close.

    >>> nearest("pcgrd", ["linear", "pcgrad"])
    "did you mean 'pcgrad'?"
    >>> nearest("x", ["linear", "pcgrad"])
    'known: linear, pcgrad.'
    >>> nearest("roi", ["ROI", "Tumor"])
    "did you mean 'ROI'?"
    """
    names = list(map(str, known))
    close = [one for one in names if folded(one) == folded(str(name))]
    close = close or difflib.get_close_matches(str(name), names, n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(map(repr, close))}?"
    rest = len(names) - _MOST_LISTED
    shown = ", ".join(map(printable, names[:_MOST_LISTED]))
    return f"known: {shown}{f' and {rest} more' if rest > 0 else ''}."


def option_names(make: Callable[..., object]) -> tuple[list[str], bool]:
    """The keywords that `make` accepts, and whether it accepts any others.

    If a constructor has **options, the keywords of its base class count too.

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
    make: Callable[..., object], options: Iterable[str], what: str, given: Collection[str] = ("self",)
) -> None:
    """Raise ValueError for the first of `options` that `make` has no parameter for.

    Args:
        make: a function or class.
        options: names to check.
        what: its name in the message, for example "balancer 'pcgrad'".
        given: parameters that are passed otherwise.
    """
    names, others = option_names(make)
    known = [name for name in names if name not in given]
    for option in options:
        if option in given or not (others or option in known):
            raise ValueError(f"{what} has no option {option!r}; {nearest(option, known)}")
