"""What a TIFF says about itself in words: who wrote it, its micrometres per pixel, names of the pictures beside it."""

from __future__ import annotations

import math
import re
from typing import Any
from xml.etree import ElementTree

LEFT_TO_OPENSLIDE = {"hamamatsu", "leica", "philips", "trestle", "ventana"}
"""Vendors whose tiles overlap, lie in several places, or are cut and counted as only their format explains."""

PLAUSIBLE_MPP = (0.05, 40.0)
"""Micrometres per pixel of level 0, from oil immersion at 100x and a small camera pixel to a macro picture."""

_MPP_TIMES_MAGNIFICATION = 10.0  # 0.25 at 40x, 0.5 at 20x
_PER_UNIT = {2: 25400.0, 3: 10000.0}  # inch, centimetre; 1 is no unit
_MICROMETRES = {"nm": 1e-3, "µm": 1.0, "μm": 1.0, "um": 1.0, "mm": 1e3, "cm": 1e4, "m": 1e6}
_ASSOCIATED = re.compile(r"^\s*(label|macro|thumbnail)\b", re.IGNORECASE)


def vendor(file: Any) -> str:
    """The writer of a `tifffile.TiffFile`; "generic" where it does not say."""
    if file.is_svs:
        return "aperio"
    flags = {"hamamatsu": file.is_ndpi, "leica": file.is_scn, "philips": file.is_philips, "ventana": file.is_bif}
    for name, found in flags.items():
        if found:
            return name
    software = str(file.pages[0].tags.valueof(305, "")) if len(file.pages) else ""
    if software.startswith("MedScan"):
        return "trestle"
    return "ome" if file.is_ome else "generic"


def associated_name(page: Any, vendor: str) -> str:
    """ "label", "macro" or "thumbnail" where the page's description says so, else ""."""
    words = page.description
    if vendor == "aperio":  # the second line: "label 387x463", "macro 1280x431"
        words = words.partition("\n")[2]
    found = _ASSOCIATED.match(words)
    return found.group(1).lower() if found else ""


def scale(page: Any, file: Any, vendor: str) -> tuple[tuple[float, float] | None, float | None, list[str]]:
    """(mpp along x and y, magnification, what is odd) of level 0; a false mpp becomes None and is said to be."""
    magnification = None
    if vendor == "aperio":
        mpp = _number(page.description, "MPP")
        magnification = _number(page.description, "AppMag")
        return _checked((mpp, mpp) if mpp else None, "the description's MPP", magnification)
    if vendor == "ome" and (mpp := _ome_mpp(file.ome_metadata)):
        return _checked(mpp, "OME's PhysicalSize", None)
    per_unit = _PER_UNIT.get(int(page.resolutionunit))
    x, y = page.resolution
    if not per_unit:
        return _checked(None, "", None)
    if not (x > 0 and y > 0):
        return None, None, [f"resolution {x} x {y} is no resolution; pass mpp"]
    return _checked((per_unit / x, per_unit / y), "the resolution tags", None)


def _checked(
    mpp: tuple[float, float] | None, source: str, magnification: float | None
) -> tuple[tuple[float, float] | None, float | None, list[str]]:
    mpp, problems = check_mpp(mpp, source, magnification)
    return mpp, magnification, problems


def check_mpp(
    mpp: tuple[float, float] | None, source: str, magnification: float | None = None
) -> tuple[tuple[float, float] | None, list[str]]:
    """The mpp if it can be true, else None; what is odd about it."""
    if mpp is None:
        return None, ["says nothing of its micrometres per pixel; pass mpp where they are needed"]
    low, high = PLAUSIBLE_MPP
    if not all(math.isfinite(value) and low <= value <= high for value in mpp):
        return None, [
            f"{source} give {mpp[0]:.6g} x {mpp[1]:.6g} micrometres per pixel, outside {low:g} to {high:g}: "
            "not believed; pass mpp where they are needed"
        ]
    problems = []
    if not 0.9 < mpp[0] / mpp[1] < 1.1:
        problems.append(f"its pixels are not square: {mpp[0]:.4g} x {mpp[1]:.4g} micrometres")
    if magnification and not 0.5 < mpp[0] * magnification / _MPP_TIMES_MAGNIFICATION < 2:
        problems.append(f"{mpp[0]:.4g} micrometres per pixel do not fit a magnification of {magnification:g}")
    return mpp, problems


def _number(words: str, key: str) -> float | None:
    found = re.search(rf"\|\s*{key}\s*=\s*([-+\d.eE]+)", words)
    try:
        return float(found.group(1)) if found else None
    except ValueError:
        return None


def _ome_mpp(xml: str | None) -> tuple[float, float] | None:
    """PhysicalSizeX and Y of the first image."""
    try:
        pixels = next(node for node in ElementTree.fromstring(xml or "").iter() if node.tag.endswith("}Pixels"))
    except (ElementTree.ParseError, StopIteration):
        return None
    sizes = []
    for axis in "XY":
        value, unit = pixels.get(f"PhysicalSize{axis}"), pixels.get(f"PhysicalSize{axis}Unit", "µm")
        if value is None or unit not in _MICROMETRES:
            return None
        sizes.append(float(value) * _MICROMETRES[unit])
    return sizes[0], sizes[1]
