"""Micrometres per pixel: read from a file's numbers, units and words, and checked for plausibility."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple
from xml.etree import ElementTree

if TYPE_CHECKING:
    from tifffile import TiffPage

PLAUSIBLE_MPP = (0.05, 40.0)
"""Micrometres per pixel of level 0, from oil immersion at 100x and a small camera pixel to a macro picture."""

_MPP_TIMES_MAGNIFICATION = 10.0  # 0.25 at 40x, 0.5 at 20x
_SQUARE = 0.02  # by how much the sides of a pixel may differ
_REMEDY = "pass mpp where they are needed"
_SAYS_NOTHING = f"says nothing about its micrometres per pixel; {_REMEDY}"
_PER_UNIT = {2: 25400.0, 3: 10000.0}  # inch, centimetre; 1 is no unit
_MICROMETRES = {
    "pm": 1e-6, "å": 1e-4, "nm": 1e-3, "μm": 1.0, "um": 1.0, "micron": 1.0, "microns": 1.0, "mm": 1e3, "cm": 1e4,
    "m": 1e6, "in": 25400.0, "inch": 25400.0, "picometer": 1e-6, "angstrom": 1e-4, "nanometer": 1e-3,
    "micrometer": 1.0, "millimeter": 1e3, "centimeter": 1e4, "meter": 1e6,
}  # fmt: skip
_NUMBER = re.compile(r"([-+]?(?:[0-9]+(?:[.,][0-9]*)?|[.,][0-9]+)(?:[eE][-+]?[0-9]+)?)\s*(?:[xX]|[uµμ]m)?")
_X_RESOLUTION, _Y_RESOLUTION = 282, 283


class Scale(NamedTuple):
    """The scale of level 0.

    Attributes:
        mpp: micrometres per pixel along x and y; None where it is unknown or implausible.
        source: see `Layout.mpp_source`.
        why_no_mpp: see `Layout.why_no_mpp`.
        magnification: of the objective.
        problems: other oddities, in words.
    """

    mpp: tuple[float, float] | None = None
    source: str = ""
    why_no_mpp: str = _SAYS_NOTHING
    magnification: float | None = None
    problems: tuple[str, ...] = ()

    @property
    def said(self) -> tuple[str, ...]:
        """All oddities, in words."""
        return (*self.problems, self.why_no_mpp) if self.why_no_mpp else self.problems


def number(text: str) -> float | None:
    """A number with a decimal point or comma, as programs write it on a German or French Windows; None if it is not a
    number, or ambiguous because its digits are grouped ("1.000,5").

    >>> number("0,2520"), number("40x"), number("1.000,5")
    (0.252, 40.0, None)
    """
    found = _NUMBER.fullmatch(text.strip())
    return float(found.group(1).replace(",", ".")) if found else None


def believed(mpp: tuple[float, float] | None, source: str, said: str, magnification: float | None = None) -> Scale:
    """The scale from the source `said` (in words), without its mpp if that is implausible."""
    if mpp is None:
        return Scale(magnification=magnification)
    low, high = PLAUSIBLE_MPP
    if not all(math.isfinite(value) and low <= value <= high for value in mpp):
        why = f"{mpp[0]:.6g} x {mpp[1]:.6g} micrometres per pixel, outside {low:g} to {high:g}: not believed"
        return Scale(None, "", f"{said} give {why}; {_REMEDY}", magnification)
    problems = []
    if abs(math.log(mpp[0] / mpp[1])) > _SQUARE:
        problems.append(f"its pixels are not square: {mpp[0]:.4g} x {mpp[1]:.4g} micrometres")
    if magnification and not 0.5 < mpp[0] * magnification / _MPP_TIMES_MAGNIFICATION < 2:
        problems.append(f"{mpp[0]:.4g} micrometres per pixel do not fit a magnification of {magnification:g}")
    return Scale(mpp, source, "", magnification, tuple(problems))


def aperio_scale(description: str) -> Scale:
    """The scale from MPP and AppMag in the first page's description."""
    texts = {key: found.group(1).strip() for key in ("MPP", "AppMag") if (found := _entry(key).search(description))}
    values = {key: number(text) for key, text in texts.items()}
    odd = tuple(_no_number(f"the description's {key}", texts[key]) for key, value in values.items() if value is None)
    mpp = values.get("MPP")
    both = (mpp, mpp) if mpp is not None else None
    return _with(believed(both, "description", "the description's MPP", values.get("AppMag")), odd)


def ome_scale(xml: str, image: int, size: tuple[int, int]) -> Scale:
    """The scale from PhysicalSizeX and Y of an OME image: the one with this number, or the first of this size."""
    try:
        nodes = [node for node in ElementTree.fromstring(xml).iter() if node.tag.rpartition("}")[2] == "Pixels"]
    except ElementTree.ParseError:
        return Scale()
    fitting = [node for node in nodes if (node.get("SizeX"), node.get("SizeY")) == (str(size[0]), str(size[1]))]
    if not fitting:
        return Scale()
    node = nodes[image] if image < len(nodes) and nodes[image] in fitting else fitting[0]
    sizes, odd = [], []
    for axis in "XY":
        key = f"PhysicalSize{axis}"
        text, unit = node.get(key), node.get(f"{key}Unit", "µm")
        if text is None:
            return Scale()
        value, factor = number(text), micrometres(unit)
        if value is None:
            odd.append(_no_number(f"OME's {key}", text))
        elif factor is None:
            odd.append(f"OME's {key} is in {unit!r}, which is no length")
        else:
            sizes.append(value * factor)
    if odd:
        return _with(Scale(), tuple(odd))
    return believed((sizes[0], sizes[1]), "OME", "OME's PhysicalSize")


def tag_scale(page: TiffPage, unit: str = "") -> Scale:
    """The scale from the resolution tags, in their own unit or ImageJ's `unit`."""
    if _X_RESOLUTION not in page.tags or _Y_RESOLUTION not in page.tags:
        return Scale()
    x, y = page.resolution
    per_unit = _PER_UNIT.get(int(page.resolutionunit))
    source, said = "resolution tags", "the resolution tags"
    if (factor := micrometres(unit)) is not None:
        per_unit, source, said = factor, "ImageJ", "ImageJ's unit and the resolution tags"
    if per_unit is None:
        without = f"its resolution tags, {x:g} x {y:g}, have no unit; {_REMEDY}"
        return Scale() if (x, y) == (1, 1) else Scale(why_no_mpp=without)
    if not (x > 0 and y > 0):
        return Scale(why_no_mpp=f"resolution {x} x {y} is no resolution; {_REMEDY}")
    return believed((per_unit / x, per_unit / y), source, said)


def first_of(scales: Sequence[Scale]) -> Scale:
    """The first scale with an mpp, else the first with a reason for lacking one; earlier problems are kept."""
    chosen = next((scale for scale in scales if scale.mpp), None)
    chosen = chosen or next((scale for scale in scales if scale.why_no_mpp != _SAYS_NOTHING), scales[0])
    before = [problem for scale in scales[: scales.index(chosen)] for problem in scale.problems]
    return _with(chosen, tuple(before))


def _with(scale: Scale, problems: tuple[str, ...]) -> Scale:
    return scale._replace(problems=(*problems, *scale.problems))


def _entry(key: str) -> re.Pattern[str]:
    return re.compile(rf"\|\s*{key}\s*=([^|;\r\n]*)")


def _no_number(what: str, text: str) -> str:
    return f"{what} is {text[:40]!r}, which is no number"


def micrometres(unit: str) -> float | None:
    """Micrometres per unit; None if the unit is not a length."""
    # NFKC: the micro sign becomes the letter mu, the Angstrom sign its letter. ImageJ writes the former as an escape.
    plain = unicodedata.normalize("NFKC", unit.strip().replace("\\u00B5", "µ"))
    return _MICROMETRES.get("å" if plain == "Å" else plain)
